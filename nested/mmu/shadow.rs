// SPDX-License-Identifier: GPL-2.0

//! The shadow tables of a VM: what L2 runs on.
//!
//! [`Shadow`] is the content of a lock for readers and writers. Faults, flushes by L1 and aging
//! share it (`&self`) and change entries by compare-exchange; what L0 does to its memory, and
//! whatever frees a table, has it exclusively (`&mut self`), so that no fault is on its way then.
//!
//! An entry is installed in three steps. The installer *reserves* it, so that nobody else changes
//! it, makes sure that L1 has not flushed since the installer read L1's tables, and *commits*. A
//! flush first advances the sequence, then looks at entries, and cancels those that are reserved:
//! an installer that was too late to see the sequence is seen by the flush, and cannot commit.

mod array;
pub mod hardware;
mod host;
mod map;
mod pool;
mod prefetch;
mod recent;
mod reverse;
mod room;
mod root;
mod sequence;
mod sync;
pub mod table;
mod track;
mod view;
pub mod word;

use array::Array;
use hardware::Hardware;
use reverse::Reverse;
use table::{Handle, Kind, Table, TablePages};
use word::Word;

use crate::address::Gpa;
use crate::mmu::level::ENTRIES;

pub use host::{Age, FlushNeeded, Frames};
pub use map::{Backing, Installation, Mapped, Target, Tracking};
pub use prefetch::Backings;
pub use reverse::MAXIMUM_PAGES;
pub use room::Shrunk;
pub use root::{RootRefusal, RootUse};
pub use sequence::{Sequences, Ticket};
pub use sync::{FlushScope, Synced};
pub use track::{Untrackable, WriteTracker};
pub use view::{Mmio, Translation};

/// Where L0 hears of pages of L1 that L2 has written, while their writes are logged.
pub trait DirtyPages {
    /// L2 has written to a page.
    fn report(&self, page: Gpa);
}

/// The caches of translations of all processors.
pub trait Tlbs {
    /// Flushes what they have of this VM: translations by any of its shadow tables, and cached
    /// references to tables. When it returns, none is left, and none is being used.
    fn flush_all(&self);
}

/// Proof that no processor has anything that was in the tables before.
///
/// It exists only while the shadow is held exclusively, so that nothing is added meanwhile.
struct Flushed(());

impl Flushed {
    fn by(tlbs: &impl Tlbs) -> Self {
        tlbs.flush_all();
        Self(())
    }
}

/// Numbers that a shadow is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the processor reads.
    pub hardware: Hardware,
    /// The most pages that the pool may have: at most [`MAXIMUM_PAGES`].
    pub page_limit: u32,
    /// The most roots that are kept though no vCPU uses them.
    pub cached_roots: u32,
    /// The number of buckets of the reverse map, at least 512; a power of 2.
    pub buckets: u32,
    /// A random number that the guest does not know.
    pub seed: u64,
}

/// The shadow tables of a VM.
#[derive(Debug)]
pub struct Shadow<P: TablePages> {
    pages: P,
    config: Config,
    /// The first free page, plus 1.
    free: P::Word,
    /// The number of free pages.
    available: P::Word,
    /// The number of pages in the pool.
    inserted: u32,
    /// The first page of those that wait for a flush, plus 1: each is a table with all below it.
    detached: P::Word,
    /// The number of entries that map pages.
    leaves: P::Word,
    /// Advances when a table has been detached.
    structure: P::Word,
    /// Advances whenever tables are evicted.
    clock: P::Word,
    /// Advances when processors may have a translation that the tables do not have any more, and
    /// no flush has begun since.
    owed: P::Word,
    /// What `owed` was when the last flush began.
    begun: P::Word,
    /// What `owed` was when the last flush that is complete began.
    paid: P::Word,
    reverse: Reverse<P::Word>,
    /// A bit for each page: it is a table that the next flush has to compare with L1's.
    unsynced: Array,
    /// Tables of L1 that got a table here since calm ones were tracked.
    fresh: P::Word,
    /// The first root, plus 1.
    roots: u32,
    /// Memory whose writes the next [`sync_dirty()`](Self::sync_dirty) reports, all of them: when the
    /// last one ended, each entry that could be written had a dirty flag, which was clear.
    logged: Option<Frames>,
    /// Not 0 if there may be another entry now.
    unlogged: P::Word,
    /// Where the next search for tables to drop begins.
    hand: u32,
}

impl<P: TablePages> Shadow<P> {
    /// Makes a shadow without tables, and without pages for any.
    pub fn new(pages: P, config: Config) -> Self {
        let zero = || P::Word::new(0);
        Self {
            pages,
            free: zero(),
            available: zero(),
            inserted: 0,
            detached: zero(),
            leaves: zero(),
            structure: zero(),
            clock: zero(),
            owed: zero(),
            begun: zero(),
            paid: zero(),
            reverse: Reverse::new(config.buckets, config.seed),
            unsynced: Array::default(),
            fresh: zero(),
            roots: 0,
            logged: None,
            unlogged: zero(),
            hand: 0,
            config,
        }
    }

    /// Returns the number of entries that map pages of L1.
    pub fn leaves(&self) -> u64 {
        self.leaves.load()
    }

    /// Returns the number of pages that are used for something.
    pub fn pages_in_use(&self) -> u64 {
        u64::from(self.inserted).saturating_sub(self.available.load())
    }

    /// Returns the number of pages in the pool.
    pub const fn pages_in_pool(&self) -> u32 {
        self.inserted
    }

    /// Returns where the pages are.
    pub const fn pages(&self) -> &P {
        &self.pages
    }

    /// Returns where the pages are, for there to be room for more.
    pub const fn pages_mut(&mut self) -> &mut P {
        &mut self.pages
    }

    /// Says whether instructions may be fetched from large pages from now on. To be called before
    /// [`zap_all()`](Self::zap_all).
    pub const fn set_executable_large_pages(&mut self, allowed: bool) {
        self.config.hardware.executable_large_pages = allowed;
    }

    const fn hardware(&self) -> &Hardware {
        &self.config.hardware
    }

    /// Returns a table that has not been freed since the handle was made.
    fn live(&self, handle: Handle) -> Option<&Table<P::Word>> {
        let table = self.pages.table(handle.index)?;
        (table.handle(handle.index) == handle && table.kind() != Kind::None).then_some(table)
    }

    /// Returns the words that say what entries are made of.
    fn origins(&self, table: &Table<P::Word>) -> Option<&[P::Word; ENTRIES as usize]> {
        let page = u32::try_from(table.origins.load().checked_sub(1)?).ok()?;
        self.pages.words(page)
    }

    /// Returns the word that says what an entry is made of.
    fn origin(&self, table: &Table<P::Word>, entry: u16) -> Option<&P::Word> {
        self.origins(table)?.get(usize::from(entry))
    }

    /// Returns the table that a link refers to, if the link is what it was when it was read.
    fn child(&self, handle: Handle, entry: u16) -> Option<(Handle, &Table<P::Word>)> {
        self.child_of(handle, entry, self.origin(self.live(handle)?, entry)?)
    }

    /// Returns the same, of an entry whose origin has been looked up.
    fn child_of(
        &self,
        handle: Handle,
        entry: u16,
        origin: &P::Word,
    ) -> Option<(Handle, &Table<P::Word>)> {
        let child = Handle::unpack(origin.load())?;
        let table = self.live(child)?;
        let is_owned =
            table.parent.load() == handle.pack() && table.place.load() == u64::from(entry);
        is_owned.then_some((child, table))
    }

    /// Notes that processors may have what the tables do not have any more.
    ///
    /// To be called after the table has changed. A flush that begins later covers it.
    fn owe_flush(&self) {
        let owed = self.owed.load();
        if owed == self.begun.load() {
            // If someone else is faster, it is noted, too.
            let _ = self.owed.compare_exchange(owed, owed.wrapping_add(1));
        }
    }

    /// To be called before a flush of all processors begins that is not made by [`Tlbs`].
    pub fn begin_flush(&self) -> FlushMark {
        let owed = self.owed.load();
        self.begun.store(owed);
        FlushMark(owed)
    }

    /// To be called when the flush is complete. What was owed when it began is paid.
    pub fn end_flush(&self, mark: FlushMark) {
        self.paid.store(mark.0);
    }

    /// Returns whether processors may have translations that the tables do not have any more.
    pub fn owes_flush(&self) -> bool {
        self.owed.load() != self.paid.load()
    }
}

/// A flush that has begun.
#[derive(Debug)]
#[must_use]
pub struct FlushMark(u64);

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
mod tests;

#[cfg(fuzzing)]
pub use tests::fuzz;
