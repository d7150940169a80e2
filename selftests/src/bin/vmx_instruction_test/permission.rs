// SPDX-License-Identifier: GPL-2.0

//! Who may execute VMX instructions, and when.

use anyhow::{Context, Result};
use selftests::expect;
use selftests::guest::layout::{USER_CODE, USER_DATA, VMCS, VMXON_REGION};
use selftests::guest::machine::MSR_FEATURE_CONTROL;
use selftests::guest::vmx::field;
use selftests::guest::vmx::script::{
    invept, invvpid, set_cr0, set_cr4, vmclear, vmfunc, vmlaunch, vmptrld, vmptrst, vmread,
    vmresume, vmwrite, vmxoff, vmxon, Answer, Operation,
};
use selftests::guest::vmx::VmxMachine;
use selftests::tap::Point;

use crate::{answers, Fixture, DONE, GP, UD};

/// The lock of the MSR.
const LOCKED: u64 = 1;

/// VMXON is allowed outside of SMX.
const OUTSIDE_SMX: u64 = 4;

/// All instructions but VMXON, and VMCALL, which calls KVM.
fn instructions() -> Vec<Operation> {
    vec![
        vmxoff(),
        vmclear(VMCS),
        vmptrld(VMCS),
        vmptrst(),
        vmread(field::GUEST_RIP.into()),
        vmwrite(field::GUEST_RIP.into(), 0),
        vmlaunch(),
        vmresume(),
        invept(0, 0, 2),
        invvpid(1, 0, 2),
    ]
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "outside of VMX operation all but VMXON are undefined",
            |fixture| {
                let mut machine = fixture.off()?;
                instructions()
                    .into_iter()
                    .try_for_each(|operation| answers(&mut machine, &[(operation, UD)]))
            },
        ),
        Point::new("after VMXOFF all but VMXON are undefined", |fixture| {
            let mut machine = fixture.current()?;
            answers(&mut machine, &[(vmxoff(), DONE)])?;
            for operation in instructions() {
                answers(&mut machine, &[(operation, UD)])?;
            }
            answers(
                &mut machine,
                &[
                    (vmxon(VMXON_REGION), DONE),
                    (vmptrst(), Answer::Done(u64::MAX)),
                ],
            )
        }),
        Point::new("without CR4.VMXE VMXON is undefined", |fixture| {
            let mut machine = fixture.off()?;
            let cr4 = machine.machine.tables.cr4;
            answers(
                &mut machine,
                &[
                    (set_cr4(cr4 & !(1 << 13)), DONE),
                    (vmxon(VMXON_REGION), UD),
                    (set_cr4(cr4), DONE),
                    (vmxon(VMXON_REGION), DONE),
                ],
            )
        }),
        Point::new("CR4.VMXE and CR0.NE stay set in VMX operation", |fixture| {
            let mut machine = fixture.root()?;
            let tables = machine.machine.tables;
            answers(
                &mut machine,
                &[
                    (set_cr4(tables.cr4 & !(1 << 13)), GP),
                    (set_cr0(tables.cr0 & !(1 << 5)), GP),
                    (vmxoff(), DONE),
                    (set_cr0(tables.cr0 & !(1 << 5)), DONE),
                    (vmxon(VMXON_REGION), GP),
                    (set_cr0(tables.cr0), DONE),
                    (vmxon(VMXON_REGION), DONE),
                ],
            )
        }),
        Point::new("VMXON needs an MSR that is locked", |fixture| {
            feature_control(fixture, OUTSIDE_SMX, GP)
        }),
        Point::new("VMXON needs an MSR that allows it", |fixture| {
            feature_control(fixture, LOCKED, GP)
        }),
        Point::new(
            "VMXON works with an MSR that is locked and allows it",
            |fixture| feature_control(fixture, LOCKED | OUTSIDE_SMX, DONE),
        ),
        Point::new("at CPL 3 all raise exception GP", |fixture| {
            let mut machine = fixture.current()?;
            for operation in instructions().into_iter().chain([vmxon(VMXON_REGION)]) {
                at_user(&mut machine, operation, GP)?;
            }
            // None of them has done anything.
            answers(&mut machine, &[(vmptrst(), Answer::Done(VMCS))])
        }),
        Point::new(
            "outside of VMX operation at CPL 3 all but VMXON are undefined",
            |fixture| {
                let mut machine = fixture.off()?;
                for operation in instructions() {
                    at_user(&mut machine, operation, UD)?;
                }
                at_user(&mut machine, vmxon(VMXON_REGION), GP)
            },
        ),
        Point::new("VMFUNC is undefined outside of L2", |fixture| {
            let mut machine = fixture.off()?;
            answers(&mut machine, &[(vmfunc(0, 0), UD)])?;
            machine.vmxon()?;
            answers(&mut machine, &[(vmfunc(0, 0), UD)])
        }),
        Point::new(
            "at CPL 3 VMXON fails before its operand is read",
            |fixture| {
                let mut machine = fixture.off()?;
                at_user(&mut machine, vmxon(0).at(0x80_0000), GP)
            },
        ),
    ]
}

fn feature_control(fixture: &Fixture, value: u64, expected: Answer) -> Result<()> {
    let mut machine = fixture.off()?;
    machine.set_msr(MSR_FEATURE_CONTROL, value)?;
    answers(&mut machine, &[(vmxon(VMXON_REGION), expected)])
}

/// Lets L1 execute an operation at CPL 3; the exception brings it back.
fn at_user(machine: &mut VmxMachine, operation: Operation, expected: Answer) -> Result<()> {
    let vcpu = &machine.machine.vcpus[0];
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.selector, sregs.cs.dpl) = (USER_CODE, 3);
    (sregs.ss.selector, sregs.ss.dpl) = (USER_DATA, 3);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let seen = machine.answer(operation)?;
    expect(format_args!("{operation:x?}"), seen, expected)
}
