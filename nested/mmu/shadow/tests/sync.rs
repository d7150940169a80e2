// SPDX-License-Identifier: GPL-2.0

//! Flushes by L1, and tracking.

use super::*;
use crate::mmu::ept::bit::PAGE;

const ADDRESS: u64 = 0x0040_3000;

/// L0's own tables, which remember what is protected.
#[derive(Default)]
struct Tracker(RefCell<BTreeSet<u64>>);

impl WriteTracker for Tracker {
    fn protect(&self, page: Gpa) -> Result<(), Untrackable> {
        if page.into_raw() == 0 {
            return Err(Untrackable);
        }
        self.0.borrow_mut().insert(page.into_raw());
        Ok(())
    }
}

fn mapped() -> (World, RootUse) {
    let mut world = World::new();
    let root = world.root();
    for number in 0..4 {
        let address = ADDRESS + number * 0x1000;
        world.guest_map(address, (0x7000 + number * 0x1000) | RWX);
        let _ = world.fault(&root, address, WRITES).unwrap();
    }
    (world, root)
}

fn settle(world: &mut World, tracker: &Tracker) -> u32 {
    world.shadow.settle(
        &world.sequences,
        &world.memory,
        tracker,
        &world.flushes,
        &world.reports,
    )
}

/// Flushes until all tables are tracked.
fn track_all(world: &mut World, tracker: &Tracker) {
    for _ in 0..3 {
        world.flush(FlushScope::All);
    }
    assert_eq!(settle(world, tracker), 4);
}

#[test]
fn a_change_takes_effect_with_the_flush() {
    let (world, root) = mapped();
    world.memory.set(World::guest_entry(ADDRESS), 0x9000 | RWX);
    // Stale, as in a TLB.
    assert_eq!(
        world.translate(&root, ADDRESS).unwrap().page.into_raw(),
        0x7000
    );
    let synced = world.flush(FlushScope::All);

    assert_eq!(synced.entries, 1);
    assert_eq!(world.translate(&root, ADDRESS), None);
    for number in 1..4 {
        assert!(world.translate(&root, ADDRESS + number * 0x1000).is_some());
    }
    world.shadow.check();
}

#[test]
fn what_l1_does_not_permit_any_more_is_taken_in_place() {
    let entry = World::guest_entry(ADDRESS);
    for change in [WRITE, DIRTY, WRITE | DIRTY] {
        let (world, root) = mapped();
        world.memory.set(entry, world.memory.get(entry) & !change);
        assert_eq!(world.flush(FlushScope::All).entries, 1);

        let found = world.translate(&root, ADDRESS).unwrap();
        assert!(!found.permissions.has(Permissions::WRITE));
        assert!(found.permissions.has(Permissions::READ));
        assert!(world.shadow.owes_flush());
        // The next flush compares with what it is now.
        assert_eq!(world.flush(FlushScope::All).entries, 0);
        world.shadow.check();
    }
    for change in [READ | WRITE | EXECUTE, READ | WRITE, ACCESSED] {
        let (world, root) = mapped();
        world.memory.set(entry, world.memory.get(entry) & !change);
        assert_eq!(world.flush(FlushScope::All).entries, 1);
        assert_eq!(world.translate(&root, ADDRESS), None);
    }
}

#[test]
fn entries_above_the_lowest_are_compared_too() {
    for (level, change) in [
        (Level::Page2M, WRITE),
        (Level::Page1G, RWX),
        (Level::Table512G, 0x1000),
    ] {
        let (mut world, root) = mapped();
        let entry = entry_of(ADDRESS, level);
        world.memory.set(entry, world.memory.get(entry) ^ change);
        let tables = world.shadow.pages_in_use();
        assert!(world.flush(FlushScope::All).entries >= 1);
        assert_eq!(world.translate(&root, ADDRESS), None);
        world.shadow.check();
        world.reclaim();
        assert!(world.shadow.pages_in_use() < tables);
        world.shadow.check();
    }
}

#[test]
fn a_flush_of_one_table_leaves_the_others() {
    let (mut world, root) = mapped();
    let mut other = world.key;
    other.table = Gpa::from_raw(TOP + 0x1000);
    let second = world.root_of(&other);
    world.memory.set(World::guest_entry(ADDRESS), 0);

    assert_eq!(world.flush(FlushScope::Table(other.table)).entries, 0);
    assert!(world.translate(&root, ADDRESS).is_some());
    assert_eq!(world.flush(FlushScope::Table(world.key.table)).entries, 1);
    assert_eq!(world.translate(&root, ADDRESS), None);
    world.shadow.release_root(second);
}

#[test]
fn a_table_that_vanishes_takes_its_entries_along() {
    let (world, root) = mapped();
    world
        .memory
        .remove_page(World::guest_entry(ADDRESS) & !0xfff);
    assert_eq!(world.flush(FlushScope::All).entries, 4);
    assert_eq!(world.translate(&root, ADDRESS), None);
}

#[test]
fn a_large_page_that_l1_splits_goes_with_the_flush() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x60_3000 | RWX);
    let directory = entry_of(ADDRESS, Level::Page2M);
    let small = world.memory.get(directory);
    world.memory.set(directory, 0x60_0000 | RWX | PAGE);
    for largest in [Level::Page2M, Level::Page4K] {
        let with = |page| Backing {
            largest,
            ..backing(page)
        };
        world.memory.set(directory, 0x60_0000 | RWX | PAGE);
        let _ = world.fault_with(&root, ADDRESS, WRITES, with).unwrap();
        assert_eq!(world.translate(&root, ADDRESS).unwrap().level, largest);
        world.memory.set(directory, small);
        world.flush(FlushScope::All);
        assert_eq!(world.translate(&root, ADDRESS), None);
        let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
        assert!(world.translate(&root, ADDRESS).is_some());
        world.memory.set(directory, 0x60_0000 | RWX | PAGE);
        world.flush(FlushScope::All);
        assert_eq!(world.translate(&root, ADDRESS), None);
        world.shadow.check();
    }
}

#[test]
fn calm_tables_are_tracked_and_not_read_again() {
    let (mut world, root) = mapped();
    let tracker = Tracker::default();
    world
        .memory
        .set(World::guest_entry(ADDRESS), 0x60_3000 | RWX);
    assert_eq!(world.flush(FlushScope::All).tables, 4);
    let _ = world.fault(&root, ADDRESS, READS).unwrap();
    // The one that has changed has to be found calm twice.
    assert_eq!(settle(&mut world, &tracker), 3);
    assert_eq!(world.flush(FlushScope::All).calm, 0);
    assert_eq!(settle(&mut world, &tracker), 0);
    assert_eq!(world.flush(FlushScope::All).calm, 1);
    assert_eq!(settle(&mut world, &tracker), 1);
    assert_eq!(world.flushes.0.get(), 2);
    assert_eq!(tracker.0.borrow().len(), 4);

    world.memory.take_reads();
    assert_eq!(world.flush(FlushScope::All), Synced::default());
    assert!(world.memory.take_reads().is_empty());
    assert!(world.translate(&root, ADDRESS).is_some());
    assert!(world.shadow.is_tracked(Gpa::from_raw(TOP)));
}

#[test]
fn new_tables_are_tracked_when_there_are_four() {
    let mut world = World::new();
    let root = world.root();
    let tracker = Tracker::default();
    // The first needs four, the others one each.
    for (number, address) in (0..).zip((ADDRESS..).step_by(1 << 21).take(5)) {
        world.guest_map(address, 0x60_3000 | RWX);
        let _ = world.fault(&root, address, READS).unwrap();
        assert_eq!(world.shadow.is_to_settle(), number % 4 == 0);
        if number == 0 {
            assert_eq!(settle(&mut world, &tracker), 4);
            assert!(!world.shadow.is_to_settle());
        }
    }
    assert_eq!(settle(&mut world, &tracker), 4);
    assert_eq!(world.flush(FlushScope::All), Synced::default());
}

#[test]
fn only_the_table_that_was_written_is_read() {
    let (mut world, root) = mapped();
    let tracker = Tracker::default();
    track_all(&mut world, &tracker);
    let entry = World::guest_entry(ADDRESS);

    world.shadow.tracked_write(Gpa::from_raw(entry).page());
    world.memory.set(entry, 0);
    assert!(!world.shadow.is_tracked(Gpa::from_raw(entry).page()));
    let synced = world.flush(FlushScope::All);
    assert_eq!((synced.tables, synced.entries), (1, 1));
    assert_eq!(world.translate(&root, ADDRESS), None);

    // It takes longer to be tracked again.
    for expected in [0, 0, 1, 0] {
        world.flush(FlushScope::All);
        assert_eq!(settle(&mut world, &tracker), expected);
    }
}

#[test]
fn l2_that_writes_to_a_table_of_l1_makes_it_unsynced() {
    let (mut world, root) = mapped();
    let tracker = Tracker::default();
    let table = Gpa::from_raw(World::guest_entry(ADDRESS)).page();
    // L2 has the table mapped before it is tracked: small, and as a part of a large page.
    let small = ADDRESS + 0x10_0000;
    let large = ADDRESS + (1 << 30);
    world.guest_map(small, table.into_raw() | RWX);
    let _ = world.fault(&root, small, WRITES).unwrap();
    world.guest_map(large, 0);
    let page = Level::Page2M.align(table.into_raw());
    world
        .memory
        .set(entry_of(large, Level::Page2M), page | RWX | PAGE);
    let _ = world.fault(&root, large, WRITES).unwrap();
    assert_eq!(world.translate(&root, large).unwrap().level, Level::Page2M);

    for _ in 0..4 {
        world.flush(FlushScope::All);
    }
    assert!(settle(&mut world, &tracker) >= 4);
    for address in [small, large] {
        let found = world.translate(&root, address).unwrap();
        assert!(!found.permissions.has(Permissions::WRITE));
    }
    for address in [small, large] {
        assert!(world.shadow.is_tracked(table));
        let _ = world.fault(&root, address, WRITES).unwrap();
        let found = world.translate(&root, address).unwrap();
        assert!(found.permissions.has(Permissions::WRITE));
        assert!(!world.shadow.is_tracked(table));
        for _ in 0..80 {
            world.flush(FlushScope::All);
        }
        settle(&mut world, &tracker);
    }
    world.shadow.check();
}

#[test]
fn a_write_before_the_protection_is_found_by_it() {
    let (mut world, root) = mapped();
    let tracker = Tracker::default();
    for _ in 0..3 {
        world.flush(FlushScope::All);
    }
    // After the last flush that read it, and without a fault, since it is not tracked yet.
    world.memory.set(World::guest_entry(ADDRESS), 0);
    assert_eq!(settle(&mut world, &tracker), 4);
    assert_eq!(world.translate(&root, ADDRESS), None);
}

#[test]
fn a_fault_that_walked_before_a_flush_installs_nothing_after_it() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let address = L2Gpa::from_raw(ADDRESS);
    let ticket = world.sequences.begin(&world.key);
    let found = walk(
        &world.memory,
        &(),
        &world.key,
        address,
        WRITES,
        Intent::Demand,
    )
    .unwrap();
    let target = Target::Memory(backing(found.page));

    world.memory.set(World::guest_entry(ADDRESS), 0);
    // Nothing to read again: the tables are empty.
    world.flush(FlushScope::All);
    let install = world.install(ticket);
    let mapped = world
        .shadow
        .map_one(&install, &root, &found, WRITES, &target);
    assert_eq!(mapped, Mapped::Again);
    assert_eq!(world.translate(&root, ADDRESS), None);
    world.shadow.check();
}

#[test]
fn a_fault_that_l1_gets_makes_the_address_new() {
    for number in [0, 3] {
        let (world, root) = mapped();
        let address = ADDRESS + number * 0x1000;
        world
            .memory
            .set(World::guest_entry(address), 0x9000 | READ | ACCESSED);
        assert!(world.fault(&root, address, WRITES).is_err());
        assert!(world.translate(&root, address).is_some(), "stale");
        let at = L2Gpa::from_raw(address);
        let ticket = world.sequences.begin(&world.key);
        world
            .shadow
            .invalidate(&world.sequences, &root, at, &world.reports);
        assert_eq!(world.translate(&root, address), None);
        assert!(!world.sequences.is_current(&ticket));
        let others = world.shadow.leaves();
        assert_eq!(others, 3);
        world.shadow.check();
    }
}

#[test]
fn what_l0_forgets_is_not_tracked_any_more() {
    let tracker = Tracker::default();

    // L0 drops all: the root stays, as a vCPU uses it, and L1 can write to its page unseen.
    let (mut world, root) = mapped();
    track_all(&mut world, &tracker);
    let _ = world.shadow.zap_all(&world.reports);
    assert!(!world.shadow.is_tracked(Gpa::from_raw(TOP)));
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    world.memory.set(TOP, 0);
    assert_eq!(world.flush(FlushScope::All).entries, 1);
    assert_eq!(world.translate(&root, ADDRESS), None);

    // L0 unmaps the page of one table.
    let (mut world, root) = mapped();
    track_all(&mut world, &tracker);
    let entry = World::guest_entry(ADDRESS);
    let frames = Frames::new(Gpa::from_raw(entry).page(), 0x1000);
    let _ = world.shadow.unmap(&frames, &world.reports);
    assert!(!world.shadow.is_tracked(Gpa::from_raw(entry).page()));
    assert!(world.shadow.is_tracked(Gpa::from_raw(TOP)));
    world.memory.set(entry, 0);
    assert_eq!(world.flush(FlushScope::All).entries, 1);
    assert_eq!(world.translate(&root, ADDRESS), None);

    // L0 unmaps all memory.
    let everything = Frames::new(Gpa::from_raw(0), 1 << 40);
    let _ = world.shadow.unmap(&everything, &world.reports);
    assert!(!world.shadow.is_tracked(Gpa::from_raw(TOP)));
}
