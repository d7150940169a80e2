// SPDX-License-Identifier: GPL-2.0

//! The host takes the memory of the tables back.

use std::fs;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use selftests::tap::{self, Point, Skip};

use crate::run::Plan;
use crate::world::World;
use crate::{edit, Fixture, ROOTS};

/// Where our modules keep the counters of VMs.
const COUNTERS: &str = "/sys/kernel/debug/nested";

/// Where the kernel has its shrinkers, if it was configured to show them.
const SHRINKERS: &str = "/sys/kernel/debug/shrinker";

/// How often the kernel is asked to shrink caches before that must have had an effect: what it does not
/// ask a shrinker for at once, it adds up.
const ATTEMPTS: u32 = 64;

/// Returns what can be done with our shrinker, if it can be seen.
fn shrinker(file: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(SHRINKERS).ok()?;
    let ours = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("/nested-kvm-"))?;
    Some(ours.join(file))
}

/// Asks our shrinker for pages, or all shrinkers if ours cannot be seen.
pub fn shrink(pages: u32) -> Result<()> {
    const ALL: &str = "/proc/sys/vm/drop_caches";

    match shrinker("scan") {
        // Of no memory cgroup, at the first node.
        Some(file) => fs::write(&file, format!("0 0 {pages}")).context("asking our shrinker"),
        // The first number makes the kernel say nothing about the next.
        None => ["4", "2"]
            .into_iter()
            .try_for_each(|number| fs::write(ALL, number))
            .context(ALL),
    }
}

/// Returns a counter of the tables of this process's VM.
pub fn counter(name: &str) -> Result<u64> {
    let own = format!("{}-", std::process::id());
    let Ok(entries) = fs::read_dir(COUNTERS) else {
        return Err(Skip("our module is not loaded".into()).into());
    };
    let names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let vms: Vec<&String> = names.iter().filter(|name| name.starts_with(&own)).collect();
    let [vm] = vms[..] else {
        anyhow::bail!("expected one VM of this process, saw {names:?}");
    };
    let text = fs::read_to_string(format!("{COUNTERS}/{vm}/mmu"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("no counter {name} in {text:?}"))?;
    Ok(line.parse()?)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![Point::new(
        "L2 sees the same when the host has taken the memory of tables back",
        taken_back,
    )]
}

fn taken_back(fixture: &Fixture) -> Result<()> {
    let (world, mut vcpus) = World::new(&fixture.kvm, 2, 4, ROOTS)?;
    counter("pages_given_back")?;
    let plan = Plan {
        batches: fixture.rounds / 2,
        seed: fixture.seed,
        work: edit,
        host: |host, random| host.shrink(random),
    };
    world.carry_out(&mut vcpus, plan)?;
    let while_running = counter("pages_given_back")?;
    ensure!(
        while_running > 0 && counter("evictions")? > 0,
        "no tables were given back while L2 ran"
    );

    // Nobody runs now, and there are tables whatever was given back last.
    let fill = |vcpus: &mut [_], number| {
        let plan = Plan {
            seed: plan.seed + number,
            host: |_, _| Ok(()),
            ..plan
        };
        world.carry_out(vcpus, plan)
    };
    fill(&mut vcpus, 1)?;
    for _ in 0..ATTEMPTS {
        shrink(1024)?;
    }
    let given = counter("pages_given_back")?;
    ensure!(
        given > while_running,
        "no pages were given back while L2 did not run"
    );
    let mapped = counter("mapped")?;
    fill(&mut vcpus, 2)?;
    ensure!(
        counter("mapped")? > mapped,
        "L2 has had no fault since its tables were dropped"
    );
    tap::note(format_args!(
        "given back: {while_running} pages while L2 ran, then {}",
        given - while_running
    ));
    Ok(())
}
