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

    /// Returns whether all pages of another range are in this one.
    const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
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

        self.for_each_leaf(frames, |place, _| {
            let level = place.level;
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
    ///
    /// A part of the memory whose flags [`sync_dirty()`](Self::sync_dirty) has just cleared costs
    /// nothing. For all of it, L0 may have begun to log writes anew: it is looked at.
    pub fn clear_dirty(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        let is_logged = |logged: Frames| logged != *frames && logged.contains(frames);
        if self.logged.is_some_and(is_logged) && self.unlogged.load() == 0 {
            return self.flush_needed();
        }
        self.for_each_leaf(frames, |place, page| {
            if place.level != Level::Page4K {
                // What is written is known by the smallest pages only.
                return self.clear_entry(place.handle, place.entry, dirty);
            }
            let has_flags = self
                .key_of(place.table)
                .is_some_and(|key| key.format.accessed_dirty(place.level).is_some());
            if !has_flags {
                self.protect_entry(place.handle, place.entry);
                return;
            }
            self.restart_log(place.word, page, dirty);
        });
        self.flush_needed()
    }

    /// Reports the pages that L2 has written since the last time, as far as dirty flags say so.
    ///
    /// After the flush, each further write sets the flag again.
    pub fn sync_dirty(&mut self, frames: &Frames, dirty: &impl DirtyPages) -> FlushNeeded {
        let mut is_complete = true;
        self.for_each_leaf(frames, |place, page| {
            let raw = place.word.load();
            if place.level == Level::Page4K && self.hardware().is_logged(raw) {
                if self.hardware().is_dirty(raw) {
                    self.restart_log(place.word, page, dirty);
                }
            } else if Hardware::is_writable(raw) {
                is_complete = false;
            }
        });
        self.logged = is_complete.then_some(*frames);
        self.unlogged.store(0);
        self.flush_needed()
    }

    /// To be called before there is an entry that can be written and of which no dirty flag will say
    /// that it was.
    pub(super) fn note_unlogged(&self, page: Gpa, level: Level) {
        let touches = |logged: Frames| logged.touches(page.into_raw(), level);
        if self.logged.is_some_and(touches) {
            self.unlogged.store(1);
        }
    }

    /// Clears the dirty flag of the entry of a page, and reports the page if it was set.
    fn restart_log(&self, word: &P::Word, page: u64, dirty: &impl DirtyPages) {
        let mut old = word.load();
        loop {
            if self.hardware().content(old, Level::Page4K) != Content::Leaf {
                return;
            }
            let new = self.hardware().with_log(old);
            if new == old {
                return;
            }
            match word.compare_exchange(old, new) {
                Ok(()) => break,
                Err(now) => old = now,
            }
        }
        if Hardware::is_writable(old) {
            self.owe_flush();
        }
        if self.hardware().is_dirty_and_logged(old) {
            dirty.report(Gpa::from_raw(page));
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
            if is_inside {
                self.unlink(table, dirty);
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

    /// Calls `visit` for each entry that maps memory of a range, with its page.
    pub(super) fn for_each_leaf(
        &self,
        frames: &Frames,
        mut visit: impl FnMut(Place<'_, P::Word>, u64),
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
                        if place.page() == Some(page) {
                            visit(place, page);
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
    fn scan(&self, frames: &Frames, mut visit: impl FnMut(Place<'_, P::Word>, u64)) {
        self.for_each_table(|handle, table| {
            let (kind, level) = table.role();
            let Some(words) = self.pages.words(handle.index) else {
                return;
            };
            if level > Level::Page1G {
                return;
            }
            let origins = self.origins(table);
            for (entry, word) in (0..ENTRIES).zip(words) {
                if self.hardware().content(word.load(), level) != Content::Leaf {
                    continue;
                }
                let origin = origins.and_then(|origins| origins.get(usize::from(entry)));
                let place = Place {
                    handle,
                    table,
                    kind,
                    level,
                    entry,
                    word,
                    origin,
                };
                match place.page() {
                    Some(page) if frames.touches(page, level) => visit(place, page),
                    _ => (),
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
