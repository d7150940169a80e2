// SPDX-License-Identifier: GPL-2.0

//! What L0 does to its memory, and what of the tables has to follow.

use super::hardware::{Content, Hardware};
use super::map::Place;
use super::reverse::Subject;
use super::table::{Handle, Kind, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::Gpa;
use crate::mmu::level::{Level, ENTRIES};

/// A range of L1's memory, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Frames {
    /// Makes a range of the pages that contain any of the bytes.
    pub const fn new(start: Gpa, bytes: u64) -> Self {
        let end = start.into_raw().saturating_add(bytes);
        Self {
            start: start.page().into_raw(),
            end: end.saturating_add(0xfff) & !0xfff,
        }
    }

    const fn count(&self) -> u64 {
        self.end.saturating_sub(self.start) >> 12
    }

    /// Returns whether any byte of a page of a level is in the range.
    pub(super) const fn touches(&self, page: u64, level: Level) -> bool {
        page < self.end && page.saturating_add(level.size()) > self.start
    }
}

/// Whether a flush of all processors is needed before L0 goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FlushNeeded {
    /// It is.
    Yes,
    /// No processor has what was removed.
    No,
}

/// What aging does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// The pages count as unused from now on.
    Clear,
    /// Nothing changes.
    Test,
}

impl<P: TablePages> Shadow<P> {
    /// Removes all entries that map memory of L1: it is unmapped, moved or changed by L0. Tables of
    /// L1 that are in it are not tracked any more, as L0 may not know the page when it comes back.
    pub fn unmap(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        self.untrack_frames(frames);
        self.for_each_leaf(frames, |place, _| {
            self.clear_entry(place.handle, place.entry, dirty);
        });
        self.flush_needed()
    }

    /// Returns whether L2 has used memory of L1 since it was last cleared.
    ///
    /// Where the processor sets no flags, an entry that is cleared is removed, and comes back with
    /// the next fault. Nothing is flushed: the answer may be a little old.
    pub fn age(&self, frames: &Frames, age: Age, dirty: &impl DirtyPages) -> bool {
        let mut is_young = false;

        self.for_each_leaf(frames, |place, level| {
            let has_flags = self
                .key_of(place.table)
                .is_some_and(|key| key.format.accessed_dirty(level).is_some());
            if !has_flags {
                is_young = true;
                if age == Age::Clear {
                    self.clear_entry(place.handle, place.entry, dirty);
                }
                return;
            }
            let mut old = place.word.load();
            while self.hardware().content(old, level) == Content::Leaf
                && self.hardware().is_accessed(old)
            {
                is_young = true;
                if age == Age::Test {
                    return;
                }
                let new = self.hardware().without_accessed(old);
                match place.word.compare_exchange(old, new) {
                    Ok(()) => return,
                    Err(now) => old = now,
                }
            }
        });
        is_young
    }

    /// Makes memory of L1 read-only, until a write fault: L0 logs writes, by faults.
    pub fn write_protect(&mut self, frames: &Frames) -> FlushNeeded {
        self.protect_frames(frames);
        self.flush_needed()
    }

    pub(super) fn protect_frames(&self, frames: &Frames) {
        self.for_each_leaf(frames, |place, _| {
            self.protect_entry(place.handle, place.entry);
        });
    }

    /// Begins a new pass of logging writes to memory of L1, by dirty flags where there are any and
    /// by faults elsewhere. Pages that became dirty since the last pass are reported.
    pub fn clear_dirty(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        self.for_each_leaf(frames, |place, level| {
            if level != Level::Page4K {
                // What is written is known by the smallest pages only.
                return self.clear_entry(place.handle, place.entry, dirty);
            }
            let has_flags = self
                .key_of(place.table)
                .is_some_and(|key| key.format.accessed_dirty(level).is_some());
            if !has_flags {
                self.protect_entry(place.handle, place.entry);
                return;
            }
            self.restart_log(&place, dirty);
        });
        self.flush_needed()
    }

    /// Reports the pages that L2 has written since the last time, as far as dirty flags say so.
    ///
    /// After the flush, each further write sets the flag again.
    pub fn sync_dirty(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        self.for_each_leaf(frames, |place, level| {
            let is_dirty = self.hardware().is_dirty_and_logged(place.word.load());
            if level == Level::Page4K && is_dirty {
                self.restart_log(&place, dirty);
            }
        });
        self.flush_needed()
    }

    /// Clears the dirty flag of an entry, and reports the page if it was set.
    fn restart_log(&self, place: &Place<'_, P::Word>, dirty: &impl DirtyPages) {
        let mut old = place.word.load();
        loop {
            if self.hardware().content(old, Level::Page4K) != Content::Leaf {
                return;
            }
            let new = self.hardware().with_log(old);
            if new == old {
                return;
            }
            match place.word.compare_exchange(old, new) {
                Ok(()) => break,
                Err(now) => old = now,
            }
        }
        if Hardware::is_writable(old) {
            self.owe_flush();
        }
        if self.hardware().is_dirty_and_logged(old) {
            if let Some(page) = self.page_of(place.table, place.entry) {
                dirty.report(Gpa::from_raw(page));
            }
        }
    }

    /// Drops small entries where a large one could be: L0 has large pages again.
    pub fn recover_large_pages(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        self.for_each_table(|_, table| {
            if table.kind() != Kind::Direct {
                return;
            }
            let size = table.level().span();
            let is_inside =
                table.source() < frames.end && table.source().saturating_add(size) > frames.start;
            let parent = Handle::unpack(table.parent.load());
            let place = u16::try_from(table.place.load());
            if let (true, Some(parent), Ok(place)) = (is_inside, parent, place) {
                let is_linked = self
                    .child(parent, place)
                    .is_some_and(|(_, child)| core::ptr::eq(child, table));
                if is_linked {
                    self.clear_entry(parent, place, dirty);
                }
            }
        });
        self.flush_needed()
    }

    /// Drops everything: L0 changes what all translations depend on, or the VM ends. Roots that a
    /// vCPU uses stay, and are empty.
    pub fn zap_all(&mut self, dirty: &impl DirtyPages) -> FlushNeeded {
        let mut next = self.roots;
        while let Some(index) = next.checked_sub(1) {
            next = match self.pages.table(index) {
                Some(table) => u32::try_from(table.next.load()).unwrap_or(0),
                None => 0,
            };
            self.drop_root(index, dirty);
            // If it stays: L0 does not know any more that its page is tracked.
            self.mark_unsynced(index);
        }
        self.flush_needed()
    }

    fn flush_needed(&self) -> FlushNeeded {
        if self.owes_flush() {
            FlushNeeded::Yes
        } else {
            FlushNeeded::No
        }
    }

    /// Calls `visit` for each table.
    pub(super) fn for_each_table(
        &self,
        mut visit: impl FnMut(Handle, &super::table::Table<P::Word>),
    ) {
        for index in 0..self.pages.count() {
            if let Some(table) = self.pages.table(index) {
                if table.kind() != Kind::None {
                    visit(table.handle(index), table);
                }
            }
        }
    }

    /// Calls `visit` for each entry that maps memory of a range.
    pub(super) fn for_each_leaf(
        &self,
        frames: &Frames,
        mut visit: impl FnMut(Place<'_, P::Word>, Level),
    ) {
        // A look-up costs about as much as a table's cache line of entries.
        if frames.count() > self.pages_in_use().saturating_mul(64) {
            return self.scan(frames, visit);
        }
        for level in Level::PAGES {
            let mut page = level.align(frames.start);
            while page < frames.end {
                for (handle, entry) in self
                    .reverse
                    .candidates(&self.pages, Subject::Mapped(level, page))
                {
                    if let Some(place) = self.mapping(handle, entry, level) {
                        if self.page_of(place.table, entry) == Some(page) {
                            visit(place, level);
                        }
                    }
                }
                let Some(next) = page.checked_add(level.size()) else {
                    break;
                };
                page = next;
            }
        }
    }

    /// Does the same by looking at all entries.
    fn scan(&self, frames: &Frames, mut visit: impl FnMut(Place<'_, P::Word>, Level)) {
        self.for_each_table(|handle, table| {
            let level = table.level();
            if level > Level::Page1G {
                return;
            }
            for entry in 0..ENTRIES {
                let Some(place) = self.mapping(handle, entry, level) else {
                    continue;
                };
                if self
                    .page_of(table, entry)
                    .is_some_and(|page| frames.touches(page, level))
                {
                    visit(place, level);
                }
            }
        });
    }

    /// Returns an entry if it maps a page of a level.
    fn mapping(&self, handle: Handle, entry: u16, level: Level) -> Option<Place<'_, P::Word>> {
        let table = self.live(handle)?;
        let place = self.place_at(handle, table, entry)?;
        let is_leaf = place.level == level
            && self.hardware().content(place.word.load(), level) == Content::Leaf;
        is_leaf.then_some(place)
    }
}
