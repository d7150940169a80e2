// SPDX-License-Identifier: GPL-2.0

//! Memory for the host.

use super::*;

const ADDRESS: u64 = 0x4000_0000;

/// Calls the shrinker; returns what it says, and how many flushes it made.
fn shrink(world: &mut World, wanted: u32) -> (Shrunk, u32) {
    let before = world.flushes.0.get();
    let mut given = 0;
    let shrunk = world
        .shadow
        .shrink(wanted, &world.flushes, &world.reports, |_page| given += 1);

    assert_eq!(shrunk.pages, given);
    assert!(given <= wanted);
    world.shadow.check();
    (shrunk, world.flushes.0.get() - before)
}

/// Maps a page in each of some tables of the lowest level.
fn map_tables(world: &World, root: &RootUse, tables: u64) {
    for number in 0..tables {
        let address = ADDRESS + (number << 21);
        world.guest_map(address, (0x100 + number) << 12 | RWX);
        let mapped = world.fault(root, address, WRITES).unwrap();
        assert!(matches!(mapped, Mapped::Done { .. }));
    }
}

/// Takes away what is free, but for what stays for the next fault.
fn without_free_pages(world: &mut World) {
    let free = free_pages(world);
    let stays = if world.shadow.has_users() { 16 } else { 0 };
    let (shrunk, flushes) = shrink(world, free - stays);
    assert!(!shrunk.evicted);
    assert_eq!(flushes, 0);
}

fn free_pages(world: &World) -> u32 {
    world.shadow.pages_in_pool() - world.shadow.pages_in_use() as u32
}

/// Makes a root of other tables of L1, which no vCPU uses any more.
fn unused_root(world: &mut World, number: u64) -> RootKey {
    let key = RootKey {
        table: Gpa::from_raw(TOP + number * 0x1000),
        ..world.key
    };
    let root = world.root_of(&key);
    world.shadow.release_root(root);
    key
}

fn is_cached(world: &World, key: &RootKey) -> bool {
    match world.shadow.find_root(key) {
        Some(root) => {
            world.shadow.release_root(root);
            true
        }
        None => false,
    }
}

#[test]
fn the_host_gets_free_pages_first() {
    let mut world = World::new();
    let root = world.root();
    map_tables(&world, &root, 3);
    let leaves = world.shadow.leaves();
    let in_use = world.shadow.pages_in_use() as u32;

    let (shrunk, flushes) = shrink(&mut world, 50);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (50, false, 0));
    assert_eq!(world.shadow.pages_in_pool(), 150);
    // A vCPU uses the root: its next fault finds pages.
    let (shrunk, flushes) = shrink(&mut world, 150 - in_use - 16);
    assert_eq!((shrunk.evicted, flushes), (false, 0));
    assert_eq!(world.shadow.pages_in_pool(), in_use + 16);
    assert_eq!(world.shadow.leaves(), leaves);
    // Pages can come back.
    assert!(world.shadow.donate(FakePage::new()).is_ok());
    world.shadow.check();
}

#[test]
fn without_users_no_free_page_stays() {
    let mut world = World::new();
    let key = unused_root(&mut world, 0);

    let free = free_pages(&world);
    let (shrunk, flushes) = shrink(&mut world, free);
    assert_eq!((shrunk.pages, flushes), (free, 0));
    assert!(is_cached(&world, &key));
    let (shrunk, flushes) = shrink(&mut world, 100);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (2, true, 1));
    assert!(!is_cached(&world, &key));
    // What is left is no table.
    let (shrunk, flushes) = shrink(&mut world, 100);
    assert_eq!((shrunk, flushes), (Shrunk::default(), 0));
}

#[test]
fn roots_without_users_go_before_tables_in_use() {
    let mut world = World::new();
    let root = world.root();
    map_tables(&world, &root, 4);
    let older = unused_root(&mut world, 0x40);
    let newer = unused_root(&mut world, 0x41);
    without_free_pages(&mut world);

    let (shrunk, flushes) = shrink(&mut world, 1);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (1, true, 1));
    assert!(!is_cached(&world, &older));
    assert!(is_cached(&world, &newer));
    // The other page of the root is free now.
    let (shrunk, flushes) = shrink(&mut world, 1);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (1, false, 0));
    assert!(is_cached(&world, &newer));
    let (shrunk, _) = shrink(&mut world, 2);
    assert_eq!((shrunk.pages, shrunk.evicted), (2, true));
    assert!(!is_cached(&world, &newer));
    assert_eq!(world.shadow.leaves(), 4);
    for number in 0..4 {
        assert!(world.translate(&root, ADDRESS + (number << 21)).is_some());
    }
}

#[test]
fn tables_in_use_go_if_faults_have_not_needed_them() {
    let mut world = World::new();
    let root = world.root();
    map_tables(&world, &root, 4);
    without_free_pages(&mut world);
    // What a fault needs from now on is younger.
    let (shrunk, _) = shrink(&mut world, 2);
    assert_eq!((shrunk.pages, shrunk.evicted), (2, true));
    let dropped: Vec<u64> = (0..4)
        .filter(|number| world.translate(&root, ADDRESS + (number << 21)).is_none())
        .collect();
    assert_eq!(dropped.len(), 1);
    let young = (dropped[0] + 1) % 4;
    // L2 comes back to a page of the youngest: a fault for another one there.
    let address = ADDRESS + (young << 21) + 0x1000;
    world.guest_map(address, 0x33_3000 | RWX);
    let _ = world.fault(&root, address, WRITES).unwrap();

    let (shrunk, flushes) = shrink(&mut world, 4);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (4, true, 1));
    assert!(world.translate(&root, address).is_some());
    assert_eq!(world.shadow.leaves(), 2);
    // At last it goes, too, and L2 gets everything back by faults.
    while shrink(&mut world, 4).0.evicted {}
    assert_eq!(world.shadow.leaves(), 0);
    assert!(world.shadow.root_address(&root).is_some());
    map_tables(&world, &root, 4);
    world.shadow.check();
}

#[test]
fn a_large_root_is_freed_in_several_calls() {
    let mut world = World::new();
    let root = world.root();
    map_tables(&world, &root, 4);
    let key = world.key;
    let younger = unused_root(&mut world, 0x40);
    world.shadow.release_root(root);
    let in_use = world.shadow.pages_in_use();
    without_free_pages(&mut world);

    let (shrunk, flushes) = shrink(&mut world, 4);
    assert_eq!((shrunk.pages, shrunk.evicted, flushes), (4, true, 1));
    assert!(!is_cached(&world, &key));
    assert!(world.shadow.leaves() > 0, "the rest waits");
    let mut calls = 0;
    loop {
        let (shrunk, _) = shrink(&mut world, 4);
        if shrunk.evicted {
            break;
        }
        assert!(shrunk.pages > 0);
        assert!(is_cached(&world, &younger));
        calls += 1;
    }
    assert!(calls > 1);
    assert_eq!(world.shadow.leaves(), 0);
    assert!(!is_cached(&world, &younger));
    assert!(world.shadow.pages_in_use() < in_use - 8);
}

#[test]
fn dirty_pages_are_reported_before_their_tables_go() {
    let mut world = World::new();
    let root = world.root();
    world.guest_map(ADDRESS, 0x7000 | RWX);
    let logged = |page| Backing {
        tracking: Tracking::Flag,
        ..backing(page)
    };
    let _ = world.fault_with(&root, ADDRESS, READS, logged).unwrap();
    let table = world
        .shadow
        .table_at(root.handle, L2Gpa::from_raw(ADDRESS), Level::Page4K)
        .unwrap();
    let index = Level::Page4K.index(L2Gpa::from_raw(ADDRESS));
    let word = world.shadow.pages.word(table.index, index).unwrap();
    Word::fetch_or(word, WRITE | DIRTY);
    without_free_pages(&mut world);
    world.reports.0.take();

    assert!(shrink(&mut world, 2).0.evicted);
    assert_eq!(world.reports.0.take(), BTreeSet::from([0x7000]));
}
