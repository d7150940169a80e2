// SPDX-License-Identifier: GPL-2.0

//! Fakes for the tests of page tables.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Mutex;

#[cfg(test)]
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

use super::ept::Ept;
use super::format::{Format, RootKey};
use super::level::Level;
use super::npt::{Npt, Paging};
use super::shadow::table::{Table, TablePages};
use super::shadow::word::Word;
use crate::address::Gpa;
use crate::memory::{EntrySize, Exchange, GuestTables, Inaccessible};

/// By how much more than usual tests shall try at random: `NESTED_TEST_SCALE`, or 1.
pub(crate) fn scale() -> u32 {
    number("NESTED_TEST_SCALE").unwrap_or(1)
}

/// Where random numbers begin: `NESTED_TEST_SEED`, or 1. What passes once passes again.
pub(crate) fn seed() -> u64 {
    number("NESTED_TEST_SEED").unwrap_or(1)
}

fn number<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How property tests run: with so many cases, or more where [`scale()`] asks for them.
#[cfg(test)]
pub(crate) fn properties(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: cases * scale(),
        rng_seed: RngSeed::Fixed(seed()),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What another vCPU does when an address is read.
type Interference = Box<dyn FnMut(&Memory, u64) + Send>;

/// Memory of L1 that holds page tables.
#[derive(Default)]
pub(crate) struct Memory {
    words: Mutex<BTreeMap<u64, u64>>,
    absent: Mutex<BTreeSet<u64>>,
    read_only: Mutex<BTreeSet<u64>>,
    reads: Mutex<Vec<u64>>,
    interference: Mutex<Option<Interference>>,
}

impl Memory {
    /// Writes an entry of 8 bytes.
    pub(crate) fn set(&self, address: u64, value: u64) {
        self.words.lock().unwrap().insert(address, value);
    }

    /// Writes an entry of 4 bytes.
    pub(crate) fn set_small(&self, address: u64, value: u64) {
        let shift = (address & 4) * 8;
        let word = address & !7;
        let old = self.get(word);
        self.set(word, old & !(0xffff_ffff << shift) | value << shift);
    }

    /// Returns the entry of 8 bytes at an address.
    pub(crate) fn get(&self, address: u64) -> u64 {
        self.words
            .lock()
            .unwrap()
            .get(&address)
            .copied()
            .unwrap_or(0)
    }

    fn get_sized(&self, address: u64, size: EntrySize) -> u64 {
        match size {
            EntrySize::Eight => self.get(address),
            EntrySize::Four => self.get(address & !7) >> ((address & 4) * 8) & 0xffff_ffff,
        }
    }

    /// Takes the page away, as if there were MMIO.
    pub(crate) fn remove_page(&self, page: u64) {
        self.absent.lock().unwrap().insert(page);
    }

    /// Makes the page one that cannot be written.
    pub(crate) fn protect_page(&self, page: u64) {
        self.read_only.lock().unwrap().insert(page);
    }

    /// Calls `interference` before each entry is read.
    pub(crate) fn interfere(&self, interference: impl FnMut(&Memory, u64) + Send + 'static) {
        *self.interference.lock().unwrap() = Some(Box::new(interference));
    }

    /// Returns the addresses of the entries that were read since the last call.
    pub(crate) fn take_reads(&self) -> Vec<u64> {
        core::mem::take(&mut self.reads.lock().unwrap())
    }

    fn check(&self, address: u64) -> Result<(), Inaccessible> {
        if self.absent.lock().unwrap().contains(&(address & !0xfff)) {
            Err(Inaccessible)
        } else {
            Ok(())
        }
    }
}

impl GuestTables for Memory {
    fn read_entries(
        &self,
        first: Gpa,
        size: EntrySize,
        entries: &mut [u64],
    ) -> Result<(), Inaccessible> {
        let first = first.into_raw();
        assert_eq!(first % size.bytes(), 0);
        let last = first + size.bytes() * entries.len() as u64 - 1;
        assert_eq!(first >> 12, last >> 12, "entries in two pages");

        for (entry, index) in entries.iter_mut().zip(0..) {
            let address = first + index * size.bytes();
            self.check(address)?;
            let taken = self.interference.lock().unwrap().take();
            if let Some(mut interference) = taken {
                interference(self, address);
                let mut place = self.interference.lock().unwrap();
                place.get_or_insert(interference);
            }
            self.reads.lock().unwrap().push(address);
            *entry = self.get_sized(address, size);
        }
        Ok(())
    }

    fn compare_exchange(
        &self,
        entry: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<Exchange, Inaccessible> {
        let address = entry.into_raw();
        self.check(address)?;
        if self.read_only.lock().unwrap().contains(&(address & !0xfff)) {
            return Ok(Exchange::ReadOnly);
        }
        if self.get_sized(address, size) != old {
            return Ok(Exchange::Changed);
        }
        match size {
            EntrySize::Eight => self.set(address, new),
            EntrySize::Four => self.set_small(address, new),
        }
        Ok(Exchange::Done)
    }
}

/// EPT12 with everything, and 40 bits of physical addresses.
pub(crate) const EPT: Ept = Ept {
    top: Level::Table512G,
    accessed_dirty: true,
    mode_based: false,
    execute_only: true,
    largest_page: Level::Page1G,
    physical_address_width: 40,
};

/// NPT12 with everything but the execute trap, and 40 bits of physical addresses.
pub(crate) const NPT: Npt = Npt {
    paging: Paging::Long4,
    no_execute: true,
    execute_trap: false,
    gigabyte_pages: true,
    physical_address_width: 40,
};

/// The page of the top-level table in tests.
pub(crate) const TOP: u64 = 0x10_0000;

/// Returns the key for tables at [`TOP`].
pub(crate) fn key(format: Format) -> RootKey {
    RootKey {
        format,
        table: Gpa::from_raw(TOP),
    }
}

/// Pages of tables in memory of the test.
pub(crate) struct FakePages<W> {
    slots: Vec<Slot<W>>,
}

struct Slot<W> {
    table: Table<W>,
    words: Option<Vec<W>>,
}

impl<W> Default for FakePages<W> {
    fn default() -> Self {
        Self { slots: Vec::new() }
    }
}

/// A page that is in no pool.
pub(crate) struct FakePage<W>(Vec<W>);

impl<W: Word> FakePage<W> {
    /// Makes a page with something in it.
    pub(crate) fn new() -> Self {
        Self((0..512).map(|index| W::new(0xdead_0000 + index)).collect())
    }
}

/// The address of the page with an index.
pub(crate) fn physical_of(index: u32) -> u64 {
    (1 << 36) + (u64::from(index) << 12)
}

impl<W: Word> TablePages for FakePages<W> {
    type Word = W;
    type Page = FakePage<W>;

    fn table(&self, index: u32) -> Option<&Table<W>> {
        self.slots.get(index as usize).map(|slot| &slot.table)
    }

    fn table_mut(&mut self, index: u32) -> Option<&mut Table<W>> {
        self.slots
            .get_mut(index as usize)
            .map(|slot| &mut slot.table)
    }

    fn words(&self, index: u32) -> Option<&[W; 512]> {
        let words = self.slots.get(index as usize)?.words.as_ref();
        let words = words.expect("a page that was removed");
        Some(words.as_slice().try_into().unwrap())
    }

    fn physical(&self, index: u32) -> Option<u64> {
        self.slots.get(index as usize).map(|_| physical_of(index))
    }

    fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    fn insert(&mut self, page: FakePage<W>) -> Result<u32, FakePage<W>> {
        if let Some(index) = self.slots.iter().position(|slot| slot.words.is_none()) {
            self.slots[index].words = Some(page.0);
            return Ok(index as u32);
        }
        self.slots.push(Slot {
            table: Table::default(),
            words: Some(page.0),
        });
        Ok(self.slots.len() as u32 - 1)
    }

    fn remove(&mut self, index: u32) -> Option<FakePage<W>> {
        self.slots[index as usize].words.take().map(FakePage)
    }
}
