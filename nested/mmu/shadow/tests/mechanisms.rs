// SPDX-License-Identifier: GPL-2.0

//! The mechanisms by which guests have escaped from other shadow tables, or could.

use super::*;
use crate::mmu::ept::bit::PAGE;

const ADDRESS: u64 = 0x0040_3000;

/// CVE-2026-53359: a table was used again though its entries had another meaning, and the reverse
/// map kept what it had been.
#[test]
fn a_table_is_not_reused_under_another_role() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let directory = entry_of(ADDRESS, Level::Page2M);
    let table = world.memory.get(directory) & !0xfff;
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();

    // The same page of L1's memory, as a large page: a part of it, not entries in it.
    let page = Level::Page2M.align(table);
    world.memory.set(directory, page | RWX | PAGE);
    let _ = world
        .fault_with(&root, ADDRESS, WRITES, |page| Backing {
            largest: Level::Page4K,
            ..backing(page)
        })
        .unwrap();
    let found = world.translate(&root, ADDRESS).unwrap();
    assert_eq!(found.page.into_raw(), page + 0x3000);
    world.shadow.check();

    // What L0 unmaps is gone, whatever it is known as.
    for start in [0x7000, page + 0x3000] {
        let frames = Frames::new(Gpa::from_raw(start), 0x1000);
        let _ = world.shadow.unmap(&frames, &world.reports);
    }
    assert_eq!(world.translate(&root, ADDRESS), None);
    world.shadow.check();
    // Not even the table that is not linked any more has an entry.
    assert_eq!(world.shadow.leaves(), 0);
}

/// The same, for a table of L1 that it uses at all levels.
#[test]
fn a_table_that_points_to_itself_has_a_shadow_for_each_place() {
    let mut world = World::new();
    let root = world.root();
    let last = 511 * 8;
    world.memory.set(TOP + last, TOP | RWX);
    let address = 0xffff_ffff_f000;
    let _ = world.fault(&root, address, READS).unwrap();

    // Root, and one for each level below, each with one parent.
    world.shadow.check();
    let mut sources = Vec::new();
    world
        .shadow
        .for_each_table(|_, table| sources.push(table.source()));
    assert_eq!(sources, [TOP; 4]);
    assert_eq!(
        world.translate(&root, address).unwrap().page,
        Gpa::from_raw(TOP)
    );

    world.memory.set(TOP + last, 0);
    world.flush(FlushScope::All);
    assert_eq!(world.translate(&root, address), None);
    world.reclaim();
    world.shadow.check();
    assert_eq!(world.shadow.leaves(), 0);
}

/// CVE-2026-46113: an entry was installed in a table whose range does not contain the page.
#[test]
fn a_leaf_is_never_outside_the_range_of_its_table() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0);
    let directory = entry_of(ADDRESS, Level::Page2M);
    let small = |page| Backing {
        largest: Level::Page4K,
        ..backing(page)
    };
    // A part of a large page; then L1 moves the page, without a flush.
    for page in [0x60_0000, 0xa0_0000, 0x60_0000] {
        world.memory.set(directory, page | RWX | PAGE);
        let _ = world.fault_with(&root, ADDRESS, WRITES, small).unwrap();
        let found = world.translate(&root, ADDRESS).unwrap();
        assert_eq!(found.page.into_raw(), page + 0x3000);

        let at = L2Gpa::from_raw(ADDRESS);
        let table = world
            .shadow
            .table_at(root.handle, at, Level::Page4K)
            .unwrap();
        let table = world.shadow.live(table).unwrap();
        assert_eq!(table.source(), page);
        world.shadow.check();
    }
    // A table refuses what it does not translate.
    let at = L2Gpa::from_raw(ADDRESS);
    let handle = world
        .shadow
        .table_at(root.handle, at, Level::Page4K)
        .unwrap();
    let table = world.shadow.live(handle).unwrap();
    for outside in [0, ADDRESS + 0x20_0000, ADDRESS | 1 << 47, u64::MAX] {
        let address = L2Gpa::from_raw(outside);
        assert!(world.shadow.place_in((handle, table), address).is_none());
    }
}

/// CVE-2026-64561, first half: a fault installed entries in a root that had been dropped.
#[test]
fn a_fault_into_a_dropped_root_installs_nothing() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    // What no vCPU can have, because giving up a root takes this away.
    let kept = RootUse::new(root.handle);
    world.shadow.release_root(root);
    assert!(world.shadow.drop_oldest_root(&world.reports));
    world.reclaim();

    let before = world.shadow.pages_in_use();
    assert_eq!(world.fault(&kept, ADDRESS, WRITES), Ok(Mapped::WrongRoot));
    assert_eq!(world.shadow.root_address(&kept), None);
    assert_eq!(world.shadow.pages_in_use(), before);
    // Nor when the page has become another root.
    let mut other = world.key;
    other.table = Gpa::from_raw(TOP + 0x1000);
    let root = world.root_of(&other);
    assert_eq!(root.handle.index, kept.handle.index);
    assert_eq!(world.fault(&kept, ADDRESS, WRITES), Ok(Mapped::WrongRoot));
    world.shadow.check();
}

/// CVE-2026-64561, second half: dropping tables dropped a root that was being used.
#[test]
fn a_root_in_use_is_not_dropped_by_anything_recursive() {
    let mut world = World::new();
    let root = world.root();
    // L1's top-level table is one of the tables below itself, and of another root.
    world.guest_map(ADDRESS, 0x7000 | RWX);
    world.memory.set(TOP + 8 * 3, TOP | RWX);
    let mut other = world.key;
    other.table = Gpa::from_raw(TOP + 0x50_0000);
    let second = world.root_of(&other);
    world.memory.set(TOP + 0x50_0000, TOP | RWX);
    for address in [ADDRESS, 3 << 39] {
        let _ = world.fault(&root, address, READS);
    }
    world.shadow.release_root(second);
    let (physical, _) = world.shadow.root_address(&root).unwrap();

    while world.shadow.drop_oldest_root(&world.reports) {}
    world.shadow.evict(150, &world.flushes, &world.reports);
    world.shadow.evict(u32::MAX, &world.flushes, &world.reports);
    let _ = world.shadow.zap_all(&world.reports);
    world.reclaim();
    world.shadow.check();
    assert_eq!(
        world.shadow.root_address(&root).map(|(at, _)| at),
        Some(physical)
    );
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    assert!(world.translate(&root, ADDRESS).is_some());
    world.shadow.check();
}

/// CVE-2026-23401: an entry for MMIO took the place of a present one, which stayed in the map.
#[test]
fn an_entry_for_mmio_in_the_place_of_a_page_leaves_nothing_behind() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    world.guest_map(ADDRESS, 0xfee0_0000 | RWX);
    let ticket = world.sequences.begin(&world.key);
    let address = L2Gpa::from_raw(ADDRESS);
    let found = walk(
        &world.memory,
        &(),
        &world.key,
        address,
        READS,
        Intent::Demand,
    )
    .unwrap();
    let target = Target::Mmio { generation: 1 };
    let install = world.install(ticket);
    let _ = world
        .shadow
        .map_one(&install, &root, &found, READS, &target);

    assert_eq!(world.shadow.leaves(), 0);
    let frames = Frames::new(Gpa::from_raw(0x7000), 0x1000);
    let needed = world.shadow.unmap(&frames, &world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
    assert!(world.shadow.mmio(&root, address, 1).is_some());
    world.shadow.check();
}

#[test]
fn a_table_that_is_not_linked_any_more_is_freed_after_the_flush_only() {
    struct Watch(Cell<bool>);
    impl Tlbs for Watch {
        fn flush_all(&self) {
            self.0.set(true);
        }
    }
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let used = world.shadow.pages_in_use();
    world.memory.set(entry_of(ADDRESS, Level::Page1G), 0);
    world.flush(FlushScope::All);

    assert_eq!(world.shadow.pages_in_use(), used);
    world.shadow.check();
    let watch = Watch(Cell::new(false));
    assert!(world.shadow.reclaim(&watch, &world.reports));
    assert!(watch.0.get());
    // Two tables with two pages each.
    assert_eq!(world.shadow.pages_in_use(), used - 4);
    // Nothing waits: nothing is flushed.
    watch.0.set(false);
    assert!(!world.shadow.reclaim(&watch, &world.reports));
    assert!(!watch.0.get());
    world.shadow.check();
}

#[test]
fn a_handle_of_a_table_that_was_freed_is_a_miss() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let at = L2Gpa::from_raw(ADDRESS);
    let stale = world
        .shadow
        .table_at(root.handle, at, Level::Page4K)
        .unwrap();
    let _ = world.shadow.zap_all(&world.reports);
    world.reclaim();
    assert!(world.shadow.live(stale).is_none());
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    // Its page is in use again.
    let reused = world.shadow.pages.table(stale.index).unwrap();
    assert_ne!(reused.handle(stale.index), stale);
    assert!(world.shadow.live(stale).is_none());
    // What the reverse map still says of it is not true of what it is now.
    let frames = Frames::new(Gpa::from_raw(0x7000), 0x1000);
    let mut visits = 0;
    world.shadow.for_each_leaf(&frames, |_, _| visits += 1);
    assert_eq!(visits, 1);
}
