// SPDX-License-Identifier: GPL-2.0

//! The VMX instructions: how each of them fails, and in which order.

mod fields;
mod modes;
mod operands;
mod permission;

use std::process::ExitCode;

use anyhow::Result;
use kvm_ioctls::Kvm;
use selftests::guest::layout::VMCS;
use selftests::guest::machine::{self, Interrupts};
use selftests::guest::vmx::script::{self, Answer, Operation};
use selftests::guest::vmx::VmxMachine;
use selftests::guest::Vendor;
use selftests::{expect, guest_code, tap};

guest_code! {
    /// L2: calls L1 at once.
    instruction_test_l2: "vmcall", "ud2";
}

/// Exception UD.
pub const UD: Answer = Answer::Exception(6, 0);

/// Exception GP.
pub const GP: Answer = Answer::Exception(13, 0);

/// Success of an instruction that has no value.
pub const DONE: Answer = Answer::Done(0);

/// What the tests need.
pub struct Fixture {
    kvm: Kvm,
}

impl Fixture {
    /// Creates a machine that is not in VMX operation.
    fn off(&self) -> Result<VmxMachine> {
        VmxMachine::new(&self.kvm, Interrupts::None)
    }

    /// Creates a machine in VMX operation without a current VMCS.
    fn root(&self) -> Result<VmxMachine> {
        let mut machine = self.off()?;
        machine.vmxon()?;
        Ok(machine)
    }

    /// Creates a machine with a current VMCS, which is clear.
    fn current(&self) -> Result<VmxMachine> {
        let mut machine = self.root()?;
        answers(
            &mut machine,
            &[(script::vmclear(VMCS), DONE), (script::vmptrld(VMCS), DONE)],
        )?;
        Ok(machine)
    }
}

/// Lets L1 execute operations, each of which must end as said.
pub fn answers(machine: &mut VmxMachine, expected: &[(Operation, Answer)]) -> Result<()> {
    let operations: Vec<Operation> = expected.iter().map(|(operation, _)| *operation).collect();
    let seen = machine.execute(&operations)?;
    for ((operation, expected), seen) in expected.iter().zip(seen) {
        expect(format_args!("{operation:x?}"), seen, *expected)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let fixture = Fixture { kvm };
    let mut points = permission::points();
    points.extend(modes::points());
    points.extend(operands::points());
    points.extend(fields::points());
    tap::run(&points, &fixture, |_| Ok(()))
}
