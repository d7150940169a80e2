// SPDX-License-Identifier: GPL-2.0

//! Guests of guests: a machine whose L1 and L2 are functions of the test program itself.
//!
//! The program's image is mapped into the guest at the addresses that it has in this process, as
//! read-only memory: what L1 and L2 execute are plain functions, which may use constants. They may
//! not write to statics, panic, or call the system. Below that is 4 MiB of memory at identical
//! addresses, and the page of vmcb12 or vmcs12 is in a slot of its own.
//!
//! L1 runs on page tables at [`layout::PAGE_TABLES`]; L2 runs on the same ones, below an identity
//! nested page table of L1. Both levels report by [`code::report`]. What differs between SVM and
//! VMX is in [`driver`] and [`vmcb`] for the one, in [`vmx`] for the other; [`extension`] is for L1s
//! that do the same with both. Where L2 runs an L3, this has records and descriptors of its own, too.

pub mod code;
pub mod computing;
pub mod driver;
pub mod extension;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod paging;
pub mod random;
pub mod signal;
pub mod state;
pub mod tables;
pub mod vmcb;
pub mod vmx;

pub use machine::{Level, Machine, Message, Stop};
pub use memory::GuestMemory;
pub use random::Random;

/// The extension that L1 uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx,
}
