// SPDX-License-Identifier: GPL-2.0

//! VMRUN that is single-stepped.

use anyhow::{Context, Result};
use selftests::guest::code::SAYS;
use selftests::guest::driver::RESULT;
use selftests::guest::layout::{SHARED, VMCB};
use selftests::guest::machine::{heard, run, Stop};
use selftests::guest::tables::gate;
use selftests::guest::vmcb::{self, exit};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{l1_vmrun, l2_call, Fixture};

guest_code! {
    /// L1: has a trap.
    step_test_trap: "mov rax, [rsp]", "mov [0x6000], rax", "mov rax, dr6", "mov [0x6008], rax",
        "out 0xf1, eax", "ud2";
}

/// Where the trap came from.
const FROM: u64 = SHARED;

/// DR6 at that time.
const STATUS: u64 = SHARED + 8;

/// DR6: a single step.
const SINGLE_STEP: u64 = 1 << 14;

/// RFLAGS.TF.
const TRAP: u64 = 1 << 8;

/// Bytes of VMRUN.
const LENGTH: u64 = 3;

const _: () = assert!(FROM == 0x6000);

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "VMRUN that is single-stepped traps after the exit",
            |fixture| stepped(fixture, 1, exit::VMMCALL).map(|_| ()),
        ),
        Point::new(
            "VMRUN that is single-stepped and fails traps as well",
            |fixture| stepped(fixture, 0, exit::INVALID).map(|_| ()),
        ),
        Point::new(
            "the trap of a VMRUN says that it is a single step",
            |fixture| {
                for (asid, code) in [(1, exit::VMMCALL), (0, exit::INVALID)] {
                    let status = stepped(fixture, asid, code)?;
                    expect("DR6.BS", status & SINGLE_STEP, SINGLE_STEP)?;
                }
                Ok(())
            },
        ),
    ]
}

/// Lets L1 execute VMRUN with RFLAGS.TF, for an L2 with an ASID, which exits with a code;
/// returns DR6.
fn stepped(fixture: &Fixture, asid: u32, code: u64) -> Result<u64> {
    let mut machine = fixture.machine()?;
    let memory = machine.memory.clone();
    vmcb::write(&memory, &machine.tables, l2_call as *const () as u64);
    memory.write(vmcb::ASID, asid);
    gate(&memory, 0, 1, step_test_trap as *const () as u64);
    let vcpu = &machine.vcpus[0];
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    let start = l1_vmrun as *const () as u64;
    (regs.rip, regs.rflags) = (start, 2 | TRAP);
    (regs.rax, regs.rdi) = (VMCB, SAYS);
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    match run(&mut machine.vcpus[0]) {
        Stop::Said(message) => heard(message)?,
        other => anyhow::bail!("the guest stopped: {other:?}"),
    };
    expect("exit code", memory.read::<u64>(RESULT), code)?;
    let from = memory.read::<u64>(FROM).wrapping_sub(start);
    expect("offset of the trap", from, LENGTH)?;
    Ok(memory.read(STATUS))
}
