// SPDX-License-Identifier: GPL-2.0

//! Machines and processors that are ended or reset while L2 runs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE};
use selftests::expect;
use selftests::guest::machine::{run, Interrupts, Stop};
use selftests::guest::state::{Nested, GUEST_MODE};
use selftests::guest::{signal, Machine, Vendor};
use selftests::tap::Point;

use crate::guests::{self, runner_of, Kind, LOOPS, RUNS};
use crate::Fixture;

/// The argument of the program that makes it a machine to be killed.
pub const CHILD: &str = "child";

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a process is killed while L2 runs", killed),
        Point::new("a machine is closed while L2 is active", closed),
        Point::new("two machines run their L2 in turns", side_by_side),
        Point::new(
            "a closed vCPU of which L2 is active leaves the machine usable",
            vcpu_first,
        ),
        Point::new(
            "KVM_SET_SREGS switches the extension off while L2 is active",
            switched_off,
        ),
        Point::new("a processor gets INIT while L2 is active", init),
        Point::new(
            "L1 starts anew by registers and nested state while L2 is active",
            anew,
        ),
    ]
}

/// Runs a machine whose L2 does not end, and says when L2 runs.
pub fn child(kvm: &kvm_ioctls::Kvm) -> ExitCode {
    let result =
        guests::build(kvm, Kind::Endless, 1, Interrupts::None, 1).and_then(|mut machine| {
            in_l2(&mut machine)?;
            println!("L2 runs");
            std::io::stdout().flush()?;
            bail!("{:?}", run(&mut machine.vcpus[0]))
        });
    if let Err(error) = &result {
        println!("{error:#}");
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs a machine until it has been stopped while L2 is active.
fn in_l2(machine: &mut Machine) -> Result<()> {
    for _ in 0..200 {
        signal::after(Duration::from_millis(5))?;
        expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::Interrupted)?;
        let active = Nested::read(&machine.vcpus[0])?.has(GUEST_MODE);
        if active && machine.memory.read::<u64>(LOOPS) != 0 {
            return Ok(());
        }
    }
    bail!("L2 does not run")
}

fn machine(fixture: &Fixture, interrupts: Interrupts) -> Result<Machine> {
    let mut machine = guests::machine(fixture, Kind::Endless, 1, interrupts)?;
    in_l2(&mut machine)?;
    Ok(machine)
}

fn killed(fixture: &Fixture) -> Result<()> {
    for count in 0..fixture.kills {
        let mut child = Command::new("/proc/self/exe")
            .arg(CHILD)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting this program")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        std::thread::sleep(Duration::from_micros(500 * (count % 8)));
        let end = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        expect("what the child says", line.trim_end(), "L2 runs")?;
        ensure!(end.is_none(), "the child ended by itself");
    }
    Ok(())
}

fn closed(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.kills {
        drop(machine(fixture, Interrupts::None)?);
    }
    Ok(())
}

/// How often a machine may run without progress of its L2.
const TURNS: u32 = 100;

fn side_by_side(fixture: &Fixture) -> Result<()> {
    let mut machines = [
        machine(fixture, Interrupts::None)?,
        machine(fixture, Interrupts::None)?,
    ];
    for _ in 0..fixture.kills {
        for machine in &mut machines {
            let before = machine.memory.read::<u64>(LOOPS);
            // On a busy host, the signal may come before L2 does anything.
            let mut turns = 0;
            while machine.memory.read::<u64>(LOOPS) <= before {
                ensure!(turns < TURNS, "L2 has not gone on: {before}");
                signal::after(Duration::from_millis(2))?;
                expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::Interrupted)?;
                ensure!(
                    Nested::read(&machine.vcpus[0])?.has(GUEST_MODE),
                    "L2 is not active"
                );
                turns += 1;
            }
        }
    }
    // One goes on when the other one is gone.
    let [first, mut second] = machines;
    drop(first);
    in_l2(&mut second).context("after the end of the other machine")
}

fn vcpu_first(fixture: &Fixture) -> Result<()> {
    let mut machine = machine(fixture, Interrupts::None)?;
    machine.vcpus.clear();
    let vcpu = machine.vm.create_vcpu(1).context("KVM_CREATE_VCPU")?;
    vcpu.get_regs().context("KVM_GET_REGS")?;
    Ok(())
}

/// Checks that L1 can start again, and L2 with it.
fn usable(machine: &mut Machine) -> Result<()> {
    let memory = machine.memory.clone();
    memory.fill(RUNS, 16, 0);
    machine.start(0, runner_of(machine.vendor))?;
    in_l2(machine).context("after the reset")
}

fn switched_off(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.rounds {
        let mut machine = machine(fixture, Interrupts::None)?;
        let mut sregs = machine.vcpus[0].get_sregs()?;
        match machine.vendor {
            Vendor::Svm => sregs.efer &= !(1 << 12),
            Vendor::Vmx => sregs.cr4 &= !(1 << 13),
        }
        let result = machine.vcpus[0].set_sregs(&sregs);
        if machine.vendor == Vendor::Vmx {
            // CR4.VMXE is fixed in VMX operation.
            ensure!(result.is_err(), "CR4.VMXE is cleared in VMX operation");
            let state = Nested::read(&machine.vcpus[0])?;
            ensure!(state.has(GUEST_MODE), "L2 is not active any more");
            in_l2(&mut machine).context("after what was refused")?;
            continue;
        }
        result.context("KVM_SET_SREGS")?;
        let state = Nested::read(&machine.vcpus[0])?;
        ensure!(!state.has(GUEST_MODE), "L2 is active without EFER.SVME");
        // It goes on where L2 was, as L1.
        signal::after(Duration::from_millis(1))?;
        let _ = run(&mut machine.vcpus[0]);
        signal::after(Duration::ZERO)?;
        machine.vcpus[0].set_kvm_immediate_exit(0);
        let state = Nested::read(&machine.vcpus[0])?;
        ensure!(!state.has(GUEST_MODE), "L2 is active again");
        usable(&mut machine)?;
    }
    Ok(())
}

fn init(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.rounds {
        let mut machine = machine(fixture, Interrupts::LocalApic)?;
        let state = |mp_state| kvm_mp_state { mp_state };
        // Some states are refused while INIT is blocked; that is all right.
        let _ = machine.vcpus[0].set_mp_state(state(KVM_MP_STATE_INIT_RECEIVED));
        signal::after(Duration::from_millis(2))?;
        let _ = run(&mut machine.vcpus[0]);
        signal::after(Duration::ZERO)?;
        machine.vcpus[0].set_kvm_immediate_exit(0);
        let result = machine.vcpus[0].set_mp_state(state(KVM_MP_STATE_RUNNABLE));
        result.context("KVM_SET_MP_STATE")?;
        leave(&machine)?;
        usable(&mut machine)?;
    }
    Ok(())
}

/// Ends L2 by a nested state without it.
fn leave(machine: &Machine) -> Result<()> {
    let state = Nested::read(&machine.vcpus[0])?.off();
    let vcpu = &machine.vcpus[0];
    vcpu.set_nested_state(&state.0)
        .context("KVM_SET_NESTED_STATE")
}

fn anew(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.rounds {
        let mut machine = machine(fixture, Interrupts::None)?;
        leave(&machine)?;
        usable(&mut machine)?;
    }
    Ok(())
}
