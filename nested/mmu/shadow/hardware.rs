// SPDX-License-Identifier: GPL-2.0

//! EPT02 and NPT02: what the processor reads.

use crate::mmu::access::Permissions;
use crate::mmu::ept::bit as ept;
use crate::mmu::level::Level;
use crate::mmu::npt::bit as npt;

/// What the processor reads, and what L0 wants in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The format of the entries.
    pub kind: HardwareKind,
    /// Bits that each reference to a table has, and a page may have: those of memory encryption.
    pub encryption: u64,
    /// Instructions may be fetched from large pages. Some processors cannot bear that.
    pub executable_large_pages: bool,
}

/// The format of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareKind {
    /// EPT02, with as many levels as EPT12 has.
    Ept,
    /// NPT02, in the format of long mode.
    Npt {
        /// The top level, which is that of L0's own tables.
        top: Level,
        /// An entry with bit 51 set is refused by the processor, because that is beyond its
        /// physical addresses. Where it is not, MMIO is not cached.
        bit_51_is_reserved: bool,
    },
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// Someone is about to change it, and nobody else may.
    Reserved,
    /// A reference to a table.
    Link,
    /// A page.
    Leaf,
    /// There is no memory, but a device that L0 emulates.
    Mmio,
}

/// A present entry, which only software tells from one for MMIO. Ignored by the processor.
const PRESENT: u64 = 1 << 11;
/// That the page becomes dirty has to be reported. Ignored by the processor.
const LOGGED: u64 = 1 << 52;
/// The entry is reserved, if it is not present.
const RESERVED: u64 = 1 << 9;
/// Whoever has reserved it must not commit.
const CANCELLED: u64 = 1 << 8;
/// In both formats.
const WRITE: u64 = 1 << 1;
const PAGE: u64 = 1 << 7;

/// Read not, write and execute: what no processor takes.
const EPT_MISCONFIGURED: u64 = ept::WRITE | ept::EXECUTE;
const EPT_ACCESS: u64 = ept::READ | ept::WRITE | ept::EXECUTE;

const NPT_REFUSED: u64 = 1 << 51 | npt::PRESENT;

/// Bits of the generation of an entry for MMIO.
const GENERATION_BITS: u64 = (1 << 18) - 1;

/// What an entry that maps a page shall have besides the address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) physical: u64,
    pub(super) level: Level,
    pub(super) permissions: Permissions,
    /// Memory type, encryption and the like, as they are in the entry.
    pub(super) attributes: u64,
    /// The flags are set from the beginning.
    pub(super) accessed: bool,
    pub(super) dirty: bool,
    /// The page is reported when it becomes dirty.
    pub(super) logged: bool,
}

impl Hardware {
    /// An entry that translates nothing.
    #[inline]
    pub(super) const fn empty(&self) -> u64 {
        match self.kind {
            HardwareKind::Ept => ept::SUPPRESS_VE,
            HardwareKind::Npt { .. } => 0,
        }
    }

    /// An entry that someone is about to change, which translates nothing.
    #[inline]
    pub(super) const fn reserved(&self) -> u64 {
        self.empty() | RESERVED
    }

    /// The same, but the change must not be made.
    #[inline]
    pub(super) const fn cancelled(&self) -> u64 {
        self.reserved() | CANCELLED
    }

    #[inline]
    const fn permission_bits(&self, permissions: Permissions) -> u64 {
        let read = permissions.has(Permissions::READ);
        let execute = permissions.has(Permissions::EXECUTE);
        let mut raw = if permissions.has(Permissions::WRITE) {
            WRITE
        } else {
            0
        };
        match self.kind {
            HardwareKind::Ept => {
                if read {
                    raw |= ept::READ;
                }
                if execute {
                    raw |= ept::EXECUTE;
                }
                if permissions.has(Permissions::USER_EXECUTE) {
                    raw |= ept::USER_EXECUTE;
                }
                raw | ept::SUPPRESS_VE
            }
            HardwareKind::Npt { .. } => {
                if !execute {
                    raw |= npt::NO_EXECUTE;
                }
                if permissions.has(Permissions::USER) {
                    raw |= npt::USER;
                }
                raw | npt::PRESENT
            }
        }
    }

    /// Returns what an entry permits.
    #[inline]
    pub(super) const fn permissions(&self, raw: u64) -> Permissions {
        let write = Permissions::WRITE.when(raw & WRITE != 0);
        match self.kind {
            HardwareKind::Ept => write
                .with(Permissions::READ.when(raw & ept::READ != 0))
                .with(Permissions::EXECUTE.when(raw & ept::EXECUTE != 0))
                .with(Permissions::USER_EXECUTE.when(raw & ept::USER_EXECUTE != 0)),
            HardwareKind::Npt { .. } => write
                .with(Permissions::READ)
                .with(Permissions::EXECUTE.when(raw & npt::NO_EXECUTE == 0))
                .with(Permissions::USER.when(raw & npt::USER != 0)),
        }
    }

    #[inline]
    const fn accessed_bit(&self) -> u64 {
        match self.kind {
            HardwareKind::Ept => ept::ACCESSED,
            HardwareKind::Npt { .. } => npt::ACCESSED,
        }
    }

    #[inline]
    const fn dirty_bit(&self) -> u64 {
        match self.kind {
            HardwareKind::Ept => ept::DIRTY,
            HardwareKind::Npt { .. } => npt::DIRTY,
        }
    }

    /// Makes a reference to a table.
    #[inline]
    pub(super) const fn link(&self, physical: u64, permissions: Permissions) -> u64 {
        physical
            | self.encryption
            | self.permission_bits(permissions)
            | self.accessed_bit()
            | PRESENT
    }

    /// Makes an entry that maps a page.
    #[inline]
    pub(super) const fn leaf(&self, leaf: &Leaf) -> u64 {
        let mut raw = leaf.level.align(leaf.physical)
            | leaf.attributes
            | self.permission_bits(leaf.permissions)
            | PRESENT;
        if !matches!(leaf.level, Level::Page4K) {
            raw |= PAGE;
        }
        if leaf.accessed {
            raw |= self.accessed_bit();
        }
        if leaf.dirty {
            raw |= self.dirty_bit();
        }
        if leaf.logged {
            raw |= LOGGED;
        }
        raw
    }

    /// Makes an entry for MMIO, if there can be one. The processor refuses each access.
    ///
    /// The generation is that of L0's memory slots: with another, the entry says nothing.
    #[inline]
    pub(super) const fn mmio(&self, generation: u64) -> Option<u64> {
        let generation = generation & GENERATION_BITS;
        let spread = (generation & 0x7f) << 3 | (generation >> 7) << 52;
        match self.kind {
            HardwareKind::Ept => Some(spread | EPT_MISCONFIGURED | ept::SUPPRESS_VE),
            HardwareKind::Npt {
                bit_51_is_reserved: true,
                ..
            } => Some(spread | NPT_REFUSED),
            HardwareKind::Npt { .. } => None,
        }
    }

    /// Returns whether an entry for MMIO is of a generation.
    #[inline]
    pub(super) fn is_mmio_of(&self, raw: u64, generation: u64) -> bool {
        self.mmio(generation) == Some(raw)
    }

    /// Returns what an entry is, in a table of a level.
    #[inline]
    pub(super) const fn content(&self, raw: u64, level: Level) -> Content {
        if raw & PRESENT != 0 {
            return if matches!(level, Level::Page4K) || raw & PAGE != 0 {
                Content::Leaf
            } else {
                Content::Link
            };
        }
        let mmio = match self.kind {
            HardwareKind::Ept => raw & EPT_ACCESS == EPT_MISCONFIGURED,
            HardwareKind::Npt { .. } => raw & NPT_REFUSED == NPT_REFUSED,
        };
        if mmio {
            Content::Mmio
        } else if raw & RESERVED != 0 {
            Content::Reserved
        } else {
            Content::Empty
        }
    }

    /// Returns the address in an entry that maps a page of a level.
    #[inline]
    pub(super) const fn physical(&self, raw: u64, level: Level) -> u64 {
        level.align(raw & crate::mmu::entry::ADDRESS & !self.encryption)
    }

    /// Returns whether an entry that maps a page can be written.
    #[inline]
    pub(super) const fn is_writable(raw: u64) -> bool {
        raw & WRITE != 0
    }

    /// Returns an entry without permission to write.
    #[inline]
    pub(super) const fn without_write(raw: u64) -> u64 {
        raw & !WRITE
    }

    /// Returns an entry whose page was not used.
    #[inline]
    pub(super) const fn without_accessed(&self, raw: u64) -> u64 {
        raw & !self.accessed_bit()
    }

    /// Returns whether the page was used.
    #[inline]
    pub(super) const fn is_accessed(&self, raw: u64) -> bool {
        raw & self.accessed_bit() != 0
    }

    /// Returns whether the page was written, and has to be reported.
    #[inline]
    pub(super) const fn is_dirty_and_logged(&self, raw: u64) -> bool {
        self.is_logged(raw) && self.is_dirty(raw)
    }

    /// Returns whether the dirty flag says if the page has to be reported.
    #[inline]
    pub(super) const fn is_logged(&self, raw: u64) -> bool {
        raw & LOGGED != 0
    }

    /// Returns whether the page was written.
    #[inline]
    pub(super) const fn is_dirty(&self, raw: u64) -> bool {
        raw & self.dirty_bit() != 0
    }

    /// Returns an entry whose page is reported when it becomes dirty, which it is not.
    #[inline]
    pub(super) const fn with_log(&self, raw: u64) -> u64 {
        raw & !self.dirty_bit() | LOGGED
    }

    /// Returns the flags that the processor sets.
    #[inline]
    pub(super) const fn flags(&self, raw: u64) -> u64 {
        raw & (self.accessed_bit() | self.dirty_bit())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_hardware))]
mod tests {
    use super::*;

    const EPT: Hardware = Hardware {
        kind: HardwareKind::Ept,
        encryption: 0,
        executable_large_pages: true,
    };
    const NPT: Hardware = Hardware {
        kind: HardwareKind::Npt {
            top: Level::Table512G,
            bit_51_is_reserved: true,
        },
        encryption: 1 << 47,
        executable_large_pages: true,
    };

    #[test]
    fn contents_are_told_apart() {
        for hardware in [EPT, NPT] {
            for level in Level::PAGES {
                let leaf = hardware.leaf(&Leaf {
                    physical: 0x4000_0000,
                    level,
                    permissions: Permissions::READ,
                    attributes: 0,
                    accessed: true,
                    dirty: true,
                    logged: true,
                });
                assert_eq!(hardware.content(leaf, level), Content::Leaf);
                assert_eq!(hardware.physical(leaf, level), 0x4000_0000);
                assert_eq!(hardware.permissions(leaf), Permissions::READ);
                assert!(!Hardware::is_writable(leaf));
                assert_eq!(hardware.content(hardware.empty(), level), Content::Empty);
                for raw in [hardware.reserved(), hardware.cancelled()] {
                    assert_eq!(hardware.content(raw, level), Content::Reserved);
                }
                for generation in [0, 1, 0x7f, 0x80, GENERATION_BITS] {
                    let mmio = hardware.mmio(generation).unwrap_or(0);
                    assert_eq!(hardware.content(mmio, level), Content::Mmio);
                    assert!(hardware.is_mmio_of(mmio, generation));
                    assert!(!hardware.is_mmio_of(mmio, generation ^ 1));
                }
            }
            let link = hardware.link(0x5000, Permissions::READ);
            assert_eq!(hardware.content(link, Level::Page2M), Content::Link);
            assert_eq!(hardware.physical(link, Level::Page4K), 0x5000);
        }
    }

    #[test]
    fn the_processor_takes_reserved_entries_for_absent_ones() {
        for hardware in [EPT, NPT] {
            for raw in [hardware.reserved(), hardware.cancelled()] {
                assert_eq!(raw & crate::mmu::entry::ADDRESS, 0);
                assert_eq!(raw & (EPT_ACCESS | ept::USER_EXECUTE | npt::PRESENT), 0);
            }
        }
    }

    #[test]
    fn there_is_no_mmio_entry_without_a_reserved_bit() {
        let hardware = Hardware {
            kind: HardwareKind::Npt {
                top: Level::Table512G,
                bit_51_is_reserved: false,
            },
            ..NPT
        };
        assert_eq!(hardware.mmio(1), None);
    }
}
