// SPDX-License-Identifier: GPL-2.0

//! The tracepoint of what the tables do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};
use selftests::tap::Point;

use crate::run::Plan;
use crate::shrink::counter;
use crate::world::World;
use crate::{edit, Fixture, ROOTS};

/// Where the kernel expects its traces.
const TRACING: &str = "/sys/kernel/tracing";

/// What is counted and traced.
const EVENTS: [&str; 2] = ["mapped", "refused"];

/// A trace of its own, of our tracepoint, as long as this exists.
struct Trace(PathBuf);

impl Trace {
    fn begin() -> Result<Self> {
        mount("tracefs", TRACING, "tracefs", MountFlags::empty(), None).context("tracefs")?;
        let this = Self(Path::new(TRACING).join("instances/nested_tables_test"));
        fs::create_dir(&this.0).context("a trace of our own")?;
        let filter = EVENTS
            .map(|name| format!("event == \"{name}\""))
            .join(" || ");
        let event = this.0.join("events/nested/nested_mmu");
        fs::write(event.join("filter"), filter).context("nested_mmu/filter")?;
        fs::write(event.join("enable"), "1").context("nested_mmu/enable")?;
        Ok(this)
    }

    fn read(&self) -> Result<String> {
        fs::write(self.0.join("tracing_on"), "0")?;
        Ok(fs::read_to_string(self.0.join("trace"))?)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
        let _ = unmount(TRACING, UnmountFlags::empty());
    }
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![Point::new("the trace has what is counted", traced)]
}

fn traced(fixture: &Fixture) -> Result<()> {
    let (world, mut vcpus) = World::new(&fixture.kvm, 1, 2, ROOTS)?;
    let [mapped, refused] = EVENTS;
    let before = [counter(mapped)?, counter(refused)?];
    let trace = Trace::begin()?;
    let plan = Plan {
        batches: 1 + fixture.rounds / 16,
        seed: fixture.seed,
        work: edit,
        host: |_, _| Ok(()),
    };
    world.carry_out(&mut vcpus, plan)?;
    let text = trace.read()?;
    let owner = std::process::id();
    for (name, before) in EVENTS.into_iter().zip(before) {
        let counted = counter(name)? - before;
        let line = format!(" nested_mmu: owner {owner} {name} count 1 l2_gpa 0x");
        let traced = text.lines().filter(|text| text.contains(&line)).count();
        ensure!(
            counted > 0 && traced as u64 == counted,
            "{name}: {counted} counted, {traced} traced"
        );
    }
    Ok(())
}
