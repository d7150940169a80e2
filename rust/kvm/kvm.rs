// SPDX-License-Identifier: GPL-2.0

//! Safe views of KVM, for the modules that provide nested virtualization to it.
//!
//! [`bindings`] is what bindgen makes of KVM's private headers. Nothing but this crate and the
//! entry points of the modules uses it.

pub mod bindings;
pub mod memory;
pub mod mmu;
pub mod page_cache;
pub mod preemption;
pub mod stats;
pub mod vcpu;
pub mod vm;

pub use memory::{
    MappedPage,
    SharedPage,
    Window, //
};
pub use page_cache::PageCache;
pub use preemption::Preemption;
pub use stats::{
    StatsRoot,
    VmStats, //
};
pub use vcpu::{
    RunPending,
    Vcpu, //
};
pub use vm::VmData;
