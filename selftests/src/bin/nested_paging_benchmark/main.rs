// SPDX-License-Identifier: GPL-2.0

//! Measures what page tables for L2 cost level 0, where this program runs, with the provider that
//! there is: in ticks of the TSC, which under an emulator whose TSC counts instructions are the
//! instructions of all levels, in exits, and in memory.
//!
//! `nested_paging_benchmark [ROW...]` prints `bench: ROW LEVEL VALUE` for the rows that are named, or
//! for all, where the level is that of the guest.

mod world;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use selftests::guest::signal;

use world::{Guest, World, WINDOW_PAGES};

/// Pages of which the processor writes each once in a pass of the dirty log: 64 MiB.
const LOGGED_PAGES: u64 = 16384;

/// Page faults of which the exits are counted.
const FAULTS: u64 = 1024;

/// How many of the first flushes are not like those that follow, and how often those are measured.
const FIRST: usize = 8;
const ROUNDS: usize = 16;

/// Pages that L2 has used before the first flushes, 128 MiB, and in how many machines.
const FIRST_PAGES: u64 = 1 << 15;
const MACHINES: usize = 3;

/// A row of the benchmark, which prints its values.
type Row = (&'static str, fn(&str) -> Result<()>);

const ROWS: &[Row] = &[
    ("log-pass", log_pass),
    ("fault-exits", fault_exits),
    ("flush-gigabyte", flush_gigabyte),
    ("flush-first", flush_first),
];

fn print(row: &str, guest: Guest, value: u64) {
    println!("bench: {row} {} {value}", guest.name());
}

fn median(mut samples: Vec<u64>) -> Result<u64> {
    samples.sort_unstable();
    let median = samples.get(samples.len() / 2);
    median.copied().context("too few samples")
}

/// Instructions for each page that a guest writes and that level 0 finds in its log.
fn log_pass(row: &str) -> Result<()> {
    for guest in Guest::BOTH {
        let mut world = World::new(LOGGED_PAGES)?;
        world.sweep(guest, LOGGED_PAGES)?;
        world.log_writes()?;
        let mut passes = Vec::new();
        for _ in 0..4 {
            let begin = world::now();
            world.sweep(guest, LOGGED_PAGES)?;
            let pages = world.logged()?;
            passes.push((world::now() - begin) / LOGGED_PAGES);
            ensure!(
                pages == LOGGED_PAGES,
                "{pages} pages were logged, and not {LOGGED_PAGES}"
            );
        }
        print(row, guest, median(passes.split_off(1))?);
    }
    Ok(())
}

/// Exits to level 0 for a hundred page faults, of pages that nobody has mapped.
fn fault_exits(row: &str) -> Result<()> {
    for guest in Guest::BOTH {
        let mut world = World::new(FAULTS)?;
        if guest == Guest::L2 {
            // L1 has the memory.
            world.sweep(Guest::L1, FAULTS)?;
        }
        let before = world::exits()?;
        world.sweep(guest, FAULTS)?;
        print(row, guest, (world::exits()? - before) * 100 / FAULTS);
    }
    Ok(())
}

/// Instructions for an entry that L1 changes and flushes, and L2's access; and the memory that tables
/// for a gigabyte of small pages take.
fn flush_gigabyte(row: &str) -> Result<()> {
    let mut world = World::new(WINDOW_PAGES)?;
    world.supply_all()?;
    world.sweep_window(Guest::L1, WINDOW_PAGES)?;
    let before = world::free()?;
    world.sweep_window(Guest::L2, WINDOW_PAGES)?;
    let less = before.saturating_sub(world::free()?);
    let samples = flushes(&mut world, FIRST + ROUNDS)?;
    print("tables-gigabyte", Guest::L2, less);
    print(row, Guest::L2, median(samples[FIRST..].to_vec())?);
    Ok(())
}

/// Instructions for the first flushes after L2 has used its memory, together.
///
/// Level 0 has work of its own now and then, which takes more than all of them: they are done in several
/// machines, and of those of the same number one is taken.
fn flush_first(row: &str) -> Result<()> {
    let mut samples = Vec::new();
    for _ in 0..MACHINES {
        let mut world = World::new(WINDOW_PAGES)?;
        world.supply_all()?;
        world.sweep_window(Guest::L1, FIRST_PAGES)?;
        world.sweep_window(Guest::L2, FIRST_PAGES)?;
        let flushes = flushes(&mut world, FIRST)?;
        println!("# {flushes:?}");
        samples.push(flushes);
    }
    let of = |number: usize| samples.iter().map(|samples| samples[number]).collect();
    let medians: Result<Vec<u64>> = (0..FIRST).map(|number| median(of(number))).collect();
    print(row, Guest::L2, medians?.iter().sum());
    Ok(())
}

/// Measures flushes one by one.
fn flushes(world: &mut World, count: usize) -> Result<Vec<u64>> {
    // Who reads what was printed has the same processor.
    thread::sleep(Duration::from_millis(200));
    (0..count).map(|round| world.change(round as u64)).collect()
}

fn run() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    signal::install()?;
    for (name, measure) in ROWS {
        if names.is_empty() || names.iter().any(|other| other == name) {
            measure(name).context(*name)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nested_paging_benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}
