// SPDX-License-Identifier: GPL-2.0

//! L2 that waits for an event.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use kvm_bindings::KVM_MP_STATE_HALTED;
use selftests::guest::machine::{run, Stop};
use selftests::guest::signal;
use selftests::guest::state::{Nested, GUEST_MODE};
use selftests::guest::vmcb::{self, exit};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Event, Fixture, Scene, Step, BY_L1, BY_L2, L2_WAS_AT};

guest_code! {
    /// L2: calls L0's user space, waits for an event, and calls L1.
    l2_halts: "out 0xf2, eax", "hlt", "vmmcall", "ud2";
}

/// Where L2 goes on.
const AFTER_HALT: u64 = 3;

/// How long L2 waits: longer than it needs to get there.
const TIME: Duration = Duration::from_millis(20);

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "L2 that is halted goes on after an NMI of its own",
            |fixture| {
                let mut scene = halted(fixture, |_| ())?;
                goes_on(&mut scene)
            },
        ),
        Point::new("L2 that is halted moves and goes on", |fixture| {
            let mut scene = halted(fixture, |_| ())?;
            scene.move_to_new_machine(fixture)?;
            still_halted(&mut scene)?;
            goes_on(&mut scene)
        }),
        Point::new(
            "an NMI that L1 intercepts ends an L2 that is halted",
            |fixture| {
                let intercept = |scene: &Scene| vmcb::set_intercept(scene.memory(), exit::NMI);
                let mut scene = halted(fixture, intercept)?;
                scene.move_to_new_machine(fixture)?;
                scene.raise(Event::Nmi)?;
                scene.exits(exit::NMI, AFTER_HALT)?;
                scene.reach(Step::Set)?;
                expect("NMIs of L2 and L1", nmis(&scene), (0, 1))
            },
        ),
        Point::new(
            "an interrupt that L1 intercepts ends an L2 that is halted",
            |fixture| {
                let intercept = |scene: &Scene| {
                    vmcb::set_intercept(scene.memory(), exit::INTR);
                    scene.set_interrupts(true, true);
                };
                let mut scene = halted(fixture, intercept)?;
                scene.raise(Event::Interrupt)?;
                scene.exits(exit::INTR, AFTER_HALT)?;
                scene.reach(Step::Set)?;
                let interrupts = (scene.word(BY_L2), scene.word(BY_L1));
                expect("interrupts of L2 and L1", interrupts, (0, 1))
            },
        ),
        Point::new("HLT that L1 intercepts does not halt", |fixture| {
            let mut scene = Scene::new(fixture, l2_halts)?;
            vmcb::set_intercept(scene.memory(), exit::HLT);
            scene.reach(Step::Ready)?;
            scene.reach(Step::InL2)?;
            scene.exits(exit::HLT, AFTER_HALT - 1)
        }),
    ]
}

fn nmis(scene: &Scene) -> (u64, u64) {
    (scene.word(BY_L2 + 8), scene.word(BY_L1 + 8))
}

/// Makes a machine of which L2 is halted.
fn halted(fixture: &Fixture, prepare: fn(&Scene)) -> Result<Scene> {
    let mut scene = Scene::new(fixture, l2_halts)?;
    prepare(&scene);
    scene.reach(Step::Ready)?;
    scene.reach(Step::InL2)?;
    still_halted(&mut scene)?;
    Ok(scene)
}

/// Checks that L2 is halted, and stays so.
fn still_halted(scene: &mut Scene) -> Result<()> {
    signal::after(TIME)?;
    let stop = run(&mut scene.machine.vcpus[0]);
    signal::after(Duration::ZERO)?;
    expect("KVM_RUN", stop, Stop::Interrupted)?;
    let vcpu = &scene.machine.vcpus[0];
    ensure!(Nested::read(vcpu)?.has(GUEST_MODE), "L2 is not active");
    let state = vcpu.get_mp_state().context("KVM_GET_MP_STATE")?;
    expect("its state", state.mp_state, KVM_MP_STATE_HALTED)
}

/// Checks that L2 gets an NMI, and then goes on.
fn goes_on(scene: &mut Scene) -> Result<()> {
    scene.raise(Event::Nmi)?;
    scene.exits(exit::VMMCALL, AFTER_HALT)?;
    expect("NMIs of L2 and L1", nmis(scene), (1, 0))?;
    expect("offset of RIP", scene.offset(L2_WAS_AT), AFTER_HALT)
}
