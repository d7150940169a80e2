// SPDX-License-Identifier: GPL-2.0

//! Hosts for tests.

use super::{Enabled, Host};
use crate::vmx::controls::{Entry, Exit, Pin, Primary, Secondary};

/// A host that has nothing.
pub(in crate::vmx) const NOTHING: Host = Host {
    basic: 0,
    pin: Pin::NONE,
    primary: Primary::NONE,
    secondary: Secondary::NONE,
    exit: Exit::NONE,
    entry: Entry::NONE,
    misc: 0,
    ept: 0,
    cr0_fixed1: 0,
    cr4_fixed1: 0,
    highest_field_index: 0,
    enabled: Enabled {
        ept: false,
        ept_ad_bits: false,
        mbec: false,
        vpid: false,
        unrestricted_guest: false,
        flexpriority: false,
        apicv: false,
        sgx: false,
        cet: false,
        umip_emulation: false,
    },
};

/// A host that has every bit of every word.
pub(in crate::vmx) const EVERYTHING: Host = Host {
    basic: u64::MAX,
    pin: Pin::from_raw(u32::MAX),
    primary: Primary::from_raw(u32::MAX),
    secondary: Secondary::from_raw(u32::MAX),
    exit: Exit::from_raw(u32::MAX),
    entry: Entry::from_raw(u32::MAX),
    misc: u32::MAX,
    ept: u32::MAX,
    cr0_fixed1: 0xffff_ffff,
    cr4_fixed1: 0x0172_77ff | 1 << 23,
    highest_field_index: 0x19,
    enabled: Enabled {
        ept: true,
        ept_ad_bits: true,
        mbec: true,
        vpid: true,
        unrestricted_guest: true,
        flexpriority: true,
        apicv: true,
        sgx: true,
        cet: true,
        umip_emulation: false,
    },
};
