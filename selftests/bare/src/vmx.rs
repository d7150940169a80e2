// SPDX-License-Identifier: GPL-2.0

//! Its part for VMX.

#[path = "../../src/guest/vmx/bits.rs"]
pub mod bits;
#[path = "../../src/guest/vmx/code.rs"]
pub mod code;
#[path = "../../src/guest/vmx/field.rs"]
pub mod field;
#[path = "../../src/guest/vmx/near_valid.rs"]
pub mod near_valid;
