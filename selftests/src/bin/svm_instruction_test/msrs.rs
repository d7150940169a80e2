// SPDX-License-Identifier: GPL-2.0

//! The MSRs of SVM.

use anyhow::{Context, Result};
use selftests::expect;
use selftests::guest::layout::HOST_SAVE;
use selftests::guest::machine::MSR_VM_HSAVE_PA;
use selftests::guest::Machine;
use selftests::tap::Point;

use crate::{execute, l1_rdmsr, l1_wrmsr, Fixture, Outcome, GP};

/// The MSR that can switch SVM off.
const VM_CR: u32 = 0xc001_0114;

/// VM_CR: SVMDIS cannot be changed, nor can this bit.
const LOCK: u64 = 1 << 3;

/// VM_CR: EFER.SVME cannot be set.
const SVMDIS: u64 = 1 << 4;

/// The MSR with EFER.SVME.
const EFER: u32 = 0xc000_0080;

/// EFER.SVME.
const SVME: u64 = 1 << 12;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "VM_HSAVE_PA takes pages within the address width",
            |fixture| {
                let mut machine = fixture.machine()?;
                for address in [HOST_SAVE, HOST_SAVE + 0x1000, 0] {
                    expect(
                        "WRMSR",
                        write(&mut machine, MSR_VM_HSAVE_PA, address)?,
                        Outcome::Done,
                    )?;
                    expect("RDMSR", read(&mut machine, MSR_VM_HSAVE_PA)?, address)?;
                }
                Ok(())
            },
        ),
        Point::new("VM_HSAVE_PA refuses other addresses", |fixture| {
            let mut machine = fixture.machine()?;
            for address in [HOST_SAVE + 1, HOST_SAVE + 0x800, 1 << 52, u64::MAX] {
                let outcome = write(&mut machine, MSR_VM_HSAVE_PA, address)?;
                let what = format_args!("WRMSR of {address:#x}");
                expect(what, outcome, Outcome::Fault(GP, 0))?;
            }
            expect("RDMSR", read(&mut machine, MSR_VM_HSAVE_PA)?, HOST_SAVE)
        }),
        Point::new("VM_CR refuses reserved bits", |fixture| {
            let mut machine = fixture.machine()?;
            for bit in 5..64 {
                let outcome = write(&mut machine, VM_CR, 1 << bit)?;
                let what = format_args!("WRMSR with bit {bit}");
                expect(what, outcome, Outcome::Fault(GP, 0))?;
            }
            Ok(())
        }),
        Point::new("VM_CR refuses SVMDIS while EFER.SVME is set", |fixture| {
            let mut machine = fixture.machine()?;
            let outcome = write(&mut machine, VM_CR, SVMDIS)?;
            expect("WRMSR", outcome, Outcome::Fault(GP, 0))
        }),
        Point::new("VM_CR that disables SVM and is locked stays", |fixture| {
            let mut machine = fixture.machine()?;
            let efer = read(&mut machine, EFER)?;
            expect(
                "EFER",
                write(&mut machine, EFER, efer & !SVME)?,
                Outcome::Done,
            )?;
            expect(
                "VM_CR",
                write(&mut machine, VM_CR, SVMDIS | LOCK)?,
                Outcome::Done,
            )?;
            // What is locked is ignored.
            expect("VM_CR", write(&mut machine, VM_CR, 0)?, Outcome::Done)?;
            expect("VM_CR", read(&mut machine, VM_CR)?, SVMDIS | LOCK)
        }),
        Point::new("EFER.SVME can be cleared and set again", |fixture| {
            let mut machine = fixture.machine()?;
            let efer = read(&mut machine, EFER)?;
            for value in [efer & !SVME, efer, efer & !SVME, efer] {
                expect("WRMSR", write(&mut machine, EFER, value)?, Outcome::Done)?;
                expect("RDMSR", read(&mut machine, EFER)?, value)?;
            }
            machine.start(0, selftests::guest::driver::driver)?;
            let l2 = crate::l2_call as *const () as u64;
            selftests::guest::vmcb::write(&machine.memory, &machine.tables, l2);
            machine.vmrun()?;
            let code = machine.memory.read::<u64>(selftests::guest::driver::RESULT);
            expect("exit code", code, selftests::guest::vmcb::exit::VMMCALL)
        }),
    ]
}

/// Lets L1 write an MSR.
fn write(machine: &mut Machine, msr: u32, value: u64) -> Result<Outcome> {
    let registers = [value & u64::from(u32::MAX), msr.into(), value >> 32];
    execute(machine, l1_wrmsr, registers)
}

/// Lets L1 read an MSR.
fn read(machine: &mut Machine, msr: u32) -> Result<u64> {
    let outcome = execute(machine, l1_rdmsr, [0, msr.into(), 0])?;
    expect(format_args!("RDMSR of {msr:#x}"), outcome, Outcome::Done)?;
    let regs = machine.vcpus[0].get_regs().context("KVM_GET_REGS")?;
    Ok(regs.rdx << 32 | regs.rax & u64::from(u32::MAX))
}
