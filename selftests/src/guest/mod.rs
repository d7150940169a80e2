// SPDX-License-Identifier: GPL-2.0

//! Guests of guests: a machine whose L1 and L2 are functions of the test program itself.
//!
//! The program's image is mapped into the guest at the addresses that it has in this process, as
//! read-only memory: what L1 and L2 execute are plain functions, which may use constants. They may
//! not write to statics, panic, or call the system. Below that is 4 MiB of memory at identical
//! addresses, and the page of vmcb12 is a slot of its own.
//!
//! L1 runs on page tables at [`layout::PAGE_TABLES`]; L2 runs on the same ones, below an identity
//! nested page table of L1. Both levels report by [`code::report`].

pub mod code;
pub mod driver;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod random;
pub mod signal;
pub mod state;
pub mod tables;
pub mod vmcb;

pub use machine::{Level, Machine, Message, Stop};
pub use memory::GuestMemory;
pub use random::Random;
