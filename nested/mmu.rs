// SPDX-License-Identifier: GPL-2.0

//! Page tables: those that L1 makes for L2, and the shadow of them that L2 runs on.

pub mod access;
pub mod counters;
pub mod entry;
pub mod ept;
pub mod format;
pub mod level;
pub mod npt;
pub mod shadow;
pub mod walk;

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
mod testing;
