// SPDX-License-Identifier: GPL-2.0

//! Interruptions of L2.

use anyhow::{bail, ensure, Context, Result};
use selftests::guest::machine::Stop;
use selftests::guest::signal;
use selftests::guest::state::{Nested, GUEST_MODE, RUN_PENDING};
use selftests::guest::vmx::control::{pin, primary, reason};
use selftests::guest::vmx::{field, Fields, VmxMachine};
use selftests::tap::Point;
use selftests::{expect, guest_code, vm};

use crate::{
    check, interrupt, is_managed, next, ports, saved, shut_down, until, Fixture, Within, CALL,
    HANDLER, PORT,
};

guest_code! {
    /// L2: calls user space, and then L1.
    smm_test_l2: "out 0x80, al", "vmcall", "ud2";
    /// L2: calls user space twice, and then L1.
    smm_test_l2_twice: "out 0x80, al", "out 0x80, al", "vmcall", "ud2";
}

/// Where the state-save area has CR4.
const CR4: u64 = 0x7f48;

/// Interrupts L2 where it calls user space, and checks the processor where the handler does.
fn once(machine: &mut VmxMachine) -> Result<()> {
    if is_managed(machine)? {
        check(machine, Within::L2)
    } else {
        interrupt(machine)
    }
}

/// The same, and continues with a new machine in the handler.
fn moving(machine: &mut VmxMachine) -> Result<()> {
    once(machine)?;
    if is_managed(machine)? {
        machine.replace(&vm::open()?)?;
        check(machine, Within::L2).context("in the new machine")?;
    }
    Ok(())
}

/// Runs an L2 that is interrupted; it must do the same as if it was not.
fn goes_on(
    fixture: &Fixture,
    prepare: fn(&mut Fields),
    at_stop: fn(&mut VmxMachine) -> Result<()>,
) -> Result<VmxMachine> {
    let mut machine = fixture.machine(&HANDLER)?;
    let mut fields = machine.fields(smm_test_l2 as *const () as u64)?;
    prepare(&mut fields);
    let value = |register: usize| 0x0101_0101_0101_0100 * (register as u64 + 1);
    (0..15).for_each(|register| machine.set_register(register, value(register)));
    machine.at_stop = Some(at_stop);
    let (entered, stops) = machine.enter(&fields)?;
    let exit = entered.exit()?;
    expect("what user space saw", ports(&stops), vec![CALL, PORT])?;
    expect("reason of the exit", exit.reason, reason::VMCALL)?;
    let end = smm_test_l2 as *const () as u64 + 2;
    expect("RIP", exit.rip, end)?;
    expect("RSP", exit.rsp, fields.get(field::GUEST_RSP))?;
    expect("CR0", exit.cr0, fields.get(field::GUEST_CR0))?;
    for register in 0..15 {
        expect(
            format_args!("register {register}"),
            machine.register(register),
            value(register),
        )?;
    }
    Ok(machine)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 goes on after RSM", |fixture| {
            goes_on(fixture, |_| (), once).map(|_| ())
        }),
        Point::new("L2 goes on after RSM with what L1 wants of it", |fixture| {
            let prepare: fn(&mut Fields) = |fields| {
                fields.set(field::PIN, pin::NMI | pin::VIRTUAL_NMI);
                fields.set(field::PRIMARY, primary::HLT | primary::RDTSC);
                fields.put(field::EXCEPTION_BITMAP, 1 << 6);
                fields.put(field::CR0_MASK, 8);
                fields.put(field::CR4_MASK, 1 << 13);
            };
            let mut machine = goes_on(fixture, prepare, once)?;
            // It is still as L1 wants it: UD2 exits.
            let exit =
                machine.resume(&[(field::GUEST_RIP, 5 + smm_test_l2 as *const () as u64)])?;
            let exit = exit.0.exit()?;
            expect("reason of the exit", exit.reason, reason::EXCEPTION)
        }),
        Point::new(
            "L2 goes on after RSM in a machine to which the processor moves meanwhile",
            |fixture| goes_on(fixture, |_| (), moving).map(|_| ()),
        ),
        Point::new("an entry that is pending comes before SMI", pending),
        Point::new("L2 is interrupted again and again", |fixture| {
            let mut machine = fixture.machine(&HANDLER)?;
            let fields = machine.fields(smm_test_l2_twice as *const () as u64)?;
            machine.at_stop = Some(once);
            let (entered, stops) = machine.enter(&fields)?;
            expect("reason of the exit", entered.exit()?.reason, reason::VMCALL)?;
            let expected = vec![CALL, PORT, CALL, PORT];
            expect("what user space saw", ports(&stops), expected)
        }),
        Point::new("an NMI waits for RSM, and is L1's then", |fixture| {
            let mut machine = fixture.machine(&HANDLER)?;
            let mut fields = machine.fields(smm_test_l2 as *const () as u64)?;
            fields.set(field::PIN, pin::NMI);
            machine.at_stop = Some(|machine| {
                if is_managed(machine)? {
                    machine.machine.vcpus[0].nmi().context("KVM_NMI")
                } else {
                    interrupt(machine)
                }
            });
            let (entered, stops) = machine.enter(&fields)?;
            let exit = entered.exit()?;
            expect("what user space saw", ports(&stops), vec![CALL, PORT])?;
            expect("reason of the exit", exit.reason, reason::EXCEPTION)?;
            expect("event", exit.event, 1 << 31 | 2 << 8 | 2)
        }),
        Point::new("a shutdown of the handler ends L2, too", |fixture| {
            // UD2, for which there is no handler in turn.
            let mut machine = stopped(fixture, &[0x0f, 0x0b])?;
            interrupt(&machine)?;
            shut_down(&mut machine)
        }),
        Point::new(
            "RSM to an L2 whose state cannot be restored shuts the processor down",
            |fixture| {
                let mut machine = stopped(fixture, &HANDLER)?;
                interrupt(&machine)?;
                until(&mut machine, PORT)?;
                // CR4 with a reserved bit.
                machine.memory().set(saved(CR4), 1 << 63);
                shut_down(&mut machine)
            },
        ),
    ]
}

/// Creates a machine that has stopped where L2 calls user space.
pub fn stopped(fixture: &Fixture, handler: &[u8]) -> Result<VmxMachine> {
    let mut machine = fixture.machine(handler)?;
    let fields = machine.fields(smm_test_l2 as *const () as u64)?;
    machine.launch(&fields)?;
    until(&mut machine, CALL)?;
    Ok(machine)
}

fn pending(fixture: &Fixture) -> Result<()> {
    let mut machine = stopped(fixture, &HANDLER)?;
    let vcpu = &mut machine.machine.vcpus[0];
    signal::complete(vcpu)?;
    let mut state = Nested::read(vcpu)?;
    ensure!(state.has(GUEST_MODE), "L2 is not active");
    state.0.flags |= RUN_PENDING;
    vcpu.set_nested_state(&state.0)
        .context("KVM_SET_NESTED_STATE")?;
    interrupt(&machine)?;
    until(&mut machine, PORT)?;
    check(&machine, Within::L2)?;
    match next(&mut machine)? {
        // L1 has executed all of its script, which ends with VMLAUNCH.
        Stop::Said(_) => Ok(()),
        other => bail!("expected a report of L1, saw {other:?}"),
    }
}
