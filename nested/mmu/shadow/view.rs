// SPDX-License-Identifier: GPL-2.0

//! What the tables say: for emulation, for traces, and for tests.

use super::hardware::Content;
use super::map::Place;
use super::root::RootUse;
use super::table::{Handle, Kind, Table, TablePages};
use super::word::Word;
use super::Shadow;
use crate::address::{Gpa, L2Gpa};
use crate::mmu::access::Permissions;
use crate::mmu::entry::{bits, ADDRESS};
use crate::mmu::level::Level;

/// A page of L1 that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// The page.
    pub page: Gpa,
    /// What L1's tables permit.
    pub permissions: Permissions,
}

/// What a processor would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The page of L1.
    pub page: Gpa,
    /// The host-physical address of that page.
    pub physical: u64,
    /// What all entries permit.
    pub permissions: Permissions,
    /// The level of the entry that maps it.
    pub level: Level,
}

/// The last entry for an address.
struct Last {
    handle: Handle,
    level: Level,
    entry: u16,
    raw: u64,
    permissions: Permissions,
}

impl<P: TablePages> Shadow<P> {
    /// Returns what an address of L2 is cached as, if it is cached as MMIO of a generation.
    pub fn mmio(&self, root: &RootUse, address: L2Gpa, generation: u64) -> Option<Mmio> {
        let last = self.last(root.handle, address)?;
        if !self.hardware().is_mmio_of(last.raw, generation) {
            return None;
        }
        let table = self.live(last.handle)?;
        let own = match (table.kind(), self.origin(table, last.entry)) {
            (Kind::Guest, Some(origin)) => {
                let root = self.live(Handle::unpack(table.root.load())?)?;
                match root.key?.format.decode(origin.load(), last.level) {
                    crate::mmu::entry::Decoded::Page { permissions, .. } => permissions,
                    _ => return None,
                }
            }
            // What L1's entry for the large page permits is in that of the link.
            _ => self.permissions_of_part(table)?,
        };
        Some(Mmio {
            page: Gpa::from_raw(self.page_of(table, last.entry)?),
            permissions: last.permissions & own,
        })
    }

    /// Returns what L1's entry permits that maps the page of which a table translates a part.
    fn permissions_of_part(&self, table: &Table<P::Word>) -> Option<Permissions> {
        let key = self.live(Handle::unpack(table.root.load())?)?.key?;
        let mut level = table.level();
        // The entry is at the level of the page, of which there are two.
        for _ in Level::PAGES {
            level = Level::from_number(level.number().wrapping_add(1))?;
            if let crate::mmu::entry::Decoded::Page { permissions, .. } =
                key.format.decode(table.from(), level)
            {
                return Some(permissions);
            }
        }
        None
    }

    /// Returns what a processor would find for an address of L2.
    pub fn translate(&self, root: &RootUse, address: L2Gpa) -> Option<Translation> {
        let last = self.last(root.handle, address)?;
        if self.hardware().content(last.raw, last.level) != Content::Leaf {
            return None;
        }
        let table = self.live(last.handle)?;
        let within = last.level.offset(address.page().into_raw());
        Some(Translation {
            page: Gpa::from_raw(self.page_of(table, last.entry)?.wrapping_add(within)),
            physical: self
                .hardware()
                .physical(last.raw, last.level)
                .wrapping_add(within),
            permissions: last.permissions & self.hardware().permissions(last.raw),
            level: last.level,
        })
    }

    /// Follows links to the last entry for an address.
    fn last(&self, root: Handle, address: L2Gpa) -> Option<Last> {
        let mut handle = root;
        let mut permissions = Permissions::ALL;

        for _ in Level::ALL {
            let table = self.live(handle)?;
            let (level, entry) = (table.level(), table.index_of(address)?);
            let raw = self.pages.word(handle.index, entry)?.load();

            if self.hardware().content(raw, level) != Content::Link {
                return Some(Last {
                    handle,
                    level,
                    entry,
                    raw,
                    permissions,
                });
            }
            permissions = permissions & self.hardware().permissions(raw);
            handle = self.child(handle, entry)?.0;
        }
        None
    }

    /// Returns the table of a level for an address, following links.
    #[cfg(any(test, fuzzing))]
    pub(super) fn table_at(&self, root: Handle, address: L2Gpa, level: Level) -> Option<Handle> {
        let mut handle = root;
        for _ in Level::ALL {
            let table = self.live(handle)?;
            if table.level() == level {
                return Some(handle);
            }
            handle = self.child(handle, table.index_of(address)?)?.0;
        }
        None
    }

    /// Returns the page of L1 that an entry is made of, if it maps one or is MMIO.
    pub(super) fn page_of(&self, table: &Table<P::Word>, entry: u16) -> Option<u64> {
        page_made_of(table, table.role(), entry, self.origin(table, entry))
    }
}

impl<W: Word> Place<'_, W> {
    /// Returns the page of L1 that the entry is made of, if it maps one or is MMIO.
    pub(super) fn page(&self) -> Option<u64> {
        page_made_of(self.table, (self.kind, self.level), self.entry, self.origin)
    }
}

fn page_made_of<W: Word>(
    table: &Table<W>,
    (kind, level): (Kind, Level),
    entry: u16,
    origin: Option<&W>,
) -> Option<u64> {
    match kind {
        Kind::Direct => {
            let offset = u64::from(entry).wrapping_shl(level.shift());
            Some(table.source().wrapping_add(offset))
        }
        Kind::Guest => {
            let raw = origin?.load();
            if table.is_legacy() && level == Level::Page2M {
                // One entry of L1 for two of ours.
                let half = u64::from(entry & 1).wrapping_shl(21);
                return Some((raw & bits(22, 31)) | (raw & bits(13, 20)) << 19 | half);
            }
            Some(level.align(raw & ADDRESS))
        }
        Kind::None | Kind::Filler => None,
    }
}
