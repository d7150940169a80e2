// SPDX-License-Identifier: GPL-2.0

//! The tests: L2 runs L3 as often as it is told, also while the machine is replaced.

use std::time::Duration;

use anyhow::{bail, ensure, Result};
use selftests::expect;
use selftests::guest::code::DONE;
use selftests::guest::layout::{OTHER_VMCS, SHARED};
use selftests::guest::machine::{self, Interrupts};
use selftests::guest::state::{self, Nested, Pace, Saved, GUEST_MODE};
use selftests::guest::{signal, Level, Machine, Random, Stop, Vendor};
use selftests::tap::{self, Point};

use crate::world::{
    L1_ENTRIES, L1_HALTS, L1_READS, L1_WRITES, L2_ROUNDS, L3_INTERRUPTS, L3_ROUNDS, LIMIT,
    WITH_SHADOW,
};
use crate::{svm, vmx, world, Fixture};

/// The tests for both vendors.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 runs L3 by way of L1", |fixture| runs(fixture, false)),
        Point::new(
            "L2 runs L3 while the machine is replaced at random moments",
            |fixture| moves(fixture, false),
        ),
    ]
}

/// The tests with a shadow VMCS.
pub fn points_with_shadow() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 runs L3 and reads a shadow VMCS", |fixture| {
            runs(fixture, true)
        }),
        Point::new(
            "L2 reads a shadow VMCS while the machine is replaced at random moments",
            |fixture| moves(fixture, true),
        ),
    ]
}

fn machine(fixture: &Fixture, with_shadow: bool, rounds: u64) -> Result<Machine> {
    // The point before may have failed with the alarm set.
    signal::after(Duration::ZERO)?;
    let machine = Machine::new(&fixture.kvm, 1, Interrupts::None)?;
    match machine.vendor {
        Vendor::Svm => {
            machine.start(0, svm::l1)?;
            svm::prepare(&fixture.kvm, &machine)?;
        }
        Vendor::Vmx => {
            machine.start(0, vmx::l1)?;
            vmx::prepare(&fixture.kvm, &machine, with_shadow)?;
        }
    }
    world::prepare(&machine.memory, machine.tables.nested);
    machine.memory.fill(SHARED, 0x100, 0);
    machine.memory.write(LIMIT, rounds);
    machine.memory.write(WITH_SHADOW, u64::from(with_shadow));
    Ok(machine)
}

fn runs(fixture: &Fixture, with_shadow: bool) -> Result<()> {
    let machine = machine(fixture, with_shadow, fixture.rounds)?;
    let memory = machine.memory.clone();
    finish(machine)?;
    expect("the rounds of L2", memory.read(L2_ROUNDS), fixture.rounds)?;
    Ok(())
}

/// Waits until L2 has done its rounds, and compares what the levels have counted.
fn finish(mut machine: Machine) -> Result<()> {
    let message = machine.hear()?;
    let seen = (message.level, message.kind);
    expect("the report", seen, (Level::L2, DONE))?;
    let word = |address: u64| machine.memory.read::<u64>(address);
    let (rounds, halts) = (word(L2_ROUNDS), word(L1_HALTS));
    expect("the rounds of L3", word(L3_ROUNDS), rounds)?;
    expect("what L1 saw L3 halt", halts, rounds / 4)?;
    expect("L1's entries of L3", word(L1_ENTRIES), rounds + halts)?;
    if machine.vendor == Vendor::Svm {
        return Ok(());
    }
    // L2 reads five fields in each round, and two when it tries an illegal state.
    let (refused, injected) = (rounds / 16, word(L3_INTERRUPTS));
    let (first, shared) = vmx::first_writes(&machine.memory);
    let (reads, writes) = match word(WITH_SHADOW) {
        0 => (
            5 * rounds + 2 * refused,
            first + rounds + injected + 2 * refused,
        ),
        _ => (0, first - shared),
    };
    expect("exits of L2 by VMREAD", word(L1_READS), reads)?;
    expect("exits of L2 by VMWRITE", word(L1_WRITES), writes)
}

/// Returns whether L3 is active.
fn in_l3(vendor: Vendor, nested: &Nested) -> bool {
    // SAFETY: The header is that of the vendor, and all bit patterns are values.
    let address = unsafe {
        match vendor {
            Vendor::Svm => (nested.0.hdr.svm.vmcb_pa, svm::OF_L3),
            Vendor::Vmx => (nested.0.hdr.vmx.vmcs12_pa, OTHER_VMCS),
        }
    };
    nested.has(GUEST_MODE) && address.0 == address.1
}

fn moves(fixture: &Fixture, with_shadow: bool) -> Result<()> {
    let (mut pace, mut random) = (Pace::USUAL, Random::new(fixture.seed));
    let mut machine = machine(fixture, with_shadow, u64::MAX)?;
    let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
    let (mut l2, mut l3) = (0, 0);
    for count in 0..fixture.moves {
        signal::after(pace.time(1000 + random.below(9000)))?;
        match machine::run(&mut machine.vcpus[0]) {
            Stop::Interrupted => signal::complete(&mut machine.vcpus[0])?,
            Stop::Said(message) => bail!("unexpected: {:?}", machine::heard(message)?),
            other => bail!("expected L2 to go on, saw {other:?}"),
        }
        let saved = Saved::read(&machine.vcpus[0], &indices)?;
        let in_l3 = in_l3(machine.vendor, &saved.nested);
        pace.count(saved.nested.has(GUEST_MODE));
        l3 += u64::from(in_l3);
        l2 += u64::from(saved.nested.has(GUEST_MODE) && !in_l3);
        let next = machine.again(&fixture.kvm, Interrupts::None)?;
        saved.restore(&next.vcpus[0])?;
        let again = Nested::read(&next.vcpus[0])?;
        if let Some(difference) = saved.nested.differences(&again) {
            bail!("after move {count} the nested state is not what was restored: {difference}");
        }
        machine = next;
    }
    tap::note(format_args!(
        "{} moves: {l2} with L2 active, {l3} with L3 active; {} rounds",
        fixture.moves,
        machine.memory.read::<u64>(L2_ROUNDS)
    ));
    machine.memory.write(LIMIT, 0u64);
    signal::after(Duration::ZERO)?;
    finish(machine)?;
    ensure!(
        l2 != 0 && l3 != 0,
        "no move with L2 active ({l2}), or none with L3 active ({l3})"
    );
    Ok(())
}
