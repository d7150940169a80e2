// SPDX-License-Identifier: GPL-2.0

//! A vCPU that moves from machine to machine while L2 computes.

use std::time::Duration;

use anyhow::{bail, ensure, Result};
use selftests::guest::machine::{self, Interrupts};
use selftests::guest::state::{self, Nested, Pace, Saved, GUEST_MODE, RUN_PENDING};
use selftests::guest::{computing, signal, Machine, Random, Stop};
use selftests::tap::{self, Point};

use crate::Fixture;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![Point::new(
        "L2 computes the same while its machine is replaced at random moments",
        moves,
    )]
}

/// Runs L1 and L2 for some time; they may not stop by themselves.
pub fn run_for(machine: &mut Machine, time: Duration) -> Result<()> {
    signal::after(time)?;
    match machine::run(&mut machine.vcpus[0]) {
        Stop::Interrupted => signal::complete(&mut machine.vcpus[0]),
        Stop::Said(message) => bail!(
            "expected L2 to compute on, saw {:?}",
            machine::heard(message)?
        ),
        other => bail!("expected L2 to compute on, saw {other:?}"),
    }
}

fn moves(fixture: &Fixture) -> Result<()> {
    let mut pace = Pace::USUAL;
    let mut random = Random::new(fixture.seed);
    let mut machine = computing::machine(&fixture.kvm, fixture.seed)?;
    let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
    let (mut in_l2, mut pending) = (0, 0);
    let start = std::time::Instant::now();
    for count in 0..fixture.moves {
        // In a new machine L0 begins with mapping all memory, which takes milliseconds under an
        // emulator.
        let time = match random.below(4) {
            0 => 20 + random.below(1500),
            _ => 2000 + random.below(8000),
        };
        run_for(&mut machine, pace.time(time))?;
        let saved = Saved::read(&machine.vcpus[0], &indices)?;
        let active = saved.nested.has(GUEST_MODE);
        pace.count(active);
        in_l2 += u64::from(active);
        pending += u64::from(saved.nested.has(RUN_PENDING));
        let next = Machine::on(
            &fixture.kvm,
            machine.memory.clone(),
            machine.tables,
            1,
            Interrupts::None,
        )?;
        saved.restore(&next.vcpus[0])?;
        let again = Nested::read(&next.vcpus[0])?;
        if let Some(difference) = saved.nested.differences(&again) {
            bail!("after move {count} the nested state is not what was restored: {difference}");
        }
        machine = next;
    }
    let changes = computing::calls(&machine.memory);
    tap::note(format_args!(
        "{} moves in {:.1?} at pace {}: {in_l2} with L2 active, {pending} with the entry pending; L2 called {changes} times",
        fixture.moves,
        start.elapsed(),
        pace.factor()
    ));
    computing::finish(machine, fixture.seed)?;
    let least = (fixture.moves / 4, fixture.moves / 200);
    ensure!(
        in_l2 >= least.0 && pending >= least.1,
        "too few moves with L2 active ({in_l2}) or the entry pending ({pending})"
    );
    Ok(())
}
