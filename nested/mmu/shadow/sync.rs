// SPDX-License-Identifier: GPL-2.0

//! Flushes by L1: what it has changed in its tables since the last one is read again.

use super::hardware::{Content, Hardware};
use super::map::Place;
use super::root::RootUse;
use super::sequence::Sequences;
use super::table::{Handle, Kind, Table, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::{Gpa, L2Gpa};
use crate::memory::GuestTables;
use crate::mmu::format::{Change, RootKey};
use crate::mmu::level::Level;
use crate::mmu::npt::{Npt, Paging};

/// What L1 flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// All translations by its nested page tables.
    All,
    /// Those by one top-level table.
    Table(Gpa),
}

impl FlushScope {
    const fn table(self) -> Option<Gpa> {
        match self {
            Self::All => None,
            Self::Table(table) => Some(table),
        }
    }

    fn includes(self, key: &RootKey) -> bool {
        match self {
            Self::All => true,
            Self::Table(table) => table == key.table,
        }
    }
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Tables that were compared with L1's.
    pub tables: u32,
    /// Entries that L1 had changed.
    pub entries: u32,
    /// Tables that had not changed for long enough to be tracked; see [`Shadow::settle()`].
    pub calm: u32,
}

/// Entries of L1 that are read at a time, at most.
const GROUP: usize = 32;

impl<P: TablePages> Shadow<P> {
    /// Makes the tables agree with L1's as far as L1 asks for it.
    ///
    /// The vCPU that asked has to flush what the processor has of these translations, whatever the
    /// result. Others have to when they ask.
    pub fn sync(
        &self,
        sequences: &Sequences<P::Word>,
        memory: &impl GuestTables,
        scope: FlushScope,
        dirty: &impl DirtyPages,
    ) -> Synced {
        let mut synced = Synced::default();

        // First of all: faults that have read L1's tables before fail from now on, or are seen.
        sequences.advance(scope.table());
        self.for_each_unsynced(|handle, table| {
            let Some(key) = self.key_of(table).filter(|key| scope.includes(key)) else {
                return;
            };
            let changed = self.sync_table(memory, handle, &key, dirty);
            synced.tables = synced.tables.saturating_add(1);
            synced.entries = synced.entries.saturating_add(changed);
            if changed != 0 {
                table.quiet.store(0);
            } else if table.quiet.fetch_add(1) >= table.patience() {
                synced.calm = synced.calm.saturating_add(1);
            }
        });
        synced
    }

    /// Forgets the translation of an address: the processor does when it reports a fault there.
    pub fn invalidate(
        &self,
        sequences: &Sequences<P::Word>,
        root: &RootUse,
        address: L2Gpa,
        dirty: &impl DirtyPages,
    ) {
        let Some(table) = self.live(root.handle) else {
            return;
        };
        let mut next = (root.handle, table);

        if let Some(key) = &table.key {
            sequences.advance(Some(key.table));
        }
        for _ in Level::ALL {
            let Some(place) = self.place_in(next, address) else {
                return;
            };
            let raw = place.word.load();
            if self.hardware().content(raw, place.level) != Content::Link {
                return self.clear_entry(place.handle, place.entry, dirty);
            }
            let Some(child) = self.child_in(&place) else {
                return;
            };
            next = child;
        }
    }

    /// Returns what the root of a table translates, unless the root was dropped.
    pub(super) fn key_of(&self, table: &Table<P::Word>) -> Option<RootKey> {
        self.live(Handle::unpack(table.root.load())?)?.key
    }

    /// Calls `visit` for each table that may differ from L1's.
    pub(super) fn for_each_unsynced(&self, mut visit: impl FnMut(Handle, &Table<P::Word>)) {
        for first in 0..=self.pages.count() / 64 {
            let mut bits = self
                .unsynced
                .get(&self.pages, first)
                .map_or(0, |word| word.load());
            while bits != 0 {
                let index = first.wrapping_mul(64).wrapping_add(bits.trailing_zeros());
                bits &= bits.wrapping_sub(1);
                if let Some(table) = self.pages.table(index) {
                    if table.kind() == Kind::Guest {
                        visit(table.handle(index), table);
                    }
                }
            }
        }
    }

    /// Compares a table with L1's, and returns how many entries had changed.
    pub(super) fn sync_table(
        &self,
        memory: &impl GuestTables,
        handle: Handle,
        key: &RootKey,
        dirty: &impl DirtyPages,
    ) -> u32 {
        let Some(table) = self.live(handle) else {
            return 0;
        };
        let (Some(words), Some(origins)) = (self.pages.words(handle.index), self.origins(table))
        else {
            return 0;
        };
        let (kind, level) = table.role();
        let layout = Layout::of(key, level);
        let empty = self.hardware().empty();
        let significant = key.format.significant(u64::MAX);
        let mut changed = 0u32;
        let mut raws = [0; GROUP];

        for ((words, origins), first) in words
            .chunks(usize::from(layout.group))
            .zip(origins.chunks(usize::from(layout.group)))
            .zip((0..).step_by(usize::from(layout.group)))
        {
            if words.iter().all(|word| word.load() == empty) {
                continue;
            }
            layout.read(memory, table.source(), first, &mut raws);
            if self.are_unchanged_pages(words, origins, &raws, level, significant) {
                continue;
            }
            for (((word, origin), raw), entry) in words.iter().zip(origins).zip(raws).zip(first..) {
                // Most entries are as they were. The entry first: see sync_entry().
                let is_same = match self.hardware().content(word.load(), level) {
                    Content::Empty => true,
                    Content::Leaf => origin.load() == raw & significant,
                    _ => false,
                };
                if is_same {
                    continue;
                }
                let place = Place {
                    handle,
                    table,
                    kind,
                    level,
                    entry,
                    word,
                    origin: Some(origin),
                };
                if self.sync_entry(&place, key, raw, dirty) {
                    changed = changed.saturating_add(1);
                }
            }
        }
        changed
    }

    /// Returns whether each entry of a group maps a page and is as L1's say now, `raws`: of most
    /// groups of a table in use that is so.
    fn are_unchanged_pages(
        &self,
        words: &[P::Word],
        origins: &[P::Word],
        raws: &[u64],
        level: Level,
        significant: u64,
    ) -> bool {
        let mut common = u64::MAX;
        let mut differences = 0;

        for ((word, origin), raw) in words.iter().zip(origins).zip(raws) {
            // The entry first: see sync_entry().
            common &= word.load();
            differences |= origin.load() ^ (raw & significant);
        }
        differences == 0 && self.hardware().content(common, level) == Content::Leaf
    }

    /// Compares an entry with L1's. Returns whether it had to change.
    fn sync_entry(
        &self,
        place: &Place<'_, P::Word>,
        key: &RootKey,
        raw: u64,
        dirty: &impl DirtyPages,
    ) -> bool {
        let empty = self.hardware().empty();
        let mut old = place.word.load();

        loop {
            let content = self.hardware().content(old, place.level);
            let new = match self.verdict(place, content, key, raw) {
                Verdict::Keep => return false,
                Verdict::Drop => empty,
                Verdict::Cancel => self.hardware().cancelled(),
                Verdict::Protect if !Hardware::is_writable(old) => Hardware::without_write(old),
                Verdict::Protect => {
                    let now = key.format.significant(raw);
                    match self.protect_by_sync(place, old, now, dirty) {
                        Ok(()) => return true,
                        Err(now) => {
                            old = now;
                            continue;
                        }
                    }
                }
            };
            if new == old {
                return false;
            }
            let displaced = self.displaced(place.handle, place.entry, old);
            match place.word.compare_exchange(old, new) {
                Ok(()) => {
                    self.dispose(displaced, dirty);
                    return content != Content::Reserved;
                }
                Err(now) => old = now,
            }
        }
    }

    /// Decides what becomes of an entry, now that L1's is `raw`.
    fn verdict(
        &self,
        place: &Place<'_, P::Word>,
        content: Content,
        key: &RootKey,
        raw: u64,
    ) -> Verdict {
        let before = match content {
            Content::Empty => return Verdict::Keep,
            // Whoever reserved it read L1's tables before the flush, or does not know that.
            Content::Reserved => return Verdict::Cancel,
            Content::Leaf | Content::Mmio => match place.origin {
                Some(origin) => origin.load(),
                None => return Verdict::Drop,
            },
            Content::Link => match self.child_in(place) {
                Some((_, child)) => child.from(),
                None => return Verdict::Drop,
            },
        };
        let now = key.format.significant(raw);
        match (key.format.compare(before, now, place.level), content) {
            (Change::None, _) => Verdict::Keep,
            (Change::NotWritable, Content::Leaf) => Verdict::Protect,
            _ => Verdict::Drop,
        }
    }

    /// Takes the permission to write from an entry, and notes what it is made of now.
    fn protect_by_sync(
        &self,
        place: &Place<'_, P::Word>,
        old: u64,
        made_of: u64,
        dirty: &impl DirtyPages,
    ) -> Result<(), u64> {
        let Some(origin) = place.origin else {
            return Ok(());
        };
        let word = place.word;
        let reserved = self.hardware().reserved();

        word.compare_exchange(old, reserved)?;
        let displaced = self.displaced(place.handle, place.entry, old);
        origin.store(made_of);
        self.owe_flush();
        if word
            .compare_exchange(reserved, Hardware::without_write(old))
            .is_err()
        {
            // Another flush has cancelled it.
            word.store(self.hardware().empty());
            self.dispose(displaced, dirty);
        }
        Ok(())
    }
}

/// What a flush makes of an entry.
enum Verdict {
    Keep,
    Drop,
    Protect,
    Cancel,
}

impl<W: Word> Table<W> {
    /// How many flushes in sequence must find nothing changed before the table is tracked. A table
    /// that is written each time is not worth it.
    pub(super) fn patience(&self) -> u64 {
        1u64.wrapping_shl(u32::try_from(self.written.load().min(6)).unwrap_or(6))
    }
}

/// How entries of ours are related to L1's.
struct Layout {
    /// Entries of ours that a group of L1's is for.
    group: u16,
    /// Entries of L1 in a group.
    count: usize,
    /// Size of L1's entries.
    size: crate::memory::EntrySize,
    /// An entry of L1 is for two of ours.
    is_double: bool,
}

impl Layout {
    fn of(key: &RootKey, level: Level) -> Self {
        let is_double = key.format.is_legacy() && level == Level::Page2M;
        let is_short = matches!(
            key.format,
            crate::mmu::format::Format::Npt(Npt {
                paging: Paging::Pae,
                ..
            })
        ) && level == Level::Page1G;

        Self {
            group: match (is_short, is_double) {
                (true, _) => 4,
                (false, true) => 8,
                (false, false) => 32,
            },
            count: if is_short || is_double { 4 } else { GROUP },
            size: key.format.entry_size(),
            is_double,
        }
    }

    /// Reads the entries of L1 that a group of ours is for. What cannot be read is not present.
    fn read(&self, memory: &impl GuestTables, source: u64, first: u16, raws: &mut [u64; GROUP]) {
        let index = if self.is_double { first >> 1 } else { first };
        let offset = u64::from(index).wrapping_mul(self.size.bytes());
        let address = Gpa::from_raw(source.wrapping_add(offset));
        let Some(group) = raws.get_mut(..self.count) else {
            return;
        };
        if memory.read_entries(address, self.size, group).is_err() {
            group.fill(0);
        }
        if self.is_double {
            let singles = *raws;
            for (pair, raw) in raws.chunks_mut(2).zip(singles) {
                pair.fill(raw);
            }
        }
    }
}
