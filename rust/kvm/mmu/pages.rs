// SPDX-License-Identifier: GPL-2.0

//! The pages that shadow tables are made of.

use crate::bindings;
use core::{
    ptr::NonNull,
    sync::atomic::AtomicU64, //
};
use kernel::{
    ffi::c_ulong,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use nested::mmu::{
    level::ENTRIES,
    shadow::{
        table::{
            Table,
            TablePages, //
        },
        MAXIMUM_PAGES, //
    }, //
};

/// How many pages all VMs have.
pub(super) static COUNT: Atomic<c_ulong> = Atomic::new(0);

/// A page of 512 words. It is charged to the process that has allocated it, and counted as one of
/// page tables.
///
/// # Invariants
///
/// `words` is the address of such a page, which is this one's own, and `physical` its
/// host-physical address.
pub(super) struct TablePage {
    words: NonNull<[AtomicU64; ENTRIES as usize]>,
    physical: u64,
}

// SAFETY: The page belongs to nobody else.
unsafe impl Send for TablePage {}

// SAFETY: Shared are words that are atomic.
unsafe impl Sync for TablePage {}

impl TablePage {
    /// Allocates a page, which may sleep.
    pub(super) fn new() -> Result<Self> {
        let mut physical = 0;
        // SAFETY: Allocates, and writes the physical address.
        let page = unsafe { bindings::nested_helper_alloc_table(&raw mut physical) };
        let words = NonNull::new(page.cast()).ok_or(ENOMEM)?;

        COUNT.fetch_add(1, Relaxed);
        // INVARIANT: The page was allocated for this.
        Ok(Self { words, physical })
    }

    fn words(&self) -> &[AtomicU64; ENTRIES as usize] {
        // SAFETY: By the type invariants; the processor, which may walk the table, changes words
        // atomically, too.
        unsafe { self.words.as_ref() }
    }
}

impl Drop for TablePage {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_free_table(self.words.as_ptr().cast()) };
        COUNT.fetch_sub(1, Relaxed);
    }
}

/// A page and what is known about it, which stays when the page goes.
#[derive(Default)]
struct Slot {
    table: Table<AtomicU64>,
    page: Option<TablePage>,
}

/// Places for some pages, in pages of their own: a block of physical memory would be rounded up to a
/// power of two.
pub(super) struct Chunk(VVec<Slot>);

impl Chunk {
    pub(super) const SLOTS: u32 = 256;

    /// Allocates places, which may sleep.
    pub(super) fn new() -> Result<Self> {
        let mut slots = VVec::with_capacity(Self::SLOTS as usize, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..Self::SLOTS {
            slots.push(Slot::default(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self(slots))
    }
}

/// The pages of a VM's shadow tables.
pub(super) struct Pages {
    chunks: VVec<Chunk>,
    /// How many places had a page at any time.
    used: u32,
    /// How many of them have none.
    vacant: u32,
    /// None of those below has none.
    lowest_vacant: u32,
}

impl Pages {
    /// The most pages that there can be.
    pub(super) const MAXIMUM: u32 = MAXIMUM_PAGES;

    /// Makes room for chunks, which may sleep.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            chunks: VVec::with_capacity(
                (Self::MAXIMUM / Chunk::SLOTS) as usize,
                GFP_KERNEL_ACCOUNT,
            )?,
            used: 0,
            vacant: 0,
            lowest_vacant: 0,
        })
    }

    /// Returns how many pages can be added before there has to be another chunk.
    pub(super) fn room(&self) -> u32 {
        let places = (self.chunks.len() as u32).saturating_mul(Chunk::SLOTS);

        places.saturating_sub(self.used).saturating_add(self.vacant)
    }

    /// Adds places; gives them back if there can be no more.
    pub(super) fn add_chunk(&mut self, chunk: Chunk) -> Option<Chunk> {
        match self.chunks.push_within_capacity(chunk) {
            Ok(()) => None,
            Err(error) => Some(error.0),
        }
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        let chunk = self.chunks.get((index / Chunk::SLOTS) as usize)?;
        chunk.0.get((index % Chunk::SLOTS) as usize)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        let chunk = self.chunks.get_mut((index / Chunk::SLOTS) as usize)?;
        chunk.0.get_mut((index % Chunk::SLOTS) as usize)
    }
}

impl TablePages for Pages {
    type Word = AtomicU64;
    type Page = TablePage;

    #[inline]
    fn table(&self, index: u32) -> Option<&Table<AtomicU64>> {
        Some(&self.slot(index)?.table)
    }

    fn table_mut(&mut self, index: u32) -> Option<&mut Table<AtomicU64>> {
        Some(&mut self.slot_mut(index)?.table)
    }

    #[inline]
    fn words(&self, index: u32) -> Option<&[AtomicU64; ENTRIES as usize]> {
        Some(self.slot(index)?.page.as_ref()?.words())
    }

    fn physical(&self, index: u32) -> Option<u64> {
        Some(self.slot(index)?.page.as_ref()?.physical)
    }

    fn count(&self) -> u32 {
        self.used
    }

    fn insert(&mut self, page: TablePage) -> core::result::Result<u32, TablePage> {
        let index = if self.vacant != 0 {
            let is_vacant = |index: &u32| self.slot(*index).is_some_and(|slot| slot.page.is_none());
            (self.lowest_vacant..self.used)
                .find(is_vacant)
                .unwrap_or(self.used)
        } else {
            self.used
        };
        let Some(slot) = self.slot_mut(index) else {
            return Err(page);
        };

        slot.page = Some(page);
        if index == self.used {
            self.used += 1;
        } else {
            self.vacant -= 1;
            self.lowest_vacant = index + 1;
        }
        Ok(index)
    }

    fn remove(&mut self, index: u32) -> Option<TablePage> {
        let page = self.slot_mut(index)?.page.take();

        if page.is_some() {
            self.vacant += 1;
            self.lowest_vacant = self.lowest_vacant.min(index);
        }
        page
    }
}
