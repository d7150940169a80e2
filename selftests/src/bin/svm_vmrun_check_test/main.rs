// SPDX-License-Identifier: GPL-2.0

//! The checks of VMRUN: the smallest violation of each fails, its valid neighbour runs.

mod faults;
mod rules;

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{ensure, Result};
use kvm_bindings::{kvm_enable_cap, KVM_CAP_DISABLE_QUIRKS2};
use selftests::guest::driver::driver;
use selftests::guest::layout::{exception, EXCEPTIONS};
use selftests::guest::machine::{self, Interrupts};
use selftests::guest::state::{Nested, GIF_SET};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::{GuestMemory, Machine, Vendor};
use selftests::{expect, guest_code, tap};

/// L2 has a page-attribute table of its own only without this quirk.
const QUIRK_SHARED_PAT: u64 = 1 << 11;

guest_code! {
    /// L2: calls L1 at once.
    check_test_l2: "vmmcall", "ud2";
}

/// What the tests need.
pub struct Fixture {
    /// A machine with the driver as its L1, about to be ready.
    machine: RefCell<Option<Machine>>,
    kvm: kvm_ioctls::Kvm,
}

impl Fixture {
    /// Creates a new machine.
    fn restart(&self) -> Result<()> {
        let machine = Machine::new(&self.kvm, 1, Interrupts::None)?;
        let mut quirks = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            ..Default::default()
        };
        quirks.args[0] = QUIRK_SHARED_PAT;
        // A KVM that does not know the quirk shares the table.
        let _ = machine.vm.enable_cap(&quirks);
        machine.start(0, driver)?;
        *self.machine.borrow_mut() = Some(machine);
        Ok(())
    }

    /// Executes VMRUN with a changed VMCB and returns the exit code.
    fn vmrun(&self, change: impl FnOnce(&GuestMemory)) -> Result<u64> {
        let mut machine = self.machine.borrow_mut();
        let Some(machine) = machine.as_mut() else {
            anyhow::bail!("there is no machine");
        };
        machine.ready()?;
        let memory = machine.memory.clone();
        vmcb::write(&memory, &machine.tables, check_test_l2 as *const () as u64);
        memory.write(vmcb::EXIT_CODE, 0x1234_5678u64);
        memory.write(vmcb::EXIT_INFO_1, 0x11u64);
        memory.write(vmcb::EXIT_INFO_2, 0x22u64);
        change(&memory);
        machine.exited()?;
        expect(
            "exceptions of L1",
            memory.read::<u64>(EXCEPTIONS + exception::COUNT),
            0,
        )?;
        let state = Nested::read(&machine.vcpus[0])?;
        ensure!(!state.has(GIF_SET), "GIF is set after #VMEXIT");
        let code = memory.read(vmcb::EXIT_CODE);
        if code == exit::INVALID {
            expect("EXITINFO1", memory.read::<u64>(vmcb::EXIT_INFO_1), 0)?;
            expect("EXITINFO2", memory.read::<u64>(vmcb::EXIT_INFO_2), 0)?;
            let injected = memory.read::<u32>(vmcb::EVENT_INJ);
            expect("EVENTINJ after #VMEXIT", injected, 0)?;
        }
        Ok(code)
    }
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
    let mut points = rules::points();
    points.extend(faults::points());
    tap::run(&points, &fixture, Fixture::restart)
}
