// SPDX-License-Identifier: GPL-2.0

//! A vCPU that moves between KVM's own nested code and our module while L2 computes.

use anyhow::{ensure, Context, Result};
use selftests::expect;
use selftests::guest::machine::Interrupts;
use selftests::guest::state::{self, Nested, Pace, Saved, GUEST_MODE};
use selftests::guest::{computing, Machine, Random};
use selftests::provider::Ours;
use selftests::tap::{self, Point};

use crate::moving::run_for;
use crate::Fixture;

/// How often the machine moves with L2 active.
const ENOUGH: u32 = 20;

/// How often it moves at most.
const MOVES: u32 = 160;

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
    let mut pace = Pace::USUAL;
    let mut random = Random::new(fixture.seed);
    let mut machine = computing::machine(&fixture.kvm, fixture.seed)?;
    let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
    let (mut in_l2, mut count) = (0, 0);
    while in_l2 < ENOUGH {
        ensure!(count < MOVES, "too few moves with L2 active ({in_l2})");
        count += 1;
        run_for(&mut machine, pace.time(2000 + random.below(4000)))?;
        let saved = Saved::read(&machine.vcpus[0], &indices)?;
        let active = saved.nested.has(GUEST_MODE);
        pace.count(active);
        in_l2 += u32::from(active);
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
    tap::note(format_args!("{in_l2} of {count} moves with L2 active"));
    computing::finish(machine, fixture.seed)
}
