// SPDX-License-Identifier: GPL-2.0

//! Room for new tables, and memory for the host: what has not been used for long is dropped.

use super::pool::SPARE_PAGES;
use super::table::{Handle, Kind, Table, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow, Tlbs};
use crate::mmu::level::Level;

/// What the host got back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// The number of pages.
    pub pages: u32,
    /// Whether tables were dropped for them.
    pub evicted: bool,
}

impl<P: TablePages> Shadow<P> {
    /// Drops tables until `wanted` pages are free: first roots that no vCPU uses, then tables that
    /// no fault has needed since the last time, then any. Returns the number of free pages.
    pub fn evict(&mut self, wanted: u32, tlbs: &impl Tlbs, dirty: &impl DirtyPages) -> u32 {
        let wanted = u64::from(wanted);

        self.reclaim(tlbs, dirty);
        while self.available.load() < wanted && self.drop_oldest_root(dirty) {
            self.reclaim(tlbs, dirty);
        }
        // Tables that faults need from now on are younger than all others.
        let now = self.clock.fetch_add(1);
        for age in [1, 0] {
            for level in Level::PAGES {
                let missing = wanted.saturating_sub(self.available.load());
                if missing == 0 {
                    break;
                }
                self.drop_tables(missing, level, now.saturating_sub(age), dirty);
                self.reclaim(tlbs, dirty);
            }
        }
        self.furnish();
        u32::try_from(self.available.load()).unwrap_or(u32::MAX)
    }

    /// Gives pages back to the host, up to `wanted`, each by a call of `give`.
    ///
    /// Free pages go first. If they are too few, the root goes that no vCPU has used for the longest
    /// time; if all are used, tables go that no fault has needed since the last time, then any. One
    /// call drops one root at most, frees no more than it gives back, and flushes once at most: for
    /// more, it is to be called again. As long as a vCPU uses a root, a few free pages stay for its
    /// next fault.
    pub fn shrink(
        &mut self,
        wanted: u32,
        tlbs: &impl Tlbs,
        dirty: &impl DirtyPages,
        mut give: impl FnMut(P::Page),
    ) -> Shrunk {
        let reserve = if self.has_users() { SPARE_PAGES } else { 0 };
        let mut shrunk = Shrunk {
            pages: self.give_back(wanted, reserve, &mut give),
            evicted: false,
        };
        let missing = wanted.saturating_sub(shrunk.pages);
        if missing == 0 {
            return shrunk;
        }
        // There may be tables left of a root that was dropped before.
        if self.detached.load() == 0 {
            // Most tables consist of two pages.
            let tables = u64::from(missing.div_ceil(2));
            shrunk.evicted = self.drop_oldest_root(dirty) || self.drop_old_tables(tables, dirty);
            if !shrunk.evicted {
                return shrunk;
            }
        }
        let flushed = self.flush(tlbs);
        let enough = reserve.saturating_add(u64::from(missing));
        self.free_detached(&flushed, dirty, enough);
        let more = self.give_back(missing, reserve, &mut give);
        shrunk.pages = shrunk.pages.saturating_add(more);
        shrunk
    }

    /// Gives free pages back, but for some; returns how many.
    fn give_back(&mut self, wanted: u32, reserve: u64, give: &mut impl FnMut(P::Page)) -> u32 {
        let mut given = 0u32;
        while given < wanted && self.available.load() > reserve {
            let Some(page) = self.withdraw() else {
                break;
            };
            give(page);
            given = given.saturating_add(1);
        }
        given
    }

    /// Drops up to `count` tables, beginning with those that no fault has needed since the last
    /// time; tells whether there were any.
    fn drop_old_tables(&mut self, count: u64, dirty: &impl DirtyPages) -> bool {
        let now = self.clock.fetch_add(1);
        let mut left = count;

        for age in [1, 0] {
            for level in Level::PAGES {
                let dropped = self.drop_tables(left, level, now.saturating_sub(age), dirty);
                left = left.saturating_sub(dropped);
            }
        }
        left != count
    }

    /// Drops up to `wanted` tables of a level that were last needed at `until` or before, with all
    /// below them, and returns how many. The search goes on where the last one has ended.
    fn drop_tables(
        &mut self,
        wanted: u64,
        level: Level,
        until: u64,
        dirty: &impl DirtyPages,
    ) -> u64 {
        let first = self.hand;
        let mut dropped = 0u64;

        for index in (first..self.pages.count()).chain(0..first) {
            if dropped == wanted {
                self.hand = index;
                break;
            }
            if self.drop_table(index, level, until, dirty) {
                dropped = dropped.saturating_add(1);
            }
        }
        dropped
    }

    fn drop_table(&self, index: u32, level: Level, until: u64, dirty: &impl DirtyPages) -> bool {
        let Some(table) = self.pages.table(index) else {
            return false;
        };
        let is_old = match table.role() {
            (Kind::None | Kind::Filler, _) => false,
            (_, own) => own == level && table.used.load() <= until,
        };

        is_old && self.unlink(table, dirty)
    }

    /// Clears the entry that refers to a table; returns whether there is one.
    pub(super) fn unlink(&self, table: &Table<P::Word>, dirty: &impl DirtyPages) -> bool {
        let parent = Handle::unpack(table.parent.load());
        let (Some(parent), Ok(place)) = (parent, u16::try_from(table.place.load())) else {
            return false;
        };
        let is_linked = self
            .child(parent, place)
            .is_some_and(|(_, child)| core::ptr::eq(child, table));

        if is_linked {
            self.clear_entry(parent, place, dirty);
        }
        is_linked
    }
}
