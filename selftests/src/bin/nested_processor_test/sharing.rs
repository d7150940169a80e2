// SPDX-License-Identifier: GPL-2.0

//! Two processors of L1 that run L2 with the same VMCB or VMCS at the same time.
//!
//! The manuals do not say what becomes of L2 then. Level 0, L1 and all other machines must not care.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use kvm_ioctls::VcpuFd;
use selftests::expect;
use selftests::guest::code::DONE;
use selftests::guest::machine::{heard, run, Stop};
use selftests::guest::signal::Thread;
use selftests::guest::{computing, GuestMemory, Random};
use selftests::tap::{self, Point};

use crate::guests::{self, Counts};
use crate::Fixture;

/// How long the processors of a machine share, and at most, where other work keeps L2 from running.
const ROUND: Duration = Duration::from_millis(150);
const LONGEST: Duration = Duration::from_secs(5);

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![Point::new(
        "two processors use one VMCB or VMCS while L2 of another machine computes",
        shared,
    )]
}

fn shared(fixture: &Fixture) -> Result<()> {
    let mut beside = computing::machine(&fixture.kvm, fixture.seed)?;
    let memory = beside.memory.clone();
    let message = thread::scope(|scope| {
        let thread = scope.spawn(|| beside.hear());
        let result = (0..fixture.rounds).try_for_each(|round| {
            ensure!(!thread.is_finished(), "the other machine has stopped");
            share(fixture, fixture.seed + round).with_context(|| format!("round {round}"))
        });
        computing::stop(&memory);
        let message = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        let message = message.context("the other machine")?;
        result.map(|()| message)
    })?;
    expect("the report of the other L1", message.kind, DONE)?;
    tap::note(format_args!(
        "the other L2 called {} times",
        computing::calls(&memory)
    ));
    computing::compare(&memory, fixture.seed).context("the other machine")
}

/// Lets two processors share for some time.
fn share(fixture: &Fixture, seed: u64) -> Result<()> {
    let mut machine = guests::machine(&fixture.kvm, seed)?;
    let memory = machine.memory.clone();
    let mut random = Random::new(seed);
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let (sender, receiver) = mpsc::channel();
        let mut threads = Vec::new();
        for vcpu in &mut machine.vcpus {
            let sender = sender.clone();
            threads.push(scope.spawn(move || {
                let _ = sender.send(Thread::this());
                run_until(vcpu, stop)
            }));
        }
        let ids: Vec<Thread> = receiver.iter().take(threads.len()).collect();
        let start = Instant::now();
        let is_enough = |time| time >= ROUND && (has_run(&memory) || time >= LONGEST);
        while !is_enough(start.elapsed()) {
            thread::sleep(Duration::from_micros(random.below(1000)));
            // Where level 0 has one processor, it may run the other one after that.
            ids[usize::try_from(random.below(2))?].interrupt()?;
        }
        stop.store(true, Ordering::SeqCst);
        while threads.iter().any(|thread| !thread.is_finished()) {
            for id in &ids {
                id.interrupt()?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    check(&memory)
}

/// Runs a vCPU until it is told to stop. What becomes of L2 must not harm L1, whose state the other
/// processor does not change.
fn run_until(vcpu: &mut VcpuFd, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        match run(vcpu) {
            Stop::Interrupted => (),
            Stop::Said(message) => bail!("unexpected: {:?}", heard(message)?),
            other => bail!("expected an outcome for L1, saw {other:?}"),
        }
    }
    Ok(())
}

/// Returns whether L2 has run on each processor.
fn has_run(memory: &GuestMemory) -> bool {
    [0, 1].into_iter().all(|processor| {
        let counts = Counts::read(memory, processor);
        counts.called != 0 && counts.loops != 0
    })
}

fn check(memory: &GuestMemory) -> Result<()> {
    for processor in [0, 1] {
        let counts = Counts::read(memory, processor);
        tap::note(format_args!("processor {processor}: {counts}"));
    }
    ensure!(has_run(memory), "L2 has not run on each processor");
    Ok(())
}
