// SPDX-License-Identifier: GPL-2.0

//! Tracking of L1's tables, so that a flush need not read those that did not change.
//!
//! A table begins unsynced: each flush reads it. Then L1's page is write-protected, and flushes skip
//! the table. New tables wait for that until there are several of them, since L1 often goes on to
//! fill a table that it has just begun. The first write makes the table unsynced again; it is never
//! emulated, and the page is writable from then on, until some flushes in sequence have found nothing
//! changed.

use super::host::Frames;
use super::reverse::Subject;
use super::sequence::Sequences;
use super::table::{Handle, Kind, Table, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow, Tlbs};
use crate::address::{Gpa, PAGE_SIZE};
use crate::memory::GuestTables;
use crate::mmu::level::Level;

/// A page cannot be write-protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untrackable;

/// L0's own tables for L1.
pub trait WriteTracker {
    /// Takes from L1 the permission to write to a page, until the next write, of which
    /// [`Shadow::tracked_write()`] hears first. Does not flush.
    fn protect(&self, page: Gpa) -> Result<(), Untrackable>;
}

/// What [`Table::quiet`](super::table::Table) is while a table is about to be tracked.
const SETTLING: u64 = u64::MAX;

/// Tables that are tracked at a time: L0 is held up meanwhile.
const BATCH: u32 = 128;

/// New tables that are worth it.
const FRESH: u64 = 4;

impl<P: TablePages> Shadow<P> {
    /// L1's page is about to become writable, other than by these tables: L1's tables in it are not
    /// tracked any more.
    pub fn tracked_write(&self, page: Gpa) {
        self.untrack_range(page, Level::Page4K);
    }

    /// Makes tables unsynced that are made of the memory that an entry of a level maps.
    pub(super) fn untrack_range(&self, page: Gpa, level: Level) {
        let start = level.align(page.into_raw());
        let size = level.size();
        let mut block = Level::Page2M.align(start);

        while block.wrapping_sub(start) < size || block <= start {
            for (handle, _) in self.reverse.candidates(&self.pages, Subject::Source(block)) {
                let Some(table) = self.live(handle) else {
                    continue;
                };
                let is_inside = table.source().wrapping_sub(start) < size;
                if is_inside && table.kind() == Kind::Guest && !self.is_unsynced(handle.index) {
                    table.written.fetch_add(1);
                    table.quiet.store(0);
                    // Before the caller makes the page writable.
                    self.mark_unsynced(handle.index);
                }
            }
            let Some(next) = block.checked_add(Level::Page2M.size()) else {
                return;
            };
            block = next;
        }
    }

    /// Makes tables unsynced that are made of memory in a range.
    pub(super) fn untrack_frames(&self, frames: &Frames) {
        let first = Level::Page2M.align(frames.start);
        let blocks = frames.end.saturating_sub(first) >> Level::Page2M.shift();

        if blocks > u64::from(self.pages.count()) {
            return self.for_each_table(|handle, table| {
                if frames.touches(
                    Gpa::from_raw(table.source()).page().into_raw(),
                    Level::Page4K,
                ) {
                    self.untrack(handle, table);
                }
            });
        }
        let mut block = first;
        while block < frames.end {
            for (handle, _) in self.reverse.candidates(&self.pages, Subject::Source(block)) {
                if let Some(table) = self.live(handle) {
                    let page = Gpa::from_raw(table.source()).page().into_raw();
                    if frames.touches(page, Level::Page4K) {
                        self.untrack(handle, table);
                    }
                }
            }
            let Some(next) = block.checked_add(Level::Page2M.size()) else {
                return;
            };
            block = next;
        }
    }

    /// Makes a table unsynced.
    fn untrack(&self, handle: Handle, table: &Table<P::Word>) {
        if table.kind() == Kind::Guest && !self.is_unsynced(handle.index) {
            table.quiet.store(0);
            self.mark_unsynced(handle.index);
        }
    }

    /// Returns whether tables made of a page of L1 are skipped by flushes.
    pub fn is_tracked(&self, page: Gpa) -> bool {
        self.reverse
            .candidates(&self.pages, Subject::Source(page.into_raw()))
            .any(|(handle, _)| {
                self.live(handle).is_some_and(|table| {
                    table.kind() == Kind::Guest
                        && Gpa::from_raw(table.source()).page() == page
                        && !self.is_unsynced(handle.index)
                })
            })
    }

    /// Notes that there is a new table, made of one of L1's.
    pub(super) fn note_fresh(&self, table: &Table<P::Word>) {
        table.quiet.store(table.patience().wrapping_add(1));
        self.fresh.fetch_add(1);
    }

    /// Returns whether there are enough new tables for [`settle()`](Self::settle).
    pub fn is_to_settle(&self) -> bool {
        self.fresh.load() >= FRESH
    }

    /// Begins to track the tables that are new, or have not changed for long enough. Returns their
    /// number.
    pub fn settle(
        &mut self,
        sequences: &Sequences<P::Word>,
        memory: &impl GuestTables,
        tracker: &impl WriteTracker,
        tlbs: &impl Tlbs,
        dirty: &impl DirtyPages,
    ) -> u32 {
        let mut count = 0u32;

        self.fresh.store(0);
        self.for_each_unsynced(|_, table| {
            let page = Gpa::from_raw(table.source()).page();
            let is_calm = table.quiet.load() > table.patience();
            if !is_calm || count >= BATCH || self.key_of(table).is_none() {
                return;
            }
            self.protect_frames(&Frames::new(page, PAGE_SIZE));
            if tracker.protect(page).is_ok() {
                table.quiet.store(SETTLING);
                count = count.saturating_add(1);
            } else {
                table.quiet.store(0);
                table.written.fetch_add(1);
            }
        });
        if count == 0 {
            return 0;
        }

        // From here on no write is missed; what was written before is read now.
        let flushed = self.flush(tlbs);
        self.free_detached(&flushed, dirty, u64::MAX);
        sequences.advance(None);
        self.for_each_unsynced(|handle, table| {
            if table.quiet.load() != SETTLING {
                return;
            }
            table.quiet.store(0);
            if let Some(key) = self.key_of(table) {
                self.sync_table(memory, handle, &key, dirty);
                if let Some(word) = self.unsynced.get(&self.pages, handle.index / 64) {
                    word.fetch_and(!super::pool::bit(handle.index));
                }
            }
        });
        count
    }
}
