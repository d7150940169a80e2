// SPDX-License-Identifier: GPL-2.0

//! The formats of L1's tables behind one face, and what identifies a set of them.

use super::access::{Access, Permissions};
use super::entry::{bits, AccessedDirty, Decoded, ADDRESS};
use super::ept::{self, Ept};
use super::level::Level;
use super::npt::{self, Npt, Paging};
use crate::address::{Gpa, L2Gpa};
use crate::memory::EntrySize;

/// The format of L1's tables for L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// EPT12.
    Ept(Ept),
    /// NPT12.
    Npt(Npt),
}

/// What defines a translation: two vCPUs with the same key may share a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootKey {
    /// How the tables are read.
    pub format: Format,
    /// The top-level table, in L1's memory.
    pub table: Gpa,
}

/// How an entry of L1 differs from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It does not, or has more flags set.
    None,
    /// It does not permit writing any more, or the page is not dirty any more.
    NotWritable,
    /// It may mean something else.
    Other,
}

impl Format {
    /// Returns the level of the top-level table.
    #[inline]
    pub const fn top(&self) -> Level {
        match self {
            Self::Ept(ept) => ept.top,
            Self::Npt(npt) => npt.top(),
        }
    }

    /// Returns the size of an entry.
    #[inline]
    pub const fn entry_size(&self) -> EntrySize {
        if self.is_legacy() {
            EntrySize::Four
        } else {
            EntrySize::Eight
        }
    }

    /// Returns whether tables have 1024 entries.
    #[inline]
    pub(super) const fn is_legacy(&self) -> bool {
        matches!(
            self,
            Self::Npt(Npt {
                paging: Paging::Legacy { .. },
                ..
            })
        )
    }

    /// Returns whether the tables translate an address at all.
    #[inline]
    pub const fn covers(&self, address: L2Gpa) -> bool {
        let width = match self {
            Self::Npt(Npt {
                paging: Paging::Pae | Paging::Legacy { .. },
                ..
            }) => 32,
            _ => self.top().shift().wrapping_add(9),
        };
        address.into_raw() & bits(width, 63) == 0
    }

    /// Returns where the entry for an address is, in the table at a level.
    #[inline]
    pub fn entry(&self, table: Gpa, address: L2Gpa, level: Level) -> Gpa {
        let address = address.into_raw();
        let offset = match (self.is_legacy(), level) {
            (true, Level::Page2M) => (address >> 22 & 0x3ff) << 2,
            (true, _) => (address >> 12 & 0x3ff) << 2,
            (false, _) => (address.wrapping_shr(level.shift()) & 0x1ff) << 3,
        };
        // The offset is within what the alignment leaves free: 4 entries of PAE are in 32 bytes.
        Gpa::from_raw(table.into_raw() | offset)
    }

    /// Returns what an entry means.
    #[inline]
    pub fn decode(&self, raw: u64, level: Level) -> Decoded {
        match self {
            Self::Ept(ept) => ept.decode(raw, level),
            Self::Npt(npt) => npt.decode(raw, level),
        }
    }

    /// Returns where the flags of an entry are, if it has any.
    #[inline]
    pub const fn accessed_dirty(&self, level: Level) -> Option<AccessedDirty> {
        match self {
            Self::Ept(ept) => ept.accessed_dirty_bits(),
            Self::Npt(npt) => npt.accessed_dirty_bits(level),
        }
    }

    /// Returns whether `permissions` suffice for an access.
    #[inline]
    pub fn permits(&self, permissions: Permissions, access: Access) -> bool {
        match self {
            Self::Ept(ept) => permissions.has(ept.needs(access)),
            Self::Npt(npt) => npt.permits(permissions, access),
        }
    }

    /// Returns whether an access makes the page dirty.
    #[inline]
    pub const fn writes(&self, access: Access) -> bool {
        match self {
            Self::Ept(ept) => ept.writes(access),
            Self::Npt(_) => matches!(access.kind, super::access::Kind::Write),
        }
    }

    /// Returns what an entry says to the processor, without what is for software.
    ///
    /// Entries with the same significant part decode to the same.
    #[inline]
    pub const fn significant(&self, raw: u64) -> u64 {
        raw & match self {
            Self::Ept(ept) => {
                let flags = if ept.accessed_dirty {
                    ept::bit::ACCESSED | ept::bit::DIRTY
                } else {
                    0
                };
                let user = if ept.mode_based {
                    ept::bit::USER_EXECUTE
                } else {
                    0
                };
                bits(0, 7) | flags | user | ADDRESS
            }
            Self::Npt(npt) => {
                // At some levels bit 8 is reserved, where it is not that of a global page.
                let flags = npt::bit::PRESENT
                    | npt::bit::WRITE
                    | npt::bit::USER
                    | npt::bit::ACCESSED
                    | npt::bit::DIRTY
                    | bits(7, 8);
                let upper = match npt.paging {
                    Paging::Pae => bits(52, 63),
                    _ => npt::bit::NO_EXECUTE,
                };
                flags | ADDRESS | upper
            }
        }
    }

    /// Compares the significant parts of an entry of a level at two times. It was valid before; it is
    /// now, too, unless the change is [`Change::Other`].
    #[inline]
    pub const fn compare(&self, before: u64, now: u64, level: Level) -> Change {
        let (accessed, dirty) = match self.accessed_dirty(level) {
            Some(flags) => (flags.accessed, flags.dirty),
            None => (0, 0),
        };
        let write = match self {
            Self::Ept(_) => ept::bit::WRITE,
            Self::Npt(_) => npt::bit::WRITE,
        };
        let lost = before & !now;
        let gained = now & !before;

        if gained & !(accessed | dirty) != 0 || lost & !(dirty | write) != 0 {
            Change::Other
        } else if lost == 0 {
            Change::None
        } else {
            Change::NotWritable
        }
    }
}

#[cfg(test)]
mod properties;

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_format))]
mod tests {
    use super::*;

    const LEGACY: Format = Format::Npt(Npt {
        paging: Paging::Legacy {
            page_size_extension: true,
        },
        no_execute: false,
        execute_trap: false,
        gigabyte_pages: false,
        physical_address_width: 40,
    });
    const PAE: Format = Format::Npt(Npt {
        paging: Paging::Pae,
        no_execute: true,
        execute_trap: false,
        gigabyte_pages: false,
        physical_address_width: 40,
    });
    const EPT: Format = Format::Ept(Ept {
        top: Level::Table512G,
        accessed_dirty: true,
        mode_based: false,
        execute_only: true,
        largest_page: Level::Page1G,
        physical_address_width: 40,
    });

    #[test]
    fn entries_are_where_the_address_says() {
        let address = L2Gpa::from_raw(0x1_c0c0_5000 & 0xffff_ffff);
        let table = Gpa::from_raw(0x8000);

        assert_eq!(
            LEGACY.entry(table, address, Level::Page2M).into_raw(),
            0x8c0c
        );
        assert_eq!(
            LEGACY.entry(table, address, Level::Page4K).into_raw(),
            0x8014
        );
        assert_eq!(
            PAE.entry(Gpa::from_raw(0x8020), address, Level::Page1G)
                .into_raw(),
            0x8038
        );
        assert_eq!(PAE.entry(table, address, Level::Page2M).into_raw(), 0x8030);
        assert_eq!(EPT.entry(table, address, Level::Page4K).into_raw(), 0x8028);
    }

    #[test]
    fn tables_cover_what_their_levels_do() {
        assert!(EPT.covers(L2Gpa::from_raw(0xffff_ffff_f000)));
        assert!(!EPT.covers(L2Gpa::from_raw(1 << 48)));
        assert!(PAE.covers(L2Gpa::from_raw(0xffff_ffff)));
        assert!(!PAE.covers(L2Gpa::from_raw(1 << 32)));
        assert!(!LEGACY.covers(L2Gpa::from_raw(1 << 32)));
    }

    #[test]
    fn flags_that_are_set_change_nothing_and_flags_that_are_cleared_do() {
        use ept::bit::*;
        let entry = 0x1000 | READ | WRITE | ACCESSED;
        let compare = |before, now| EPT.compare(before, now, Level::Page4K);

        assert_eq!(compare(entry, entry | DIRTY), Change::None);
        assert_eq!(compare(entry | DIRTY, entry), Change::NotWritable);
        assert_eq!(compare(entry, entry & !WRITE), Change::NotWritable);
        assert_eq!(compare(entry, entry & !ACCESSED), Change::Other);
        assert_eq!(compare(entry, entry | EXECUTE), Change::Other);
        assert_eq!(compare(entry, entry ^ 0x3000), Change::Other);
        assert_eq!(compare(entry, 0), Change::Other);
        // The page-directory pointers of PAE have no flags: these bits are reserved.
        let pointer = 0x1000 | npt::bit::PRESENT;
        assert_eq!(
            PAE.compare(pointer, pointer | npt::bit::ACCESSED, Level::Page1G),
            Change::Other
        );
        assert_eq!(
            EPT.significant(entry | 1 << 11 | 1 << 60 | USER_EXECUTE),
            entry
        );
    }
}
