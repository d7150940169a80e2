// SPDX-License-Identifier: GPL-2.0

//! An L1 that does what the test program has prepared: it runs L2 once, reports, and starts again.

use super::code::{peek, report, run_l2, stgi, SAYS};
use super::layout::{exception, EXCEPTIONS, REGISTERS, VMRUN_ADDRESS};
use super::vmcb::EXIT_CODE;

/// L1 is about to execute VMRUN.
pub const READY: u64 = 1;

/// L2 has exited, or VMRUN has raised an exception.
pub const EXITED: u64 = 2;

/// The program of L1.
pub extern "C" fn driver() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            report(SAYS, READY, 0);
            run_l2(peek(VMRUN_ADDRESS), REGISTERS);
            report(SAYS, EXITED, peek(EXCEPTIONS + exception::COUNT));
            stgi();
        }
    }
}

/// Where L2's exit code is; for tests that use the driver.
pub const RESULT: u64 = EXIT_CODE;
