// SPDX-License-Identifier: GPL-2.0

//! Nested states that nobody has saved: KVM may refuse them, or must take them as they are.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use selftests::guest::machine;
use selftests::guest::state::{self, Nested, Saved, FULL, GUEST_MODE, HEADER};
use selftests::guest::{computing, signal, Machine, Random};
use selftests::tap::{self, Point, Skip};

use crate::moving::run_for;
use crate::Fixture;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a state shorter than its header is refused", lengths),
        Point::new("a state that is short of its VMCB is refused", truncated),
        Point::new(
            "a state with one bit of its header changed is refused or given back",
            headers,
        ),
        Point::new(
            "a state with random bytes in its VMCB is refused or given back",
            random_bytes,
        ),
        Point::new("a state whose end is on no page is refused", unmapped),
    ]
}

/// A machine that was stopped while L2 was active, and its state.
struct Stopped {
    machine: Machine,
    saved: Saved,
}

impl Stopped {
    fn new(fixture: &Fixture) -> Result<Self> {
        let mut machine = computing::machine(&fixture.kvm, fixture.seed)?;
        let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
        for _ in 0..1000 {
            run_for(&mut machine, Duration::from_micros(1000))?;
            let saved = Saved::read(&machine.vcpus[0], &indices)?;
            if saved.nested.has(GUEST_MODE) {
                return Ok(Self { machine, saved });
            }
        }
        Err(Skip("L2 was never active when the machine stopped".into()).into())
    }

    /// Offers a state to KVM: it must be refused, or what it is when it is read must be what it is
    /// when that is set and read once more. Returns whether it is accepted.
    fn offer(&self, state: &Nested) -> Result<bool> {
        let vcpu = &self.machine.vcpus[0];
        if vcpu.set_nested_state(&state.0).is_err() {
            return Ok(false);
        }
        let first = Nested::read(vcpu)?;
        ensure!(
            first.0.flags == state.0.flags && first.0.format == state.0.format,
            "flags {:#x} are given back as {:#x}",
            state.0.flags,
            first.0.flags
        );
        if state.has(GUEST_MODE) {
            ensure!(
                first.bytes()[8..16] == state.bytes()[8..16],
                "the address of vmcb12 is not given back"
            );
        }
        vcpu.set_nested_state(&first.0)
            .context("KVM refuses what it has given back")?;
        let second = Nested::read(vcpu)?;
        ensure!(
            first.bytes() == second.bytes(),
            "it is not given back equal: {:?}",
            first.differences(&second)
        );
        Ok(true)
    }

    /// Puts the machine into the state in which it was stopped.
    fn restore(&self) -> Result<()> {
        self.saved
            .restore(&self.machine.vcpus[0])
            .context("restoring the state that was saved")?;
        let seen = Nested::read(&self.machine.vcpus[0])?;
        match self.saved.nested.differences(&seen) {
            None => Ok(()),
            Some(difference) => bail!("the saved state is not given back equal: {difference}"),
        }
    }
}

fn lengths(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    for length in 0..HEADER {
        let mut state = stopped.saved.nested;
        state.0.size = u32::try_from(length)?;
        ensure!(!stopped.offer(&state)?, "{length} bytes are accepted");
    }
    stopped.restore()
}

fn truncated(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    for length in (HEADER..FULL).step_by(61).chain([FULL - 1]) {
        let mut state = stopped.saved.nested;
        state.0.size = u32::try_from(length)?;
        ensure!(!stopped.offer(&state)?, "{length} bytes are accepted");
    }
    stopped.restore()
}

fn headers(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    let mut accepted = 0;
    for bit in 0..24 * 8 {
        // Without a size there is nothing to compare.
        if (32..64).contains(&bit) {
            continue;
        }
        stopped.restore()?;
        let mut state = stopped.saved.nested;
        state.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        let result = stopped.offer(&state);
        accepted += u32::from(result.with_context(|| format!("bit {bit} changed"))?);
    }
    tap::note(format_args!("{accepted} of 160 accepted"));
    stopped.restore()
}

/// Changes bytes of the VMCB: a few, or all of some range.
fn change(state: &mut Nested, random: &mut Random) {
    let vmcb = &mut state.bytes_mut()[HEADER..];
    match random.below(4) {
        // Fields of the areas that are in use.
        0 | 1 => {
            for _ in 0..=random.below(6) {
                let area = if random.below(3) == 0 { 0x400 } else { 0 };
                let offset = area + random.below(if area == 0 { 0x100 } else { 0x298 });
                vmcb[offset as usize] = random.number() as u8;
            }
        }
        2 => {
            let start = random.below(0xe0) as usize;
            let end = start + 1 + random.below(0x20) as usize;
            vmcb[start..end].fill_with(|| random.number() as u8);
        }
        _ => {
            for _ in 0..64 {
                vmcb[random.below(0x1000) as usize] = random.number() as u8;
            }
        }
    }
    // Most of what is left would be refused because of these.
    if random.below(4) != 0 {
        vmcb[0x10] |= 1;
        vmcb[0x58] |= 1;
        vmcb[0x40..0x50].fill(0);
    }
}

fn random_bytes(fixture: &Fixture) -> Result<()> {
    let mut stopped = Stopped::new(fixture)?;
    let mut random = Random::new(fixture.seed);
    let (mut accepted, mut others) = (0, 0);
    for round in 0..fixture.rounds {
        let mut state = stopped.saved.nested;
        change(&mut state, &mut random);
        let result = stopped.offer(&state);
        if result.with_context(|| format!("round {round}"))? {
            accepted += 1;
            // Whatever it does is right, if the kernel survives and the machine can be set again.
            signal::after(Duration::from_micros(300))?;
            let stop = machine::run(&mut stopped.machine.vcpus[0]);
            others += u64::from(stop != machine::Stop::Interrupted);
            // The timer must not hit the next round.
            signal::after(Duration::ZERO)?;
            stopped.machine.vcpus[0].set_kvm_immediate_exit(0);
        }
        if round % 64 == 0 {
            // What a guest on wrong tracks has written must not hide what comes later.
            stopped = Stopped::new(fixture)?;
        } else {
            stopped.saved.restore_others(&stopped.machine.vcpus[0])?;
        }
    }
    tap::note(format_args!(
        "{accepted} of {} accepted, {others} of these stopped by themselves",
        fixture.rounds
    ));
    ensure!(accepted * 10 >= fixture.rounds, "too few were accepted");
    Ok(())
}

fn unmapped(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    let pages = selftests::guest::memory::Guarded::new(&stopped.saved.nested.bytes()[..HEADER])?;
    ensure!(
        !pages.offer(&stopped.machine.vcpus[0]),
        "it is accepted without its VMCB"
    );
    stopped.restore()
}
