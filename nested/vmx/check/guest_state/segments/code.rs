// SPDX-License-Identifier: GPL-2.0

//! Checks on CS of L2, outside virtual-8086 mode.

use super::{Segment, SegmentContext};

/// Read/write data, accessed: CS in real mode.
pub(super) const DATA: u32 = 3;

/// Returns whether the type is one of the non-conforming code segments that were accessed.
#[inline]
const fn is_non_conforming(kind: u32) -> bool {
    matches!(kind, 9 | 11)
}

/// Returns whether the type is one of the conforming code segments that were accessed.
#[inline]
const fn is_conforming(kind: u32) -> bool {
    matches!(kind, 13 | 15)
}

consistency_checks! {
    /// Makes the checks on CS.
    pub(super) fn check(
        cs: Segment,
        ss: Segment,
        context: SegmentContext,
    ) -> Result<(), CodeSegmentCheck> {
        /// There is a code segment.
        Unusable: cs.rights.is_unusable(),
        /// The base has 32 bits.
        Base: cs.base >> 32 != 0,
        /// The type is that of code which was accessed, or of data in an unrestricted guest.
        Type: !(is_non_conforming(cs.rights.kind())
            || is_conforming(cs.rights.kind())
            || context.unrestricted && cs.rights.kind() == DATA),
        /// It is not a segment of the system.
        System: !cs.rights.is_code_or_data(),
        /// Data in CS has privilege level 0.
        DplOfData: cs.rights.kind() == DATA && cs.rights.dpl() != 0,
        /// Non-conforming code runs at its own privilege level, which is that of SS.
        DplNonConforming: is_non_conforming(cs.rights.kind())
            && cs.rights.dpl() != ss.rights.dpl(),
        /// Conforming code runs at a privilege level not above its own.
        DplConforming: is_conforming(cs.rights.kind()) && cs.rights.dpl() > ss.rights.dpl(),
        /// It is present.
        Present: !cs.rights.is_present(),
        /// Reserved bits are 0.
        Reserved: cs.rights.has_reserved(),
        /// Code is of 64 bits or of 32 bits.
        DefaultSize: context.ia32e && cs.rights.is_64bit() && cs.rights.is_32bit(),
        /// The granularity fits the limit.
        Granularity: !cs.rights.can_express(cs.limit),
    }
}
