// SPDX-License-Identifier: GPL-2.0

//! Near-valid states of a VMCS: what is printed must be what the processor itself says, which the
//! program `bare` prints.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use argh::FromArgs;
use kvm_ioctls::Kvm;
use selftests::guest::code::{peek, report, DONE};
use selftests::guest::layout::{BUFFER, GDT, IDT, SHARED, TSS, VIRTUAL_APIC, VMCS, VMXON_REGION};
use selftests::guest::machine::{self, heard, run, Interrupts, Stop};
use selftests::guest::vmx::code::vmxon;
use selftests::guest::vmx::near_valid::{self, Environment};
use selftests::guest::vmx::{field, Capabilities};
use selftests::guest::{signal, Machine, Vendor};
use selftests::tap::{self, Point};
use selftests::vm;

/// The first number, how many, and the seed.
const WANTED: [u64; 3] = [SHARED, SHARED + 8, SHARED + 16];

/// Where the address of the region of VMXON is.
const REGION: u64 = SHARED + 24;

/// Where the environment is.
const ENVIRONMENT: u64 = SHARED + 0x40;

/// Where the letters go.
const LETTERS: u64 = BUFFER;

/// The most states at once: so many letters have room.
const ROOM: u64 = 0x8000;

/// States in a line.
const LINE: usize = 64;

/// L1: does what `bare` does.
extern "C" fn l1() -> ! {
    // SAFETY: This is L1, which finds an environment there.
    unsafe {
        vmxon(REGION);
        loop {
            let environment = &*(ENVIRONMENT as *const Environment);
            let [first, count, seed] = WANTED.map(|word| peek(word));
            near_valid::run(environment, seed, first, count, LETTERS);
            report(DONE, 0, 0);
        }
    }
}

struct Fixture {
    kvm: Kvm,
    states: u64,
    seed: u64,
}

fn environment(machine: &Machine, kvm: &Kvm) -> Result<Environment> {
    let capabilities = Capabilities::read(kvm)?;
    let cpuid = vm::cpuid(kvm)?;
    let mut entries = cpuid.as_slice().iter();
    let width = entries.find(|entry| entry.function == 0x8000_0008);
    let width = width.context("there is no address width")?.eax & 0xff;
    machine.memory.write(VMCS, capabilities.revision());
    machine.memory.write(VMXON_REGION, capabilities.revision());
    Ok(Environment {
        required: [
            field::PIN,
            field::PRIMARY,
            field::SECONDARY,
            field::EXIT,
            field::ENTRY,
        ]
        .map(|word| capabilities.required(word)),
        end: 1 << width,
        page: VIRTUAL_APIC,
        vmcs: VMCS,
        cr0: machine.tables.cr0,
        cr3: machine.tables.root,
        cr4: machine.tables.cr4,
        efer: machine.tables.efer,
        bases: [TSS, GDT, IDT],
    })
}

fn states(fixture: &Fixture) -> Result<()> {
    ensure!(fixture.states <= ROOM, "at most {ROOM} states");
    let mut machine = Machine::new(&fixture.kvm, 1, Interrupts::None)?;
    machine.start(0, l1)?;
    let environment = environment(&machine, &fixture.kvm)?;
    let memory = machine.memory.clone();
    memory.write(REGION, VMXON_REGION);
    // SAFETY: The structure consists of words.
    let words = unsafe {
        std::slice::from_raw_parts(
            (&raw const environment).cast::<u64>(),
            size_of::<Environment>() / 8,
        )
    };
    for (address, word) in (ENVIRONMENT..).step_by(8).zip(words) {
        memory.write(address, *word);
    }
    for (address, value) in WANTED.into_iter().zip([0, fixture.states, fixture.seed]) {
        memory.write(address, value);
    }
    signal::after(Duration::from_secs(120))?;
    match run(&mut machine.vcpus[0]) {
        Stop::Said(message) => heard(message)?,
        other => bail!("the guest stopped: expected a report, saw {other:?}"),
    };
    signal::after(Duration::ZERO)?;
    let letters: String = (0..fixture.states)
        .map(|number| char::from(memory.read::<u8>(LETTERS + number)))
        .collect();
    for (start, line) in (0..).step_by(LINE).zip(letters.as_bytes().chunks(LINE)) {
        tap::same(
            format_args!("states from {start}"),
            String::from_utf8_lossy(line),
        );
    }
    let count = |letter| letters.chars().filter(|other| *other == letter).count();
    let counts = ['.', '7', '8', 'a'].map(count);
    let [entered, controls, host, guest] = counts;
    tap::note(format_args!(
        "{entered} are entered; {controls}, {host} and {guest} fail by controls, L1 and L2"
    ));
    ensure!(
        counts.iter().all(|count| count * 50 > letters.len()),
        "one kind is rare"
    );
    Ok(())
}

/// Enters near-valid states.
#[derive(FromArgs)]
struct Arguments {
    /// how many states are entered
    #[argh(option, default = "2048")]
    states: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let fixture = Fixture {
        kvm,
        states: arguments.states,
        seed: arguments.seed,
    };
    let point = Point::new("near-valid states are entered, or fail", states);
    tap::run(&[point], &fixture, |_| Ok(()))
}
