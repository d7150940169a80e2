// SPDX-License-Identifier: GPL-2.0

//! Shadow tables: what is known about each, and where they are.

use super::word::Word;
use crate::address::L2Gpa;
use crate::mmu::format::RootKey;
use crate::mmu::level::{Level, ENTRIES};

/// Refers to a table, unless the table has been freed meanwhile.
///
/// A handle of a table that was freed is a miss, even if its page has become another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Handle {
    /// Packs the handle. No handle gives 0: generations begin with 1.
    pub(super) const fn pack(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    #[allow(clippy::cast_possible_truncation)] // Halves.
    pub(super) const fn unpack(raw: u64) -> Option<Self> {
        if raw == 0 {
            return None;
        }
        Some(Self {
            index: raw as u32,
            generation: (raw >> 32) as u32,
        })
    }
}

/// What the entries of a table are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is not a table: the page is free, or holds data.
    None,
    /// Entries of L1's table, one by one.
    Guest,
    /// A part of a page that L1 maps by one entry.
    Direct,
    /// Nothing of L1: the table is above the top-level table of L1.
    Filler,
}

/// What defines a table. Two tables with the same identity have the same entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: Kind,
    pub(super) level: Level,
    /// The first byte that the table translates.
    pub(super) base: L2Gpa,
    /// In L1's memory: the first entry that the table is made of, or the first byte of the page.
    pub(super) source: u64,
    /// The significant part of the entry of L1 that refers to the table, or maps the page.
    pub(super) from: u64,
    /// L1's entries have 4 bytes each.
    pub(super) is_legacy: bool,
}

/// What is known about a page of the pool.
///
/// Everything is a word, because faults that run at the same time read and write it; only what a
/// root has besides changes with exclusive access.
#[derive(Debug)]
pub struct Table<W> {
    pub(super) generation: W,
    /// Kind, size of L1's entries, and level.
    role: W,
    base: W,
    source: W,
    from: W,
    /// The handle of the only table that may refer to this one; 0 for roots.
    pub(super) parent: W,
    /// The index of the entry there.
    pub(super) place: W,
    /// The handle of the root.
    pub(super) root: W,
    /// The page, plus 1, that has a word for each entry, saying what the entry was made of.
    pub(super) origins: W,
    /// The next page of the list, plus 1.
    pub(super) next: W,
    /// When a fault last needed the table.
    pub(super) used: W,
    /// How many flushes in sequence found nothing changed.
    pub(super) quiet: W,
    /// How often L1 has written to its table while it was tracked.
    pub(super) written: W,
    /// How many vCPUs use the root.
    pub(super) users: W,
    /// What the root translates, if this is one.
    pub(super) key: Option<RootKey>,
}

impl<W: Word> Default for Table<W> {
    fn default() -> Self {
        let zero = || W::new(0);
        Self {
            generation: W::new(1),
            role: zero(),
            base: zero(),
            source: zero(),
            from: zero(),
            parent: zero(),
            place: zero(),
            root: zero(),
            origins: zero(),
            next: zero(),
            used: zero(),
            quiet: zero(),
            written: zero(),
            users: zero(),
            key: None,
        }
    }
}

impl<W: Word> Table<W> {
    /// Returns the handle of the table at `index`, which is this.
    #[allow(clippy::cast_possible_truncation)] // Only the lower half counts.
    pub(super) fn handle(&self, index: u32) -> Handle {
        Handle {
            index,
            generation: self.generation.load() as u32,
        }
    }

    /// Returns kind and level.
    pub(super) fn role(&self) -> (Kind, Level) {
        let role = self.role.load();
        let kind = match role & 3 {
            1 => Kind::Guest,
            2 => Kind::Direct,
            3 => Kind::Filler,
            _ => Kind::None,
        };
        let number = u8::try_from(role >> 3).unwrap_or(1);
        (kind, Level::from_number(number).unwrap_or(Level::Page4K))
    }

    pub(super) fn kind(&self) -> Kind {
        self.role().0
    }

    pub(super) fn level(&self) -> Level {
        self.role().1
    }

    pub(super) fn is_legacy(&self) -> bool {
        self.role.load() & 4 != 0
    }

    pub(super) fn base(&self) -> L2Gpa {
        L2Gpa::from_raw(self.base.load())
    }

    pub(super) fn source(&self) -> u64 {
        self.source.load()
    }

    pub(super) fn from(&self) -> u64 {
        self.from.load()
    }

    /// Takes over flags that L1's entry has got.
    pub(super) fn add_flags(&self, from: u64) {
        if self.from.load() != from {
            self.from.fetch_or(from);
        }
    }

    /// Makes the table something, or nothing: nobody else looks at it.
    pub(super) fn become_table(&self, identity: &Identity) {
        let kind = match identity.kind {
            Kind::None => 0,
            Kind::Guest => 1,
            Kind::Direct => 2,
            Kind::Filler => 3,
        };
        self.base.store(identity.base.into_raw());
        self.source.store(identity.source);
        self.from.store(identity.from);
        self.quiet.store(0);
        self.written.store(0);
        let legacy = u64::from(identity.is_legacy) << 2;
        self.role
            .store(u64::from(identity.level.number()) << 3 | legacy | kind);
    }

    /// Returns which entry translates an address, unless the table does not.
    pub(super) fn index_of(&self, address: L2Gpa) -> Option<u16> {
        let level = self.level();
        let within = address.into_raw().wrapping_sub(self.base.load());
        (within < level.span()).then(|| level.index(address))
    }

    /// Returns the address that an entry translates first.
    pub(super) fn address_of(&self, entry: u16) -> L2Gpa {
        let offset = u64::from(entry).wrapping_shl(self.level().shift());
        L2Gpa::from_raw(self.base.load().wrapping_add(offset))
    }
}

/// The memory that shadow tables are made of: pages of 512 words, each with a [`Table`] that says
/// what it is used for.
///
/// Each page belongs to whoever implements this, from [`insert`](Self::insert) to
/// [`remove`](Self::remove). Both are exclusive: what [`words`](Self::words) returns cannot be used
/// any more when a page is removed.
pub trait TablePages {
    /// A word that processors, and the hardware that walks the tables, change at the same time.
    type Word: Word;

    /// A page that is in no pool.
    type Page;

    /// Returns what is known about a page that was inserted at some time.
    fn table(&self, index: u32) -> Option<&Table<Self::Word>>;

    /// Returns the same, exclusively.
    fn table_mut(&mut self, index: u32) -> Option<&mut Table<Self::Word>>;

    /// Returns the words of a page.
    fn words(&self, index: u32) -> Option<&[Self::Word; ENTRIES as usize]>;

    /// Returns a word, 0 to 511, of a page.
    #[inline]
    fn word(&self, index: u32, word: u16) -> Option<&Self::Word> {
        self.words(index)?.get(usize::from(word))
    }

    /// Returns the host-physical address of a page.
    fn physical(&self, index: u32) -> Option<u64>;

    /// Returns how many indexes there are: all are below it.
    fn count(&self) -> u32;

    /// Adds a page, with whatever in it. Gives it back if there is no room to manage it.
    fn insert(&mut self, page: Self::Page) -> Result<u32, Self::Page>;

    /// Takes out a page. What is known about it stays.
    fn remove(&mut self, index: u32) -> Option<Self::Page>;
}
