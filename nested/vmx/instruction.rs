// SPDX-License-Identifier: GPL-2.0

//! The instructions of VMX, as L1 executes them.
//!
//! Each is made of steps that have no effect, in the order in which the processor takes them: what
//! may execute it ([`permission`]), where its operand is ([`operand`], [`address`]), whether that
//! can be accessed ([`segment`]), and whether it is good ([`mod@pointer`], [`access`],
//! [`invalidate`], [`launch`]). A step that fails says why by a [`Refusal`], which becomes a fault
//! or an [`Outcome`].
//!
//! VMFUNC is different: L2 executes it, and gets it from L0 without an exit to L1 ([`vmfunc`]).

pub mod access;
pub mod address;
pub mod error;
pub mod invalidate;
pub mod launch;
pub mod operand;
pub mod permission;
pub mod pointer;
pub mod segment;
pub mod vmfunc;

pub use error::{Fault, InstructionError, Outcome, Refusal};
