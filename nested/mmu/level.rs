// SPDX-License-Identifier: GPL-2.0

//! Levels of page tables, and what an entry at each of them maps.

use crate::address::L2Gpa;

/// Entries of a shadow table, at each level.
pub const ENTRIES: u16 = 512;

/// A level of tables whose entries have 9 bits of the address each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// An entry maps 4 KiB.
    Page4K,
    /// An entry maps 2 MiB.
    Page2M,
    /// An entry maps 1 GiB.
    Page1G,
    /// An entry refers to a table for 512 GiB.
    Table512G,
    /// An entry refers to a table for 256 TiB.
    Table256T,
}

impl Level {
    /// All levels, from the lowest to the highest.
    pub const ALL: [Self; 5] = [
        Self::Page4K,
        Self::Page2M,
        Self::Page1G,
        Self::Table512G,
        Self::Table256T,
    ];

    /// Levels at which an entry can map a page.
    pub const PAGES: [Self; 3] = [Self::Page4K, Self::Page2M, Self::Page1G];

    /// Returns the number of the level: 1 is the lowest.
    #[inline]
    pub const fn number(self) -> u8 {
        match self {
            Self::Page4K => 1,
            Self::Page2M => 2,
            Self::Page1G => 3,
            Self::Table512G => 4,
            Self::Table256T => 5,
        }
    }

    /// Returns the level with a number, from 1 to 5.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Page4K),
            2 => Some(Self::Page2M),
            3 => Some(Self::Page1G),
            4 => Some(Self::Table512G),
            5 => Some(Self::Table256T),
            _ => None,
        }
    }

    /// Returns the number of address bits below those that select an entry.
    #[inline]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Page4K => 12,
            Self::Page2M => 21,
            Self::Page1G => 30,
            Self::Table512G => 39,
            Self::Table256T => 48,
        }
    }

    /// Returns how much an entry maps, in bytes.
    #[inline]
    pub const fn size(self) -> u64 {
        1u64.wrapping_shl(self.shift())
    }

    /// Returns how much a whole table maps, in bytes.
    #[inline]
    pub const fn span(self) -> u64 {
        512u64.wrapping_shl(self.shift())
    }

    /// Returns how many of the smallest pages an entry maps.
    #[inline]
    pub const fn frames(self) -> u64 {
        self.size() >> 12
    }

    /// Returns the next lower level, if there is one.
    #[inline]
    pub const fn below(self) -> Option<Self> {
        Self::from_number(self.number().wrapping_sub(1))
    }

    /// Returns `address` rounded down to what an entry maps.
    #[inline]
    pub const fn align(self, address: u64) -> u64 {
        address & !self.size().wrapping_sub(1)
    }

    /// Returns the offset of `address` within what an entry maps.
    #[inline]
    pub const fn offset(self, address: u64) -> u64 {
        address & self.size().wrapping_sub(1)
    }

    /// Returns the index of the entry for `address`, in the table for it.
    #[inline]
    pub const fn index(self, address: L2Gpa) -> u16 {
        // Nine bits.
        #[allow(clippy::cast_possible_truncation)]
        let index = (address.into_raw().wrapping_shr(self.shift()) & 0x1ff) as u16;
        index
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_level))]
mod tests {
    use super::*;

    #[test]
    fn each_level_maps_512_times_what_the_one_below_does() {
        for level in Level::ALL {
            assert_eq!(Level::from_number(level.number()), Some(level));
            assert_eq!(level.span(), level.size() << 9);
            if let Some(below) = level.below() {
                assert_eq!(below.span(), level.size());
            }
        }
        assert_eq!(Level::Page4K.below(), None);
        assert_eq!(Level::from_number(0), None);
        assert_eq!(Level::from_number(6), None);
    }

    #[test]
    fn indexes_are_nine_bits_of_the_address() {
        let address = L2Gpa::from_raw(0x0055_1234_5678_9abc);

        assert_eq!(Level::Page4K.index(address), 0x189);
        assert_eq!(Level::Page2M.index(address), 0x0b3);
        assert_eq!(Level::Page1G.index(address), 0x0d1);
        assert_eq!(Level::Table512G.index(address), 0x024);
        assert_eq!(Level::Table256T.index(address), 0x055);
        assert_eq!(Level::Page2M.offset(0x1234_5678), 0x14_5678);
        assert_eq!(Level::Page2M.align(0x1234_5678), 0x1220_0000);
    }
}
