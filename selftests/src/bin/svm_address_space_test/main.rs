// SPDX-License-Identifier: GPL-2.0

//! Address spaces: L2 sees L1's nested page tables as they were at the last flush, or later.

mod guests;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use argh::FromArgs;
use selftests::guest::code::DONE;
use selftests::guest::layout::{BUFFER, RAM, VMCB};
use selftests::guest::machine::{self, heard, run, Interrupts, Stop};
use selftests::guest::{signal, vmcb, GuestMemory, Machine, Random, Vendor};
use selftests::tap::{self, Point};

use guests::{address_space_test_l2, first, second, word, PAGES, STEP};

/// The pages that L2 reads, one for each processor.
const READ: u64 = 0x1f_0000;

/// What can be mapped there: pages of both tables of a processor in turn.
const MAPPED: u64 = 0x20_0000;

/// The second nested page table, as far as it differs from the first one.
const SECOND_TABLE: u64 = 0x3f_0000;

const _: () = assert!(MAPPED + 2 * 2 * PAGES * 0x1000 <= SECOND_TABLE && SECOND_TABLE < RAM);

/// What the tests need.
struct Fixture {
    kvm: kvm_ioctls::Kvm,
    runs: u64,
    seed: u64,
}

/// Returns where the entry for `address` is, in the table at `root` and those below it.
fn entries(memory: &GuestMemory, root: u64, address: u64) -> [u64; 4] {
    let mut table = root;
    [4, 3, 2, 1].map(|level| {
        let entry = table + 8 * (address >> (3 + 9 * level) & 0x1ff);
        table = memory.read::<u64>(entry) & 0x000f_ffff_ffff_f000;
        entry
    })
}

/// Makes a nested page table of which all but the way to [`READ`] is that of `root`.
fn second_table(memory: &GuestMemory, root: u64) -> u64 {
    let way = entries(memory, root, READ);
    for (table, entry) in (SECOND_TABLE..).step_by(0x1000).zip(way) {
        for offset in (0..0x1000).step_by(8) {
            let word = memory.read::<u64>((entry & !0xfff) + offset);
            memory.write(table + offset, word);
        }
    }
    for (table, entry) in (SECOND_TABLE..).step_by(0x1000).zip(&way[..3]) {
        memory.write(table + (entry & 0xfff), (table + 0x1000) | 0x67);
    }
    SECOND_TABLE
}

/// Creates a machine with `processors`, each of which runs L2s; `mark` is in what they read.
fn machine(fixture: &Fixture, processors: u64, mark: u64) -> Result<Machine> {
    let machine = Machine::new(&fixture.kvm, processors, Interrupts::None)?;
    let memory = machine.memory.clone();
    let l2 = address_space_test_l2 as *const () as u64;
    vmcb::write(&memory, &machine.tables, l2);
    let roots = [
        machine.tables.nested,
        second_table(&memory, machine.tables.nested),
    ];

    for processor in 0..processors {
        let own = BUFFER + processor * STEP;
        let page = READ + processor * 0x1000;
        let pages = MAPPED + processor * 2 * PAGES * 0x1000;
        let mark = 2 * mark + processor;
        memory.fill(own, 0x1000, 0);
        memory.write(own + word::SEED, fixture.seed + mark * 0x1_0000_0001);
        memory.write(own + word::RUNS, fixture.runs);
        memory.write(own + word::PAGE, page);
        memory.write(own + word::PAGES, pages);
        memory.write(own + word::MARK, mark);
        for (table, root) in (0..).zip(roots) {
            let entry = entries(&memory, root, page)[3];
            memory.write(own + word::ROOTS + 8 * table, root);
            memory.write(own + word::ENTRIES + 8 * table, entry);
            memory.write(entry, (pages + table * 0x1000) | 0x67);
            for number in 0..PAGES {
                let content = (mark << 1 | table) << 16 | number;
                memory.write(pages + (2 * number + table) * 0x1000, content);
            }
        }
        if processor > 0 {
            for offset in (0..0x1000).step_by(8) {
                let word = memory.read::<u64>(VMCB + offset);
                memory.write(VMCB + processor * STEP + offset, word);
            }
        }
        machine.start(
            usize::try_from(processor)?,
            [first, second][usize::try_from(processor)?],
        )?;
    }
    Ok(machine)
}

/// Runs a processor to the end of its program; `disturb` is called whenever it was interrupted.
fn finish(vcpu: &mut kvm_ioctls::VcpuFd, mut disturb: impl FnMut() -> Result<()>) -> Result<()> {
    loop {
        match run(vcpu) {
            Stop::Said(message) if heard(message)?.kind == DONE => return Ok(()),
            Stop::Interrupted => disturb()?,
            other => bail!("the guest stopped: {other:?}"),
        }
    }
}

fn alone(fixture: &Fixture) -> Result<()> {
    let mut machine = machine(fixture, 1, 0)?;
    finish(&mut machine.vcpus[0], || Ok(()))
}

/// L0 moves the memory of the machine while it runs, which ends all translations.
fn moved(fixture: &Fixture) -> Result<()> {
    let mut machine = machine(fixture, 1, 0)?;
    let memory = machine.memory.clone();
    let mut random = Random::new(fixture.seed);
    // Time enough for the pages to be mapped again, even where that is slow.
    let mut interrupt = move || signal::after(Duration::from_millis(30 + random.below(70)));
    interrupt()?;
    let result = finish(&mut machine.vcpus[0], || {
        memory.ram.replace()?;
        interrupt()
    });
    signal::after(Duration::ZERO)?;
    result
}

/// Runs all processors of the machines at the same time.
fn together(mut machines: Vec<Machine>) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = machines
            .iter_mut()
            .flat_map(|machine| &mut machine.vcpus)
            .map(|vcpu| scope.spawn(|| finish(vcpu, || Ok(()))))
            .collect();
        for thread in threads {
            thread.join().ok().context("a thread panicked")??;
        }
        Ok(())
    })
}

fn two_processors(fixture: &Fixture) -> Result<()> {
    together(vec![machine(fixture, 2, 0)?])
}

fn two_machines(fixture: &Fixture) -> Result<()> {
    together(vec![machine(fixture, 1, 0)?, machine(fixture, 1, 1)?])
}

/// Changes the tables of L2s with several address spaces.
#[derive(FromArgs)]
struct Arguments {
    /// how often L2 runs in each point
    #[argh(option, default = "5000")]
    runs: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let kvm = match machine::open(Vendor::Svm) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let fixture = Fixture {
        kvm,
        runs: arguments.runs,
        seed: arguments.seed,
    };
    let points = [
        Point::new("L2 sees its tables as of the last flush", alone),
        Point::new("L2 sees them while L0 moves the memory", moved),
        Point::new("two processors change the same tables", two_processors),
        Point::new("two L1s run side by side", two_machines),
    ];
    tap::run(&points, &fixture, |_| Ok(()))
}
