// SPDX-License-Identifier: GPL-2.0

//! Checks on the segment registers of L2 in virtual-8086 mode.

use super::Segment;

/// The access rights of all segments: read/write data, accessed, privilege level 3, present.
const ACCESS_RIGHTS: u32 = 0xf3;

consistency_checks! {
    /// Makes the checks on a segment register in virtual-8086 mode.
    pub(super) fn check(segment: Segment) -> Result<(), Virtual8086Check> {
        /// The base is 16 times the selector.
        Base: segment.base != u64::from(segment.selector) << 4,
        /// The limit is that of 16 bits.
        Limit: segment.limit != 0xffff,
        /// The access rights are those of virtual-8086 mode.
        AccessRights: segment.rights.0 != ACCESS_RIGHTS,
    }
}
