// SPDX-License-Identifier: GPL-2.0

//! Intercepts: what L2 does is reflected to L1 if L1 asks for it, and only then.

mod cases;
mod emulated;
mod maps;

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use selftests::guest::driver::driver;
use selftests::guest::layout::{exception, BUFFER, EXCEPTIONS, IO_MAP, MSR_MAP, REGISTERS, SHARED};
use selftests::guest::machine::{self, heard, run, Interrupts, Stop};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::{GuestMemory, Level, Machine, Vendor};
use selftests::{expect, guest_code, tap};

guest_code! {
    /// L2: goes on here after an exception of its own.
    intercept_test_recovery: "vmmcall", "ud2";
}

/// Code of L2.
pub type Code = unsafe extern "C" fn();

/// What L2 did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It exited to L1, with this code.
    Exit(u64),
    /// It got to its end.
    Finished,
    /// It had an exception, which it handled itself.
    Exception(u64),
}

/// What the tests need.
pub struct Fixture {
    machine: RefCell<Option<Machine>>,
    kvm: kvm_ioctls::Kvm,
}

impl Fixture {
    /// Creates a new machine.
    fn restart(&self) -> Result<()> {
        let machine = Machine::new(&self.kvm, 1, Interrupts::None)?;
        machine.start(0, driver)?;
        *self.machine.borrow_mut() = Some(machine);
        Ok(())
    }

    /// Returns whether L1 is offered a feature of SVM, by its bit in CPUID 8000_000Ah:EDX.
    fn offers(&self, bit: u32) -> Result<bool> {
        let features = selftests::offer::Offer::read(&self.kvm)?.svm_features();
        Ok(features >> bit & 1 == 1)
    }

    /// Gives a test the machine, whose L1 is about to report that it is ready.
    fn with<T>(&self, test: impl FnOnce(&mut Machine) -> Result<T>) -> Result<T> {
        let mut machine = self.machine.borrow_mut();
        test(machine.as_mut().context("there is no machine")?)
    }

    /// Runs code of L2 once; returns what it did, and what L0's user space saw.
    fn run(&self, code: Code, prepare: impl FnOnce(&GuestMemory)) -> Result<(Ran, Vec<Stop>)> {
        let mut machine = self.machine.borrow_mut();
        let machine = machine.as_mut().context("there is no machine")?;
        machine.ready()?;
        let memory = machine.memory.clone();
        vmcb::write(&memory, &machine.tables, code as *const () as u64);
        memory.fill(REGISTERS, 14 * 8, 0);
        memory.fill(IO_MAP, 0x3000, 0);
        memory.fill(MSR_MAP, 0x2000, 0);
        memory.fill(SHARED, 0x100, 0);
        memory.fill(BUFFER, 0x100, 0);
        let record = EXCEPTIONS + exception::SIZE;
        let recovery = intercept_test_recovery as *const () as u64;
        memory.write(record + exception::RECOVERY, recovery);
        prepare(&memory);
        let mut stops = Vec::new();
        loop {
            match run(&mut machine.vcpus[0]) {
                Stop::Said(message) if message.level == Level::L1 => {
                    heard(message)?;
                    break;
                }
                Stop::Said(message) => bail!("L2 says {:?}", heard(message)?),
                stop @ (Stop::Out(..) | Stop::In(..) | Stop::Halt) if stops.len() < 10 => {
                    stops.push(stop);
                }
                other => bail!("the guest stopped: expected a report, saw {other:?}"),
            }
        }
        expect(
            "exceptions of L1",
            memory.read::<u64>(EXCEPTIONS + exception::COUNT),
            0,
        )?;
        let exit_code = memory.read::<u64>(vmcb::EXIT_CODE);
        let rip: u64 = memory.read(vmcb::RIP);
        let exceptions: u64 = memory.read(record + exception::COUNT);
        let ran = match exit_code {
            exit::VMMCALL | exit::HLT if exceptions == 1 => {
                Ran::Exception(memory.read(record + exception::VECTOR))
            }
            exit::VMMCALL if rip != code as *const () as u64 => Ran::Finished,
            code => Ran::Exit(code),
        };
        if matches!(ran, Ran::Exit(_)) {
            ensure!(exceptions == 0, "L2 had an exception before it exited");
        }
        Ok((ran, stops))
    }

    /// Runs code of which the first instruction must exit.
    fn exits(&self, code: Code, exit: u64, prepare: impl FnOnce(&GuestMemory)) -> Result<Info> {
        let (ran, stops) = self.run(code, prepare)?;
        expect("what L2 did", ran, Ran::Exit(exit))?;
        expect("what user space saw", stops, Vec::new())?;
        let machine = self.machine.borrow();
        let memory = &machine.as_ref().context("there is no machine")?.memory;
        expect(
            "RIP at the exit",
            memory.read::<u64>(vmcb::RIP),
            code as *const () as u64,
        )?;
        Ok(Info {
            first: memory.read(vmcb::EXIT_INFO_1),
            second: memory.read(vmcb::EXIT_INFO_2),
        })
    }
}

/// What an exit says beyond its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// EXITINFO1.
    pub first: u64,
    /// EXITINFO2.
    pub second: u64,
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Svm) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let fixture = Fixture {
        machine: RefCell::new(None),
        kvm,
    };
    if let Err(error) = fixture.restart() {
        println!("Bail out! {error:#}");
        return ExitCode::FAILURE;
    }
    let mut points = cases::points();
    points.extend(maps::points());
    points.extend(emulated::points());
    tap::run(&points, &fixture, Fixture::restart)
}
