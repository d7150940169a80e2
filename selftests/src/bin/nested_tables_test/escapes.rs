// SPDX-License-Identifier: GPL-2.0

//! The ways in which guests have escaped from KVM by its shadow page tables, and others like them.
//!
//! Each is done again and again by a slice of its own, on two processors, while L0 drops its tables
//! and moves the memory; the model says what L2 must see.

use anyhow::Result;
use selftests::guest::Random;
use selftests::tap::Point;

use crate::run::Plan;
use crate::slice::{Batch, Slice};
use crate::world::{top, World, BLOCK};
use crate::{DoneByHost, Fixture, ROOTS};
use selftests::guest::paging::program::{Access, Flush};
use selftests::guest::paging::{Right, ADDRESS};

/// Pages of a slice, by what they are in these tests.
mod page {
    /// The table of the slice's entry, with entries for two megabytes each.
    pub const DIRECTORY: u64 = 0;
    /// A table below.
    pub const TABLE: u64 = 1;
    /// Another one.
    pub const OTHER: u64 = 2;
    /// A table of entries for a gigabyte each, for a root of the slice's own.
    pub const UPPER: u64 = 3;
    /// The table of that root.
    pub const TOP: u64 = 4;
    /// Pages that are no tables.
    pub const DATA: u64 = 100;
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a table is used again under another role", |fixture| {
            escape(fixture, ROOTS, another_role, |host, random| {
                host.disturb_all(random)
            })
        }),
        Point::new("a leaf is not outside of its table's range", |fixture| {
            escape(fixture, ROOTS, moved_block, |host, random| {
                host.disturb_all(random)
            })
        }),
        Point::new("a fault comes into a root that is dropped", |fixture| {
            escape(fixture, 24, many_roots, |host, random| {
                match random.below(8) {
                    0 => host.remove_slot(),
                    _ => host.drop_roots(),
                }
            })
        }),
        Point::new(
            "a root in use is dropped as a table of its own",
            recursive_root,
        ),
    ]
}

/// Lets two processors do something, in slices of which each has its tables.
fn escape(fixture: &Fixture, roots: u64, work: crate::Work, host: DoneByHost) -> Result<()> {
    let (world, mut vcpus) = World::new(&fixture.kvm, 2, 3, roots)?;
    let plan = Plan {
        batches: fixture.rounds.div_ceil(8),
        seed: fixture.seed,
        work,
        host,
    };
    world.carry_out(&mut vcpus, plan)
}

/// L2 reads and writes, and L1's flush comes before if it must.
fn look(slice: &mut Slice, batch: &mut Batch, random: &mut Random, root: usize, address: u64) {
    let number = slice.page(random.below(1024)) << 16;
    for access in [Access::Read, Access::Write, Access::Read] {
        let _ = slice.access(batch, root, access, address, number, Flush::Nothing);
    }
    let code = address | crate::slice::CODE;
    let _ = slice.access(batch, root, Access::Execute, code, 0, Flush::Nothing);
}

/// Makes the entry of the slice refer to a table, and that table's first entry be something.
fn root_table(slice: &mut Slice, batch: &mut Batch, format: selftests::guest::paging::Format) {
    let directory = slice.page(page::DIRECTORY);
    let entry = slice.entry;
    slice.poke(batch, entry, format.table(directory, Right::All));
}

/// A page of L1 is a table for small pages, one for large pages, a page that L2 writes to, and what
/// a large page is split into.
fn another_role(slice: &mut Slice, batch: &mut Batch, random: &mut Random) {
    let format = slice.format();
    let window = slice.window;
    let (directory, table) = (slice.page(page::DIRECTORY), slice.page(page::TABLE));
    root_table(slice, batch, format);
    for _ in 0..3 {
        // For small pages, that are not those which the table for large ones has.
        let data = slice.page(page::DATA + random.below(64));
        slice.fill_table(batch, table, format.page(data, Right::All), 0x1000);
        slice.poke(batch, directory, format.table(table, Right::All));
        for index in [0, 3, 200] {
            look(slice, batch, random, 0, window + 0x1000 * index);
        }
        // The same page, one level higher: its entries are those of large pages, or of tables.
        let block = slice.base + BLOCK * random.below(2);
        slice.poke(batch, table, format.large(block, Right::All));
        slice.poke(
            batch,
            table + 8,
            format.table(slice.page(page::OTHER), Right::All),
        );
        let other = slice.page(page::OTHER);
        slice.poke(batch, other, format.page(data, Right::NoWrite));
        let entry = slice.entry;
        slice.poke(batch, entry, format.table(table, Right::All));
        for index in [0, 3, 512, 513] {
            look(slice, batch, random, 1, window + 0x1000 * index);
        }
        // A large page in the place of the table, with the table in it: L2 writes to it.
        root_table(slice, batch, format);
        slice.poke(batch, directory, format.large(slice.base, Right::All));
        let value = format.page(slice.page(page::DATA), Right::All);
        let address = window + 0x1000 * page::TABLE;
        let _ = slice.access(batch, 0, Access::Write, address, value, Flush::Nothing);
        look(slice, batch, random, 0, window + 0x1000 * page::DATA);
        // It is a table again, and has what L2 wrote.
        slice.poke(batch, directory, format.table(table, Right::All));
        look(slice, batch, random, 0, window);
    }
}

/// L1 moves a large page of which L2 uses parts, and makes parts of it something else.
fn moved_block(slice: &mut Slice, batch: &mut Batch, random: &mut Random) {
    let format = slice.format();
    let window = slice.window;
    let directory = slice.page(page::DIRECTORY);
    let table = slice.page(page::TABLE);
    root_table(slice, batch, format);
    for turn in 0..6 {
        let block = slice.base + BLOCK * (turn % 2);
        slice.poke(batch, directory, format.large(block, Right::All));
        // The same pages by another large page.
        let other = slice.base + BLOCK * ((turn + 1) % 2);
        slice.poke(batch, directory + 8, format.large(other, Right::NoWrite));
        for _ in 0..3 {
            let index = page::DATA + random.below(300);
            look(slice, batch, random, 0, window + 0x1000 * index);
            look(slice, batch, random, 1, window + BLOCK + 0x1000 * index);
        }
        // Small pages of the other large page: none of the parts above may stay.
        slice.fill_table(batch, table, format.page(other, Right::All), 0x1000);
        slice.poke(batch, directory, format.table(table, Right::All));
        for _ in 0..2 {
            let index = page::DATA + random.below(300);
            look(slice, batch, random, 0, window + 0x1000 * index);
        }
    }
}

/// More roots than L0 keeps, of which processors use one after the other.
fn many_roots(slice: &mut Slice, batch: &mut Batch, random: &mut Random) {
    let format = slice.format();
    let window = slice.window;
    let (directory, table) = (slice.page(page::DIRECTORY), slice.page(page::TABLE));
    root_table(slice, batch, format);
    slice.poke(batch, directory, format.table(table, Right::All));
    for _ in 0..4 {
        let index = random.below(4);
        let data = slice.page(page::DATA + random.below(64));
        slice.poke(batch, table + 8 * index, format.page(data, Right::All));
        for _ in 0..6 {
            let root = usize::try_from(random.below(slice.tops.len() as u64)).unwrap_or(0);
            look(slice, batch, random, root, window + 0x1000 * index);
        }
    }
}

/// A root is a table of its own, which L1 takes away, or L2.
fn recursive_root(fixture: &Fixture) -> Result<()> {
    let (world, mut vcpus) = World::new(&fixture.kvm, 2, 3, ROOTS)?;
    for (number, slice) in (ROOTS..).zip(&world.slices) {
        let mut slice = slice.lock().unwrap();
        let address = slice.page(page::TOP);
        // What L2 executes, and its own tables, are below the first entries of that of all.
        let upper = slice.entry & ADDRESS;
        for entry in [upper, upper + 8] {
            let value = world.memory.read(entry);
            slice.know(entry, value);
        }
        slice.add_top(top(world.format, address, number, true));
    }
    let plan = Plan {
        batches: fixture.rounds.div_ceil(8),
        seed: fixture.seed,
        work: recursion,
        host: |host, random| host.disturb_all(random),
    };
    world.carry_out(&mut vcpus, plan)
}

fn recursion(slice: &mut Slice, batch: &mut Batch, random: &mut Random) {
    let format = slice.format();
    let window = slice.window;
    let own = usize::try_from(ROOTS).unwrap_or(0);
    let (root, upper) = (slice.page(page::TOP), slice.page(page::UPPER));
    let shared = slice.entry & ADDRESS;
    for entry in [0, 8] {
        let value = slice.word(shared + entry).unwrap_or(0);
        slice.poke(batch, upper + entry, value);
    }
    slice.poke(batch, root, format.table(upper, Right::All));
    // The root is the table of the slice: by its first entry there, the table above is one of small
    // pages; the entry of the slice in that is for the root itself.
    let number = window >> 30;
    for _ in 0..4 {
        let data = slice.page(page::DATA + random.below(64));
        slice.poke(batch, upper + 8 * number, format.table(root, Right::All));
        slice.poke(
            batch,
            upper + 8 * (number + 8),
            format.page(data, Right::All),
        );
        look(slice, batch, random, own, window + 0x1000 * (number + 8));
        // By the slice's entry the root is a page of L2, too, which reads it.
        let address = window + 0x1000 * number;
        let _ = slice.access(batch, own, Access::Read, address, 0, Flush::Nothing);
        if random.below(2) == 0 {
            // L1 takes the way away.
            slice.poke(batch, upper + 8 * number, 0);
        } else {
            // L2 writes to the root that it runs on, where nothing is used, and L1 takes it away.
            let value = format.page(data, Right::All);
            let unused = address + 8 * 16;
            let _ = slice.access(batch, own, Access::Write, unused, value, Flush::Nothing);
            slice.poke(batch, upper + 8 * number, 0);
        }
        look(slice, batch, random, own, window + 0x1000 * (number + 8));
        // The same pages by the tables of all, while the root is in use on another processor.
        root_table(slice, batch, format);
        let directory = slice.page(page::DIRECTORY);
        slice.poke(batch, directory, format.large(slice.base, Right::All));
        look(slice, batch, random, 0, window + 0x1000 * page::DATA);
    }
}
