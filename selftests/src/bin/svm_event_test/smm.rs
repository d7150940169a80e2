// SPDX-License-Identifier: GPL-2.0

//! System-management mode while L2 is active, and what can be done to its state meanwhile.

use anyhow::{ensure, Context, Result};
use selftests::expect;
use selftests::guest::layout::{HOST_SAVE, REGISTERS, VMCB};
use selftests::guest::signal;
use selftests::guest::state::{Nested, GIF_SET, GUEST_MODE};
use selftests::guest::vmcb::{self, exit};
use selftests::tap::Point;

use crate::{l2_calls, Event, Fixture, Scene, Step};

/// EFER in the host-save area.
const SAVED_EFER: u64 = HOST_SAVE + vmcb::EFER - VMCB;

/// CR3 in the host-save area.
const SAVED_CR3: u64 = HOST_SAVE + vmcb::CR3 - VMCB;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 goes on after system-management mode", goes_on),
        Point::new(
            "a machine moves in system-management mode with L2 below it",
            moves,
        ),
        Point::new(
            "no state with L2 is restored in system-management mode",
            refused,
        ),
        Point::new(
            "RSM checks the VMCB again, and shuts down if it is not valid",
            invalid,
        ),
        Point::new(
            "L1 without EFER.SVME in its saved state does not harm the host",
            without_svme,
        ),
        Point::new(
            "L1 with an illegal CR3 in its saved state shuts down at the exit",
            illegal_cr3,
        ),
        Point::new(
            "RSM shuts down if the memory of the VMCB is gone",
            vmcb_gone,
        ),
    ]
}

/// Makes a machine enter system-management mode while L2 is active.
fn in_smm(fixture: &Fixture) -> Result<Scene> {
    let mut scene = Scene::new(fixture, l2_calls)?;
    scene.give_smram()?;
    let memory = scene.memory();
    memory.write(REGISTERS, 0x1234_5678_9abc_def0u64);
    scene.reach(Step::Ready)?;
    scene.reach(Step::InL2)?;
    scene.raise(Event::Smi)?;
    scene.reach(Step::InSmm)?;
    signal::complete(&mut scene.machine.vcpus[0])?;
    let state = Nested::read(&scene.machine.vcpus[0])?;
    ensure!(!state.has(GUEST_MODE), "L2 is active");
    ensure!(!state.has(GIF_SET), "the global interrupt flag is set");
    Ok(scene)
}

/// Checks that L2 gets to its end with the registers that it has had.
fn ends_well(scene: &mut Scene) -> Result<()> {
    scene.exits(exit::VMMCALL, 4)?;
    expect("RBX", scene.word(REGISTERS), 0x1234_5678_9abc_def0)?;
    expect("EXITINTINFO", scene.half(vmcb::EXIT_INT_INFO), 0)?;
    scene.reach(Step::Set)?;
    // L1 is as it was, and can do the same again.
    let memory = scene.memory();
    memory.write(vmcb::RIP, l2_calls as *const () as u64);
    scene.reach(Step::Ready)?;
    scene.reach(Step::InL2)?;
    scene.exits(exit::VMMCALL, 4)
}

fn goes_on(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    ends_well(&mut scene)
}

fn moves(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    scene.move_to_new_machine(fixture)?;
    scene.give_smram()?;
    ends_well(&mut scene)
}

fn refused(fixture: &Fixture) -> Result<()> {
    let mut other = Scene::new(fixture, l2_calls)?;
    other.reach(Step::Ready)?;
    other.reach(Step::InL2)?;
    signal::complete(&mut other.machine.vcpus[0])?;
    let active = Nested::read(&other.machine.vcpus[0])?;
    ensure!(active.has(GUEST_MODE), "L2 is not active");
    let mut scene = in_smm(fixture)?;
    let result = scene.machine.vcpus[0].set_nested_state(&active.0);
    let error = result.err().map(|error| error.errno());
    expect("KVM_SET_NESTED_STATE", error, Some(libc::EINVAL))?;
    ends_well(&mut scene)
}

fn invalid(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    scene.memory().write(vmcb::ASID, 0u32);
    scene.reach(Step::Shutdown)
}

fn without_svme(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    let memory = scene.memory();
    let efer: u64 = memory.read(SAVED_EFER);
    expect(
        "EFER in the host-save area",
        efer,
        scene.machine.tables.efer,
    )?;
    memory.write(SAVED_EFER, efer & !(1 << 12));
    // L2 runs, and exits to an L1 that cannot have run it.
    scene.exits(exit::VMMCALL, 4)?;
    let vcpu = &mut scene.machine.vcpus[0];
    let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    expect("EFER.SVME", sregs.efer >> 12 & 1, 0)?;
    ensure!(!Nested::read(vcpu)?.has(GUEST_MODE), "L2 is active");
    // Its STGI is not defined any more.
    let stopped = scene.next().map(|step| format!("{step:?}"));
    ensure!(stopped.is_err(), "L1 goes on: {stopped:?}");
    Ok(())
}

fn illegal_cr3(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    scene.memory().write(SAVED_CR3, u64::MAX);
    scene.reach(Step::Shutdown)
}

fn vmcb_gone(fixture: &Fixture) -> Result<()> {
    let mut scene = in_smm(fixture)?;
    scene.machine.remove_vmcb()?;
    scene.reach(Step::Shutdown)
}
