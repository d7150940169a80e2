// SPDX-License-Identifier: GPL-2.0

//! The checks of VM entry: the smallest violation of each fails in the way of its stage, its valid
//! neighbour runs.

mod controls;
mod guest;
mod host;
mod msrs;
mod segments;

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;
use selftests::guest::machine::{self, Interrupts};
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::guest::Entered;
use selftests::guest::vmx::{field, Fields};
use selftests::guest::vmx::{Capabilities, VmxMachine};
use selftests::guest::{GuestMemory, Vendor};
use selftests::tap::Skip;
use selftests::{expect, guest_code, tap, vm};

guest_code! {
    /// L2: calls L1 at once.
    entry_test_l2: "vmcall", "ud2";
    /// L2: goes on here after an exception.
    entry_test_recovery: "vmcall", "ud2";
}

/// What a rule depends on.
pub struct Cpu<'a> {
    /// The first physical address that is too wide.
    pub end: u64,
    /// What L1's processor can do.
    pub capabilities: Capabilities,
    /// The machine's memory.
    pub memory: &'a GuestMemory,
}

/// A change of a VMCS with which L2 runs.
pub type Change = fn(&mut Fields, &Cpu<'_>);

/// How an entry fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// The controls are wrong: VMfailValid.
    Controls,
    /// The event to inject should have an error code, or none: VMfailValid, if that is checked.
    ErrorCode,
    /// L1's state is wrong: VMfailValid.
    Host,
    /// L2's state is wrong: an exit with this qualification.
    Guest(u64),
    /// The MSR with this number in the list is wrong: an exit.
    Msr(u64),
}

impl Fails {
    fn check(self, entered: Entered) -> Result<()> {
        match self {
            Self::Controls | Self::ErrorCode => expect("the entry", entered, Entered::Valid(7)),
            Self::Host => expect("the entry", entered, Entered::Valid(8)),
            Self::Guest(qualification) => failed(entered, reason::INVALID_STATE, qualification),
            Self::Msr(index) => failed(entered, reason::MSR_LOAD, index),
        }
    }
}

fn failed(entered: Entered, reason: u64, qualification: u64) -> Result<()> {
    let exit = entered.exit()?;
    expect("reason of the exit", exit.reason, reason)?;
    expect("qualification", exit.qualification, qualification)?;
    // It is not an exit of L2, whose state is as it was.
    ensure!(
        exit.injected >> 31 == 0 || exit.reason >> 31 == 1,
        "the event to inject is gone"
    );
    Ok(())
}

/// What the tests need.
pub struct Fixture {
    /// Until a test fails, they all use the same one.
    machine: RefCell<Option<VmxMachine>>,
    kvm: Kvm,
    end: u64,
}

impl Fixture {
    /// Gives a test a machine that is in VMX operation.
    fn with<T>(&self, test: impl FnOnce(&mut VmxMachine) -> Result<T>) -> Result<T> {
        let machine = self.machine.borrow_mut().take();
        let mut machine = match machine {
            Some(machine) => machine,
            None => {
                let mut machine = VmxMachine::new(&self.kvm, Interrupts::None)?;
                machine.vmxon()?;
                machine
            }
        };
        let result = test(&mut machine)?;
        *self.machine.borrow_mut() = Some(machine);
        Ok(result)
    }

    /// Enters L2 with a VMCS that was changed.
    fn enter(&self, change: Change) -> Result<Entered> {
        self.with(|machine| {
            let mut fields = machine.fields(entry_test_l2 as *const () as u64)?;
            let cpu = Cpu {
                end: self.end,
                capabilities: machine.capabilities,
                memory: machine.memory(),
            };
            change(&mut fields, &cpu);
            machine.recover_l2(entry_test_recovery as *const () as u64);
            Ok(machine.enter(&fields)?.0)
        })
    }

    /// Fails, so that the point is skipped, if the processor lacks controls.
    fn supported(&self, change: Change) -> Result<()> {
        self.with(|machine| {
            let mut fields = machine.fields(0)?;
            let capabilities = machine.capabilities;
            let cpu = Cpu {
                end: self.end,
                capabilities,
                memory: machine.memory(),
            };
            change(&mut fields, &cpu);
            for word in [
                field::PIN,
                field::PRIMARY,
                field::SECONDARY,
                field::EXIT,
                field::ENTRY,
            ] {
                let lacks = fields.get(word) & !capabilities.allowed(word);
                if lacks != 0 {
                    let reason = format!("L1's processor lacks {lacks:#x} of control {word:#x}");
                    return Ok(Some(Skip(reason)));
                }
            }
            let activity = fields.get(field::ACTIVITY);
            if activity != 0 && capabilities.misc >> (5 + activity) & 1 == 0 {
                let reason = format!("L1's processor lacks activity {activity}");
                return Ok(Some(Skip(reason)));
            }
            Ok(None)
        })?
        .map_or(Ok(()), |skip| Err(skip.into()))
    }
}

/// Checks that VM entry fails with the first change and not with the second one.
pub fn rule(fixture: &Fixture, fails: Fails, wrong: Change, right: Change) -> Result<()> {
    fixture.supported(right)?;
    if fails == Fails::ErrorCode {
        let checked = fixture.with(|machine| Ok(machine.capabilities.checks_error_codes()))?;
        if !checked {
            return Err(
                Skip("L1's processor injects exceptions with any error code".into()).into(),
            );
        }
    }
    let entered = fixture.enter(wrong).context("the violation")?;
    fails.check(entered).context("the violation")?;
    let entered = fixture.enter(right).context("the valid neighbour")?;
    let exit = entered.exit().context("the valid neighbour")?;
    ensure!(
        exit.reason >> 31 == 0,
        "the valid neighbour: the entry fails with reason {:#x}, qualification {:#x}",
        exit.reason,
        exit.qualification
    );
    Ok(())
}

/// Makes points of rules: what fails how, the violation, the valid neighbour.
macro_rules! rules {
    ($($name:literal: $fails:expr, $wrong:expr, $right:expr;)*) => {
        vec![$(selftests::tap::Point::new($name, |fixture: &crate::Fixture| {
            crate::rule(fixture, $fails, $wrong, $right)
        }),)*]
    };
}
pub(crate) use rules;

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let widths = vm::cpuid(&kvm).ok().and_then(|cpuid| {
        let mut entries = cpuid.as_slice().iter();
        let entry = entries.find(|entry| entry.function == 0x8000_0008);
        entry.map(|entry| entry.eax & 0xff)
    });
    let fixture = Fixture {
        machine: RefCell::new(None),
        kvm,
        end: 1 << widths.unwrap_or(36),
    };
    let mut points = controls::points();
    points.extend(host::points());
    points.extend(guest::points());
    points.extend(segments::points());
    points.extend(msrs::points());
    tap::run(&points, &fixture, |_| Ok(()))
}
