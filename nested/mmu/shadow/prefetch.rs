// SPDX-License-Identifier: GPL-2.0

//! Neighbours of a page that a fault has mapped.

use super::map::{Backing, Cause, Installation, Mapped, Target, Tracking};
use super::root::RootUse;
use super::table::{Handle, Kind, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::Gpa;
use crate::mmu::level::Level;
use crate::mmu::walk::{Walk, NEIGHBOURS};

/// What L0 has for pages of L1, as far as it is known at once.
pub trait Backings {
    /// Returns what there is for a page, if it is in memory and can be had without waiting.
    fn resident(&self, page: Gpa) -> Option<Backing>;
}

impl<P: TablePages> Shadow<P> {
    /// Maps what L1 has around the page of a walk and L0 has in memory. Returns how many pages.
    ///
    /// Only entries that are empty, and whose flags L1's entry has already, are made. The walk is that
    /// of the last of them afterwards.
    pub fn prefetch(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        root: &RootUse,
        walk: &mut Walk,
        backings: &impl Backings,
    ) -> u32 {
        let Some(key) = self.live(root.handle).and_then(|table| table.key.as_ref()) else {
            return 0;
        };
        let usable = walk.usable_neighbours(&key.format);
        if usable == 0 {
            return 0;
        }
        let recent = self.recent(root, walk).map(|place| place.handle);
        let Some(handle) =
            recent.or_else(|| self.table_at(root.handle, walk.address, Level::Page4K))
        else {
            return 0;
        };
        let Some(table) = self.live(handle) else {
            return 0;
        };
        let mut count = 0u32;

        for number in 0..NEIGHBOURS {
            let bit = 1u8.wrapping_shl(u32::try_from(number).unwrap_or(0));
            if usable & bit == 0 || !self.is_free(handle, walk, number) {
                continue;
            }
            if !walk.move_to_neighbour(&key.format, number) {
                continue;
            }
            let Some(place) = self.place_in((handle, table), walk.address) else {
                return count;
            };
            let is_made_of_this_table = place.table.kind() == Kind::Guest
                && walk
                    .step(Level::Page4K)
                    .is_some_and(|step| Gpa::from_raw(place.table.source()).page() == step.table);
            if !is_made_of_this_table {
                return count;
            }
            let Some(mut backing) = backings.resident(walk.page) else {
                continue;
            };
            if backing.tracking == Tracking::Flag {
                // Nobody reports it if the flag is set with the entry.
                backing.tracking = Tracking::Protect;
            }
            let target = Target::Memory(backing);
            match self.map_leaf(install, &place, key, walk, Cause::Neighbour, &target) {
                Mapped::Done { .. } => count = count.saturating_add(1),
                _ => return count,
            }
        }
        count
    }

    /// Returns whether there is nothing yet for a neighbour of the page of a walk.
    fn is_free(&self, handle: Handle, walk: &Walk, number: usize) -> bool {
        let first = Level::Page4K.index(walk.address) & !7;

        u16::try_from(number)
            .ok()
            .and_then(|number| self.pages.word(handle.index, first | number))
            .is_some_and(|word| word.load() == self.hardware().empty())
    }
}
