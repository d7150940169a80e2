// SPDX-License-Identifier: GPL-2.0

//! Timers of L1 that end L2: that of its local APIC, and the VMX-preemption timer.

use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::Kvm;
use selftests::guest::vmx::control::{exit, pin, primary};
use selftests::guest::vmx::{field, Capabilities, Fields};
use selftests::tap::Point;

use crate::world::{
    in_order, Code, Exit, Scene, Wish, AFTER, BEFORE, DEADLINE, FAR, FIRST, SECOND,
};

/// Ticks of L1's TSC until its timer goes off: more than it takes to enter L2, on a machine that has
/// nothing else to do, and on busy ones.
const AHEAD: [u64; 4] = [20_000_000, 80_000_000, 320_000_000, 1_280_000_000];

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    vec![
        Point::new("a deadline of L1 ends L2 by L1's own TSC", deadline),
        Point::new(
            "a deadline of L1 does not end L2 whose TSC has passed it",
            far_deadline,
        ),
    ]
}

/// The tests of VMX.
pub fn points_of_vmx() -> Vec<Point<Kvm>> {
    vec![
        Point::new(
            "the preemption timer counts L1's TSC by the rate that it has",
            runs_out,
        ),
        Point::new(
            "what is left of the preemption timer is what has not passed",
            is_left,
        ),
    ]
}

fn of_interrupts(code: Code, offset: u64) -> Wish {
    Wish {
        interrupts: true,
        ..Wish::new(code, offset)
    }
}

fn deadline(kvm: &Kvm) -> Result<()> {
    for offset in [0, FAR, FAR.wrapping_neg()] {
        let scene = interrupted(kvm, offset)?;
        in_order(&[
            ("L1 before the entry", scene.noted(BEFORE)),
            ("L2", scene.noted(SECOND).wrapping_sub(offset)),
            ("L1 after the exit", scene.noted(AFTER)),
        ])
        .and_then(|()| {
            in_order(&[
                ("the deadline", scene.noted(DEADLINE)),
                ("L1 after the exit", scene.noted(AFTER)),
            ])
        })
        .with_context(|| format!("offset of L2 {offset:#x}"))?;
    }
    Ok(())
}

/// Lets the deadline end L2 after it has read its time.
fn interrupted(kvm: &Kvm, offset: u64) -> Result<Scene> {
    for ahead in AHEAD {
        let mut scene = Scene::new(kvm, &of_interrupts(Code::Spin, offset))?;
        scene.set_time(3 * FAR)?;
        scene.set_timer(ahead);
        scene.until_exit(Exit::Interrupt)?;
        if scene.noted(SECOND) != 0 {
            return Ok(scene);
        }
    }
    bail!("the timer ends L2 before it begins, whatever it is set to")
}

fn far_deadline(kvm: &Kvm) -> Result<()> {
    let mut scene = Scene::new(kvm, &of_interrupts(Code::Work, 2 * FAR))?;
    scene.set_timer(FAR);
    scene.until_exit(Exit::Call)?;
    let (first, deadline) = (scene.noted(FIRST), scene.noted(DEADLINE));
    ensure!(
        scene.noted(AFTER) < deadline && deadline < first,
        "L2 has read {first:#x}, and the deadline was {deadline:#x}"
    );
    Ok(())
}

/// How many times the timer counts before it runs out.
const COUNTS: u64 = 100_000;

/// How many times it would count before it would run out.
const MANY: u64 = 0x7fff_0000;

/// Adds the timer to a VMCS.
fn timer(fields: &mut Fields, counts: u64) {
    // L2's own time does not matter.
    fields.set(field::PRIMARY, primary::TSC_OFFSETTING);
    fields.set(field::PIN, pin::PREEMPTION_TIMER);
    fields.put(field::PREEMPTION_TIMER, counts);
}

/// Returns how many ticks of L1's TSC the timer takes to count by one.
fn ticks(kvm: &Kvm) -> Result<u64> {
    Ok(1 << (Capabilities::read(kvm)?.misc & 0x1f))
}

fn runs_out(kvm: &Kvm) -> Result<()> {
    let wish = Wish {
        vmcs: |fields| timer(fields, COUNTS),
        ..Wish::new(Code::Spin, FAR)
    };
    let mut scene = Scene::new(kvm, &wish)?;
    let least = (COUNTS - 1) * ticks(kvm)?;
    let mut shortest = u64::MAX;
    for _ in 0..4 {
        scene.until_exit(Exit::Timer)?;
        let passed = scene.noted(AFTER).wrapping_sub(scene.noted(BEFORE));
        ensure!(passed >= least, "after {passed} ticks, and not {least}");
        shortest = shortest.min(passed);
    }
    // L0 may be late, but not each time.
    ensure!(
        shortest < 4 * least,
        "after {shortest} ticks, and not {least}"
    );
    Ok(())
}

fn is_left(kvm: &Kvm) -> Result<()> {
    let wish = Wish {
        vmcs: |fields| {
            timer(fields, MANY);
            fields.set(field::EXIT, exit::SAVE_TIMER);
        },
        ..Wish::new(Code::Work, FAR)
    };
    let mut scene = Scene::new(kvm, &wish)?;
    let ticks = ticks(kvm)?;
    scene.until_exit(Exit::Call)?;
    let between =
        |first: u64, last: u64| scene.noted(last).wrapping_sub(scene.noted(first)) / ticks;
    let (least, most) = (between(FIRST, SECOND), between(BEFORE, AFTER));
    let left = scene.timer_left()?;
    let counted = MANY.wrapping_sub(left);
    // The borders of a count at both ends.
    ensure!(
        (least.saturating_sub(1)..=most + 1).contains(&counted),
        "it has counted {counted}, in {least} to {most}"
    );
    Ok(())
}
