// SPDX-License-Identifier: GPL-2.0

//! A slice: what its tables and pages contain, and what L2 must see of it.
//!
//! The first pages of a slice can be tables, of any level and of several at once, and pages for L2
//! at the same time; the others are pages only.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{ensure, Result};
use selftests::guest::Random;

use crate::world::{window, Counts, Top, World, ARENA, BLOCK, SLICE, TAGS};
use selftests::guest::paging::program::{Access, Flush, Operation, Stopped};
use selftests::guest::paging::{Format, Right, Walk, ADDRESS, LARGE};

/// Pages of a slice that can be tables.
pub const TABLES: u64 = 16;

/// Where a page has what L2 can execute.
pub const CODE: u64 = 0xff8;

/// Where a page says which one it is.
pub const MARK: u64 = 0x10;

/// What L2 must do, by the number of the operation.
#[derive(Clone, Debug)]
struct Expected {
    operation: usize,
    stopped: Stopped,
    /// Bits of the value that are not known.
    unknown: u64,
}

/// What a processor is to do, and must see.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What L1 does.
    pub operations: Vec<Operation>,
    expected: Vec<Expected>,
    /// Pages that are written.
    written: BTreeSet<u64>,
    refused: usize,
    flushes: usize,
    flags: usize,
}

/// A slice.
pub struct Slice {
    format: Format,
    /// Its memory, for L1.
    pub base: u64,
    /// Its addresses, for L2.
    pub window: u64,
    /// The entry that refers to its first table.
    pub entry: u64,
    /// The roots from which it can be reached.
    pub tops: Vec<Top>,
    /// What is known of L1's memory; in the slice itself, other words are 0.
    words: BTreeMap<u64, u64>,
    /// For each root: whether L1 has to flush before L2 may see a change.
    stale: Vec<bool>,
    /// The roots that identifiers are known to be those of.
    recent: BTreeMap<u64, usize>,
    /// Whether entries may be such that two of them together permit nothing.
    all_rights: bool,
    /// The page that L2 accessed last.
    last: u64,
    /// The processor that used it last.
    processor: Option<usize>,
}

impl Slice {
    /// Returns the slice with a number.
    pub fn new(number: u64, format: Format, tops: &[Top]) -> Self {
        Self {
            format,
            base: ARENA + SLICE * number,
            window: window(number),
            entry: 0,
            tops: tops.to_vec(),
            words: BTreeMap::new(),
            stale: vec![true; tops.len()],
            recent: BTreeMap::new(),
            all_rights: true,
            last: 0,
            processor: None,
        }
    }

    /// Writes what its pages contain at first.
    pub fn fill(&mut self, world: &World) {
        for page in (self.base..self.base + SLICE).step_by(0x1000) {
            self.words.insert(page + MARK, page << 16);
            if page >= self.base + TABLES * 0x1000 {
                self.words.insert(page + CODE, self.format.call_code());
            } else {
                self.words.remove(&(page + MARK));
            }
        }
        for (address, value) in &self.words {
            world.write(*address, *value);
        }
        // The way from the roots to the slice.
        let mut table = 0;
        for top in &self.tops {
            let entry = world.memory.read::<u64>(top.address);
            self.words.insert(top.address, entry);
            table = entry & ADDRESS;
        }
        self.entry = table + 8 * (self.window >> 30);
        self.words.insert(self.entry, world.memory.read(self.entry));
    }

    /// Returns the format of its tables.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the address of a page of the slice.
    pub fn page(&self, number: u64) -> u64 {
        self.base + 0x1000 * number
    }

    /// Lets any two entries together permit reads, at least, if they are valid.
    pub fn limit_rights(&mut self) {
        self.all_rights = false;
    }

    /// Adds a root whose table is a page of the slice, which has to be written; returns its number.
    pub fn add_top(&mut self, top: Top) -> usize {
        self.tops.push(top);
        self.stale.push(true);
        self.tops.len() - 1
    }

    /// Adds a word of L1's memory that is no part of the slice.
    pub fn know(&mut self, address: u64, value: u64) {
        self.words.insert(address, value);
    }

    /// Returns what is in a word, if that is known.
    pub fn word(&self, address: u64) -> Option<u64> {
        let own = (self.base..self.base + SLICE).contains(&address);
        self.words.get(&address).copied().or(own.then_some(0))
    }

    fn is_table(&self, address: u64) -> bool {
        (self.base..self.base + TABLES * 0x1000).contains(&address)
    }

    /// Says which processor uses it now.
    pub fn use_by(&mut self, processor: usize) {
        self.recent.clear();
        if self.processor.replace(processor) != Some(processor) {
            self.stale.fill(true);
        }
    }

    /// Returns whether L1 has to flush because its identifier was, or may have been, that of another
    /// root; says that it is that of this one.
    fn is_shared(&mut self, number: usize) -> bool {
        let tag = self.tops[number].root.tag;
        let unique = self.tops.len() as u64 <= TAGS;
        !unique && self.recent.insert(tag, number) != Some(number)
    }

    /// Notes that a word becomes another one: processors may go on with the old one until a flush,
    /// if it was an entry.
    fn change(&mut self, batch: &mut Batch, address: u64, value: u64) {
        let old = self.word(address).unwrap_or(0);
        if self.format.present(old) && old != value {
            self.stale.fill(true);
        }
        if address >= ARENA {
            batch.written.insert(address & !0xfff);
        }
        self.words.insert(address, value);
    }

    /// L1 writes a word.
    pub fn poke(&mut self, batch: &mut Batch, address: u64, value: u64) {
        self.change(batch, address, value);
        batch.operations.push(Operation::Poke(address, value));
    }

    /// L1 writes all entries of a table.
    pub fn fill_table(&mut self, batch: &mut Batch, table: u64, first: u64, step: u64) {
        for index in 0..512 {
            self.change(batch, table + 8 * index, first.wrapping_add(step * index));
        }
        batch.operations.push(Operation::Fill(table, first, step));
    }

    /// L2 accesses an address by a root, after a flush if that is needed, or else the flush that is
    /// given; nothing happens if the outcome is not known. Returns whether L2 finished.
    pub fn access(
        &mut self,
        batch: &mut Batch,
        number: usize,
        access: Access,
        address: u64,
        value: u64,
        flush: Flush,
    ) -> Option<bool> {
        let top = self.tops[number];
        let walk = self
            .format
            .walk(top.address, address, access, |at| self.word(at));
        let mut unknown = 0;
        let mut written = None;
        let stopped = match walk {
            Walk::Unknown => return None,
            Walk::Stops(stopped) => {
                batch.refused += 1;
                stopped
            }
            Walk::Page(translation) => {
                let at = translation.address;
                let old = self.word(at)?;
                if access == Access::Execute && old != self.format.call_code() {
                    return None;
                }
                if access == Access::Read && self.is_table(at) {
                    unknown = self.format.accessed();
                }
                self.mark(batch, &translation.entries, access, top.flags);
                written = (access == Access::Write).then_some(at);
                Stopped {
                    code: self.format.call(),
                    value: self.word(at)?,
                    ..Stopped::default()
                }
            }
        };
        let flush = match (self.stale[number] || self.is_shared(number), flush) {
            (true, Flush::Nothing) => Flush::One,
            _ => flush,
        };
        match flush {
            Flush::Nothing => (),
            Flush::One | Flush::OneNotGlobal => self.stale[number] = false,
            Flush::All => self.stale.fill(false),
        }
        batch.flushes += usize::from(flush != Flush::Nothing);
        let run = Operation::Run(access, top.root, flush, address, value);
        batch.operations.push(run);
        if let Some(at) = written {
            self.change(batch, at, value);
        }
        batch.expected.push(Expected {
            operation: batch.operations.len() - 1,
            stopped,
            unknown,
        });
        Some(stopped.code == self.format.call())
    }

    /// Sets the flags that an access sets.
    fn mark(&mut self, batch: &mut Batch, entries: &[u64], access: Access, flags: bool) {
        if !flags {
            return;
        }
        for (index, at) in entries.iter().enumerate() {
            let old = self.word(*at).unwrap_or(0);
            let mut new = old | self.format.accessed();
            if access == Access::Write && index + 1 == entries.len() {
                new |= self.format.dirty();
            }
            if new != old {
                batch.flags += 1;
                if *at >= ARENA {
                    batch.written.insert(at & !0xfff);
                }
                self.words.insert(*at, new);
            }
        }
    }

    /// Returns the entry that L2's address leads to, at most down to a level: where it is, what it
    /// is, and its level.
    fn find(&self, address: u64, lowest: u64) -> Option<(u64, u64, u64)> {
        let mut at = self.entry;
        let mut level = 3;
        loop {
            let entry = self.word(at)?;
            let ends = level == lowest
                || !self.format.present(entry)
                || level < 3 && entry & LARGE != 0
                || !self.is_table(entry & ADDRESS);
            if ends {
                return Some((at, entry, level));
            }
            level -= 1;
            at = (entry & ADDRESS) + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff);
        }
    }

    /// Returns an address of L2 in the slice: that of the last access, or another one.
    fn address(&self, random: &mut Random) -> u64 {
        if self.last != 0 && random.below(8) < 5 {
            return self.last;
        }
        let large = match random.below(16) {
            // Where a page of a gigabyte has the slice.
            0 => (self.base - ARENA) / BLOCK + random.below(2),
            _ => random.below(3),
        };
        let small = match random.below(8) {
            0 => random.below(511),
            _ => random.below(6),
        };
        self.window + large * BLOCK + small * 0x1000
    }

    /// Returns the address of a table.
    fn table(&self, random: &mut Random) -> u64 {
        self.page(random.below(TABLES))
    }

    fn right(&self, random: &mut Random) -> Right {
        match random.below(16) {
            0 | 1 => Right::NoWrite,
            2 | 3 => Right::NoExecute,
            4 => Right::ReadOnly,
            5 if self.all_rights => Right::ExecuteOnly,
            6 if random.below(4) == 0 => Right::Invalid,
            _ => Right::All,
        }
    }

    /// Returns an entry that suits a level.
    fn any_entry(&self, random: &mut Random, level: u64) -> u64 {
        let format = self.format;
        let right = self.right(random);
        let flags = match random.below(3) {
            0 => 0,
            1 => format.accessed(),
            _ => format.accessed() | format.dirty(),
        };
        let block = self.base + BLOCK * random.below(2);
        let entry = match (level, random.below(8)) {
            (_, 0) => return 0,
            (1, 1) => format.page(self.table(random), right),
            (1, _) => format.page(self.page(random.below(2 * 512)), right),
            (2, 1..3) => format.large(block, right),
            (3, 1) => format.large(ARENA, right),
            _ => return format.table(self.table(random), right) | flags & format.accessed(),
        };
        entry | flags
    }

    /// L1 changes something.
    pub fn edit(&mut self, batch: &mut Batch, random: &mut Random) {
        let format = self.format;
        let address = self.address(random);
        let lowest = match random.below(8) {
            0 => 3,
            1 | 2 => 2,
            _ => 1,
        };
        let Some((at, entry, level)) = self.find(address, lowest) else {
            return;
        };
        match random.below(16) {
            // Any word of any table.
            0 => {
                let at = self.table(random) + 8 * random.below(6);
                let level = 1 + random.below(3);
                let entry = self.any_entry(random, level);
                self.poke(batch, at, entry);
            }
            // A large page is split, or what is there becomes one.
            1 | 2 if level == 2 => {
                let block = self.base + BLOCK * random.below(2);
                if entry & LARGE != 0 {
                    let table = self.table(random);
                    let first = entry & !LARGE;
                    self.fill_table(batch, table, first, 0x1000);
                    self.poke(batch, at, format.table(table, Right::All));
                } else {
                    self.poke(batch, at, format.large(block, self.right(random)));
                }
            }
            // The flags are cleared.
            3..6 => self.poke(batch, at, entry & !(format.accessed() | format.dirty())),
            6 | 7 => self.poke(batch, at, entry & !format.dirty()),
            // The same page with other rights.
            8..11 if format.present(entry) => {
                let right = self.right(random);
                let large = entry & LARGE;
                let new = match level {
                    1 => format.page(entry & ADDRESS, right),
                    _ if large != 0 => format.page(entry & ADDRESS, right) | large,
                    _ => format.table(entry & ADDRESS, right),
                };
                self.poke(batch, at, new);
            }
            // A new table, which was something else before.
            11 | 12 if level > 1 => {
                let table = self.table(random);
                for index in 0..6 {
                    let entry = self.any_entry(random, level - 1);
                    self.poke(batch, table + 8 * index, entry);
                }
                self.poke(batch, at, format.table(table, Right::All));
            }
            _ => {
                let entry = self.any_entry(random, level);
                self.poke(batch, at, entry);
            }
        }
    }

    /// L2 does something.
    pub fn visit(&mut self, batch: &mut Batch, random: &mut Random) {
        let access = match random.below(8) {
            0..4 => Access::Read,
            4..7 => Access::Write,
            _ => Access::Execute,
        };
        let number = random.below(self.tops.len() as u64);
        let number = usize::try_from(number).unwrap_or(0);
        let page = self.address(random);
        self.last = page;
        let offset = match access {
            Access::Execute => CODE,
            _ => 8 * random.below(6),
        };
        let flush = match random.below(32) {
            0 => Flush::One,
            1 => Flush::OneNotGlobal,
            2 => Flush::All,
            _ => Flush::Nothing,
        };
        // What L2 writes to a table is an entry.
        let value = match random.below(2) {
            0 => {
                let level = 1 + random.below(3);
                self.any_entry(random, level)
            }
            _ => self.page(random.below(2 * 512)) << 16,
        };
        let _ = self.access(batch, number, access, page + offset, value, flush);
    }

    /// Checks what L2 did, and what is in L1's tables after that.
    pub fn check(
        &mut self,
        world: &World,
        batch: &Batch,
        stopped: impl Fn(usize) -> Stopped,
    ) -> Result<()> {
        for expected in &batch.expected {
            let number = expected.operation;
            let mut seen = self.format.defined(stopped(number));
            let mut wanted = expected.stopped;
            let Operation::Run(access, ..) = batch.operations[number] else {
                continue;
            };
            if access != Access::Read {
                (seen.value, wanted.value) = (0, 0);
            }
            seen.value &= !expected.unknown;
            wanted.value &= !expected.unknown;
            ensure!(
                seen == wanted,
                "operation {number}: expected {wanted:x?}, saw {seen:x?} in {}",
                batch.story(number)
            );
        }
        let flag = self.format.accessed();
        let tables = self.base..self.base + TABLES * 0x1000;
        let pages = tables.step_by(8).chain([self.entry]);
        let mut more = Vec::new();
        for address in pages {
            let wanted = self.word(address).unwrap_or(0);
            let seen = world.read_any(address);
            // A processor may set this flag for what it has not used.
            ensure!(
                seen == wanted || seen == wanted | flag && self.format.present(wanted),
                "{address:#x}: expected {wanted:#x}, saw {seen:#x} after {}",
                batch.story(batch.operations.len() - 1)
            );
            if seen != wanted {
                more.push((address, seen));
            }
        }
        self.words.extend(more);
        let counts = &world.counts;
        Counts::add(&counts.accesses, batch.expected.len() - batch.refused);
        Counts::add(&counts.refused, batch.refused);
        Counts::add(
            &counts.changes,
            batch.operations.len() - batch.expected.len(),
        );
        Counts::add(&counts.flushes, batch.flushes);
        Counts::add(&counts.flags, batch.flags);
        Ok(())
    }

    /// Checks all that is known of L1's memory.
    pub fn check_all(&self, world: &World) -> Result<()> {
        for (address, wanted) in &self.words {
            let seen = world.read_any(*address);
            let flag = match self.is_table(*address) || *address < ARENA {
                true => self.format.accessed(),
                false => 0,
            };
            ensure!(
                seen & !flag == wanted & !flag,
                "{address:#x}: expected {wanted:#x}, saw {seen:#x}"
            );
        }
        Ok(())
    }
}

impl Batch {
    /// Returns the pages that are written.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        self.written.iter().copied()
    }

    /// Returns what was done before and in an operation.
    fn story(&self, last: usize) -> String {
        let first = last.saturating_sub(24);
        let mut story = String::new();
        for (index, operation) in self.operations[first..=last].iter().enumerate() {
            story.push_str(&format!("\n  {}: {operation:x?}", first + index));
        }
        story
    }
}
