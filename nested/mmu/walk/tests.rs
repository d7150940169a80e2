// SPDX-License-Identifier: GPL-2.0

//! What walks do, whatever the format.

use super::*;
use crate::mmu::access::{Kind, Mode, Stage};
use crate::mmu::ept::bit::{ACCESSED, DIRTY, EXECUTE, PAGE, READ, WRITE};
use crate::mmu::ept::Ept;
use crate::mmu::shadow::Sequences;
use crate::mmu::testing::{key, Memory, EPT, TOP};
use core::cell::RefCell;
use core::sync::atomic::AtomicU64;

const RWX: u64 = READ | WRITE | EXECUTE;
const ADDRESS: L2Gpa = L2Gpa::from_raw(0x0000_40c0_6080_7123);
const DATA: u64 = 0x5_0000;

/// Tables at [`TOP`] and the three pages above it, for [`ADDRESS`].
fn tables() -> Memory {
    let memory = Memory::default();

    for (level, below) in [
        (Level::Table512G, TOP + 0x1000),
        (Level::Page1G, TOP + 0x2000),
        (Level::Page2M, TOP + 0x3000),
        (Level::Page4K, DATA),
    ] {
        memory.set(entry(level), below | RWX);
    }
    memory
}

/// Returns where the entry for [`ADDRESS`] is.
fn entry(level: Level) -> u64 {
    let table = TOP + (4 - u64::from(level.number())) * 0x1000;
    table + u64::from(level.index(ADDRESS)) * 8
}

fn go(memory: &Memory, ept: Ept, access: Access) -> Result<Walk, Stop> {
    walk(
        memory,
        &(),
        &key(Format::Ept(ept)),
        ADDRESS,
        access,
        Intent::Demand,
    )
}

const READS: Access = Access::new(Kind::Read);
const WRITES: Access = Access::new(Kind::Write);

#[test]
fn each_entry_is_read_once() {
    let memory = tables();
    let found = go(&memory, EPT, READS).unwrap();

    assert_eq!(found.page, Gpa::from_raw(DATA));
    assert_eq!(found.level, Level::Page4K);
    let mut reads = memory.take_reads();
    let count = reads.len();
    reads.sort_unstable();
    reads.dedup();
    assert_eq!(reads.len(), count);
    // Three above, and the group of eight.
    assert_eq!(count, 3 + 8);
    for level in [
        Level::Table512G,
        Level::Page1G,
        Level::Page2M,
        Level::Page4K,
    ] {
        assert!(reads.contains(&entry(level)));
    }
}

#[test]
fn flags_are_set_as_the_processor_sets_them() {
    let memory = tables();
    let found = go(&memory, EPT, READS).unwrap();

    assert!(!found.permissions.has(Permissions::WRITE));
    for level in [
        Level::Table512G,
        Level::Page1G,
        Level::Page2M,
        Level::Page4K,
    ] {
        assert_eq!(memory.get(entry(level)) & (ACCESSED | DIRTY), ACCESSED);
    }
    let found = go(&memory, EPT, WRITES).unwrap();
    assert!(found.permissions.has(Permissions::WRITE));
    assert_eq!(memory.get(entry(Level::Page2M)) & DIRTY, 0);
    assert_eq!(memory.get(entry(Level::Page4K)) & DIRTY, DIRTY);
    assert_eq!(
        found.step(Level::Page4K).unwrap().raw,
        memory.get(entry(Level::Page4K))
    );
    // The page is dirty: whoever reads may write, too.
    assert!(go(&memory, EPT, READS)
        .unwrap()
        .permissions
        .has(Permissions::WRITE));
}

#[test]
fn without_flags_nothing_is_written() {
    let memory = tables();
    let ept = Ept {
        accessed_dirty: false,
        ..EPT
    };
    let found = go(&memory, ept, WRITES).unwrap();

    assert!(found.permissions.has(Permissions::WRITE));
    for level in [
        Level::Table512G,
        Level::Page1G,
        Level::Page2M,
        Level::Page4K,
    ] {
        assert_eq!(memory.get(entry(level)) & (ACCESSED | DIRTY), 0);
    }
}

#[test]
fn a_refused_access_sets_no_flag() {
    let memory = tables();
    memory.set(entry(Level::Page4K), DATA | READ);
    let Err(Stop::Refused(refusal)) = go(&memory, EPT, WRITES) else {
        panic!("the write was allowed");
    };

    assert_eq!(refusal.why, Why::Forbidden);
    assert_eq!(refusal.permitted, Permissions::READ);
    assert_eq!(memory.get(entry(Level::Page4K)), DATA | READ);
    assert_eq!(memory.get(entry(Level::Table512G)) & ACCESSED, 0);
}

#[test]
fn speculation_writes_nothing() {
    let memory = tables();
    let speculate = |access| {
        let key = key(Format::Ept(EPT));
        walk(&memory, &(), &key, ADDRESS, access, Intent::Speculative)
    };

    assert_eq!(speculate(READS), Err(Stop::Again));
    assert_eq!(memory.get(entry(Level::Page4K)), DATA | RWX);
    go(&memory, EPT, READS).unwrap();
    assert!(!speculate(READS)
        .unwrap()
        .permissions
        .has(Permissions::WRITE));
    assert_eq!(speculate(WRITES), Err(Stop::Again));
    go(&memory, EPT, WRITES).unwrap();
    assert!(speculate(WRITES)
        .unwrap()
        .permissions
        .has(Permissions::WRITE));
}

#[test]
fn a_table_changed_by_another_vcpu_during_the_walk_is_walked_again() {
    let memory = tables();
    let mut times = 0;
    memory.interfere(move |memory, address| {
        // After the entry above was read, before its flag is set.
        if address == entry(Level::Page4K) && times == 0 {
            times += 1;
            memory.set(entry(Level::Page2M), (TOP + 0x8000) | RWX);
            memory.set(
                TOP + 0x8000 + u64::from(Level::Page4K.index(ADDRESS)) * 8,
                (DATA + 0x1000) | RWX,
            );
        }
    });
    let found = go(&memory, EPT, WRITES).unwrap();

    assert_eq!(found.page, Gpa::from_raw(DATA + 0x1000));
    // The page that was never used did not become dirty.
    assert_eq!(memory.get(entry(Level::Page4K)) & DIRTY, 0);
}

#[test]
fn a_table_that_changes_all_the_time_does_not_hold_up_the_host() {
    let memory = tables();
    memory.interfere(|memory, address| {
        if address == entry(Level::Page4K) {
            let old = memory.get(entry(Level::Page2M));
            memory.set(entry(Level::Page2M), (old ^ (1 << 52)) & !ACCESSED);
        }
    });

    assert_eq!(go(&memory, EPT, READS), Err(Stop::Again));
}

#[test]
fn tables_in_mmio_are_not_present() {
    for level in [
        Level::Table512G,
        Level::Page1G,
        Level::Page2M,
        Level::Page4K,
    ] {
        let memory = tables();
        memory.remove_page(entry(level) & !0xfff);
        let Err(Stop::Refused(refusal)) = go(&memory, EPT, READS) else {
            panic!("a table without memory was used");
        };
        assert_eq!(refusal.why, Why::Inaccessible);
        assert_eq!(refusal.permitted, Permissions::NONE);
    }
}

#[test]
fn tables_in_rom_keep_their_flags() {
    let memory = tables();
    for table in 0..4 {
        memory.protect_page(TOP + table * 0x1000);
    }
    let found = go(&memory, EPT, WRITES).unwrap();

    assert!(found.permissions.has(Permissions::WRITE));
    assert_eq!(memory.get(entry(Level::Page4K)), DATA | RWX);
}

#[test]
fn a_table_that_points_to_itself_is_walked_to_the_end() {
    let memory = Memory::default();
    let all_ones = L2Gpa::from_raw(0xffff_ffff_f000);
    memory.set(TOP + 511 * 8, TOP | RWX);
    let found = walk(
        &memory,
        &(),
        &key(Format::Ept(EPT)),
        all_ones,
        READS,
        Intent::Demand,
    );

    // The entry is used at all four levels, and maps its own table.
    assert_eq!(found.unwrap().page, Gpa::from_raw(TOP));
}

#[test]
fn large_pages_end_the_walk() {
    for (level, page) in [(Level::Page2M, 0x0060_0000), (Level::Page1G, 0x4000_0000)] {
        let memory = tables();
        memory.set(entry(level), page | RWX | PAGE | 6 << 3);
        let found = go(&memory, EPT, READS).unwrap();

        assert_eq!(found.level, level);
        assert_eq!(
            found.page.into_raw(),
            page | (level.offset(ADDRESS.into_raw()) & !0xfff)
        );
        assert_eq!(found.memory_type, 6);
        assert!(found.neighbours().is_none());
        assert!(found.step(Level::Page4K).is_none());
    }
}

#[test]
fn neighbours_are_those_around_the_page() {
    let memory = tables();
    let first = entry(Level::Page4K) & !63;
    for index in 0..8 {
        if first + index * 8 != entry(Level::Page4K) {
            memory.set(first + index * 8, index << 12 | READ);
        }
    }
    let found = go(&memory, EPT, READS).unwrap();
    let neighbours = found.neighbours().unwrap();

    for (index, raw) in (0..).zip(neighbours) {
        if first + index * 8 != entry(Level::Page4K) {
            assert_eq!(*raw, index << 12 | READ);
        }
    }
}

#[test]
fn pages_that_become_dirty_are_logged_once() {
    struct Log(RefCell<Vec<L2Gpa>>, usize);
    impl DirtyLog for Log {
        fn record(&self, page: L2Gpa) -> Result<(), LogFull> {
            if self.0.borrow().len() == self.1 {
                return Err(LogFull);
            }
            self.0.borrow_mut().push(page);
            Ok(())
        }
    }
    let key = key(Format::Ept(EPT));
    let memory = tables();
    let log = Log(RefCell::default(), 0);
    let full = walk(&memory, &log, &key, ADDRESS, WRITES, Intent::Demand);

    assert!(matches!(
        full,
        Err(Stop::Refused(Refusal {
            why: Why::LogFull,
            ..
        }))
    ));
    assert_eq!(memory.get(entry(Level::Page4K)) & DIRTY, 0);
    let log = Log(RefCell::default(), 1);
    for access in [READS, WRITES, WRITES] {
        walk(&memory, &log, &key, ADDRESS, access, Intent::Demand).unwrap();
    }
    assert_eq!(*log.0.borrow(), [ADDRESS.page()]);
}

#[test]
fn page_table_accesses_write_if_there_are_flags() {
    let table = Access {
        kind: Kind::Read,
        mode: Mode::User,
        stage: Stage::PageTable,
    };
    let memory = tables();
    go(&memory, EPT, table).unwrap();
    assert_eq!(memory.get(entry(Level::Page4K)) & DIRTY, DIRTY);

    memory.set(entry(Level::Page4K), DATA | READ);
    assert!(go(&memory, EPT, table).is_err());
    let ept = Ept {
        accessed_dirty: false,
        ..EPT
    };
    assert!(go(&memory, ept, table).is_ok());
}

/// A walk that goes on from the last one, and the sequence of flushes.
struct Walker {
    memory: Memory,
    sequences: Sequences<AtomicU64>,
    found: Walk,
}

impl Walker {
    fn new() -> Self {
        Self {
            memory: tables(),
            sequences: Sequences::default(),
            found: Walk::default(),
        }
    }

    /// Returns the page, and how many entries were read.
    fn go(&mut self, key: &RootKey, address: u64, intent: Intent) -> Result<(u64, usize), Stop> {
        let ticket = self.sequences.begin(key);
        let request = Request {
            address: L2Gpa::from_raw(address),
            access: READS,
            intent,
        };
        self.memory.take_reads();
        self.found
            .translate(&self.memory, &(), key, ticket, &request)?;
        Ok((self.found.page.into_raw(), self.memory.take_reads().len()))
    }
}

#[test]
fn what_is_above_the_lowest_table_is_read_again_after_a_flush() {
    let mut walker = Walker::new();
    let key = key(Format::Ept(EPT));
    let first = ADDRESS.into_raw();
    let second = first ^ 0x1000;
    let (at, other) = (entry(Level::Page4K) ^ 8, TOP + 0x4000);
    walker.memory.set(at, 0x5_1000 | RWX);
    walker.memory.set(other + (at & 0xfff), 0x5_2000 | RWX);

    assert_eq!(walker.go(&key, first, Intent::Demand), Ok((DATA, 3 + 8)));
    assert_eq!(walker.go(&key, second, Intent::Demand), Ok((0x5_1000, 8)));
    // L1 changes what is above, and must flush.
    walker.memory.set(entry(Level::Page2M), other | RWX);
    assert_eq!(walker.go(&key, second, Intent::Demand), Ok((0x5_1000, 8)));
    walker.sequences.advance_all();
    assert_eq!(
        walker.go(&key, second, Intent::Demand),
        Ok((0x5_2000, 3 + 8))
    );
}

#[test]
fn a_walk_goes_on_from_one_in_the_same_table_only() {
    let mut walker = Walker::new();
    let key = key(Format::Ept(EPT));
    let address = ADDRESS.into_raw();
    walker.go(&key, address, Intent::Demand).unwrap();

    // Another part of L2's memory.
    assert!(walker
        .go(&key, address ^ 0x20_0000, Intent::Demand)
        .is_err());
    // One that was refused leaves nothing.
    assert_eq!(walker.go(&key, address, Intent::Demand), Ok((DATA, 3 + 8)));
    // Other tables.
    let other = RootKey {
        table: Gpa::from_raw(TOP + 0x8000),
        ..key
    };
    assert!(walker.go(&other, address, Intent::Demand).is_err());
    assert_eq!(walker.go(&key, address, Intent::Demand), Ok((DATA, 3 + 8)));
    // What maps a large page is not a table.
    walker.sequences.advance_all();
    walker
        .memory
        .set(entry(Level::Page2M), 0x60_0000 | RWX | PAGE);
    for _ in 0..2 {
        let (_, reads) = walker.go(&key, address, Intent::Demand).unwrap();
        assert_eq!(reads, 3);
    }
}

#[test]
fn no_walk_goes_on_from_entries_without_flags() {
    let mut walker = Walker::new();
    let key = key(Format::Ept(Ept {
        accessed_dirty: true,
        ..EPT
    }));
    let address = ADDRESS.into_raw();

    assert_eq!(
        walker.go(&key, address, Intent::Speculative),
        Err(Stop::Again)
    );
    assert_eq!(walker.go(&key, address, Intent::Demand), Ok((DATA, 3 + 8)));
    for level in [
        Level::Table512G,
        Level::Page1G,
        Level::Page2M,
        Level::Page4K,
    ] {
        assert_ne!(walker.memory.get(entry(level)) & ACCESSED, 0);
    }
}
