// SPDX-License-Identifier: GPL-2.0

//! Processors of L1 whose threads move from one processor of level 0 to the other.

use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};
use rustix::thread::{gettid, sched_getaffinity, sched_setaffinity, CpuSet, Pid};
use selftests::guest::{computing, GuestMemory, Random};
use selftests::tap::{self, Point, Skip};

use crate::Fixture;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "L2 computes the same while its thread moves between processors of level 0",
            |fixture| moved(fixture, 1),
        ),
        Point::new(
            "the L2s of two machines compute the same while their threads move",
            |fixture| moved(fixture, 2),
        ),
    ]
}

/// Returns the processors on which this thread may run.
fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

/// Lets a thread run on one processor only.
fn move_to(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(Some(thread), &set).context("sched_setaffinity")
}

/// Returns the processor on which a thread of this process has run last.
fn processor_of(thread: Pid) -> Result<usize> {
    let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let text = std::fs::read_to_string(path)?;
    // The fields behind the name, which may contain spaces, begin with the third one.
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    let field = fields.split_whitespace().nth(36);
    field.context("stat is too short")?.parse().context("stat")
}

fn moved(fixture: &Fixture, count: u64) -> Result<()> {
    let cpus = allowed()?;
    if cpus.len() < 2 {
        return Err(Skip("level 0 has one processor".into()).into());
    }
    let seeds: Vec<u64> = (0..count).map(|number| fixture.seed + number).collect();
    let mut machines = Vec::new();
    for seed in &seeds {
        machines.push(computing::machine(&fixture.kvm, *seed)?);
    }
    let memories: Vec<_> = machines.iter().map(|m| m.memory.clone()).collect();
    let seen = thread::scope(|scope| -> Result<u64> {
        let (sender, receiver) = mpsc::channel();
        let mut threads = Vec::new();
        let mut ids = Vec::new();
        for machine in &mut machines {
            let sender = sender.clone();
            threads.push(scope.spawn(move || {
                let _ = sender.send(gettid());
                computing::hear(machine)
            }));
            ids.push(receiver.recv()?);
        }
        let result = move_about(fixture, &ids, &cpus, &memories);
        memories.iter().for_each(|memory| computing::stop(memory));
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        result
    })?;
    let calls: Vec<u64> = memories.iter().map(|m| computing::calls(m)).collect();
    tap::note(format_args!(
        "{seen} moves from another processor; L2 called {calls:?} times"
    ));
    for (memory, seed) in memories.iter().zip(&seeds) {
        computing::compare(memory, *seed)?;
    }
    ensure!(
        seen >= fixture.moves / 4 && has_run(fixture, &memories),
        "too few moves from another processor, or too few calls of L2"
    );
    Ok(())
}

/// Returns whether each L2 has run often enough.
fn has_run(fixture: &Fixture, memories: &[Arc<GuestMemory>]) -> bool {
    let least = fixture.moves / 4;
    memories
        .iter()
        .all(|memory| computing::calls(memory) >= least)
}

/// Moves threads at random; returns how often they were on another processor before. Where other
/// work keeps L2 from running, there are more moves.
fn move_about(
    fixture: &Fixture,
    threads: &[Pid],
    cpus: &[usize],
    memories: &[Arc<GuestMemory>],
) -> Result<u64> {
    let mut random = Random::new(fixture.seed);
    let mut seen = 0;
    for number in 0..16 * fixture.moves {
        if number >= fixture.moves && has_run(fixture, memories) {
            break;
        }
        let thread = threads[usize::try_from(random.below(threads.len() as u64))?];
        let cpu = cpus[usize::try_from(random.below(cpus.len() as u64))?];
        seen += u64::from(processor_of(thread)? != cpu);
        move_to(thread, cpu)?;
        thread::sleep(Duration::from_micros(random.below(3000)));
    }
    Ok(seen)
}
