// SPDX-License-Identifier: GPL-2.0

//! What an entry of L1's tables means, whichever format it has.

use super::access::Permissions;
use crate::address::Gpa;

/// An entry of L1's tables, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// There is no translation.
    NotPresent,
    /// Something is set that must not be, or a combination that must not be.
    Reserved,
    /// The entry refers to a table.
    Table {
        /// The table.
        table: Gpa,
        /// What the entry permits.
        permissions: Permissions,
    },
    /// The entry maps a page, of the size that the level has.
    Page {
        /// The first byte of the page.
        page: Gpa,
        /// What the entry permits.
        permissions: Permissions,
        /// The memory type and whether that of PAT is ignored: bits 6:3 of an EPT entry, in bits
        /// 3:0. Nested paging has none here.
        memory_type: u8,
    },
}

/// Where a format keeps its accessed and dirty flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessedDirty {
    /// The accessed flag, of each entry.
    pub accessed: u64,
    /// The dirty flag, of an entry that maps a page.
    pub dirty: u64,
}

/// The bits from `low` to `high`, both included; none if `low` is above `high`.
#[inline]
pub(super) const fn bits(low: u32, high: u32) -> u64 {
    if low > high || low > 63 {
        return 0;
    }
    let above = if high >= 63 {
        0
    } else {
        u64::MAX.wrapping_shl(high.wrapping_add(1))
    };
    u64::MAX.wrapping_shl(low) & !above
}

/// The address bits of an entry of 8 bytes.
pub(crate) const ADDRESS: u64 = bits(12, 51);

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_entry))]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bits_include_both_ends() {
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(3, 6), 0x78);
        assert_eq!(bits(52, 51), 0);
        assert_eq!(bits(63, 63), 1 << 63);
        assert_eq!(bits(0, 63), u64::MAX);
        assert_eq!(bits(64, 64), 0);
        assert_eq!(ADDRESS, 0x000f_ffff_ffff_f000);
    }
}
