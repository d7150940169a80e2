// SPDX-License-Identifier: GPL-2.0

//! Roots: one for each set of tables that L1 uses, shared by all vCPUs that use the same.

use super::hardware::HardwareKind;
use super::recent::Recent;
use super::table::{Handle, Identity, Kind, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::L2Gpa;
use crate::mmu::format::{Format, RootKey};
use crate::mmu::level::{Level, ENTRIES};
use core::cell::Cell;

/// The right to run with a root, which is not freed as long as it exists.
///
/// There is one for each vCPU that runs with the root; [`Shadow::release_root()`] takes it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct RootUse {
    pub(super) handle: Handle,
    /// The last table of the lowest level that the vCPU's faults needed.
    pub(super) recent: Cell<Option<Recent>>,
}

impl RootUse {
    pub(super) const fn new(handle: Handle) -> Self {
        Self {
            handle,
            recent: Cell::new(None),
        }
    }

    /// Returns a number that no other root of the VM ever has.
    pub const fn number(&self) -> u64 {
        self.handle.pack()
    }
}

/// Why there is no root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootRefusal {
    /// Pages have to be donated first, or evicted.
    NeedPages,
    /// L1's tables have more levels than those of the processor, or another format.
    Impossible,
}

impl<P: TablePages> Shadow<P> {
    /// Returns the root for a set of tables, if there is one.
    pub fn find_root(&self, key: &RootKey) -> Option<RootUse> {
        let mut next = self.roots;
        while let Some(index) = next.checked_sub(1) {
            let table = self.pages.table(index)?;
            if table.key.as_ref() == Some(key) {
                table.users.fetch_add(1);
                table.used.store(self.clock.load());
                return Some(RootUse::new(table.handle(index)));
            }
            next = u32::try_from(table.next.load()).ok()?;
        }
        None
    }

    /// Returns the root for a set of tables, which is made if there is none.
    pub fn load_root(
        &mut self,
        key: &RootKey,
        dirty: &impl DirtyPages,
    ) -> Result<RootUse, RootRefusal> {
        if let Some(root) = self.find_root(key) {
            return Ok(root);
        }
        let top = self
            .root_level(&key.format)
            .ok_or(RootRefusal::Impossible)?;
        self.trim_roots(dirty);

        let is_guest = top == key.format.top();
        let identity = Identity {
            kind: if is_guest { Kind::Guest } else { Kind::Filler },
            level: top,
            base: L2Gpa::from_raw(0),
            source: if is_guest { key.table.into_raw() } else { 0 },
            from: 0,
            is_legacy: key.format.is_legacy(),
        };
        let handle = self
            .allocate(&identity, None, None)
            .ok_or(RootRefusal::NeedPages)?;
        let first = self.roots;
        let Some(table) = self.pages.table_mut(handle.index) else {
            return Err(RootRefusal::NeedPages);
        };
        table.key = Some(*key);
        table.next.store(u64::from(first));
        table.users.store(1);
        self.roots = handle.index.saturating_add(1);
        Ok(RootUse::new(handle))
    }

    /// Gives up a root. It is kept for the next switch, as long as there is room.
    pub fn release_root(&self, root: RootUse) {
        if let Some(table) = self.live(root.handle) {
            table.users.fetch_add(u64::MAX);
        }
    }

    /// Returns what the processor needs of a root: the address of the table, and its level.
    pub fn root_address(&self, root: &RootUse) -> Option<(u64, Level)> {
        let level = self.live(root.handle)?.level();
        Some((self.pages.physical(root.handle.index)?, level))
    }

    /// Returns the level of a root for L1's tables of a format.
    fn root_level(&self, format: &Format) -> Option<Level> {
        match (self.hardware().kind, format) {
            (HardwareKind::Ept, Format::Ept(ept)) => Some(ept.top),
            (HardwareKind::Npt { top, .. }, Format::Npt(npt)) => (npt.top() <= top).then_some(top),
            _ => None,
        }
    }

    /// Drops the unused roots that are too many, the least recently used first.
    fn trim_roots(&mut self, dirty: &impl DirtyPages) {
        while self.unused_roots() > self.config.cached_roots {
            if !self.drop_oldest_root(dirty) {
                return;
            }
        }
    }

    /// Calls `visit` with the index of each root.
    pub(super) fn for_each_root(&self, mut visit: impl FnMut(u32)) {
        let mut next = self.roots;
        while let Some(index) = next.checked_sub(1) {
            visit(index);
            next = match self.pages.table(index) {
                Some(table) => u32::try_from(table.next.load()).unwrap_or(0),
                None => 0,
            };
        }
    }

    fn unused_roots(&self) -> u32 {
        let mut count = 0u32;
        self.for_each_root(|index| {
            if self.is_unused(index) {
                count = count.saturating_add(1);
            }
        });
        count
    }

    /// Returns whether any root is used by a vCPU.
    pub(super) fn has_users(&self) -> bool {
        let mut has_users = false;
        self.for_each_root(|index| has_users |= !self.is_unused(index));
        has_users
    }

    fn is_unused(&self, index: u32) -> bool {
        self.pages
            .table(index)
            .is_some_and(|table| table.users.load() == 0)
    }

    /// Drops the unused root that has not been used for the longest time, if there is one.
    pub(super) fn drop_oldest_root(&mut self, dirty: &impl DirtyPages) -> bool {
        let mut oldest: Option<(u64, u32)> = None;
        self.for_each_root(|index| {
            let used = self.pages.table(index).map_or(0, |table| table.used.load());
            // The list begins with the youngest.
            if self.is_unused(index) && oldest.is_none_or(|(than, _)| used <= than) {
                oldest = Some((used, index));
            }
        });
        match oldest {
            Some((_, index)) => self.drop_root(index, dirty),
            None => false,
        }
    }

    /// Drops a root, unless a vCPU uses it: then it is emptied only.
    pub(super) fn drop_root(&mut self, index: u32, dirty: &impl DirtyPages) -> bool {
        let Some(handle) = self.pages.table(index).map(|table| table.handle(index)) else {
            return false;
        };
        if !self.is_unused(index) {
            for entry in 0..ENTRIES {
                self.clear_entry(handle, entry, dirty);
            }
            return false;
        }
        self.unlist_root(index);
        self.detach(handle);
        true
    }

    fn unlist_root(&mut self, index: u32) {
        let Some(after) = self.pages.table(index).map(|table| table.next.load()) else {
            return;
        };
        let wanted = u64::from(index).wrapping_add(1);
        if u64::from(self.roots) == wanted {
            self.roots = u32::try_from(after).unwrap_or(0);
            return;
        }
        self.for_each_root(|at| {
            if let Some(table) = self.pages.table(at) {
                if table.next.load() == wanted {
                    table.next.store(after);
                }
            }
        });
    }
}
