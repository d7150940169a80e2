// SPDX-License-Identifier: GPL-2.0

//! Groups of fields that L1 marks as clean: an entry must read those that are not.

use anyhow::{ensure, Result};
use selftests::guest::layout::{BUFFER, MSR_MAP, VMCS};
use selftests::guest::vmx::control::{entry, primary, reason, secondary};
use selftests::guest::vmx::field::segment;
use selftests::guest::vmx::script::{rdmsr, Answer};
use selftests::guest::vmx::{field, VmxMachine};
use selftests::tap::{self, Point};
use selftests::{expect, guest_code};

use crate::evmcs::{Evmcs, CLEAN, ENLIGHTENMENTS, MSR_BITMAP_IS_ENLIGHTENED};
use crate::{fields, launch, resume, Fixture, VERSION};

guest_code! {
    /// L2: calls user space, and then L1.
    enlightened_test_asks: "out 0x80, al", "vmcall", "ud2";
    /// L2: reads an MSR, and calls L1.
    enlightened_test_rdmsr: "rdmsr", "vmcall", "ud2";
    /// L2: reads the limit of GDTR, and calls L1.
    enlightened_test_sgdt: "sgdt [rax]", "vmcall", "ud2";
    /// L2: reads the time, and calls L1.
    enlightened_test_rdtsc: "rdtsc", "vmcall", "ud2";
    /// L2: has an exception, and calls L1.
    enlightened_test_ud2: "ud2", "vmcall";
    /// L2: reads CR0, and calls L1.
    enlightened_test_cr0: "mov rbx, cr0", "vmcall", "ud2";
    /// L2: reads RSP, and calls L1.
    enlightened_test_rsp: "mov rbx, rsp", "vmcall", "ud2";
    /// L2: calls L1.
    enlightened_test_call: "vmcall", "ud2";
    /// L2: goes on here after an exception.
    enlightened_test_recovery: "vmcall", "ud2";
}

/// A group of fields.
struct Group {
    name: &'static str,
    bit: u32,
    /// What L2 executes.
    code: unsafe extern "C" fn(),
    /// The change.
    change: fn(Evmcs<'_>),
    /// Whether the last entry has read it.
    read: fn(&mut VmxMachine, Answer) -> Result<bool>,
}

/// The MSR that L2 reads: SYSENTER_CS.
const SYSENTER_CS: u64 = 0x174;

/// GS_BASE.
const GS_BASE: u64 = 0xc000_0101;

/// A page of which all bits are set.
const ONES: u64 = BUFFER + 0x2000;

fn exited_by(machine: &VmxMachine, wanted: u64) -> Result<bool> {
    Ok(Evmcs::at(machine.memory(), VMCS).get(field::EXIT_REASON) == wanted)
}

fn l1_has(machine: &mut VmxMachine, index: u64, value: u64) -> Result<bool> {
    Ok(machine.answer(rdmsr(index))? == Answer::Done(value))
}

/// All groups but that of the enlightenments.
const GROUPS: [Group; 15] = [
    Group {
        name: "the I/O bitmaps",
        bit: 0,
        code: enlightened_test_asks,
        change: |evmcs| evmcs.put(field::IO_BITMAP_A, ONES),
        read: |machine, _| exited_by(machine, reason::IO),
    },
    Group {
        name: "the MSR bitmap",
        bit: 1,
        code: enlightened_test_rdmsr,
        change: |evmcs| evmcs.put(field::MSR_BITMAP, ONES),
        read: |machine, _| exited_by(machine, reason::RDMSR),
    },
    Group {
        name: "the second group of controls",
        bit: 2,
        code: enlightened_test_rdtsc,
        change: |evmcs| evmcs.put(field::TSC_OFFSET, 1 << 60),
        read: |machine, _| Ok(machine.register(2) >= 1 << 28),
    },
    Group {
        name: "the first group of controls",
        bit: 3,
        code: enlightened_test_sgdt,
        change: |evmcs| evmcs.set(field::SECONDARY, secondary::DESCRIPTOR_TABLE),
        read: |machine, _| exited_by(machine, reason::GDTR_IDTR),
    },
    Group {
        name: "the primary controls",
        bit: 4,
        code: enlightened_test_rdtsc,
        change: |evmcs| evmcs.set(field::PRIMARY, primary::RDTSC),
        read: |machine, _| exited_by(machine, reason::RDTSC),
    },
    Group {
        name: "the event",
        bit: 5,
        code: enlightened_test_call,
        change: |evmcs| evmcs.put(field::ENTRY_EVENT, 1 << 31 | 3 << 8 | 6),
        read: |machine, _| Ok(machine.l2_exceptions().0 == 1),
    },
    Group {
        name: "the entry controls",
        bit: 6,
        code: enlightened_test_call,
        change: |evmcs| evmcs.set(field::ENTRY, entry::SMM),
        read: |_, answer| Ok(answer == Answer::Valid(7)),
    },
    Group {
        name: "the exceptions",
        bit: 7,
        code: enlightened_test_ud2,
        change: |evmcs| evmcs.put(field::EXCEPTION_BITMAP, 1 << 6),
        read: |machine, _| exited_by(machine, reason::EXCEPTION),
    },
    Group {
        name: "the control registers",
        bit: 8,
        code: enlightened_test_cr0,
        change: |evmcs| {
            evmcs.put(field::CR0_MASK, 8);
            evmcs.put(field::CR0_SHADOW, 8);
        },
        read: |machine, _| Ok(machine.register(0) & 8 != 0),
    },
    Group {
        name: "what is about translations",
        bit: 9,
        code: enlightened_test_call,
        change: |evmcs| evmcs.set(field::EPTP, 1 << 11),
        read: |_, answer| Ok(answer == Answer::Valid(7)),
    },
    Group {
        name: "L2's basic state",
        bit: 10,
        code: enlightened_test_rsp,
        change: |evmcs| {
            let rsp = evmcs.get(field::GUEST_RSP);
            evmcs.put(field::GUEST_RSP, rsp & !0xfff | 0x800);
        },
        read: |machine, _| Ok(machine.register(0) & 0xfff == 0x800),
    },
    Group {
        name: "the first group of L2's state",
        bit: 11,
        code: enlightened_test_rdmsr,
        change: |evmcs| evmcs.put(field::GUEST_SYSENTER_CS, 0x4321),
        read: |machine, _| Ok(machine.register(crate::RAX) == 0x4321),
    },
    Group {
        name: "the second group of L2's state",
        bit: 12,
        code: enlightened_test_sgdt,
        change: |evmcs| evmcs.put(field::GUEST_LIMIT + segment::GDTR, 0x7fff),
        read: |machine, _| Ok(machine.memory().read::<u16>(BUFFER + 0x800) == 0x7fff),
    },
    Group {
        name: "L1's pointers",
        bit: 13,
        code: enlightened_test_call,
        change: |evmcs| evmcs.put(field::HOST_BASE + 2, 0x5555),
        read: |machine, _| l1_has(machine, GS_BASE, 0x5555),
    },
    Group {
        name: "the rest of L1's state",
        bit: 14,
        code: enlightened_test_call,
        change: |evmcs| evmcs.put(field::HOST_SYSENTER_CS, 0x66),
        read: |machine, _| l1_has(machine, SYSENTER_CS, 0x66),
    },
];

/// Where the marks are of all groups.
const ALL: u32 = 0xffff;

/// Creates a machine whose L2 has run once with what is in the VMCS.
fn ready(fixture: &Fixture, group: &Group) -> Result<VmxMachine> {
    let mut machine = fixture.machine()?;
    let fields = fields(&machine, group.code)?;
    let memory = machine.memory();
    memory.fill(ONES, 0x1000, u64::MAX);
    memory.fill(BUFFER + 0x800, 0x10, 0);
    Evmcs::at(memory, VMCS).write(VERSION, &fields);
    machine.recover_l2(enlightened_test_recovery as *const () as u64);
    set_registers(&machine);
    let ran = launch(&mut machine)?;
    expect("VMLAUNCH", ran.answer, Answer::Done(0))?;
    let before = (group.read)(&mut machine, ran.answer)?;
    ensure!(!before, "it is like that before the change");
    begin_again(&machine, group);
    Ok(machine)
}

fn set_registers(machine: &VmxMachine) {
    machine.set_register(crate::RAX, BUFFER + 0x800);
    machine.set_register(0, 0);
    machine.set_register(2, 0);
    machine.set_register(1, SYSENTER_CS);
}

/// Lets L2 do the same again; its RIP is in no group.
fn begin_again(machine: &VmxMachine, group: &Group) {
    set_registers(machine);
    machine.recover_l2(enlightened_test_recovery as *const () as u64);
    let evmcs = Evmcs::at(machine.memory(), VMCS);
    evmcs.put(field::GUEST_RIP, group.code as *const () as u64);
}

/// Enters L2 after the change, with some groups marked as clean; returns whether it was read.
fn changed(fixture: &Fixture, group: &Group, clean: u32) -> Result<bool> {
    let mut machine = ready(fixture, group)?;
    let evmcs = Evmcs::at(machine.memory(), VMCS);
    (group.change)(evmcs);
    evmcs.put_word(CLEAN, clean);
    let ran = resume(&mut machine)?;
    (group.read)(&mut machine, ran.answer)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a group that is not marked as clean is read", |fixture| {
            for group in &GROUPS {
                let read = changed(fixture, group, ALL & !(1 << group.bit))?;
                ensure!(read, "{} are not read", group.name);
            }
            Ok(())
        }),
        Point::new("without marks, all groups are read", |fixture| {
            for group in &GROUPS {
                ensure!(changed(fixture, group, 0)?, "{} are not read", group.name);
            }
            Ok(())
        }),
        Point::new("groups that are marked as clean may be read", |fixture| {
            for group in &GROUPS {
                let read = changed(fixture, group, ALL)?;
                tap::same(format_args!("{} are read", group.name), read);
            }
            Ok(())
        }),
        Point::new("VMLAUNCH reads all groups", |fixture| {
            for group in &GROUPS {
                let mut machine = ready(fixture, group)?;
                let evmcs = Evmcs::at(machine.memory(), VMCS);
                (group.change)(evmcs);
                evmcs.put_word(CLEAN, ALL);
                let ran = launch(&mut machine)?;
                let read = (group.read)(&mut machine, ran.answer)?;
                ensure!(read, "{} are not read", group.name);
            }
            Ok(())
        }),
        Point::new(
            "an enlightened MSR bitmap that is not marked as clean is read",
            |fixture| expect("whether it is read", bitmap(fixture, ALL & !2)?, true),
        ),
        Point::new(
            "an enlightened MSR bitmap that is marked as clean may be read",
            |fixture| {
                let read = bitmap(fixture, ALL)?;
                tap::same("the MSR bitmap's content is read", read);
                Ok(())
            },
        ),
    ]
}

/// Changes what is in the MSR bitmap after an entry; returns whether the next one reads it.
fn bitmap(fixture: &Fixture, clean: u32) -> Result<bool> {
    let group = &GROUPS[1];
    let mut machine = ready(fixture, group)?;
    let evmcs = Evmcs::at(machine.memory(), VMCS);
    evmcs.put_word(ENLIGHTENMENTS, MSR_BITMAP_IS_ENLIGHTENED);
    evmcs.put_word(CLEAN, 0);
    let ran = resume(&mut machine)?;
    expect("VMRESUME", ran.answer, Answer::Done(0))?;
    ensure!(!exited_by(&machine, reason::RDMSR)?, "RDMSR exits");
    begin_again(&machine, group);
    machine.memory().fill(MSR_MAP, 0x1000, u64::MAX);
    let evmcs = Evmcs::at(machine.memory(), VMCS);
    ensure!(
        evmcs.word(CLEAN) == ALL,
        "the entry has marked {:#x} as clean",
        evmcs.word(CLEAN)
    );
    evmcs.put_word(CLEAN, clean);
    resume(&mut machine)?;
    exited_by(&machine, reason::RDMSR)
}
