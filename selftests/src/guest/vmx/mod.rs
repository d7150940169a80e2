// SPDX-License-Identifier: GPL-2.0

//! L1s that use VMX.
//!
//! The fields of a VMCS are not in memory that the test program could write: L1 executes a list of
//! VMX instructions, see [`script`], and the test program reads how each of them ended.

pub mod bits;
pub mod code;
pub mod control;
pub mod field;
pub mod fields;
pub mod guest;
pub mod near_valid;
pub mod script;

pub use control::Capabilities;
pub use fields::Fields;
pub use guest::{Entered, Exit, VmxMachine};
pub use script::{Answer, Operation};
