// SPDX-License-Identifier: GPL-2.0

//! Numbers and bits of the processor that merging, routing and exiting look at, by their names in
//! KVM.

/// Exception vectors.
pub(crate) mod vector {
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const AC: u8 = 17;
    pub(crate) const VE: u8 = 20;
    pub(crate) const CP: u8 = 21;
}

/// Bits of CR0.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
}

/// Bits of CR4.
pub(crate) mod cr4 {
    pub(crate) const UMIP: u64 = 1 << 11;
}

/// Bits of `IA32_EFER`.
pub(crate) mod efer {
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
}
