// SPDX-License-Identifier: GPL-2.0

//! What vmcs02 is made of: what L1 asks for in vmcs12, and what L0 needs.
//!
//! Everything here is default-deny. A control that no row of a table names, an MSR that no row
//! lets through, and a bit of a register that nobody gave to L2 do not reach vmcs02.

pub mod apic;
pub mod conditions;
pub mod control_registers;
pub mod controls;
pub mod exceptions;
pub mod guest_state;
pub mod io_bitmap;
pub mod msr_bitmap;
pub mod table;
pub mod time;
