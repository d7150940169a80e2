// SPDX-License-Identifier: GPL-2.0

//! Nested states of processors in system-management mode, and those that they cannot have.
//!
//! What KVM answers is printed, a letter for each: all providers must answer the same.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{KVM_STATE_NESTED_SMM_GUEST_MODE, KVM_STATE_NESTED_SMM_VMXON};
use selftests::expect;
use selftests::guest::machine::Stop;
use selftests::guest::state::{Nested, GUEST_MODE, RUN_PENDING};
use selftests::guest::vmx::script::{self, vmptrst, Answer};
use selftests::guest::vmx::VmxMachine;
use selftests::guest::{machine, signal};
use selftests::module;
use selftests::tap::{self, Point, Skip};

use crate::active::stopped;
use crate::root::with_vmcs;
use crate::{check, interrupt, next, until, Fixture, Within, HANDLER, NOWHERE, PORT};

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "the state in the mode is restored, whatever it has interrupted",
            restored,
        ),
        Point::new(
            "the state without the mode is refused in it if L2 is active",
            |fixture| refused(fixture, GUEST_MODE),
        ),
        Point::new(
            "the state without the mode is refused in it if an entry is pending",
            |fixture| refused(fixture, RUN_PENDING),
        ),
        Point::new("the state of the mode is refused outside of it", outside),
        Point::new(
            "states with one bit of their header changed are answered in the mode",
            headers,
        ),
        Point::new(
            "RSM returns to no L2 that a state has taken away meanwhile",
            taken_away,
        ),
    ]
}

/// Creates a machine that is in the mode.
fn managed(fixture: &Fixture, within: Within) -> Result<VmxMachine> {
    let mut machine = match within {
        Within::Nothing => fixture.outside(&HANDLER)?,
        Within::Root => fixture.machine(&HANDLER)?,
        Within::Vmcs => {
            let mut machine = fixture.machine(&HANDLER)?;
            machine.execute(&with_vmcs())?;
            machine
        }
        Within::L2 => stopped(fixture, &HANDLER)?,
    };
    interrupt(&machine)?;
    // L1 executes this behind the handler, unless it executes something already.
    if within != Within::L2 {
        script::write(machine.memory(), &[vmptrst()]);
    }
    until(&mut machine, PORT)?;
    check(&machine, within)?;
    Ok(machine)
}

/// What the processor may have interrupted.
const ALL: [Within; 4] = [Within::Nothing, Within::Vmcs, Within::L2, Within::Root];

fn restored(fixture: &Fixture) -> Result<()> {
    for within in ALL {
        moved(fixture, within).with_context(|| format!("{within:?}"))?;
    }
    Ok(())
}

fn moved(fixture: &Fixture, within: Within) -> Result<()> {
    let mut machine = managed(fixture, within)?;
    for _ in 0..2 {
        machine.replace(&fixture.kvm)?;
        check(&machine, within)?;
    }
    match next(&mut machine)? {
        Stop::Said(message) => machine::heard(message)?,
        other => anyhow::bail!("expected a report of L1, saw {other:?}"),
    };
    let expected = match within {
        Within::Nothing => Answer::Exception(6, 0),
        Within::Root => Answer::Done(NOWHERE),
        Within::Vmcs => Answer::Done(selftests::guest::layout::VMCS),
        Within::L2 => return Ok(()),
    };
    let answers = script::answers(machine.memory(), 1);
    expect("VMPTRST", answers, vec![expected])
}

/// Checks that a flag is refused in the mode.
fn refused(fixture: &Fixture, flag: u16) -> Result<()> {
    let mut machine = managed(fixture, Within::L2)?;
    let vcpu = &mut machine.machine.vcpus[0];
    signal::complete(vcpu)?;
    let good = Nested::read(vcpu)?;
    for smm in [0, KVM_STATE_NESTED_SMM_VMXON] {
        let mut state = good;
        state.0.flags |= flag;
        state.0.hdr.vmx.smm.flags = smm as u16;
        ensure!(
            vcpu.set_nested_state(&state.0).is_err(),
            "it is accepted with {smm:#x}"
        );
    }
    vcpu.set_nested_state(&good.0)
        .context("the state as it was")?;
    check(&machine, Within::L2)
}

fn outside(fixture: &Fixture) -> Result<()> {
    let mut machine = stopped(fixture, &HANDLER)?;
    let vcpu = &mut machine.machine.vcpus[0];
    signal::complete(vcpu)?;
    let good = Nested::read(vcpu)?;
    for smm in [
        KVM_STATE_NESTED_SMM_VMXON,
        KVM_STATE_NESTED_SMM_GUEST_MODE,
        KVM_STATE_NESTED_SMM_VMXON | KVM_STATE_NESTED_SMM_GUEST_MODE,
    ] {
        for flags in [0, GUEST_MODE] {
            let mut state = good;
            state.0.flags = flags;
            state.0.hdr.vmx.smm.flags = smm as u16;
            ensure!(
                vcpu.set_nested_state(&state.0).is_err(),
                "{smm:#x} is accepted with {flags:#x}"
            );
        }
    }
    vcpu.set_nested_state(&good.0)
        .context("the state as it was")
}

fn headers(fixture: &Fixture) -> Result<()> {
    for within in ALL {
        let mut machine = managed(fixture, within)?;
        let vcpu = &mut machine.machine.vcpus[0];
        signal::complete(vcpu)?;
        let good = Nested::read(vcpu)?;
        let mut letters = String::new();
        for bit in (0..48 * 8).filter(|bit| !(32..64).contains(bit)) {
            let mut state = good;
            state.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            let answer = vcpu.set_nested_state(&state.0);
            letters.push(match answer.map_err(|error| error.errno()) {
                Ok(()) => '+',
                Err(libc::EINVAL) => 'i',
                Err(_) => '?',
            });
            if answer.is_ok() {
                // KVM must accept what it gives back.
                let given = Nested::read(vcpu)?;
                let again = vcpu.set_nested_state(&given.0);
                ensure!(again.is_ok(), "{within:?}, bit {bit}: {again:?}");
            }
        }
        for (number, start) in (0..letters.len()).step_by(64).enumerate() {
            let end = letters.len().min(start + 64);
            tap::same(
                format_args!("headers, {within:?}, {number}"),
                &letters[start..end],
            );
        }
        vcpu.set_nested_state(&good.0)
            .context("the state as it was")?;
        check(&machine, within)?;
    }
    Ok(())
}

fn taken_away(fixture: &Fixture) -> Result<()> {
    if module::find("nested_vmx")?.is_none() {
        // It would be the end of the machine.
        let reason = "KVM's own code uses the VMCS of the L2 that is gone";
        return Err(Skip(reason.into()).into());
    }
    let mut machine = managed(fixture, Within::L2)?;
    let vcpu = &mut machine.machine.vcpus[0];
    signal::complete(vcpu)?;
    let off = Nested::read(vcpu)?.off();
    vcpu.set_nested_state(&off.0)
        .context("KVM_SET_NESTED_STATE")?;
    // It goes on where L2 was, as L1.
    let stop = next(&mut machine)?;
    let state = Nested::read(&machine.machine.vcpus[0])?;
    ensure!(!state.has(GUEST_MODE), "L2 is active after {stop:?}");
    Ok(())
}
