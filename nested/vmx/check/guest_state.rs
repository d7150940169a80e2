// SPDX-License-Identifier: GPL-2.0

//! Checks on the guest-state area.

mod link_pointer;
mod non_register;
mod pdptes;
mod registers;
mod rip_rflags;
mod segments;

pub use link_pointer::{check_link_pointer, LinkPointerCheck};
pub use non_register::{check_activity, check_non_register_state, ActivityCheck, NonRegisterCheck};
pub use pdptes::{check_guest_pdptes, check_pdptes, PdpteCheck};
pub use registers::{check_efer, check_registers, EferCheck, RegisterCheck};
pub use rip_rflags::{check_rip_rflags, RipRflagsCheck};
pub use segments::{
    check_segments, CodeSegmentCheck, DataSegmentCheck, LdtrCheck, SegmentCheck, SegmentContext,
    StackSegmentCheck, TaskRegisterCheck, Virtual8086Check,
};
