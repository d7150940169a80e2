// SPDX-License-Identifier: GPL-2.0

//! The architecture of nested virtualization, free of kernel types.
//!
//! What the manuals of the processors say about running a guest of a guest stands here, as code
//! that builds in the kernel and on any host alike. It does not know KVM: the crates in `rust/`
//! connect the two.
//!
//! VMX is in [`vmx`], SVM in [`svm`], the page tables of both in [`mmu`]; what they share is beside
//! them.

#![cfg_attr(not(any(test, fuzzing, MODULE)), no_std)]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::unwrap_used
)]
#![cfg_attr(
    any(test, fuzzing),
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

#[macro_use]
mod macros;

pub mod address;
pub mod checked;
pub mod entries;
pub mod exits;
pub mod memory;
pub mod mmu;
pub mod svm;
pub mod vmx;
