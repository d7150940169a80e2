// SPDX-License-Identifier: GPL-2.0

//! What a fault makes.

use super::*;
use crate::mmu::ept::bit::PAGE;
use crate::mmu::ept::Ept;

const ADDRESS: u64 = 0x0040_3000;

#[test]
fn a_fault_maps_the_page_with_what_both_permit() {
    let mut world = World::new();
    let root = world.root();

    for (guest, is_writable, access) in [
        (RWX, true, WRITES),
        (RWX, false, READS),
        (READ | WRITE, true, WRITES),
        (READ, true, READS),
        (READ | EXECUTE, true, FETCHES),
        (EXECUTE, true, FETCHES),
    ] {
        world.guest_map(ADDRESS, 0x7000 | guest);
        let mapped = world.fault_with(&root, ADDRESS, access, |page| Backing {
            is_writable,
            ..backing(page)
        });
        let may_write = guest & WRITE != 0 && is_writable;
        assert_eq!(
            mapped,
            Ok(Mapped::Done {
                level: Level::Page4K,
                is_writable: may_write
            })
        );
        let found = world.translate(&root, ADDRESS).unwrap();
        assert_eq!(found.physical, HOST + 0x7000);
        assert_eq!(found.page, Gpa::from_raw(0x7000));
        assert_eq!(found.permissions.has(Permissions::READ), guest & READ != 0);
        assert_eq!(found.permissions.has(Permissions::WRITE), may_write);
        assert_eq!(
            found.permissions.has(Permissions::EXECUTE),
            guest & EXECUTE != 0
        );
        world.shadow.check();
    }
    assert_eq!(world.shadow.leaves(), 1);
}

#[test]
fn permissions_of_upper_entries_count() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let above = entry_of(ADDRESS, Level::Page1G);
    world.memory.set(above, world.memory.get(above) & !WRITE);

    assert!(matches!(
        world.fault(&root, ADDRESS, WRITES),
        Err(Stop::Refused(_))
    ));
    assert!(world.fault(&root, ADDRESS, READS).is_ok());
    let found = world.translate(&root, ADDRESS).unwrap();
    assert!(!found.permissions.has(Permissions::WRITE));

    // CVE-2021-38198: the same table of L1 by another way, which permits more.
    let other = ADDRESS + (1 << 30);
    world.guest_map(other, 0);
    world.memory.set(
        entry_of(other, Level::Page1G),
        (entry_of(ADDRESS, Level::Page2M) & !0xfff) | RWX,
    );
    assert!(world.fault(&root, other, WRITES).is_ok());
    let more = world.translate(&root, other).unwrap();
    assert!(more.permissions.has(Permissions::WRITE));
    let less = world.translate(&root, ADDRESS).unwrap();
    assert!(!less.permissions.has(Permissions::WRITE));
    world.shadow.check();
}

#[test]
fn a_page_that_is_not_dirty_is_not_writable() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);

    let _ = world.fault(&root, ADDRESS, READS).unwrap();
    let found = world.translate(&root, ADDRESS).unwrap();
    assert!(!found.permissions.has(Permissions::WRITE));
    let _ = world.fault(&root, ADDRESS, WRITES).unwrap();
    let found = world.translate(&root, ADDRESS).unwrap();
    assert!(found.permissions.has(Permissions::WRITE));
    assert_eq!(world.memory.get(World::guest_entry(ADDRESS)) & DIRTY, DIRTY);
    // Permitting more needs no flush.
    assert!(!world.shadow.owes_flush());
}

#[test]
fn pages_are_as_large_as_both_have_them() {
    let page = 0x4000_0000;
    for (guest, host, expected) in [
        (Level::Page1G, Level::Page1G, Level::Page1G),
        (Level::Page1G, Level::Page2M, Level::Page2M),
        (Level::Page1G, Level::Page4K, Level::Page4K),
        (Level::Page2M, Level::Page1G, Level::Page2M),
        (Level::Page2M, Level::Page4K, Level::Page4K),
        (Level::Page4K, Level::Page1G, Level::Page4K),
    ] {
        let mut world = World::new();
        let root = world.root();
        world.guest_map(page + ADDRESS, (page + ADDRESS) | RWX);
        if guest != Level::Page4K {
            world.memory.set(
                entry_of(page + ADDRESS, guest),
                guest.align(page + ADDRESS) | RWX | PAGE,
            );
        }
        let mapped = world.fault_with(&root, page + ADDRESS, WRITES, |page| Backing {
            largest: host,
            ..backing(page)
        });
        assert_eq!(
            mapped,
            Ok(Mapped::Done {
                level: expected,
                is_writable: true
            })
        );
        let found = world.translate(&root, page + ADDRESS).unwrap();
        assert_eq!(found.physical, HOST + page + ADDRESS);
        assert_eq!(found.level, expected);
        world.shadow.check();
    }
}

#[test]
fn an_address_that_is_not_aligned_makes_the_page_small() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0);
    world
        .memory
        .set(entry_of(ADDRESS, Level::Page2M), 0x60_0000 | RWX | PAGE);
    let mapped = world.fault_with(&root, ADDRESS, WRITES, |page| Backing {
        physical: HOST + page.into_raw() + 0x1000,
        ..backing(page)
    });

    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            level: Level::Page4K,
            ..
        })
    ));
    let found = world.translate(&root, ADDRESS).unwrap();
    assert_eq!(found.physical, HOST + 0x60_4000);
}

#[test]
fn large_pages_that_cannot_be_executed_are_split_once() {
    let mut config = CONFIG;
    config.hardware.executable_large_pages = false;
    let mut world = World::with(config, key(Format::Ept(EPT)));
    let root = world.root();
    world.guest_map(ADDRESS, 0);
    world
        .memory
        .set(entry_of(ADDRESS, Level::Page2M), 0x60_0000 | RWX | PAGE);

    let _ = world.fault(&root, ADDRESS, READS).unwrap();
    let found = world.translate(&root, ADDRESS).unwrap();
    assert_eq!(found.level, Level::Page2M);
    assert!(!found.permissions.has(Permissions::EXECUTE));
    let _ = world.fault(&root, ADDRESS, FETCHES).unwrap();
    let found = world.translate(&root, ADDRESS).unwrap();
    assert_eq!(found.level, Level::Page4K);
    assert!(found.permissions.has(Permissions::EXECUTE));
    // Reading another part leaves the first.
    let _ = world.fault(&root, ADDRESS + 0x1000, READS).unwrap();
    assert!(world.translate(&root, ADDRESS).is_some());
    world.shadow.check();
}

#[test]
fn mmio_is_cached_with_what_l1_permits() {
    let mut world = World::new();
    let root = world.root();
    let map = |world: &World, address: u64, access, generation| {
        let address = L2Gpa::from_raw(address);
        let ticket = world.sequences.begin(&world.key);
        let found = walk(
            &world.memory,
            &(),
            &world.key,
            address,
            access,
            Intent::Demand,
        );
        let target = Target::Mmio { generation };
        world.shadow.map_one(
            &world.install(ticket),
            &root,
            &found.unwrap(),
            access,
            &target,
        )
    };

    world.guest_map(ADDRESS, 0xfee0_0000 | READ);
    assert_eq!(map(&world, ADDRESS, READS, 5), Mapped::Emulate);
    let mmio = |world: &World, address, generation| {
        world
            .shadow
            .mmio(&root, L2Gpa::from_raw(address), generation)
    };
    assert_eq!(
        mmio(&world, ADDRESS, 5),
        Some(Mmio {
            page: Gpa::from_raw(0xfee0_0000),
            permissions: Permissions::READ
        })
    );
    assert_eq!(mmio(&world, ADDRESS, 6), None);
    assert_eq!(world.translate(&root, ADDRESS), None);

    // In a part of a large page, too.
    let large = ADDRESS + (1 << 30);
    world.guest_map(large, 0);
    world.memory.set(
        entry_of(large, Level::Page2M),
        0xc000_0000 | READ | WRITE | PAGE,
    );
    assert_eq!(map(&world, large, READS, 6), Mapped::Emulate);
    let found = mmio(&world, large, 6).unwrap();
    assert_eq!(found.page, Gpa::from_raw(0xc000_3000));
    assert!(found.permissions.has(Permissions::WRITE));
    assert!(!found.permissions.has(Permissions::EXECUTE));

    // It goes with the next flush after L1 has changed its mind.
    world.guest_map(ADDRESS, 0);
    world.flush(FlushScope::All);
    assert_eq!(mmio(&world, ADDRESS, 5), None);
    // A page takes its place.
    world.guest_map(ADDRESS, 0x7000 | RWX);
    assert_eq!(map(&world, ADDRESS, READS, 6), Mapped::Emulate);
    let _ = world.fault(&root, ADDRESS, READS).unwrap();
    assert!(world.translate(&root, ADDRESS).is_some());
    world.shadow.check();
}

#[test]
fn neighbours_are_mapped_if_they_need_no_flag() {
    struct Resident;
    impl Backings for Resident {
        fn resident(&self, page: Gpa) -> Option<Backing> {
            (page.into_raw() != 0x4_5000).then(|| backing(page))
        }
    }
    let mut world = World::new();
    let root = world.root();
    let first = 0x0040_0000;
    for number in 0..8u64 {
        let flags = match number {
            1 => 0,
            2 => ACCESSED,
            _ => ACCESSED | DIRTY,
        };
        let page = 0x4_0000 + number * 0x1000;
        world.guest_map(first + number * 0x1000, page | RWX | flags);
    }
    world.guest_map(first + 0x6000, 0);

    let ticket = world.sequences.begin(&world.key);
    let address = L2Gpa::from_raw(first + 0x3000);
    let mut found = walk(
        &world.memory,
        &(),
        &world.key,
        address,
        READS,
        Intent::Demand,
    )
    .unwrap();
    let target = Target::Memory(backing(found.page));
    let install = world.install(ticket);
    let (_, count) = world
        .shadow
        .map(&install, &root, &mut found, READS, &target, &Resident);

    // Not 1, which was not accessed; not 3, which is there; not 5, which L0 does not have at hand;
    // not 6, which is not present.
    assert_eq!(count, 4);
    for number in 0..8u64 {
        let mapped = world.translate(&root, first + number * 0x1000);
        assert_eq!(mapped.is_some(), ![1, 5, 6].contains(&number), "{number}");
        if let Some(found) = mapped {
            assert_eq!(found.physical, HOST + 0x4_0000 + number * 0x1000);
            assert_eq!(found.permissions.has(Permissions::WRITE), number != 2);
        }
    }
    world.shadow.check();
}

#[test]
fn writes_are_reported_by_the_way_that_l0_asks_for() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX | ACCESSED | DIRTY);
    let with = |tracking| {
        move |page| Backing {
            tracking,
            ..backing(page)
        }
    };

    // By faults, whatever they are for.
    let mapped = world.fault_with(&root, ADDRESS, READS, with(Tracking::Protect));
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: true,
            ..
        })
    ));
    let mapped = world.fault_with(&root, ADDRESS, WRITES, with(Tracking::Protect));
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: true,
            ..
        })
    ));

    // By the flag.
    let frames = Frames::new(Gpa::from_raw(0x7000), 0x1000);
    let _ = world.shadow.unmap(&frames, &world.reports);
    let mapped = world.fault_with(&root, ADDRESS, READS, with(Tracking::Flag));
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: true,
            ..
        })
    ));
    let _ = world.shadow.clear_dirty(&frames, &world.reports);
    assert!(world.reports.0.borrow().is_empty());
    let mapped = world.fault_with(&root, ADDRESS, WRITES, with(Tracking::Flag));
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: true,
            ..
        })
    ));
    let _ = world.shadow.clear_dirty(&frames, &world.reports);
    assert_eq!(world.reports.0.take(), [0x7000].into());

    let _ = world.fault_with(&root, ADDRESS, WRITES, with(Tracking::Flag));
    assert_eq!(
        world.shadow.sync_dirty(&frames, &world.reports),
        FlushNeeded::Yes
    );
    assert_eq!(world.reports.0.take(), [0x7000].into());
    let _ = world.shadow.sync_dirty(&frames, &world.reports);
    assert!(world.reports.0.borrow().is_empty());

    // What is dirty when an entry goes is not lost.
    let _ = world.fault_with(&root, ADDRESS, WRITES, with(Tracking::Flag));
    world.guest_map(ADDRESS, 0);
    world.flush(FlushScope::All);
    assert_eq!(world.reports.0.take(), [0x7000].into());
}

#[test]
fn a_late_fault_takes_nothing_back() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX | ACCESSED | DIRTY);
    let logged = |page| Backing {
        tracking: Tracking::Protect,
        ..backing(page)
    };
    let _ = world.fault_with(&root, ADDRESS, WRITES, logged).unwrap();
    let mapped = world.fault_with(&root, ADDRESS, READS, logged);
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: true,
            ..
        })
    ));
    assert!(!world.shadow.owes_flush());
    // But L0 does, and so does L1.
    let frames = Frames::new(Gpa::from_raw(0x7000), 0x1000);
    let _ = world.shadow.write_protect(&frames);
    let at = L2Gpa::from_raw(ADDRESS);
    let found = world.shadow.translate(&root, at);
    assert!(found.is_some_and(|found| !found.permissions.has(Permissions::WRITE)));
    let _ = world.fault_with(&root, ADDRESS, WRITES, logged).unwrap();
    world.guest_map(ADDRESS, 0x7000 | READ | ACCESSED | DIRTY);
    let mapped = world.fault_with(&root, ADDRESS, READS, logged);
    assert!(matches!(
        mapped,
        Ok(Mapped::Done {
            is_writable: false,
            ..
        })
    ));
    world.shadow.check();
}

#[test]
fn the_memory_type_is_that_of_l1_where_l0_says_so() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX | 4 << 3);
    for (follow_memory_type, expected) in [(false, 6 << 3), (true, 4 << 3)] {
        let _ = world.shadow.zap_all(&world.reports);
        let _ = world.fault_with(&root, ADDRESS, READS, |page| Backing {
            attributes: if follow_memory_type { 0 } else { 6 << 3 },
            follow_memory_type,
            ..backing(page)
        });
        let table = world
            .shadow
            .table_at(root.handle, L2Gpa::from_raw(ADDRESS), Level::Page4K)
            .unwrap();
        let raw = Word::load(world.shadow.pages.word(table.index, 3).unwrap());
        assert_eq!(raw & 0x78, expected);
    }
}

#[test]
fn a_fault_that_finds_no_page_says_so_and_works_after_a_donation() {
    let mut world = World::new();
    world.shadow = shadow_with(
        Config {
            page_limit: 40,
            ..CONFIG
        },
        0,
    );
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let key = world.key;
    let mut refused = 0;
    let root = loop {
        match world.shadow.load_root(&key, &world.reports) {
            Ok(root) => break root,
            Err(refusal) => assert_eq!(refusal, RootRefusal::NeedPages),
        }
        refused += 1;
        assert!(world.shadow.donate(FakePage::new()).is_ok());
    };
    assert!(refused > 3);
    let mut refused = 0;
    while world.fault(&root, ADDRESS, READS).unwrap() == Mapped::NeedPages {
        refused += 1;
        world.shadow.check();
        assert!(world.shadow.donate(FakePage::new()).is_ok());
    }
    assert!((3..12).contains(&refused), "{refused}");
    world.shadow.check();
}

#[test]
fn a_root_is_for_the_format_that_the_processor_has() {
    let mut world = World::new();
    let npt = key(Format::Npt(crate::mmu::testing::NPT));
    assert_eq!(
        world.shadow.load_root(&npt, &world.reports),
        Err(RootRefusal::Impossible)
    );
    let five = key(Format::Ept(Ept {
        top: Level::Table256T,
        ..EPT
    }));
    let root = world.root_of(&five);
    let (address, level) = world.shadow.root_address(&root).unwrap();
    assert_eq!(level, Level::Table256T);
    assert_eq!(address, physical_of(root.handle.index));
}

#[test]
fn a_fault_uses_the_table_that_is_linked_now() {
    let mut world = World::new();
    let root = world.root();
    let next = ADDRESS + 0x1000;
    for (number, address) in [ADDRESS, next].into_iter().enumerate() {
        world.guest_map(address, (0x7000 + number as u64 * 0x1000) | RWX);
    }
    let at = |world: &World, address| world.translate(&root, address).unwrap().page.into_raw();
    let go = |world: &World, address| {
        assert!(matches!(
            world.fault(&root, address, READS),
            Ok(Mapped::Done { .. })
        ));
        world.shadow.check();
        at(world, address)
    };

    assert_eq!(go(&world, ADDRESS), 0x7000);
    assert_eq!(go(&world, next), 0x8000);
    // L1 refers to another table, which the flush finds out, or the next fault.
    let directory = entry_of(ADDRESS, Level::Page2M);
    let first = world.memory.get(directory) & !0xfff;
    for (table, flushes) in [(0x30_0000, true), (0x31_0000, false)] {
        let entry = table + (entry_of(next, Level::Page4K) & 0xfff);
        world.memory.set(entry, (table + 0x1000) | RWX);
        world.memory.set(directory, table | RWX);
        if flushes {
            world.flush(FlushScope::All);
        }
        assert_eq!(go(&world, next), table + 0x1000);
    }
    // L0 drops everything.
    world.memory.set(directory, first | RWX);
    assert_eq!(go(&world, ADDRESS), 0x7000);
    let needed = world.shadow.zap_all(&world.reports);
    assert_eq!(needed, FlushNeeded::Yes);
    assert_eq!(go(&world, ADDRESS), 0x7000);
    world.reclaim();
    assert_eq!(go(&world, next), 0x8000);
    // Tables that are needed are not the first to be evicted.
    world.shadow.evict(400, &world.flushes, &world.reports);
    assert_eq!(go(&world, next), 0x8000);
}
