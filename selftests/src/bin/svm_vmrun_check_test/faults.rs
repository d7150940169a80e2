// SPDX-License-Identifier: GPL-2.0

//! VMRUN that does not get as far as the VMCB.

use anyhow::{ensure, Context, Result};
use selftests::expect;
use selftests::guest::driver::{self, driver};
use selftests::guest::layout::{
    exception, EXCEPTIONS, HOST_SAVE, NOWHERE, USER_CODE, USER_DATA, VMCB, VMRUN_ADDRESS,
};
use selftests::guest::machine::{run, set_msr, Stop, MSR_VM_HSAVE_PA};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::Machine;
use selftests::tap::Point;

use crate::{check_test_l2, Fixture};

/// Vector of the exception for what is undefined.
const UD: u64 = 6;

/// Vector of the exception for what is not allowed.
const GP: u64 = 13;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "VMRUN with an address within a page raises exception GP",
            |fixture| raises(fixture, &[GP], |machine| at(machine, VMCB + 8)),
        ),
        Point::new(
            "VMRUN with the last address raises exception GP",
            |fixture| raises(fixture, &[GP], |machine| at(machine, !0xfff)),
        ),
        Point::new(
            "VMRUN beyond the address width raises exception GP",
            |fixture| raises(fixture, &[GP], |machine| at(machine, 1 << 52)),
        ),
        Point::new("VMRUN at CPL 3 raises exception GP", |fixture| {
            raises(fixture, &[GP], user)
        }),
        Point::new("VMRUN without EFER.SVME raises exception UD", |fixture| {
            raises(fixture, &[UD], without_svme)
        }),
        Point::new(
            "VMRUN without a host-save area raises exception GP",
            |fixture| {
                raises(fixture, &[GP], |machine| {
                    set_msr(&machine.vcpus[0], MSR_VM_HSAVE_PA, 0)
                })
            },
        ),
        Point::new(
            "VMRUN with no memory at its address goes to user space",
            nowhere,
        ),
    ]
}

fn at(machine: &Machine, address: u64) -> Result<()> {
    machine.memory.write(VMRUN_ADDRESS, address);
    Ok(())
}

fn without_svme(machine: &Machine) -> Result<()> {
    let mut sregs = machine.vcpus[0].get_sregs()?;
    sregs.efer &= !(1 << 12);
    machine.vcpus[0].set_sregs(&sregs).context("KVM_SET_SREGS")
}

fn user(machine: &Machine) -> Result<()> {
    let mut sregs = machine.vcpus[0].get_sregs()?;
    (sregs.cs.selector, sregs.cs.dpl) = (USER_CODE, 3);
    (sregs.ss.selector, sregs.ss.dpl) = (USER_DATA, 3);
    machine.vcpus[0].set_sregs(&sregs).context("KVM_SET_SREGS")
}

/// Checks that VMRUN raises one of the exceptions after a change of L1, and runs L2 after another.
fn raises(fixture: &Fixture, vectors: &[u64], change: fn(&Machine) -> Result<()>) -> Result<()> {
    let mut machine = fixture.machine.borrow_mut();
    let machine = machine.as_mut().context("there is no machine")?;
    machine.ready()?;
    let memory = machine.memory.clone();
    let prepare = |machine: &Machine| {
        vmcb::write(&memory, &machine.tables, check_test_l2 as *const () as u64);
        memory.write(vmcb::EXIT_CODE, 0x1234_5678u64);
    };
    prepare(machine);
    change(machine)?;
    machine.exited()?;
    let count = memory.read::<u64>(EXCEPTIONS + exception::COUNT);
    expect("exceptions of L1", count, 1)?;
    let vector = memory.read::<u64>(EXCEPTIONS + exception::VECTOR);
    ensure!(
        vectors.contains(&vector),
        "expected {vectors:?}, saw exception {vector}"
    );
    expect(
        "error code",
        memory.read::<u64>(EXCEPTIONS + exception::ERROR),
        0,
    )?;
    expect(
        "exit code, which nobody may write",
        memory.read::<u64>(vmcb::EXIT_CODE),
        0x1234_5678,
    )?;
    // L1 itself is as it was.
    memory.write(VMRUN_ADDRESS, VMCB);
    machine.start(0, driver)?;
    set_msr(&machine.vcpus[0], MSR_VM_HSAVE_PA, HOST_SAVE)?;
    prepare(machine);
    machine.vmrun()?;
    expect(
        "exit code",
        memory.read::<u64>(driver::RESULT),
        exit::VMMCALL,
    )
}

fn nowhere(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.machine.borrow_mut();
    let machine = machine.as_mut().context("there is no machine")?;
    machine.ready()?;
    at(machine, NOWHERE)?;
    expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::InternalError)
}
