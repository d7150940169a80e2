// SPDX-License-Identifier: GPL-2.0

//! VMX: the virtualization of Intel processors.

mod bits;
pub mod capability;
pub mod exit;
pub mod exit_reason;
pub mod merge;
pub mod route;
pub mod vmcs12;

pub use exit_reason::ExitReason;
pub use vmcs12::Vmcs12;
