// SPDX-License-Identifier: GPL-2.0

//! The table that a vCPU's last fault needed: the next one is likely to need it, too.

use super::map::Place;
use super::root::RootUse;
use super::table::{Handle, TablePages};
use super::word::Word;
use super::Shadow;
use crate::mmu::walk::Walk;

/// A table of the lowest level, and what has to be as it was for it to be the one that a fault needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recent {
    handle: Handle,
    /// L1's entries above the lowest level.
    above: [u64; 4],
    /// [`Shadow::structure`] before the way to the table was looked at.
    structure: u64,
    /// [`Shadow::clock`]: the tables on the way were used since.
    clock: u64,
}

impl<P: TablePages> Shadow<P> {
    /// Returns the entry for a walk, if the last fault needed the same table and none was detached
    /// since.
    ///
    /// The table may be detached now, as when its link is looked at before: a fault that maps
    /// something there comes again.
    pub(super) fn recent(&self, root: &RootUse, walk: &Walk) -> Option<Place<'_, P::Word>> {
        let recent = root.recent.get()?;
        let is_same = recent.structure == self.structure.load()
            && recent.clock == self.clock.load()
            && walk.is_below(&recent.above);

        if !is_same {
            return None;
        }
        self.place_in((recent.handle, self.live(recent.handle)?), walk.address)
    }

    /// Notes what table a fault has needed, and what the structure was before it was looked up.
    pub(super) fn remember(
        &self,
        root: &RootUse,
        place: &Place<'_, P::Word>,
        walk: &Walk,
        structure: u64,
    ) {
        root.recent.set(Some(Recent {
            handle: place.handle,
            above: walk.above(),
            structure,
            clock: place.table.used.load(),
        }));
    }
}
