// SPDX-License-Identifier: GPL-2.0

//! The pool of pages: where tables come from, and where they go.
//!
//! With shared access pages are only taken out of the free list and only added to the list of
//! detached tables, so that neither can be confused by a page that comes back meanwhile.

use super::hardware::Content;
use super::reverse::{Known, Subject};
use super::table::{Handle, Identity, Kind, Table, TablePages};
use super::word::Word;
use super::{Array, DirtyPages, Flushed, Shadow, Tlbs};
use crate::mmu::level::{Level, ENTRIES};

/// Nodes of the reverse map that shall be free when faults begin.
pub(super) const SPARE_NODES: u64 = 1024;

/// Pages that shall be free when faults begin: tables for one fault with all levels, and some for
/// others.
pub(super) const SPARE_PAGES: u64 = 16;

/// Takes a page out of the free list.
fn take<P: TablePages>(pages: &P, free: &P::Word, available: &P::Word) -> Option<u32> {
    let mut head = free.load();
    loop {
        let index = u32::try_from(head.checked_sub(1)?).ok()?;
        let next = pages.table(index)?.next.load();
        match free.compare_exchange(head, next) {
            Ok(()) => {
                available.fetch_add(u64::MAX);
                return Some(index);
            }
            Err(now) => head = now,
        }
    }
}

impl<P: TablePages> Shadow<P> {
    /// Makes of free pages what faults need besides tables, and returns whether they have enough of
    /// both then, without another page.
    pub fn replenish(&mut self) -> bool {
        self.furnish();
        self.available.load() >= SPARE_PAGES
            && self.reverse.free() >= SPARE_NODES
            && self.unsynced.len() > self.pages.count() / 64
    }

    /// Adds a page to the pool, unless the pool has as many as it may.
    pub fn donate(&mut self, page: P::Page) -> Result<(), P::Page> {
        if self.inserted >= self.config.page_limit {
            return Err(page);
        }
        let index = self.pages.insert(page)?;
        self.inserted = self.inserted.saturating_add(1);
        self.put_free(index);
        self.furnish();
        Ok(())
    }

    /// Takes a page that is not used out of the pool, for the host to have it back.
    pub fn withdraw(&mut self) -> Option<P::Page> {
        let index = take(&self.pages, &self.free, &self.available)?;
        self.inserted = self.inserted.saturating_sub(1);
        self.pages.remove(index)
    }

    /// Returns whether the pool may have no more pages: something has to be evicted.
    pub const fn is_full(&self) -> bool {
        self.inserted >= self.config.page_limit
    }

    fn put_free(&mut self, index: u32) {
        if let Some(table) = self.pages.table(index) {
            table.next.store(self.free.load());
            self.free.store(u64::from(index).wrapping_add(1));
            self.available.fetch_add(1);
        }
    }

    /// Makes arrays as large as they have to be.
    pub(super) fn furnish(&mut self) {
        let (pages, free, available) = (&self.pages, &self.free, &self.available);
        let mut page = || take(pages, free, available);

        // If there is no page now, the next donation comes here again.
        while !self.reverse.is_complete() {
            if self.reverse.grow_buckets(pages, &mut page).is_err() {
                return;
            }
        }
        while self.unsynced.len() <= pages.count() / 64 {
            if self.unsynced.grow(pages, &mut page).is_err() {
                return;
            }
        }
        if self.reverse.free() < SPARE_NODES
            && self.leaves.load() < self.reverse.capacity() / 2
            && self.reverse.is_worth_rebuilding()
        {
            self.rebuild_reverse();
        }
        let (pages, free, available) = (&self.pages, &self.free, &self.available);
        let mut page = || take(pages, free, available);
        while self.reverse.free() < SPARE_NODES {
            if self.reverse.grow_nodes(pages, &mut page).is_err() {
                return;
            }
        }
    }

    /// Makes the reverse map anew, of what is true.
    fn rebuild_reverse(&mut self) {
        self.reverse.clear(&self.pages);
        for index in 0..self.pages.count() {
            let Some(table) = self.pages.table(index) else {
                continue;
            };
            let handle = table.handle(index);
            match table.kind() {
                Kind::None | Kind::Filler => continue,
                Kind::Guest => {
                    let source = Subject::Source(table.source());
                    // Without it L1's writes would be missed: the table stays unsynced.
                    if self
                        .reverse
                        .add(&self.pages, source, handle, 0, Known::No)
                        .is_err()
                    {
                        self.mark_unsynced(index);
                    }
                }
                Kind::Direct => {}
            }
            for entry in 0..ENTRIES {
                let Some(page) = self.leaf_page(table, index, entry) else {
                    self.forget_origin(table, index, entry);
                    continue;
                };
                let mapped = Subject::Mapped(table.level(), page);
                if self
                    .reverse
                    .add(&self.pages, mapped, handle, entry, Known::No)
                    .is_err()
                {
                    // There is room for all that there was; but what is not in the map must not
                    // be in a table.
                    if let Some(word) = self.pages.word(index, entry) {
                        word.store(self.hardware().empty());
                        self.leaves.fetch_add(u64::MAX);
                        self.owe_flush();
                    }
                    self.forget_origin(table, index, entry);
                }
            }
        }
    }

    /// Forgets what an entry was made of, which is not noted any more. There may be an entry for
    /// MMIO, which is empty then.
    fn forget_origin(&self, table: &Table<P::Word>, index: u32, entry: u16) {
        if table.kind() != Kind::Guest || table.level() != Level::Page4K {
            return;
        }
        let (Some(word), Some(origin)) = (self.pages.word(index, entry), self.origin(table, entry))
        else {
            return;
        };
        word.store(self.hardware().empty());
        origin.store(0);
    }

    /// Returns the page that an entry maps, if it maps one.
    pub(super) fn leaf_page(&self, table: &Table<P::Word>, index: u32, entry: u16) -> Option<u64> {
        let raw = self.pages.word(index, entry)?.load();
        if self.hardware().content(raw, table.level()) != Content::Leaf {
            return None;
        }
        self.page_of(table, entry)
    }

    /// Makes a table, with a child's place in its parent.
    ///
    /// Nothing refers to it yet. `None` means that pages are needed.
    pub(super) fn allocate(
        &self,
        identity: &Identity,
        parent: Option<(Handle, u16)>,
        root: Option<Handle>,
    ) -> Option<Handle> {
        // What turns out to be too little later is lost until the next flush.
        if self.available.load() < 2 || self.reverse.free() == 0 {
            return None;
        }
        let index = take(&self.pages, &self.free, &self.available)?;
        let table = self.pages.table(index)?;
        let handle = table.handle(index);
        // From here on it is one of the detached tables unless it is used.
        table.become_table(identity);
        table.parent.store(parent.map_or(0, |(of, _)| of.pack()));
        table.place.store(parent.map_or(0, |(_, at)| u64::from(at)));
        table.root.store(root.unwrap_or(handle).pack());
        table.used.store(self.clock.load());
        table.origins.store(0);
        for entry in 0..ENTRIES {
            if let Some(word) = self.pages.word(index, entry) {
                word.store(self.hardware().empty());
            }
        }
        if self.complete(identity, table, handle).is_none() {
            self.detach(handle);
            return None;
        }
        Some(handle)
    }

    /// Gets for a table what it needs besides its page.
    fn complete(&self, identity: &Identity, table: &Table<P::Word>, handle: Handle) -> Option<()> {
        // The lowest entries of a part of a page can be computed.
        if identity.kind != Kind::Direct || identity.level != Level::Page4K {
            let origins = take(&self.pages, &self.free, &self.available)?;
            for entry in 0..ENTRIES {
                if let Some(word) = self.pages.word(origins, entry) {
                    word.store(0);
                }
            }
            table.origins.store(u64::from(origins).wrapping_add(1));
        }
        if identity.kind == Kind::Guest {
            let source = Subject::Source(identity.source);
            self.reverse
                .add(&self.pages, source, handle, 0, Known::No)
                .ok()?;
            self.unsynced.get(&self.pages, handle.index / 64)?;
            self.mark_unsynced(handle.index);
            self.note_fresh(table);
        }
        Some(())
    }

    /// Puts a table, to which nothing refers any more, on the list of those that wait for a flush.
    pub(super) fn detach(&self, handle: Handle) {
        let Some(table) = self.live(handle) else {
            return;
        };
        self.structure.fetch_add(1);
        self.owe_flush();
        let mut head = self.detached.load();
        loop {
            table.next.store(head);
            match self
                .detached
                .compare_exchange(head, u64::from(handle.index).wrapping_add(1))
            {
                Ok(()) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Frees what is detached, after a flush, and tells whether there was anything.
    pub fn reclaim(&mut self, tlbs: &impl Tlbs, dirty: &impl DirtyPages) -> bool {
        if self.detached.load() == 0 {
            return false;
        }
        let flushed = self.flush(tlbs);
        self.free_detached(&flushed, dirty, u64::MAX);
        true
    }

    pub(super) fn flush(&mut self, tlbs: &impl Tlbs) -> Flushed {
        let mark = self.begin_flush();
        let flushed = Flushed::by(tlbs);
        self.end_flush(mark);
        flushed
    }

    /// Frees the detached tables with all below them, until `enough` pages are free. What is left
    /// goes on waiting.
    pub(super) fn free_detached(
        &mut self,
        _flushed: &Flushed,
        dirty: &impl DirtyPages,
        enough: u64,
    ) {
        while self.available.load() < enough {
            let head = self.detached.load().checked_sub(1);
            let Some(index) = head.and_then(|head| u32::try_from(head).ok()) else {
                break;
            };
            let Some(table) = self.pages.table(index) else {
                return;
            };
            let handle = table.handle(index);
            self.detached.store(table.next.load());

            // Children go to the same list: there is no recursion, whatever L1 built.
            for entry in 0..ENTRIES {
                self.clear_entry(handle, entry, dirty);
            }
            self.free_table(index);
        }
        // No processor could have what was cleared just now.
        let mark = self.begin_flush();
        self.end_flush(mark);
    }

    fn free_table(&mut self, index: u32) {
        if let Some(word) = self.unsynced.get(&self.pages, index / 64) {
            word.fetch_and(!bit(index));
        }
        let Some(table) = self.pages.table_mut(index) else {
            return;
        };
        let origins = table.origins.load();
        let generation = table.generation.load();
        // Handles of the table are misses from now on. 0 would be no handle at all.
        let next = match generation.wrapping_add(1) & 0xffff_ffff {
            0 => 1,
            next => next,
        };
        *table = Table::default();
        table.generation.store(next);
        if let Some(origins) = origins.checked_sub(1).and_then(|at| u32::try_from(at).ok()) {
            self.put_free(origins);
        }
        self.put_free(index);
    }

    /// Makes an entry empty, and takes care of what it was. If someone has reserved it, the change is
    /// cancelled, and whoever makes it will empty the entry.
    ///
    /// The hardware and other faults may change it meanwhile: it is empty at one time, not more.
    pub(super) fn clear_entry(&self, handle: Handle, entry: u16, dirty: &impl DirtyPages) {
        let empty = self.hardware().empty();
        let Some(word) = self.pages.word(handle.index, entry) else {
            return;
        };
        let mut old = word.load();
        loop {
            if old == empty {
                return;
            }
            let displaced = self.displaced(handle, entry, old);
            let new = if old == self.hardware().reserved() {
                self.hardware().cancelled()
            } else if old == self.hardware().cancelled() {
                return;
            } else {
                empty
            };
            match word.compare_exchange(old, new) {
                Ok(()) => return self.dispose(displaced, dirty),
                Err(now) => old = now,
            }
        }
    }

    /// Finds out what will be lost with an entry. To be called before the entry is replaced.
    pub(super) fn displaced(&self, handle: Handle, entry: u16, raw: u64) -> Displaced {
        let Some(table) = self.live(handle) else {
            return Displaced::Nothing;
        };
        match self.hardware().content(raw, table.level()) {
            Content::Empty | Content::Reserved | Content::Mmio => Displaced::Nothing,
            Content::Leaf => Displaced::Leaf {
                page: self.page_of(table, entry),
                is_dirty: self.hardware().is_dirty_and_logged(raw),
            },
            Content::Link => match self.child(handle, entry) {
                Some((child, _)) => Displaced::Table(child),
                None => Displaced::Nothing,
            },
        }
    }

    /// Takes care of what was lost with an entry.
    pub(super) fn dispose(&self, displaced: Displaced, dirty: &impl DirtyPages) {
        match displaced {
            Displaced::Nothing => {}
            Displaced::Leaf { page, is_dirty } => {
                self.leaves.fetch_add(u64::MAX);
                self.owe_flush();
                if let (true, Some(page)) = (is_dirty, page) {
                    dirty.report(crate::address::Gpa::from_raw(page));
                }
            }
            Displaced::Table(child) => self.detach(child),
        }
    }

    pub(super) fn mark_unsynced(&self, index: u32) {
        if let Some(word) = self.unsynced.get(&self.pages, index / 64) {
            if word.load() & bit(index) == 0 {
                word.fetch_or(bit(index));
            }
        }
    }

    pub(super) fn is_unsynced(&self, index: u32) -> bool {
        self.unsynced
            .get(&self.pages, index / 64)
            .is_none_or(|word| word.load() & bit(index) != 0)
    }
}

/// What is lost when an entry is replaced.
pub(super) enum Displaced {
    Nothing,
    Leaf { page: Option<u64>, is_dirty: bool },
    Table(Handle),
}

/// The bit of a page in its word of [`Shadow::unsynced`].
pub(super) const fn bit(index: u32) -> u64 {
    1u64.wrapping_shl(index % 64)
}

const _: () = assert!(Array::STEP == 512);
