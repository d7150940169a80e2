// SPDX-License-Identifier: GPL-2.0

//! With AMD's extension, a switch of tasks has an intercept.

use std::arch::asm;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use selftests::expect;
use selftests::guest::code::{report, run_l2, stgi, SAYS};
use selftests::guest::driver::{EXITED, READY};
use selftests::guest::layout::{BUFFER, KERNEL_CODE, KERNEL_DATA, REGISTERS, VMCB};
use selftests::guest::machine::Interrupts;
use selftests::guest::tables::nested_entry;
use selftests::guest::vmcb::{self, exit};
use selftests::guest::{GuestMemory, Machine, Vendor};
use selftests::tap::Point;

use crate::world::{
    self, tss, Processor, Way, BAD_SELECTOR, CALL, CODE, CR0_TS, CR4, DESCRIPTORS, INTERRUPTS,
    LASTING_FLAGS, PAGE_TABLES, SECOND, SECOND_CODE, SECOND_REGISTERS, SELECTORS, STACKS, TASKS,
    TASK_LIMIT,
};

/// EFER: SVME.
const SVME: u64 = 1 << 12;

/// Attributes of code and data of 32 bits, and of a busy task.
const CODE_32: u16 = 0xc9b;
const DATA_32: u16 = 0xc93;
const BUSY_TASK: u16 = 0x8b;

/// The segment registers of the VMCB that matter here.
const CS: u64 = 1;
const SS: u64 = 2;
const GDTR: u64 = 6;
const IDTR: u64 = 8;
const TR: u64 = 9;

/// Bits of EXITINFO2.
mod info {
    /// The switch is by IRET.
    pub const IRET: u64 = 1 << 36;
    /// It is by a far jump.
    pub const JUMP: u64 = 1 << 38;
    /// The exception has an error code, which is in the lower half.
    pub const ERROR: u64 = 1 << 44;
}

/// A nested page table that maps one page to another one than L2's own does.
const OTHER_NESTED: u64 = BUFFER + 0x6000;

/// That page.
const PAGE: u64 = BUFFER + 0xc000;

/// Where the other table maps it.
const OTHER_PAGE: u64 = BUFFER + 0xd000;

/// Where L1 keeps its task while L2 has one.
const TASK_OF_L1: u64 = BUFFER + 0xe000;

/// L1: runs L2 as the driver does, with a task register of its own, which VMRUN does not load.
extern "C" fn l1() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            report(SAYS, READY, 0);
            asm!("vmsave rax", in("rax") TASK_OF_L1, options(nostack));
            asm!("vmload rax", in("rax") VMCB, options(nostack));
            run_l2(VMCB, REGISTERS);
            asm!("vmsave rax", in("rax") VMCB, options(nostack));
            asm!("vmload rax", in("rax") TASK_OF_L1, options(nostack));
            report(SAYS, EXITED, 0);
            stgi();
        }
    }
}

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    let mut points = Vec::new();
    macro_rules! both {
        ($($way:ident $name:literal;)*) => {$(
            points.push(Point::new(
                concat!("a switch by ", $name, " is reflected if it is intercepted"),
                |kvm| intercepted(kvm, Way::$way),
            ));
            points.push(Point::new(
                concat!("a switch by ", $name, " that is not intercepted is made"),
                |kvm| made(kvm, Way::$way),
            ));
        )*};
    }
    with_ways!(both);
    points.push(Point::new(
        "a task whose CR3 is the address of another nested page table stays on its own",
        stays,
    ));
    points
}

/// Creates a machine in which L2 is about to leave its first task.
fn prepare(kvm: &Kvm, way: Way) -> Result<Machine> {
    let mut machine = Machine::new(kvm, 1, Interrupts::None)?;
    machine.start(0, l1)?;
    machine.ready()?;
    let memory = machine.memory.clone();
    world::write(&memory, way, Vendor::Svm);
    vmcb::write(&memory, &machine.tables, CODE);
    write(&memory, way);
    Ok(machine)
}

/// Writes the state of L2 in its first task.
fn write(memory: &GuestMemory, way: Way) {
    let segment = |index: u64, selector: u16, attributes: u16, limit: u64, base: u64| {
        let address = vmcb::SEGMENTS + 16 * index;
        memory.write(address, selector);
        memory.write(address + 2, attributes);
        memory.write(address + 4, limit as u32);
        memory.write(address + 8, base);
    };
    for data in [0, SS, 3, 4, 5] {
        segment(data, KERNEL_DATA, DATA_32, 0xffff_ffff, 0);
    }
    segment(CS, KERNEL_CODE, CODE_32, 0xffff_ffff, 0);
    segment(GDTR, 0, 0, DESCRIPTORS.1, DESCRIPTORS.0);
    segment(IDTR, 0, 0, INTERRUPTS.1, INTERRUPTS.0);
    segment(TR, SELECTORS[0], BUSY_TASK, TASK_LIMIT, TASKS[0]);
    memory.write(vmcb::EFER, SVME);
    memory.write(vmcb::CR4, CR4);
    memory.write(vmcb::CR3, PAGE_TABLES[0]);
    memory.write(vmcb::RFLAGS, way.first_flags());
    memory.write(vmcb::RSP, STACKS[0]);
    memory.write(vmcb::RAX, BAD_SELECTOR);
    memory.fill(REGISTERS, 14 * 8, 0);
    if let (Way::Injected, Some(event)) = (way, event(way)) {
        memory.write(vmcb::EVENT_INJ, event as u32);
        memory.write(vmcb::EVENT_INJ_ERROR, (event >> 32) as u32);
    }
}

/// Returns the event of a way in the format of EXITINTINFO and EVENTINJ.
fn event(way: Way) -> Option<u64> {
    let (kind, vector, error) = way.event()?;
    let error = error.map_or(0, |error| error << 32 | 1 << 11);
    Some(error | 1 << 31 | kind << 8 | vector)
}

fn segment_of<T: selftests::guest::memory::Plain>(
    memory: &GuestMemory,
    index: u64,
    offset: u64,
) -> T {
    memory.read(vmcb::SEGMENTS + 16 * index + offset)
}

/// Returns what L2 had when it exited.
fn processor(memory: &GuestMemory) -> Processor {
    Processor {
        task: segment_of(memory, TR, 0),
        base: segment_of(memory, TR, 8),
        cr3: memory.read(vmcb::CR3),
        switched: memory.read::<u64>(vmcb::CR0) & CR0_TS != 0,
        rip: memory.read(vmcb::RIP),
        rsp: memory.read(vmcb::RSP),
        flags: memory.read::<u64>(vmcb::RFLAGS) & LASTING_FLAGS,
        selectors: [segment_of(memory, CS, 0), segment_of(memory, SS, 0)],
    }
}

fn intercepted(kvm: &Kvm, way: Way) -> Result<()> {
    let mut machine = prepare(kvm, way)?;
    vmcb::set_intercept(&machine.memory, exit::TASK_SWITCH);
    machine.exited()?;
    let memory = &machine.memory;
    let read = |address| memory.read::<u64>(address);
    expect("exit code", read(vmcb::EXIT_CODE), exit::TASK_SWITCH)?;
    expect(
        "EXITINFO1",
        read(vmcb::EXIT_INFO_1) & 0xffff,
        SELECTORS[1].into(),
    )?;
    let reason = match way {
        Way::Jump | Way::JumpToGate => info::JUMP,
        Way::Return => info::IRET,
        _ => 0,
    };
    let error = way.event().and_then(|(_, _, error)| error);
    let expected = reason | error.map_or(0, |error| info::ERROR | error);
    let defined = match error {
        Some(_) => info::IRET | info::JUMP | info::ERROR | 0xffff_ffff,
        None => info::IRET | info::JUMP | info::ERROR,
    };
    expect(
        "EXITINFO2",
        read(vmcb::EXIT_INFO_2) & defined,
        expected & defined,
    )?;
    expect(
        "EXITINTINFO",
        read(vmcb::EXIT_INT_INFO),
        event(way).unwrap_or(0),
    )?;
    let first = Processor {
        switched: false,
        rip: CODE,
        flags: way.first_flags(),
        ..world::first_again(way)
    };
    expect("the processor", processor(memory), first)?;
    world::is_untouched(memory, way)
}

/// Runs L2 until it calls L1.
fn calls(machine: &mut Machine) -> Result<Processor> {
    machine.exited()?;
    let memory = &machine.memory;
    let code = memory.read::<u64>(vmcb::EXIT_CODE);
    expect("exit code", code, exit::VMMCALL)
        .with_context(|| format!("at {:#x}", memory.read::<u64>(vmcb::RIP)))?;
    Ok(processor(memory))
}

fn made(kvm: &Kvm, way: Way) -> Result<()> {
    let mut machine = prepare(kvm, way)?;
    expect("the second task", calls(&mut machine)?, world::second(way))?;
    let memory = machine.memory.clone();
    world::has_switched(&memory, way)?;
    let [eax, ecx, edx, ebx, _, ebp, esi, edi] = SECOND_REGISTERS;
    let register = |index: u64| memory.read::<u64>(REGISTERS + 8 * index);
    expect(
        "the registers of the second task",
        [0, 1, 2, 3, 4, 5].map(register),
        [ebx, ecx, edx, esi, edi, ebp],
    )?;
    expect("EAX", memory.read(vmcb::RAX), eax)?;
    if !way.nests() {
        return Ok(());
    }
    // What the handler of a fault does, so that the first task gets behind it.
    memory.write(TASKS[0] + tss::EIP, way.next_eip() as u32);
    memory.write(vmcb::RIP, SECOND_CODE + CALL);
    machine.ready()?;
    expect(
        "the first task again",
        calls(&mut machine)?,
        world::first_again(way),
    )?;
    expect("the first task is busy", world::is_busy(&memory, 0), true)?;
    expect("the second task is busy", world::is_busy(&memory, 1), false)?;
    expect("EAX", memory.read(vmcb::RAX), BAD_SELECTOR)
}

/// Writes a nested page table that maps [`PAGE`] to [`OTHER_PAGE`], and all else as L2's own does.
fn write_other_nested(memory: &GuestMemory, own: u64) {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    let mut from = own;
    for (level, to) in (0..4u64).map(|level| (3 - level, OTHER_NESTED + 0x1000 * level)) {
        for offset in (0..0x1000).step_by(8) {
            memory.write(to + offset, memory.read::<u64>(from + offset));
        }
        let slot = 8 * (PAGE >> (12 + 9 * level) & 0x1ff);
        let entry = memory.read::<u64>(from + slot);
        let next = if level == 0 { OTHER_PAGE } else { to + 0x1000 };
        memory.write(to + slot, next | entry & !ADDRESS);
        from = entry & ADDRESS;
    }
}

fn stays(kvm: &Kvm) -> Result<()> {
    let mut machine = prepare(kvm, Way::Jump)?;
    let memory = machine.memory.clone();
    let own = machine.tables.nested;
    // To L2, the table's address is that of a page table for its second task.
    let entry = nested_entry(&memory, own, OTHER_NESTED);
    let rights = memory.read::<u64>(entry) & 0xfff;
    memory.write(entry, PAGE_TABLES[1] | rights);
    write_other_nested(&memory, own);
    memory.write(PAGE, 0x0123_4567u32);
    memory.write(OTHER_PAGE, 0x89ab_cdefu32);
    // MOV EAX, the word there; VMMCALL.
    let code = SECOND_CODE - SECOND;
    let [a, b, c, d, ..] = (SECOND + PAGE).to_le_bytes();
    for (address, byte) in (code..).zip([0xa1, a, b, c, d, 0x0f, 0x01, 0xd9]) {
        memory.write(address, byte);
    }
    memory.write(TASKS[1] + tss::CR3, OTHER_NESTED as u32);
    // L1 has another guest, whose nested page tables are in use.
    memory.write(vmcb::NESTED_CR3, OTHER_NESTED);
    memory.write(vmcb::CR3, PAGE_TABLES[1]);
    memory.write(vmcb::RIP, SECOND_CODE);
    calls(&mut machine)?;
    let seen = |memory: &GuestMemory| memory.read::<u64>(vmcb::RAX);
    expect("the page of the other guest", seen(&memory), 0x89ab_cdef)?;
    machine.ready()?;
    memory.write(vmcb::NESTED_CR3, own);
    memory.write(vmcb::RIP, CODE);
    write(&memory, Way::Jump);
    let task = calls(&mut machine)?.task;
    expect("the task", task, SELECTORS[1])?;
    expect("the page of L2", seen(&memory), 0x0123_4567)
}
