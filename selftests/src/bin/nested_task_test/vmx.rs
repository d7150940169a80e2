// SPDX-License-Identifier: GPL-2.0

//! With Intel's extension, each switch of tasks exits before it is made.

use anyhow::Result;
use kvm_ioctls::Kvm;
use selftests::expect;
use selftests::guest::layout::KERNEL_CODE;
use selftests::guest::machine::Interrupts;
use selftests::guest::vmx::control::{entry, put_segment, reason};
use selftests::guest::vmx::field::{self, segment};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::{Fields, VmxMachine};
use selftests::guest::Vendor;
use selftests::tap::Point;

use crate::world::{
    self, Way, BAD_SELECTOR, CODE, CR4, DESCRIPTORS, INTERRUPTS, LASTING_FLAGS, PAGE_TABLES,
    SELECTORS, STACKS, TASKS, TASK_LIMIT,
};

/// CR4: VMXE, which L2 has, too.
const VMXE: u64 = 1 << 13;

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    macro_rules! points {
        ($($way:ident $name:literal;)*) => {
            vec![$(Point::new(
                concat!("a switch by ", $name, " is reflected"),
                |kvm| reflected(kvm, Way::$way),
            ),)*]
        };
    }
    with_ways!(points)
}

/// Writes the state of L2 in its first task.
fn write(fields: &mut Fields, way: Way) {
    let mut put = |at, selector, rights, limit, base| {
        put_segment(fields, at, selector, rights, (limit, base));
    };
    // The segments of data are those of 64-bit mode.
    put(segment::CS, KERNEL_CODE, 0xc09b, 0xffff_ffff, 0);
    put(segment::TR, SELECTORS[0], 0x8b, TASK_LIMIT, TASKS[0]);
    put(segment::GDTR, 0, 0, DESCRIPTORS.1, DESCRIPTORS.0);
    put(segment::IDTR, 0, 0, INTERRUPTS.1, INTERRUPTS.0);
    fields.put(field::GUEST_CR4, CR4 | VMXE);
    fields.put(field::GUEST_CR3, PAGE_TABLES[0]);
    fields.put(field::GUEST_RFLAGS, way.first_flags());
    fields.put(field::GUEST_RSP, STACKS[0]);
    fields.clear(field::ENTRY, entry::LONG_MODE);
    if let (Way::Injected, Some((event, Some(error)))) = (way, event(way)) {
        fields.put(field::ENTRY_EVENT, event);
        fields.put(field::ENTRY_ERROR_CODE, error);
    }
}

/// Returns the event of a way in the format of the VMCS, and its error code.
fn event(way: Way) -> Option<(u64, Option<u64>)> {
    let (kind, vector, error) = way.event()?;
    let has_error = error.map_or(0, |_| 1 << 11);
    Some((1 << 31 | has_error | kind << 8 | vector, error))
}

fn reflected(kvm: &Kvm, way: Way) -> Result<()> {
    let mut machine = VmxMachine::new(kvm, Interrupts::None)?;
    machine.vmxon()?;
    world::write(machine.memory(), way, Vendor::Vmx);
    machine.set_register(RAX, BAD_SELECTOR);
    let mut fields = machine.fields(CODE)?;
    write(&mut fields, way);
    let (entered, stops) = machine.enter(&fields)?;
    expect("what user space saw", stops, Vec::new())?;
    let exit = entered.exit()?;
    expect("reason", exit.reason, reason::TASK_SWITCH)?;
    let source = match way {
        Way::Call | Way::CallOfGate => 0,
        Way::Return => 1,
        Way::Jump | Way::JumpToGate => 2,
        _ => 3u64,
    };
    expect(
        "qualification",
        exit.qualification,
        source << 30 | u64::from(SELECTORS[1]),
    )?;
    let (event, error) = event(way).unwrap_or_default();
    expect("the event that was being delivered", exit.vectoring, event)?;
    if let Some(error) = error {
        expect("its error code", exit.vectoring_error_code, error)?;
    }
    // The length is that of an instruction that causes the switch.
    if !matches!(way, Way::Undefined | Way::Protection | Way::Injected) {
        expect("length", exit.length, way.code().len() as u64)?;
    }
    expect(
        "RIP, RSP, flags",
        (exit.rip, exit.rsp, exit.rflags & LASTING_FLAGS),
        (CODE, STACKS[0], way.first_flags()),
    )?;
    expect("CR3", machine.read(field::GUEST_CR3)?, PAGE_TABLES[0])?;
    let task = machine.read(field::GUEST_SELECTOR + segment::TR)?;
    expect("the task", task, SELECTORS[0].into())?;
    world::is_untouched(machine.memory(), way)
}
