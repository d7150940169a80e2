// SPDX-License-Identifier: GPL-2.0

//! The reverse map: from pages of L1 to the entries that are made of them.
//!
//! It is a hash table of checked handles. Nothing is ever removed from it while tables are in use:
//! what it says is a hint that the reader verifies, and a handle of a table that was freed is a
//! miss. When it is full of what is not true any more, it is made anew, exclusively.

use super::array::{Array, NoPage};
use super::table::{Handle, TablePages};
use super::word::Word;
use crate::mmu::level::Level;

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Entries that map a page of L1, by the level of the entry and any address in the page.
    Mapped(Level, u64),
    /// Tables that are made of a table of L1, by any address in the 2 MiB where that is.
    Source(u64),
}

impl Subject {
    /// Returns what tells subjects apart: they differ in it, or in what they are.
    const fn number(self) -> (u64, u64) {
        match self {
            Self::Mapped(level, address) => {
                (level.number() as u64, address.wrapping_shr(level.shift()))
            }
            Self::Source(address) => (0, address >> 21),
        }
    }
}

/// The map of a shadow.
#[derive(Debug)]
pub(super) struct Reverse<W> {
    /// Those of pages, then [`SOURCES`] of tables: they are few, and each fault that may write to a
    /// page looks for them.
    buckets: Array,
    /// Two words each: a handle; the entry, the kind of subject and the next node.
    nodes: Array,
    /// The number of nodes that were given out.
    taken: W,
    wanted_buckets: u32,
    seed: u64,
}

/// Whether there may be a node for the same entry and subject already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// There may be.
    Maybe,
    /// There is none.
    No,
}

/// How many nodes of a bucket are looked at to see whether there is one already.
///
/// More than once in a bucket does no harm, but a long way to the end does.
const NEAR: usize = 4;

const NODE_WORDS: u32 = 2;

/// Buckets of [`Subject::Source`].
const SOURCES: u32 = Array::STEP;

impl<W: Word> Reverse<W> {
    /// Makes an empty map with a number of buckets, rounded up to a power of 2.
    ///
    /// The seed is secret: who knows it can find pages that share a bucket.
    pub(super) fn new(wanted_buckets: u32, seed: u64) -> Self {
        Self {
            buckets: Array::default(),
            nodes: Array::default(),
            taken: W::new(0),
            wanted_buckets: wanted_buckets
                .clamp(Array::STEP, 1 << 26)
                .next_power_of_two(),
            seed: seed | 1,
        }
    }

    /// Returns the number of nodes that there are.
    pub(super) fn capacity(&self) -> u64 {
        u64::from(self.nodes.len() / NODE_WORDS)
    }

    /// Returns the number of nodes that are free.
    pub(super) fn free(&self) -> u64 {
        self.capacity().saturating_sub(self.taken.load())
    }

    /// Returns whether so many nodes were given out that to look at all buckets, and at all tables,
    /// is little for each.
    pub(super) fn is_worth_rebuilding(&self) -> bool {
        let buckets = u64::from(self.wanted_buckets);

        self.capacity() > buckets.saturating_mul(2).max(4 * super::pool::SPARE_NODES)
    }

    /// Returns whether there are all buckets.
    pub(super) const fn is_complete(&self) -> bool {
        self.buckets.len() >= self.wanted_buckets.saturating_add(SOURCES)
    }

    /// Adds buckets, if there are too few.
    pub(super) fn grow_buckets<P: TablePages<Word = W>>(
        &mut self,
        pages: &P,
        take: impl FnMut() -> Option<u32>,
    ) -> Result<(), NoPage> {
        if self.is_complete() {
            return Ok(());
        }
        self.buckets.grow(pages, take)
    }

    /// Adds nodes.
    pub(super) fn grow_nodes<P: TablePages<Word = W>>(
        &mut self,
        pages: &P,
        take: impl FnMut() -> Option<u32>,
    ) -> Result<(), NoPage> {
        self.nodes.grow(pages, take)
    }

    /// Forgets everything.
    pub(super) fn clear<P: TablePages<Word = W>>(&mut self, pages: &P) {
        self.buckets.clear(pages);
        self.taken.store(0);
    }

    #[allow(clippy::cast_possible_truncation)] // Below the number of buckets.
    fn bucket<'a, P: TablePages<Word = W>>(&self, pages: &'a P, subject: Subject) -> Option<&'a W> {
        let (kind, number) = subject.number();
        let mixed = (number ^ kind.wrapping_shl(56))
            .wrapping_mul(self.seed)
            .wrapping_add(self.seed >> 32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed >> 32) as u32;
        let index = match subject {
            Subject::Mapped(..) => mixed & self.wanted_buckets.wrapping_sub(1),
            Subject::Source(_) => self.wanted_buckets.wrapping_add(mixed % SOURCES),
        };
        self.buckets.get(pages, index)
    }

    /// Notes that an entry is made of `subject`. Returns whether there was room.
    pub(super) fn add<P: TablePages<Word = W>>(
        &self,
        pages: &P,
        subject: Subject,
        table: Handle,
        entry: u16,
        known: Known,
    ) -> Result<(), NoPage> {
        let bucket = self.bucket(pages, subject).ok_or(NoPage)?;
        if !self.is_complete() {
            return Err(NoPage);
        }
        let wanted = (table, entry, subject.number().0);
        if known == Known::Maybe
            && self
                .chain(pages, bucket.load())
                .take(NEAR)
                .any(|node| node == wanted)
        {
            return Ok(());
        }

        let node = self.take_node()?;
        let first = node.wrapping_mul(NODE_WORDS);
        let (handle, rest) = self.nodes.get_pair(pages, first).ok_or(NoPage)?;
        handle.store(table.pack());
        let fixed = u64::from(entry) << 32 | subject.number().0 << 48;
        let mut head = bucket.load();
        loop {
            rest.store(fixed | head);
            match bucket.compare_exchange(head, u64::from(node).wrapping_add(1)) {
                Ok(()) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    fn take_node(&self) -> Result<u32, NoPage> {
        let mut taken = self.taken.load();
        loop {
            if taken >= self.capacity() {
                return Err(NoPage);
            }
            match self.taken.compare_exchange(taken, taken.wrapping_add(1)) {
                Ok(()) => return u32::try_from(taken).map_err(|_| NoPage),
                Err(now) => taken = now,
            }
        }
    }

    /// Returns handle, entry and kind of each node of the bucket with a head.
    #[allow(clippy::cast_possible_truncation)] // Parts of a word.
    fn chain<'a, P: TablePages<Word = W>>(
        &'a self,
        pages: &'a P,
        head: u64,
    ) -> impl Iterator<Item = (Handle, u16, u64)> + 'a {
        let mut next = head as u32;

        core::iter::from_fn(move || {
            let first = next.checked_sub(1)?.wrapping_mul(NODE_WORDS);
            let (handle, rest) = self.nodes.get_pair(pages, first)?;
            let (handle, rest) = (Handle::unpack(handle.load())?, rest.load());
            next = rest as u32;
            Some((handle, (rest >> 32) as u16, rest >> 48))
        })
    }

    /// Returns the entries that may be made of `subject`, and others. The reader has to look.
    pub(super) fn candidates<'a, P: TablePages<Word = W>>(
        &'a self,
        pages: &'a P,
        subject: Subject,
    ) -> impl Iterator<Item = (Handle, u16)> + 'a {
        let kind = subject.number().0;

        let head = self.bucket(pages, subject).map_or(0, W::load);

        self.chain(pages, head)
            .filter_map(move |(handle, entry, of)| (of == kind).then_some((handle, entry)))
    }
}
