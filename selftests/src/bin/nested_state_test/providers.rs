// SPDX-License-Identifier: GPL-2.0

//! A vCPU that moves between KVM's own nested code and our module while L2 computes.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use selftests::expect;
use selftests::guest::machine::Interrupts;
use selftests::guest::state::{self, Nested, Saved, GUEST_MODE};
use selftests::guest::{Machine, Random};
use selftests::provider::Ours;
use selftests::tap::{self, Point};

use crate::moving::{computing, finish, run_for};
use crate::Fixture;

/// How often the machine moves.
const MOVES: u64 = 40;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![Point::new(
        "L2 computes the same while our module comes and goes between its machines",
        moves,
    )]
}

fn moves(fixture: &Fixture) -> Result<()> {
    let path = fixture.module.as_deref();
    let path = path.context("it is not said where our module is")?;
    let ours = Ours::find(&fixture.kvm, path)?;
    let result = with(fixture, &ours);
    // The next tests are for our module.
    ours.put_in()?;
    result
}

fn with(fixture: &Fixture, ours: &Ours) -> Result<()> {
    let mut random = Random::new(fixture.seed);
    let mut machine = computing(fixture)?;
    let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
    let mut in_l2 = 0;
    for count in 0..MOVES {
        run_for(
            &mut machine,
            Duration::from_micros(2000 + random.below(4000)),
        )?;
        let saved = Saved::read(&machine.vcpus[0], &indices)?;
        in_l2 += u64::from(saved.nested.has(GUEST_MODE));
        let (memory, tables) = (machine.memory.clone(), machine.tables);
        // The module cannot go while a machine uses it.
        drop(machine);
        ours.toggle()?;
        machine = Machine::on(&fixture.kvm, memory, tables, 1, Interrupts::None)?;
        saved.restore(&machine.vcpus[0])?;
        let again = Nested::read(&machine.vcpus[0])?;
        let difference = saved.nested.differences(&again);
        expect(
            format_args!("difference of the state after move {count}"),
            difference,
            None,
        )?;
    }
    tap::note(format_args!("{in_l2} of {MOVES} moves with L2 active"));
    finish(fixture, machine)?;
    ensure!(in_l2 >= MOVES / 4, "too few moves with L2 active ({in_l2})");
    Ok(())
}
