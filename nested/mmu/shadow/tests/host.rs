// SPDX-License-Identifier: GPL-2.0

//! What L0 does to its memory.

use super::*;
use crate::mmu::ept::bit::PAGE;
use crate::mmu::ept::Ept;

const ADDRESS: u64 = 0x0040_3000;

/// Maps pages from 0x7000 at [`ADDRESS`], and returns the root.
fn mapped(world: &mut World, count: u64) -> RootUse {
    let root = world.root();
    for number in 0..count {
        let address = ADDRESS + number * 0x1000;
        world.guest_map(address, (0x7000 + number * 0x1000) | RWX);
        let _ = world.fault(&root, address, WRITES).unwrap();
    }
    root
}

fn frames(start: u64, bytes: u64) -> Frames {
    Frames::new(Gpa::from_raw(start), bytes)
}

#[test]
fn unmapping_removes_what_is_in_the_range_and_asks_for_a_flush() {
    // By looking up pages, and by looking at all tables.
    for spare in [0, 1 << 40] {
        let mut world = World::new();
        let root = mapped(&mut world, 4);
        let nothing = world.shadow.unmap(&frames(0xb000, 0x1000), &world.reports);
        assert_eq!(nothing, FlushNeeded::No);
        let range = if spare == 0 {
            frames(0x8000, 0x2000)
        } else {
            frames(0x9000, spare)
        };
        let needed = world.shadow.unmap(&range, &world.reports);
        assert_eq!(needed, FlushNeeded::Yes);
        let gone: &[u64] = if spare == 0 { &[1, 2] } else { &[2, 3] };
        for number in 0..4 {
            let found = world.translate(&root, ADDRESS + number * 0x1000);
            assert_eq!(found.is_none(), gone.contains(&number), "{number}");
        }
        // The flush pays for it.
        let mark = world.shadow.begin_flush();
        world.shadow.end_flush(mark);
        let needed = world.shadow.unmap(&range, &world.reports);
        assert_eq!(needed, FlushNeeded::No);
        world.shadow.check();
    }
}

#[test]
fn a_large_page_goes_if_a_part_of_it_does() {
    for level in [Level::Page2M, Level::Page1G] {
        let mut world = World::new();
        let root = world.root();
        let page = 0x4000_0000;
        world.guest_map(ADDRESS, 0);
        world
            .memory
            .set(entry_of(ADDRESS, level), page | RWX | PAGE);
        let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
        assert_eq!(world.translate(&root, ADDRESS).unwrap().level, level);

        let part = page + level.size() - 0x1000;
        let needed = world.shadow.unmap(&frames(part, 0x1000), &world.reports);
        assert_eq!(needed, FlushNeeded::Yes);
        assert_eq!(world.translate(&root, ADDRESS), None);
        world.shadow.check();
    }
}

#[test]
fn one_page_that_l1_maps_many_times_is_unmapped_everywhere() {
    let mut world = World::new();
    let root = world.root();
    let addresses: Vec<u64> = (0..20).map(|number| ADDRESS + number * 0x1000).collect();
    for address in &addresses {
        world.guest_map(*address, 0x7000 | RWX);
        let _ = world.fault(&root, *address, WRITES).unwrap();
    }
    let _ = world.shadow.unmap(&frames(0x7000, 0x1000), &world.reports);
    for address in &addresses {
        assert_eq!(world.translate(&root, *address), None);
    }
    world.shadow.check();
}

#[test]
fn what_l1_has_flushed_away_may_still_be_in_another_tlb_when_l0_unmaps_it() {
    let mut world = World::new();
    let root = mapped(&mut world, 1);
    world.guest_map(ADDRESS, 0);
    world.flush(FlushScope::All);
    assert_eq!(world.translate(&root, ADDRESS), None);
    // Only the vCPU that asked has flushed.
    let needed = world.shadow.unmap(&frames(0x7000, 0x1000), &world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
}

#[test]
fn a_change_during_a_flush_is_not_paid_for_by_it() {
    let mut world = World::new();
    let _root = mapped(&mut world, 2);
    let _ = world.shadow.unmap(&frames(0x7000, 0x1000), &world.reports);
    let mark = world.shadow.begin_flush();
    let _ = world.shadow.unmap(&frames(0x8000, 0x1000), &world.reports);
    world.shadow.end_flush(mark);
    assert!(world.shadow.owes_flush());
}

#[test]
fn aging_clears_flags_where_there_are_any() {
    let mut world = World::new();
    let root = mapped(&mut world, 1);
    let range = frames(0x7000, 0x1000);

    let age = |world: &World, age| world.shadow.age(&range, age, &world.reports);
    assert!(age(&world, Age::Test));
    assert!(age(&world, Age::Clear));
    assert!(!age(&world, Age::Test));
    assert!(!age(&world, Age::Clear));
    assert!(world.translate(&root, ADDRESS).is_some());
    // The next fault, as the processor would.
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    assert!(age(&world, Age::Test));
    assert!(!world
        .shadow
        .age(&frames(0x8000, 0x1000), Age::Test, &world.reports));
}

#[test]
fn aging_removes_entries_where_there_are_no_flags() {
    let format = Format::Ept(Ept {
        accessed_dirty: false,
        ..EPT
    });
    let mut world = World::with(CONFIG, key(format));
    let root = mapped(&mut world, 1);
    let range = frames(0x7000, 0x1000);

    assert!(world.shadow.age(&range, Age::Test, &world.reports));
    assert!(world.translate(&root, ADDRESS).is_some());
    assert!(world.shadow.age(&range, Age::Clear, &world.reports));
    assert_eq!(world.translate(&root, ADDRESS), None);
    assert!(!world.shadow.age(&range, Age::Test, &world.reports));
    // It may be in a TLB still.
    let needed = world.shadow.unmap(&range, &world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
}

#[test]
fn write_protection_leaves_the_rest() {
    let mut world = World::new();
    let root = mapped(&mut world, 2);
    let needed = world.shadow.write_protect(&frames(0x7000, 0x1000));
    assert_eq!(needed, FlushNeeded::Yes);
    let may_write = |world: &World, address| {
        let found = world.translate(&root, address).unwrap();
        found.permissions.has(Permissions::WRITE)
    };
    assert!(!may_write(&world, ADDRESS));
    assert!(may_write(&world, ADDRESS + 0x1000));
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    assert!(may_write(&world, ADDRESS));
}

#[test]
fn a_pass_over_dirty_pages_reports_each_once() {
    let mut world = World::new();
    let root = mapped(&mut world, 3);
    let range = frames(0x7000, 0x3000);
    // What was written before logging began is not reported.
    let _ = world.shadow.clear_dirty(&range, &world.reports);
    assert!(world.reports.0.borrow().is_empty());

    let place = |world: &World, number: u16| {
        let at = L2Gpa::from_raw(ADDRESS);
        let table = world.shadow.table_at(root.handle, at, Level::Page4K);
        (table.unwrap().index, 3 + number)
    };
    // The processor sets the flag.
    let (table, entry) = place(&world, 1);
    world
        .shadow
        .pages
        .word(table, entry)
        .unwrap()
        .fetch_or(DIRTY, core::sync::atomic::Ordering::SeqCst);
    let _ = world.shadow.clear_dirty(&range, &world.reports);
    assert_eq!(world.reports.0.take(), [0x8000].into());
    let _ = world.shadow.clear_dirty(&range, &world.reports);
    assert!(world.reports.0.borrow().is_empty());
}

#[test]
fn what_a_report_has_covered_is_not_looked_at_again() {
    let mut world = World::new();
    let root = mapped(&mut world, 3);
    let range = frames(0x7000, 0x3000);
    let page = frames(0x7000, 0x1000);
    let by_flag = |page| Backing {
        tracking: Tracking::Flag,
        ..backing(page)
    };
    let set_dirty = |world: &World| {
        let at = L2Gpa::from_raw(ADDRESS);
        let table = world
            .shadow
            .table_at(root.handle, at, Level::Page4K)
            .unwrap();
        let word = world.shadow.pages.word(table.index, 3).unwrap();
        word.fetch_or(DIRTY, core::sync::atomic::Ordering::SeqCst);
    };

    // Logging begins, by dirty flags.
    let _ = world.shadow.clear_dirty(&range, &world.reports);
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    set_dirty(&world);
    let _ = world.shadow.clear_dirty(&page, &world.reports);
    assert!(
        world.reports.0.borrow().is_empty(),
        "the next report has it"
    );
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());

    // Not so if a fault has made an entry dirty, or if logging may have begun anew.
    let _ = world.fault_with(&root, ADDRESS, WRITES, by_flag).unwrap();
    let _ = world.shadow.clear_dirty(&page, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    set_dirty(&world);
    let _ = world.shadow.clear_dirty(&range, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());

    // Nor if there was an entry without a flag, or is one now.
    let _ = world.shadow.unmap(&page, &world.reports);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    let _ = world.shadow.clear_dirty(&page, &world.reports);
    set_dirty(&world);
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());
    let _ = world.shadow.unmap(&page, &world.reports);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let _ = world.shadow.clear_dirty(&page, &world.reports);
    set_dirty(&world);
    let _ = world.shadow.sync_dirty(&range, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());
}

#[test]
fn a_pass_over_dirty_pages_splits_large_ones_and_protects_without_flags() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0);
    world
        .memory
        .set(entry_of(ADDRESS, Level::Page2M), 0x60_0000 | RWX | PAGE);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let _ = world
        .shadow
        .clear_dirty(&frames(0x60_0000, 0x1000), &world.reports);
    assert_eq!(world.translate(&root, ADDRESS), None);

    let format = Format::Ept(Ept {
        accessed_dirty: false,
        ..EPT
    });
    let mut world = World::with(CONFIG, key(format));
    let root = mapped(&mut world, 1);
    let _ = world
        .shadow
        .clear_dirty(&frames(0x7000, 0x1000), &world.reports);
    let found = world.translate(&root, ADDRESS).unwrap();
    assert!(!found.permissions.has(Permissions::WRITE));
}

#[test]
fn large_pages_come_back() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0);
    world
        .memory
        .set(entry_of(ADDRESS, Level::Page2M), 0x60_0000 | RWX | PAGE);
    let _ = world.fault_with(&root, ADDRESS, WRITES, |page| Backing {
        largest: Level::Page4K,
        ..backing(page)
    });
    assert_eq!(
        world.translate(&root, ADDRESS).unwrap().level,
        Level::Page4K
    );
    let nothing = world
        .shadow
        .recover_large_pages(&frames(0x80_0000, 0x20_0000), &world.reports);
    assert_eq!(nothing, FlushNeeded::No);
    let needed = world
        .shadow
        .recover_large_pages(&frames(0x60_0000, 0x20_0000), &world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    assert_eq!(
        world.translate(&root, ADDRESS).unwrap().level,
        Level::Page2M
    );
    world.reclaim();
    world.shadow.check();
}

#[test]
fn everything_can_be_dropped_while_a_root_is_used() {
    let mut world = World::new();
    let root = mapped(&mut world, 2);
    let mut other = world.key;
    other.table = Gpa::from_raw(TOP + 0x1000);
    let unused = world.root_of(&other);
    world.shadow.release_root(unused);

    let needed = world.shadow.zap_all(&world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
    assert_eq!(
        world.shadow.leaves(),
        2,
        "nothing is freed before the flush"
    );
    world.reclaim();
    assert_eq!(world.shadow.leaves(), 0);
    assert!(world.shadow.find_root(&other).is_none());
    assert!(world.shadow.root_address(&root).is_some());
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    assert!(world.translate(&root, ADDRESS).is_some());
    world.shadow.check();
}

#[test]
fn roots_are_shared_and_a_few_are_kept() {
    let mut world = World::new();
    let keys: Vec<RootKey> = (0..6)
        .map(|number| RootKey {
            table: Gpa::from_raw(TOP + number * 0x1000),
            ..world.key
        })
        .collect();
    let first = world.root_of(&keys[0]);
    let again = world.shadow.find_root(&keys[0]).unwrap();
    assert_eq!(first, again);
    for key in &keys[1..] {
        let root = world.root_of(key);
        world.shadow.release_root(root);
    }
    // Two are cached besides the one that was added last, and the one that is used.
    let kept: Vec<bool> = keys
        .iter()
        .map(|key| {
            let root = world.shadow.find_root(key);
            let is_there = root.is_some();
            if let Some(root) = root {
                world.shadow.release_root(root);
            }
            is_there
        })
        .collect();
    assert_eq!(kept, [true, false, false, true, true, true]);
    world.shadow.release_root(first);
    world.shadow.release_root(again);
    world.reclaim();
    world.shadow.check();
}

#[test]
fn the_limit_is_kept_by_dropping_what_was_not_used() {
    let config = Config {
        page_limit: 30,
        ..CONFIG
    };
    let mut world = World::with(CONFIG, key(Format::Ept(EPT)));
    world.shadow = shadow_with(config, 30);
    assert!(world.shadow.is_full());
    assert!(world.shadow.donate(FakePage::new()).is_err());
    let root = world.root();
    let mut evicted = 0;
    for number in 0..64u64 {
        let address = (number & 3) << 21 | (number >> 2 & 1) << 30 | (number >> 3) << 39;
        world.memory.set(
            entry_of(address, Level::Table512G),
            (entry_of(address, Level::Page1G) & !0xfff) | RWX,
        );
        world.guest_map(address, 0x7000 | RWX);
        while world.fault(&root, address, WRITES).unwrap() == Mapped::NeedPages {
            evicted += 1;
            assert!(world.shadow.evict(4, &world.flushes, &world.reports) >= 4);
            world.shadow.check();
        }
        assert!(world.translate(&root, address).is_some());
    }
    assert!(evicted > 4);
    world.shadow.check();
}

#[test]
fn pages_that_are_not_used_are_given_back() {
    let mut world = World::new();
    let root = mapped(&mut world, 2);
    let used = world.shadow.pages_in_use();
    let mut withdrawn = 0;
    while world.shadow.withdraw().is_some() {
        withdrawn += 1;
    }
    assert_eq!(withdrawn + used, 200);
    world.shadow.check();
    assert!(world.translate(&root, ADDRESS).is_some());
    assert!(world.shadow.donate(FakePage::new()).is_ok());
    world.shadow.check();
}

#[test]
fn the_reverse_map_is_made_anew_when_it_is_full_of_old_entries() {
    let mut world = World::new();
    let root = world.root();
    let mut donated = 0;
    for number in 0..20_000u64 {
        let page = (number & 0xffff) << 12;
        world.guest_map(ADDRESS, page | RWX);
        while world.fault(&root, ADDRESS, WRITES).unwrap() == Mapped::NeedPages {
            donated += 1;
            assert!(world.shadow.donate(FakePage::new()).is_ok());
        }
    }
    // One entry needs one node, whatever it has mapped before.
    assert!(donated < 40, "{donated}");
    assert_eq!(world.shadow.leaves(), 1);
    world.shadow.check();
}
