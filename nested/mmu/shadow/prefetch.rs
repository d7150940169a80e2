// SPDX-License-Identifier: GPL-2.0

//! Neighbours of a page that a fault has mapped.

use super::map::{Backing, Cause, Installation, Mapped, Place, Target, Tracking};
use super::table::{Kind, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::Gpa;
use crate::mmu::format::RootKey;
use crate::mmu::walk::Walk;

/// What L0 has for pages of L1, as far as it is known at once.
pub trait Backings {
    /// Returns what there is for a page, if it is in memory and can be had without waiting.
    fn resident(&self, page: Gpa) -> Option<Backing>;
}

impl<P: TablePages> Shadow<P> {
    /// Maps what L1 has around the page of a walk, whose entry is given, and L0 has in memory.
    /// Returns how many pages.
    ///
    /// Only entries that are empty, and whose flags L1's entry has already, are made.
    pub(super) fn prefetch(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        key: &RootKey,
        walk: &mut Walk,
        backings: &impl Backings,
    ) -> u32 {
        let mut left = self.usable_neighbours(place, key, walk);
        let mut count = 0u32;

        while left != 0 {
            let number = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            if !walk.move_to_neighbour(&key.format, number) {
                continue;
            }
            let next = self.place_in((place.handle, place.table), walk.address);
            let (Some(place), Some(mut backing)) = (next, backings.resident(walk.page)) else {
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

    /// Returns a bit for each page around that of a walk that L1 has, with its flags set, and the
    /// shadow has not.
    fn usable_neighbours(&self, place: &Place<'_, P::Word>, key: &RootKey, walk: &Walk) -> u8 {
        let (Some(neighbours), Some(words)) =
            (walk.neighbours(), self.pages.words(place.handle.index))
        else {
            return 0;
        };
        if place.kind != Kind::Guest {
            return 0;
        }
        let accessed = Walk::accessed_flag(&key.format);
        let empty = self.hardware().empty();
        let words = words.get(usize::from(place.entry & !7)..).unwrap_or(&[]);
        let mut usable = 0;
        let mut bit = 1u8;

        for (word, raw) in words.iter().zip(neighbours) {
            if Walk::is_usable(accessed, *raw) && word.load() == empty {
                usable |= bit;
            }
            bit = bit.wrapping_shl(1);
        }
        usable
    }
}
