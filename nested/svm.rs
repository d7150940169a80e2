// SPDX-License-Identifier: GPL-2.0

//! SVM: the virtualization of AMD processors.

pub mod capability;
pub mod exit_code;

pub use exit_code::ExitCode;
