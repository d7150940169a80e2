// SPDX-License-Identifier: GPL-2.0

//! What keeps an L2 on its tracks.
//!
//! Random changes put L2 into other modes than 64-bit mode, in which its code and its
//! interrupt-descriptor table are not what they are for L1, or let it go on at an address that nothing
//! has set. It would execute what it happens to find there: tables, and code of L1. How far it gets in
//! that depends on the time that it has and on the addresses of this program; it overwrites the tables
//! that it runs on; and QEMU itself hangs when it translates code on the page of a table, and has to
//! set a flag in a table to find what follows.

use super::code;
use crate::guest::layout::{GDT, PAGE_TABLES, VECTORS};
use crate::guest::memory::GuestMemory;
use crate::guest::Vendor;

/// Protection in CR0.
const PROTECTION: u64 = 1;

/// Virtual-8086 mode in RFLAGS.
const VIRTUAL_8086: u64 = 1 << 17;

/// Bytes of the vector table of real mode.
const VECTORS_SIZE: u64 = 0x400;

/// The highest address within a segment of 16-bit code.
const LIMIT: u64 = 0xffff;

/// State with which L2 would begin.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// The register CR0.
    pub cr0: u64,
    /// The register RFLAGS.
    pub rflags: u64,
    /// Whether it begins in long mode.
    pub long: bool,
    /// Whether the code segment is one of 64-bit code, in long mode.
    pub code_is_64_bit: bool,
    /// Whether the code segment is one of 32-bit code.
    pub code_is_32_bit: bool,
    /// The register RIP.
    pub rip: u64,
}

/// Base and limit of IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// The base.
    pub base: u64,
    /// The limit.
    pub limit: u64,
}

/// Where 16-bit code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The base of CS.
    pub base: u64,
    /// Its selector, if the base depends on it.
    pub selector: Option<u64>,
    /// The register RIP.
    pub rip: u64,
}

impl Mode {
    /// Returns the IDTR that L2 needs, if it is another one than for 64-bit mode.
    ///
    /// Without protection it gets the table that [`write`] makes. With protection it gets none, and
    /// its first exception shuts it down.
    pub fn vectors(self) -> Option<Vectors> {
        let limit = match (self.cr0 & PROTECTION != 0, self.long) {
            (true, true) => return None,
            (true, false) => 0,
            (false, _) => VECTORS_SIZE - 1,
        };
        let base = VECTORS;
        Some(Vectors { base, limit })
    }

    /// Returns the code segment that L2 needs, if its code has 16 bits and RIP has more.
    ///
    /// QEMU executes such code, but cuts RIP off where it happens to end a block of code.
    pub fn segment(self) -> Option<Segment> {
        let wide = self.long && self.code_is_64_bit || self.code_is_32_bit;
        if wide || self.rip <= LIMIT {
            return None;
        }
        let base = code::CODE;
        let by_selector = self.cr0 & PROTECTION == 0 || self.rflags & VIRTUAL_8086 != 0;
        Some(Segment {
            base,
            selector: by_selector.then_some(base >> 4),
            rip: self.rip & LIMIT,
        })
    }
}

/// Where an L2 arrives that goes on at an address of which it has none, or behind its data: address 0,
/// as for SYSCALL, SYSENTER, and IRET in real mode; the null descriptor, which nobody reads; and the
/// page behind that of the data.
const ARRIVALS: [u64; 3] = [0, GDT, code::DATA + 0x1000];

/// Where an L2 comes past that executes zeros, before it is at the tables.
const GUARD: u64 = PAGE_TABLES - 0x80;

/// Instructions without effect, more than the longest instruction has bytes.
const SLED: [u8; 16] = [0x90; 16];

/// Writes the vector table of real mode. What it refers to calls L1, as does what is at [`ARRIVALS`]
/// and [`GUARD`].
pub fn write(memory: &GuestMemory, vendor: Vendor) {
    let handler = VECTORS + VECTORS_SIZE;
    // Segment and offset.
    let vector = (VECTORS >> 4 << 16 | VECTORS_SIZE) as u32;
    for at in (VECTORS..handler).step_by(4) {
        memory.write(at, vector);
    }
    for start in ARRIVALS.into_iter().chain([handler, GUARD]) {
        let sled = if start == GUARD { &SLED[..] } else { &[] };
        let code = sled.iter().copied().chain(code::calls(vendor));
        for (at, byte) in (start..).zip(code) {
            memory.write(at, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Mode = Mode {
        cr0: 0x8001_0033,
        rflags: 2,
        long: true,
        code_is_64_bit: true,
        code_is_32_bit: false,
        rip: code::CODE + 0x20,
    };

    #[test]
    fn in_64_bit_mode_all_is_as_for_l1() {
        assert_eq!((LONG.vectors(), LONG.segment()), (None, None));
    }

    #[test]
    fn in_real_mode_l2_has_a_table_and_code_of_its_own() {
        let cr0 = 0x10;
        let (long, code_is_64_bit) = (false, false);
        let real = Mode {
            cr0,
            long,
            code_is_64_bit,
            ..LONG
        };
        let limit = 0x3ff;
        assert_eq!(
            real.vectors(),
            Some(Vectors {
                base: VECTORS,
                limit
            })
        );
        let segment = Segment {
            base: 0xa_0000,
            selector: Some(0xa000),
            rip: 0x20,
        };
        assert_eq!(real.segment(), Some(segment));
        assert_eq!(Mode { rip: 0x20, ..real }.segment(), None);
        assert_eq!(
            Mode {
                code_is_32_bit: true,
                ..real
            }
            .segment(),
            None
        );
    }

    #[test]
    fn in_protected_mode_l2_has_no_table() {
        let protected = Mode {
            long: false,
            code_is_32_bit: true,
            ..LONG
        };
        let limit = 0;
        assert_eq!(
            protected.vectors(),
            Some(Vectors {
                base: VECTORS,
                limit
            })
        );
        assert_eq!(protected.segment(), None);
        let small = Mode {
            code_is_32_bit: false,
            ..protected
        };
        let selector = small.segment().map(|segment| segment.selector);
        assert_eq!(selector, Some(None));
        let virtual_8086 = Mode {
            rflags: 0x2_0002,
            ..small
        };
        let selector = virtual_8086.segment().and_then(|segment| segment.selector);
        assert_eq!(selector, Some(0xa000));
    }
}
