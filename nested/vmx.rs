// SPDX-License-Identifier: GPL-2.0

//! VMX: the virtualization of Intel processors.

mod bits;
pub mod capability;
pub mod check;
pub mod controls;
pub mod eptp;
pub mod exit;
pub mod exit_reason;
pub mod field;
pub mod instruction;
pub mod merge;
pub mod route;
pub mod vmcs12;
pub mod vpid;

pub use exit_reason::ExitReason;
pub use vmcs12::Vmcs12;
