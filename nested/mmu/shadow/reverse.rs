// SPDX-License-Identifier: GPL-2.0

//! The reverse map: from pages of L1 to the entries that are made of them.
//!
//! It is a hash table of checked handles. Nothing is ever removed from it while tables are in use:
//! what it says is a hint that the reader verifies, and a table that was freed is a miss. When it is
//! full of what is not true any more, it is made anew, exclusively.

use super::array::{Array, NoPage};
use super::table::{Handle, TablePages};
use super::word::Word;
use crate::mmu::level::{Level, ENTRIES};

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
    /// A word each: see [`Node`].
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

/// Buckets of [`Subject::Source`].
const SOURCES: u32 = Array::STEP;

/// The most pages that a pool may have: 1 GiB of them.
pub const MAXIMUM_PAGES: u32 = 1 << Node::INDEX_BITS;

/// What the map says: there are as many as pages that L2 has, and each is a word. From bit 0 on: the
/// number of the next node, plus 1; the entry; the index of the table; what tells whether that is
/// still the table, and subjects of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node(u64);

impl Node {
    const NEXT_BITS: u32 = 27;
    const ENTRY_BITS: u32 = 9;
    const INDEX_BITS: u32 = 18;
    const GENERATION_BITS: u32 = 4;
    const LABEL_BITS: u32 = 6;

    const ENTRY_SHIFT: u32 = Self::NEXT_BITS;
    const INDEX_SHIFT: u32 = Self::ENTRY_SHIFT + Self::ENTRY_BITS;
    const GENERATION_SHIFT: u32 = Self::INDEX_SHIFT + Self::INDEX_BITS;
    const LABEL_SHIFT: u32 = Self::GENERATION_SHIFT + Self::GENERATION_BITS;

    /// Packs all but the next node.
    fn new(table: Handle, entry: u16, label: u64) -> Result<Self, NoPage> {
        if table.index >= MAXIMUM_PAGES {
            return Err(NoPage);
        }
        let generation = Self::check(table);
        Ok(Self(
            u64::from(entry) << Self::ENTRY_SHIFT
                | u64::from(table.index) << Self::INDEX_SHIFT
                | generation << Self::GENERATION_SHIFT
                | label << Self::LABEL_SHIFT,
        ))
    }

    /// Returns the part of a table's generation that nodes have.
    const fn check(table: Handle) -> u64 {
        table.generation as u64 & ((1 << Self::GENERATION_BITS) - 1)
    }

    const fn with_next(self, next: u64) -> u64 {
        self.0 | next
    }

    /// Returns the node without the next one.
    const fn alone(self) -> Self {
        Self(self.0 & !((1 << Self::NEXT_BITS) - 1))
    }

    #[allow(clippy::cast_possible_truncation)] // Parts of a word.
    const fn next(self) -> u32 {
        self.0 as u32 & ((1 << Self::NEXT_BITS) - 1)
    }

    #[allow(clippy::cast_possible_truncation)] // Parts of a word.
    const fn entry(self) -> u16 {
        (self.0 >> Self::ENTRY_SHIFT) as u16 & (ENTRIES - 1)
    }

    #[allow(clippy::cast_possible_truncation)] // Parts of a word.
    const fn index(self) -> u32 {
        (self.0 >> Self::INDEX_SHIFT) as u32 & (MAXIMUM_PAGES - 1)
    }

    const fn generation(self) -> u64 {
        self.0 >> Self::GENERATION_SHIFT & ((1 << Self::GENERATION_BITS) - 1)
    }

    const fn label(self) -> u64 {
        self.0 >> Self::LABEL_SHIFT
    }
}

const _: () = assert!(Node::LABEL_SHIFT + Node::LABEL_BITS == 64);
const _: () = assert!(1 << Node::ENTRY_BITS == ENTRIES);

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
        u64::from(self.nodes.len())
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

    /// Returns the index of the bucket of a subject, and its label, which most others in the bucket
    /// have not.
    #[allow(clippy::cast_possible_truncation)] // Parts of a word.
    fn place_of(&self, subject: Subject) -> (u32, u64) {
        let (kind, number) = subject.number();
        let mixed = (number ^ kind.wrapping_shl(56))
            .wrapping_mul(self.seed)
            .wrapping_add(self.seed >> 32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The upper bits are mixed best, and say the label; the index is of those below.
        let label = mixed >> (64 - Node::LABEL_BITS);
        let mixed = (mixed >> 20) as u32;
        let index = match subject {
            Subject::Mapped(..) => mixed & self.wanted_buckets.wrapping_sub(1),
            Subject::Source(_) => self.wanted_buckets.wrapping_add(mixed % SOURCES),
        };
        (index, label)
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
        let (index, label) = self.place_of(subject);
        let bucket = self.buckets.get(pages, index).ok_or(NoPage)?;
        if !self.is_complete() {
            return Err(NoPage);
        }
        let wanted = Node::new(table, entry, label)?;
        if known == Known::Maybe
            && self
                .chain(pages, bucket.load())
                .take(NEAR)
                .any(|node| node.alone() == wanted)
        {
            return Ok(());
        }

        let node = self.take_node()?;
        let word = self.nodes.get(pages, node).ok_or(NoPage)?;
        let mut head = bucket.load();
        loop {
            word.store(wanted.with_next(head));
            match bucket.compare_exchange(head, u64::from(node).wrapping_add(1)) {
                Ok(()) => return Ok(()),
                Err(now) => head = now,
            }
        }
    }

    fn take_node(&self) -> Result<u32, NoPage> {
        let mut taken = self.taken.load();
        loop {
            // 0 is no node: there is one less than numbers.
            if taken >= self.capacity().min((1 << Node::NEXT_BITS) - 1) {
                return Err(NoPage);
            }
            match self.taken.compare_exchange(taken, taken.wrapping_add(1)) {
                Ok(()) => return u32::try_from(taken).map_err(|_| NoPage),
                Err(now) => taken = now,
            }
        }
    }

    /// Returns the nodes of the bucket with a head.
    #[allow(clippy::cast_possible_truncation)] // Numbers of nodes are 27 bits.
    fn chain<'a, P: TablePages<Word = W>>(
        &'a self,
        pages: &'a P,
        head: u64,
    ) -> impl Iterator<Item = Node> + 'a {
        let mut next = head as u32;

        core::iter::from_fn(move || {
            let node = Node(self.nodes.get(pages, next.checked_sub(1)?)?.load());
            next = node.next();
            Some(node)
        })
    }

    /// Returns the entries that may be made of `subject`, and others, with their tables as they are
    /// now. The reader has to look.
    pub(super) fn candidates<'a, P: TablePages<Word = W>>(
        &'a self,
        pages: &'a P,
        subject: Subject,
    ) -> impl Iterator<Item = (Handle, u16)> + 'a {
        let (index, label) = self.place_of(subject);
        let head = self.buckets.get(pages, index).map_or(0, W::load);

        self.chain(pages, head)
            .filter(move |node| node.label() == label)
            .filter_map(move |node| {
                let table = pages.table(node.index())?.handle(node.index());
                (Node::check(table) == node.generation()).then_some((table, node.entry()))
            })
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_shadow_reverse))]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_all_that_it_is_made_of() {
        let of = |index, generation| Handle { index, generation };
        let last = (MAXIMUM_PAGES - 1, ENTRIES - 1, (1 << 6) - 1, (1 << 27) - 1);
        let mixed = (0x2_1234, 0x155, 0x2a, 0x512_3456);

        for (index, entry, label, next) in [(0, 0, 0, 0), last, mixed] {
            let node = Node::new(of(index, 0x1d), entry, label).unwrap_or(Node(0));
            let linked = Node(node.with_next(next));
            assert_eq!(linked.alone(), node);
            assert_eq!(u64::from(linked.next()), next);
            assert_eq!((linked.index(), linked.entry()), (index, entry));
            assert_eq!((linked.label(), linked.generation()), (label, 0xd));
        }
        assert!(Node::new(of(MAXIMUM_PAGES, 1), 0, 0).is_err());
    }
}
