// SPDX-License-Identifier: GPL-2.0

//! Enlightened VMCSs: which of their fields an entry reads, and what else is special with them.
//!
//! Which changes an entry may overlook is not defined: what it does is printed, and must be the same
//! with all providers.

mod clean;
mod evmcs;

use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_cpuid_entry2, kvm_enable_cap, CpuId, KVM_CAP_HYPERV_ENLIGHTENED_VMCS};
use kvm_ioctls::Kvm;
use selftests::guest::layout::{BUFFER, MSR_MAP, NOWHERE, SHADOW_VMCS, VIRTUAL_APIC, VMCS};
use selftests::guest::machine::{self, set_msr, Interrupts, Stop};
use selftests::guest::state::Nested;
use selftests::guest::vmx::control::{primary, reason};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::script::{vmlaunch, vmptrst, vmresume, Answer};
use selftests::guest::vmx::{field, Fields, VmxMachine};
use selftests::guest::{signal, Machine, Vendor};
use selftests::tap::{self, Point};
use selftests::{expect, guest_code, vm};

use evmcs::Evmcs;

guest_code! {
    /// L2: calls L1 again and again.
    enlightened_test_l2: "vmcall", "vmcall", "vmcall", "ud2";
}

/// The page by which the processor is told of its VMCS.
const ASSIST: u64 = VIRTUAL_APIC;

/// In that page: whether there is an enlightened VMCS, and where.
const ASSIST_ENABLED: u64 = ASSIST + 40;
const ASSIST_VMCS: u64 = ASSIST + 48;

/// The MSR with the address of that page.
const MSR_ASSIST: u32 = 0x4000_0073;

/// The MSR that says which system uses the interface.
const MSR_GUEST_OS: u32 = 0x4000_0000;

/// The version of enlightened VMCSs.
const VERSION: u32 = 1;

/// Another enlightened VMCS.
const OTHER: u64 = SHADOW_VMCS;

struct Fixture {
    kvm: Kvm,
}

/// Returns the CPUID of a processor with the interface of Hyper-V.
fn cpuid(kvm: &Kvm) -> Result<CpuId> {
    const LEAVES: [(u32, [u32; 4]); 5] = [
        (
            0x4000_0000,
            [0x4000_000a, 0x7263_694d, 0x666f_736f, 0x7648_2074],
        ),
        (0x4000_0001, [0x3123_7648, 0, 0, 0]),
        (0x4000_0003, [1 << 5 | 1 << 6 | 1 << 4, 0, 0, 0]),
        (0x4000_0004, [1 << 14, 0, 0, 0]),
        // Version 1 at least and at most, and the MSR bitmap.
        (0x4000_000a, [0x0101 | 1 << 19, 0, 0, 0]),
    ];

    let supported = vm::cpuid(kvm)?;
    let own = |entry: &&kvm_cpuid_entry2| entry.function >> 8 == 0x40_0000;
    let entries = supported.as_slice().iter();
    let mut entries: Vec<kvm_cpuid_entry2> = entries.filter(|entry| !own(entry)).copied().collect();
    entries.extend(
        LEAVES.map(|(function, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }),
    );
    Ok(CpuId::from_entries(&entries)?)
}

impl Fixture {
    /// Creates a machine whose L1 uses an enlightened VMCS, in VMX operation.
    fn machine(&self) -> Result<VmxMachine> {
        let machine = Machine::like(&self.kvm, &cpuid(&self.kvm)?, Interrupts::LocalApic)?;
        let vcpu = &machine.vcpus[0];
        let mut version = 0u16;
        let mut enable = kvm_enable_cap {
            cap: KVM_CAP_HYPERV_ENLIGHTENED_VMCS,
            ..Default::default()
        };
        enable.args[0] = &raw mut version as u64;
        vcpu.enable_cap(&enable)
            .context("KVM_CAP_HYPERV_ENLIGHTENED_VMCS")?;
        expect("versions of enlightened VMCSs", version, 0x0101)?;
        set_msr(vcpu, MSR_GUEST_OS, 1)?;
        set_msr(vcpu, MSR_ASSIST, ASSIST | 1)?;
        machine.memory.write(ASSIST_ENABLED, 1u64);
        machine.memory.write(ASSIST_VMCS, VMCS);
        let mut machine = VmxMachine::with(&self.kvm, machine, Interrupts::LocalApic)?;
        machine.vmxon()?;
        Ok(machine)
    }
}

/// Returns the fields with which L2 starts.
fn fields(machine: &VmxMachine, code: unsafe extern "C" fn()) -> Result<Fields> {
    let mut fields = machine.fields(code as *const () as u64)?;
    for (field, value) in [
        (field::IO_BITMAP_A, BUFFER),
        (field::IO_BITMAP_A + 2, BUFFER),
        (field::MSR_BITMAP, MSR_MAP),
    ] {
        fields.put(field, value);
    }
    let used = primary::IO_BITMAPS | primary::MSR_BITMAPS | primary::TSC_OFFSETTING;
    fields.set(field::PRIMARY, used);
    machine.memory().fill(BUFFER, 0x1000, 0);
    machine.memory().fill(MSR_MAP, 0x1000, 0);
    Ok(fields)
}

/// How an entry ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ran {
    /// How the instruction ended.
    answer: Answer,
    /// What user space saw.
    stops: Vec<Stop>,
}

/// Enters the current enlightened VMCS by VMLAUNCH.
fn launch(machine: &mut VmxMachine) -> Result<Ran> {
    let (answers, stops) = machine.run(&[vmlaunch()])?;
    let answer = *answers.first().context("no answer")?;
    Ok(Ran { answer, stops })
}

/// Enters it again by VMRESUME.
fn resume(machine: &mut VmxMachine) -> Result<Ran> {
    let (answers, stops) = machine.run(&[vmresume()])?;
    let answer = *answers.first().context("no answer")?;
    Ok(Ran { answer, stops })
}

/// Launches L2, which must call L1.
fn launched(machine: &mut VmxMachine) -> Result<()> {
    let ran = launch(machine)?;
    expect("VMLAUNCH", ran.answer, Answer::Done(0))?;
    let evmcs = Evmcs::at(machine.memory(), VMCS);
    expect("reason", evmcs.get(field::EXIT_REASON), reason::VMCALL)
}

fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 runs with an enlightened VMCS", |fixture| {
            let mut machine = fixture.machine()?;
            let fields = fields(&machine, enlightened_test_l2)?;
            Evmcs::at(machine.memory(), VMCS).write(VERSION, &fields);
            launched(&mut machine)?;
            let start = enlightened_test_l2 as *const () as u64;
            let evmcs = Evmcs::at(machine.memory(), VMCS);
            expect("RIP", evmcs.get(field::GUEST_RIP), start)?;
            expect("length", evmcs.get(field::EXIT_LENGTH), 3)?;
            evmcs.put(field::GUEST_RIP, start + 3);
            let ran = resume(&mut machine)?;
            expect("VMRESUME", ran.answer, Answer::Done(0))?;
            let evmcs = Evmcs::at(machine.memory(), VMCS);
            expect("RIP", evmcs.get(field::GUEST_RIP), start + 3)
        }),
        Point::new("VMPTRST stores where an enlightened VMCS is", |fixture| {
            let mut machine = fixture.machine()?;
            let fields = fields(&machine, enlightened_test_l2)?;
            Evmcs::at(machine.memory(), VMCS).write(VERSION, &fields);
            launched(&mut machine)?;
            expect("VMPTRST", machine.answer(vmptrst())?, Answer::Done(VMCS))
        }),
        Point::new(
            "the revision of a VMCS is a version, and no other is",
            |fixture| {
                let mut machine = fixture.machine()?;
                let fields = fields(&machine, enlightened_test_l2)?;
                for (version, expected) in [
                    (machine.capabilities.revision(), Answer::Done(0)),
                    (2, Answer::Invalid),
                    (0, Answer::Invalid),
                ] {
                    // The version is looked at when it is loaded.
                    let address = if version == 2 { OTHER } else { VMCS };
                    machine.memory().write(ASSIST_VMCS, address);
                    if version == 0 {
                        // Another one first.
                        machine.memory().write(ASSIST_VMCS, OTHER);
                        let _ = launch(&mut machine)?;
                        machine.memory().write(ASSIST_VMCS, VMCS);
                    }
                    Evmcs::at(machine.memory(), address).write(version, &fields);
                    let ran = launch(&mut machine)?;
                    expect(format_args!("version {version:#x}"), ran.answer, expected)?;
                }
                Ok(())
            },
        ),
        Point::new(
            "an enlightened VMCS without memory is undefined",
            |fixture| {
                let mut machine = fixture.machine()?;
                machine.memory().write(ASSIST_VMCS, NOWHERE);
                let ran = launch(&mut machine)?;
                expect("VMLAUNCH", ran.answer, Answer::Exception(6, 0))
            },
        ),
        Point::new("the page can say that there is none", |fixture| {
            let mut machine = fixture.machine()?;
            machine.memory().write(ASSIST_ENABLED, 0u64);
            let ran = launch(&mut machine)?;
            expect("VMLAUNCH", ran.answer, Answer::Invalid)
        }),
        Point::new(
            "one that takes the place of another is read whatever is marked as clean",
            switched,
        ),
        Point::new("L2 goes on in a machine to which it is moved", |fixture| {
            let mut machine = fixture.machine()?;
            let fields = fields(&machine, clean::enlightened_test_asks)?;
            Evmcs::at(machine.memory(), VMCS).write(VERSION, &fields);
            machine.at_stop = Some(|machine| {
                let vcpu = &mut machine.machine.vcpus[0];
                signal::complete(vcpu)?;
                let state = Nested::read(vcpu)?;
                ensure!(state.has(ENLIGHTENED), "the state is not enlightened");
                // KVM accepts it where it comes from.
                vcpu.set_nested_state(&state.0)
                    .context("KVM_SET_NESTED_STATE")
            });
            let ran = launch(&mut machine)?;
            expect("VMLAUNCH", ran.answer, Answer::Done(0))?;
            expect("what user space saw", ran.stops.len(), 1)?;
            let evmcs = Evmcs::at(machine.memory(), VMCS);
            expect("reason", evmcs.get(field::EXIT_REASON), reason::VMCALL)
        }),
    ]
}

/// The flag of a nested state with an enlightened VMCS.
const ENLIGHTENED: u16 = 4;

fn switched(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.machine()?;
    let fields = fields(&machine, enlightened_test_l2)?;
    Evmcs::at(machine.memory(), VMCS).write(VERSION, &fields);
    launched(&mut machine)?;
    // All fields differ in what does no harm.
    let mut others = fields.clone();
    others.put(field::GUEST_SYSENTER_CS, 0x77);
    others.put(field::GUEST_RSP, fields.get(field::GUEST_RSP) - 0x100);
    let next = enlightened_test_l2 as *const () as u64 + 3;
    others.put(field::GUEST_RIP, next);
    let other = Evmcs::at(machine.memory(), OTHER);
    other.write(VERSION, &others);
    other.put_word(evmcs::CLEAN, 0xffff);
    machine.memory().write(ASSIST_VMCS, OTHER);
    // There is no launch state: VMRESUME is all that distinguishes it.
    let ran = resume(&mut machine)?;
    match ran.answer {
        Answer::Done(_) => (),
        other => bail!("VMRESUME: {other:x?}"),
    }
    let other = Evmcs::at(machine.memory(), OTHER);
    expect("reason", other.get(field::EXIT_REASON), reason::VMCALL)?;
    expect("RIP", other.get(field::GUEST_RIP), next)?;
    expect(
        "RSP",
        other.get(field::GUEST_RSP),
        others.get(field::GUEST_RSP),
    )?;
    expect("SYSENTER_CS", other.get(field::GUEST_SYSENTER_CS), 0x77)?;
    // And back.
    machine.memory().write(ASSIST_VMCS, VMCS);
    let ran = resume(&mut machine)?;
    expect("VMRESUME", ran.answer, Answer::Done(0))?;
    let first = Evmcs::at(machine.memory(), VMCS);
    expect(
        "RSP",
        first.get(field::GUEST_RSP),
        fields.get(field::GUEST_RSP),
    )?;
    expect("SYSENTER_CS", first.get(field::GUEST_SYSENTER_CS), 0)
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let offered = kvm.check_extension_raw(KVM_CAP_HYPERV_ENLIGHTENED_VMCS.into());
    if offered <= 0 {
        return tap::skip_all("KVM has no enlightened VMCSs");
    }
    let mut all = points();
    all.extend(clean::points());
    tap::run(&all, &Fixture { kvm }, |_| Ok(()))
}
