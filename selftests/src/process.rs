// SPDX-License-Identifier: GPL-2.0

//! The process of a test.

use std::env;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{ensure, Result};

/// What personality() takes when it is to change nothing.
const QUESTION: libc::c_ulong = 0xffff_ffff;

/// Makes the addresses of this program the same each time: starts it again if they are not.
pub fn fix_addresses() -> Result<()> {
    // SAFETY: The function reads and writes no memory.
    let now = unsafe { libc::personality(QUESTION) };
    ensure!(now >= 0, "personality: {}", Error::last_os_error());
    if now & libc::ADDR_NO_RANDOMIZE != 0 {
        return Ok(());
    }
    let fixed = libc::c_ulong::try_from(now | libc::ADDR_NO_RANDOMIZE)?;
    // SAFETY: As above.
    let result = unsafe { libc::personality(fixed) };
    ensure!(result >= 0, "personality: {}", Error::last_os_error());
    let mut words = env::args_os();
    let name = words.next().unwrap_or_default();
    let error = Command::new("/proc/self/exe").arg0(name).args(words).exec();
    Err(error.into())
}
