// SPDX-License-Identifier: GPL-2.0

//! Room for new tables, and memory for the host: what has not been used for long is dropped.

use super::table::{Handle, Kind, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow, Tlbs};
use crate::mmu::level::Level;

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

    /// Drops up to `count` tables of a level that were last needed at `until` or before, with all
    /// below them.
    fn drop_tables(&mut self, count: u64, level: Level, until: u64, dirty: &impl DirtyPages) {
        let mut left = count;

        self.for_each_table(|_, table| {
            if left == 0 || table.level() != level || table.kind() == Kind::Filler {
                return;
            }
            if table.used.load() > until {
                return;
            }
            let parent = Handle::unpack(table.parent.load());
            let (Some(parent), Ok(place)) = (parent, u16::try_from(table.place.load())) else {
                return;
            };
            let is_linked = self
                .child(parent, place)
                .is_some_and(|(_, child)| core::ptr::eq(child, table));
            if is_linked {
                self.clear_entry(parent, place, dirty);
                left = left.saturating_sub(1);
            }
        });
    }
}
