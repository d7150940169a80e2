// SPDX-License-Identifier: GPL-2.0

//! SVM: the virtualization of AMD processors.
//!
//! A `VMRUN` of L1 goes through these steps: [`vmcb12`] is what L1 wrote, read once; [`check`] says
//! whether it is legal; [`merge`] makes of it, and of what L0 needs, what L2 runs with. When L2
//! exits, [`route`] says who gets the exit, and [`exit`] writes vmcb12.

pub mod asid;
pub mod bits;
pub mod capability;
pub mod check;
pub mod cpu;
pub mod event;
pub mod exit;
pub mod exit_code;
pub mod intercept;
pub mod merge;
pub mod permission_map;
pub mod route;
pub mod vmcb;
pub mod vmcb12;
pub mod vmload;

#[cfg(test)]
mod testing;

pub use cpu::{Feature, VirtualCpu};
pub use exit_code::ExitCode;
pub use vmcb::Vmcb;
pub use vmcb12::{Control12, Save12};

/// The VMCB that L1 runs with.
#[repr(transparent)]
pub struct Vmcb01(pub Vmcb);

/// The VMCB that L2 runs with.
#[repr(transparent)]
pub struct Vmcb02(pub Vmcb);
