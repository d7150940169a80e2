// SPDX-License-Identifier: GPL-2.0

//! What the tests of the modules share: they run at level 0, as root, and print TAP.

pub mod figures;
pub mod fuzz;
pub mod guest;
pub mod kmsg;
pub mod module;
pub mod offer;
pub mod process;
pub mod provider;
pub mod tap;
pub mod vm;

use std::fmt::{Debug, Display};

use anyhow::{ensure, Result};

/// Fails unless `seen` is `expected`; the message has both.
pub fn expect<T: PartialEq + Debug>(what: impl Display, seen: T, expected: T) -> Result<()> {
    ensure!(
        seen == expected,
        "{what}: expected {expected:?}, saw {seen:?}"
    );
    Ok(())
}
