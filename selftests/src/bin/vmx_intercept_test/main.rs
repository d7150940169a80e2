// SPDX-License-Identifier: GPL-2.0

//! Exits: what L2 does is reflected to L1 if L1 asks for it, and only then.

mod activity;
mod apic;
mod areas;
mod cases;
mod emulated;
mod events;
mod maps;
mod memory;
mod moved;
mod pause;
mod registers;

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;
use selftests::guest::layout::{BUFFER, IO_MAP, MSR_MAP, SHARED};
use selftests::guest::machine::{self, Interrupts, Stop};
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::guest::{Exit, RAX};
use selftests::guest::vmx::VmxMachine;
use selftests::guest::vmx::{field, Fields};
use selftests::guest::Vendor;
use selftests::tap::Skip;
use selftests::{expect, guest_code, tap};

guest_code! {
    /// L2: goes on here after an exception of its own.
    intercept_test_recovery: "vmcall", "ud2";
    /// L2: goes on here after an exception of its own, if VMCALL is not its end.
    intercept_test_recovery_2: "cpuid", "ud2";
}

/// Code of L2.
pub type Code = unsafe extern "C" fn();

/// Returns the address of code.
pub fn address(code: Code) -> u64 {
    code as *const () as u64
}

/// A change of a VMCS, and of the machine.
pub type Change<'a> = &'a dyn Fn(&mut Fields, &mut VmxMachine);

/// What L2 did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It exited to L1, with this reason.
    Exit(u64),
    /// It got to its end.
    Finished,
    /// It had an exception, which it handled itself.
    Exception(u64),
}

/// How L2 ran.
pub struct Run {
    /// What it did.
    pub ran: Ran,
    /// What its last exit said.
    pub exit: Exit,
    /// What L0's user space saw.
    pub stops: Vec<Stop>,
}

/// What the tests need.
pub struct Fixture {
    /// Until a test fails, they all use the same one.
    machine: RefCell<Option<VmxMachine>>,
    kvm: Kvm,
}

impl Fixture {
    /// Gives a test a machine that is in VMX operation.
    pub fn with<T>(&self, test: impl FnOnce(&mut VmxMachine) -> Result<T>) -> Result<T> {
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
        machine.at_stop = None;
        machine.at_rest = None;
        *self.machine.borrow_mut() = Some(machine);
        Ok(result)
    }

    /// Gives a test a machine of its own that has a local APIC and is in VMX operation.
    pub fn with_apic<T>(&self, test: impl FnOnce(&mut VmxMachine) -> Result<T>) -> Result<T> {
        let mut machine = VmxMachine::new(&self.kvm, Interrupts::LocalApic)?;
        machine.vmxon()?;
        test(&mut machine)
    }

    /// Makes the next test begin with a new machine.
    pub fn renew(&self) {
        *self.machine.borrow_mut() = None;
    }

    /// Runs code of L2 once.
    pub fn run(&self, code: Code, prepare: Change<'_>) -> Result<Run> {
        self.with(|machine| run(machine, code, prepare))
    }

    /// Runs code of which the first instruction must exit.
    pub fn exits(&self, code: Code, reason: u64, prepare: Change<'_>) -> Result<Exit> {
        let Run { ran, exit, stops } = self.run(code, prepare)?;
        expect("what L2 did", ran, Ran::Exit(reason))?;
        expect("what user space saw", stops, Vec::new())?;
        expect("RIP at the exit", exit.rip, address(code))?;
        Ok(exit)
    }
}

/// Runs code of L2 once.
pub fn run(machine: &mut VmxMachine, code: Code, prepare: Change<'_>) -> Result<Run> {
    let mut fields = machine.fields(address(code))?;
    let memory = machine.memory();
    memory.fill(IO_MAP, 0x2000, 0);
    memory.fill(MSR_MAP, 0x1000, 0);
    memory.fill(SHARED, 0x100, 0);
    memory.fill(BUFFER, 0x100, 0);
    for register in 0..15 {
        machine.set_register(register, 0);
    }
    machine.recover_l2(address(intercept_test_recovery));
    prepare(&mut fields, machine);
    for word in [
        field::PIN,
        field::PRIMARY,
        field::SECONDARY,
        field::EXIT,
        field::ENTRY,
    ] {
        let lacks = fields.get(word) & !machine.capabilities.allowed(word);
        if lacks != 0 {
            let reason = format!("L1's processor lacks {lacks:#x} of control {word:#x}");
            return Err(Skip(reason).into());
        }
    }
    let (entered, stops) = machine.enter(&fields)?;
    let exit = entered.exit()?;
    let (exceptions, vector, _) = machine.l2_exceptions();
    let ran = match exit.reason {
        reason::VMCALL | reason::CPUID if exceptions == 1 => Ran::Exception(vector),
        reason::VMCALL if exit.rip != address(code) => Ran::Finished,
        other => Ran::Exit(other),
    };
    if matches!(ran, Ran::Exit(_)) {
        ensure!(
            exceptions == 0,
            "L2 had exception {vector} before it exited"
        );
    }
    Ok(Run { ran, exit, stops })
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let fixture = Fixture {
        machine: RefCell::new(None),
        kvm,
    };
    let mut points = cases::points();
    points.extend(maps::points());
    points.extend(registers::points());
    points.extend(events::points());
    points.extend(memory::points());
    points.extend(emulated::points());
    points.extend(activity::points());
    points.extend(areas::points());
    points.extend(pause::points());
    points.extend(apic::points());
    points.extend(moved::points());
    tap::run(&points, &fixture, |_| Ok(()))
}
