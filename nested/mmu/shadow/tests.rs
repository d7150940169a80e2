// SPDX-License-Identifier: GPL-2.0

//! Tests of the shadow tables: a machine with one, and what must always be true.

#[cfg(test)]
mod concurrent;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod host;
#[cfg(test)]
mod mechanisms;
mod model;
#[cfg(test)]
mod room;
#[cfg(test)]
mod sync;

#[cfg(fuzzing)]
pub use model::fuzz;

use super::hardware::{Content, HardwareKind};
use super::reverse::Subject;
use super::*;
use crate::address::{Gpa, L2Gpa};
use crate::mmu::access::{Access, Kind as AccessKind, Permissions};
use crate::mmu::ept::bit::{ACCESSED, DIRTY, EXECUTE, READ, WRITE};
use crate::mmu::format::{Format, RootKey};
use crate::mmu::level::{Level, ENTRIES};
use crate::mmu::testing::{key, physical_of, FakePage, FakePages, Memory, EPT, TOP};
use crate::mmu::walk::{walk, Intent, Request, Stop, Walk};
use core::cell::{Cell, RefCell};
use core::sync::atomic::AtomicU64;
use std::collections::BTreeSet;

const RWX: u64 = READ | WRITE | EXECUTE;
const READS: Access = Access::new(AccessKind::Read);
const WRITES: Access = Access::new(AccessKind::Write);
const FETCHES: Access = Access::new(AccessKind::Fetch);

/// Where L0 has a page of L1, unless a test says otherwise.
const HOST: u64 = 1 << 32;

const CONFIG: Config = Config {
    hardware: Hardware {
        kind: HardwareKind::Ept,
        encryption: 0,
        executable_large_pages: true,
    },
    page_limit: 400,
    cached_roots: 2,
    buckets: 512,
    seed: 0x1234_5678_9abc_def1,
};

/// Collects reports of dirty pages.
#[derive(Default)]
struct Reports(RefCell<BTreeSet<u64>>);

impl DirtyPages for Reports {
    fn report(&self, page: Gpa) {
        self.0.borrow_mut().insert(page.into_raw());
    }
}

/// Counts flushes.
#[derive(Default)]
struct Flushes(Cell<u32>);

impl Tlbs for Flushes {
    fn flush_all(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// L0, with L1's tables in memory and a shadow of them.
struct World {
    memory: Memory,
    shadow: Shadow<FakePages<AtomicU64>>,
    sequences: Sequences<AtomicU64>,
    key: RootKey,
    reports: Reports,
    flushes: Flushes,
}

/// What L0 has for a page of L1 that is ordinary memory.
fn backing(page: Gpa) -> Backing {
    Backing {
        physical: HOST + page.into_raw(),
        largest: Level::Page1G,
        is_writable: true,
        tracking: Tracking::None,
        attributes: 6 << 3,
        follow_memory_type: false,
    }
}

/// Makes a shadow with some pages, with one kind of words or another.
fn shadow_with<W: Word>(config: Config, pages: u32) -> Shadow<FakePages<W>> {
    let mut shadow = Shadow::new(FakePages::default(), config);
    for _ in 0..pages {
        assert!(shadow.donate(FakePage::new()).is_ok());
    }
    shadow
}

impl World {
    fn new() -> Self {
        Self::with(CONFIG, key(Format::Ept(EPT)))
    }

    fn with(config: Config, key: RootKey) -> Self {
        Self {
            memory: Memory::default(),
            shadow: shadow_with(config, config.page_limit.min(200)),
            sequences: Sequences::default(),
            key,
            reports: Reports::default(),
            flushes: Flushes::default(),
        }
    }

    fn root(&mut self) -> RootUse {
        let key = self.key;
        self.root_of(&key)
    }

    fn root_of(&mut self, key: &RootKey) -> RootUse {
        self.shadow.load_root(key, &self.reports).unwrap()
    }

    /// Lets L1 map a page, with tables at fixed places below the top.
    fn guest_map(&self, address: u64, entry: u64) {
        map_page(&self.memory, address, entry);
    }

    /// Returns where L1's lowest entry for an address is.
    fn guest_entry(address: u64) -> u64 {
        entry_of(address, Level::Page4K)
    }

    fn install(&self, ticket: Ticket) -> Installation<'_, AtomicU64, Reports> {
        Installation {
            sequences: &self.sequences,
            ticket,
            dirty: &self.reports,
        }
    }

    fn fault_with(
        &self,
        root: &RootUse,
        address: u64,
        access: Access,
        backing: impl Fn(Gpa) -> Backing,
    ) -> Result<Mapped, Stop> {
        let address = L2Gpa::from_raw(address);
        let ticket = self.sequences.begin(&self.key);
        let found = walk(
            &self.memory,
            &(),
            &self.key,
            address,
            access,
            Intent::Demand,
        )?;
        let target = Target::Memory(backing(found.page));
        Ok(self
            .shadow
            .map_one(&self.install(ticket), root, &found, access, &target))
    }

    fn fault(&self, root: &RootUse, address: u64, access: Access) -> Result<Mapped, Stop> {
        self.fault_with(root, address, access, backing)
    }

    fn flush(&self, scope: FlushScope) -> Synced {
        self.shadow
            .sync(&self.sequences, &self.memory, scope, &self.reports)
    }

    fn translate(&self, root: &RootUse, address: u64) -> Option<Translation> {
        self.shadow.translate(root, L2Gpa::from_raw(address))
    }

    fn reclaim(&mut self) {
        self.shadow.reclaim(&self.flushes, &self.reports);
    }
}

/// Returns where L1's entry of a level for an address is: each table is at a place of its own.
fn entry_of(address: u64, level: Level) -> u64 {
    let index = u64::from(level.index(L2Gpa::from_raw(address))) * 8;
    // One bit of each higher index is enough for the tests.
    let part = match level {
        Level::Page4K => (address >> 21 & 3) | (address >> 30 & 1) << 2,
        Level::Page2M => address >> 30 & 1,
        _ => 0,
    };
    let table = match level {
        Level::Table256T | Level::Table512G => TOP,
        level => TOP + 0x10_0000 * u64::from(4 - level.number()) + part * 0x1000,
    };
    table + index
}

/// Writes L1's entries for a page of 4 KiB.
fn map_page(memory: &Memory, address: u64, entry: u64) {
    for (level, below) in [
        (Level::Table512G, Level::Page1G),
        (Level::Page1G, Level::Page2M),
        (Level::Page2M, Level::Page4K),
    ] {
        let table = entry_of(address, below) & !0xfff;
        let at = entry_of(address, level);
        if memory.get(at) & !ACCESSED != table | RWX {
            memory.set(at, table | RWX);
        }
    }
    memory.set(entry_of(address, Level::Page4K), entry);
}

impl<W: Word> Shadow<FakePages<W>> {
    /// Makes sure of what must be true whenever nobody is at work.
    fn check(&self) {
        let mut reachable = BTreeSet::new();
        let mut stack = Vec::new();
        self.for_each_root(|index| stack.push(self.pages.table(index).unwrap().handle(index)));

        while let Some(handle) = stack.pop() {
            let table = self.live(handle).expect("a table that was freed is linked");
            assert!(reachable.insert(handle.index), "a table has two parents");
            for entry in 0..ENTRIES {
                let raw = self.pages.word(handle.index, entry).unwrap().load();
                match self.hardware().content(raw, table.level()) {
                    Content::Reserved => panic!("an entry is still reserved"),
                    Content::Link => {
                        let (child, below) = self.child(handle, entry).expect("a lost link");
                        assert_eq!(
                            self.hardware().physical(raw, Level::Page4K),
                            physical_of(child.index)
                        );
                        assert_eq!(below.base(), table.address_of(entry));
                        assert_eq!(Some(below.level()), table.level().below());
                        stack.push(child);
                    }
                    _ => {}
                }
            }
        }
        self.check_lists(&reachable);
        self.check_leaves();
        self.check_origins();
    }

    fn check_lists(&self, reachable: &BTreeSet<u32>) {
        let mut unused = BTreeSet::new();
        for (mut next, is_free) in [(self.free.load(), true), (self.detached.load(), false)] {
            while next != 0 {
                let index = next as u32 - 1;
                let table = self.pages.table(index).unwrap();
                assert!(unused.insert(index), "a page is on a list twice");
                assert!(
                    !reachable.contains(&index),
                    "a page that is unused is linked"
                );
                assert_eq!(table.kind() == Kind::None, is_free);
                next = table.next.load();
            }
        }
        // Nor are the pages that say what entries are made of.
        for index in reachable {
            let origins = self.pages.table(*index).unwrap().origins.load();
            if origins != 0 {
                assert!(!unused.contains(&(origins as u32 - 1)));
                assert!(!reachable.contains(&(origins as u32 - 1)));
            }
        }
        let free = unused
            .iter()
            .filter(|index| self.pages.table(**index).unwrap().kind() == Kind::None);
        assert_eq!(free.count() as u64, self.available.load());
    }

    /// Makes sure that the reverse map has what an entry was made of last, if that is known.
    fn check_origins(&self) {
        self.for_each_table(|handle, table| {
            if table.level() != Level::Page4K || table.kind() != Kind::Guest {
                return;
            }
            for entry in 0..ENTRIES {
                if self.origin(table, entry).unwrap().load() == 0 {
                    continue;
                }
                let page = self.page_of(table, entry).unwrap();
                assert!(
                    self.reverse
                        .candidates(&self.pages, Subject::Mapped(Level::Page4K, page))
                        .any(|found| found == (handle, entry)),
                    "an origin that is not noted"
                );
            }
        });
    }

    /// Makes sure that the reverse map finds each entry that maps a page.
    fn check_leaves(&self) {
        let mut leaves = 0;
        self.for_each_table(|handle, table| {
            if table.level() > Level::Page1G {
                return;
            }
            for entry in 0..ENTRIES {
                let Some(page) = self.leaf_page(table, handle.index, entry) else {
                    continue;
                };
                leaves += 1;
                let mut found = false;
                let frames = Frames::new(Gpa::from_raw(page), 4096);
                self.for_each_leaf(&frames, |place, _| {
                    assert_eq!(place.table.level(), place.level);
                    found |= place.handle == handle && place.entry == entry;
                });
                assert!(found, "an entry that unmapping would miss");
            }
        });
        assert_eq!(leaves, self.leaves());
    }
}
