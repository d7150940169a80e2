// SPDX-License-Identifier: GPL-2.0

//! The guest library of the tests, as far as it needs nothing of `std`.

#![allow(dead_code)]

#[path = "../../src/guest/code.rs"]
pub mod code;
#[path = "../../src/guest/layout.rs"]
pub mod layout;
#[path = "vmx.rs"]
pub mod vmx;
