// SPDX-License-Identifier: GPL-2.0

//! A hundred rounds of insmod and rmmod leave nothing behind.

use std::time::Instant;

use anyhow::{ensure, Result};
use rustix::event::{eventfd, EventfdFlags};
use selftests::figures::Figures;
use selftests::tap::{note, Point};

use crate::host::Host;

/// Rounds before the figures are read: what is allocated once is there then.
const WARM_UP: u32 = 5;

/// Rounds of insmod and rmmod between the two readings.
const ROUNDS: u32 = 100;

/// Rounds of something else, which leaves less to be missed.
const FEWER: u32 = 50;

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let ours = host.names().ours_file;
    vec![
        Point::new(
            "the figures show a leak of one object a round",
            figures_show_a_leak,
        ),
        Point::new(
            format!("{ROUNDS} rounds of insmod and rmmod of {ours} leak nothing"),
            rounds,
        ),
        Point::new(
            format!("{FEWER} insmods of {ours} that are refused leak nothing"),
            refused_rounds,
        ),
        Point::new(format!("{FEWER} VMs with {ours} leak nothing"), vms),
    ]
}

/// Returns what grows during the rounds.
///
/// A count that grows by three quarters of them is a leak of an object a round: what else goes on in
/// the kernel changes the counts by a few, in both directions.
fn growth(rounds: u32, mut round: impl FnMut() -> Result<()>) -> Result<Vec<String>> {
    let least = i64::from(rounds) * 3 / 4;
    for _ in 0..WARM_UP {
        round()?;
    }
    // The first reading fills caches, too.
    Figures::read()?;
    let before = Figures::read()?;
    let start = Instant::now();
    for number in 1..=rounds {
        round()?;
        if number % 25 == 0 {
            note(format_args!(
                "round {number}, {} s",
                start.elapsed().as_secs()
            ));
        }
    }
    let after = Figures::read()?;
    let noise = after.growth(&before, least / 5);
    if !noise.is_empty() {
        note(format_args!("more than before: {}", noise.join(", ")));
    }
    Ok(after.growth(&before, least))
}

fn nothing_grows(rounds: u32, round: impl FnMut() -> Result<()>) -> Result<()> {
    let growth = growth(rounds, round)?;
    ensure!(
        growth.is_empty(),
        "after {rounds} rounds: expected the same figures, saw\n{}",
        growth.join("\n")
    );
    Ok(())
}

/// Proves the measure on objects that are kept: an event counter is one small object.
fn figures_show_a_leak(_: &Host) -> Result<()> {
    let mut kept = Vec::new();
    let growth = growth(FEWER, || {
        kept.push(eventfd(0, EventfdFlags::empty())?);
        Ok(())
    })?;
    // A file, an inode or a directory entry would not do: the smallest caches are the hardest.
    let found = growth
        .iter()
        .any(|line| line.starts_with("objects of kmalloc"));
    ensure!(
        found,
        "{} event counters: expected a kmalloc cache to grow, saw {growth:?}",
        kept.len()
    );
    Ok(())
}

fn rounds(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    nothing_grows(ROUNDS, || {
        host.attach()?;
        host.detach()
    })
}

fn refused_rounds(host: &Host) -> Result<()> {
    host.load_kvm("nested=0")?;
    nothing_grows(FEWER, || {
        let refused = host.insert_ours()?.is_err();
        selftests::expect("insmod is refused", refused, true)
    })
}

fn vms(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    nothing_grows(FEWER, || host.vm_runs())
}
