// SPDX-License-Identifier: GPL-2.0

//! INIT from another processor while L2 runs.

use std::arch::asm;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE};
use selftests::expect;
use selftests::guest::code::{peek, report, DONE};
use selftests::guest::driver::driver;
use selftests::guest::layout::VMRUN_ADDRESS;
use selftests::guest::machine::{heard, run, Interrupts, Stop};
use selftests::guest::state::{Nested, GUEST_MODE};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::{signal, Machine};
use selftests::tap::Point;

use crate::guests::{memory_test_endless_l2, LOOPS};
use crate::Fixture;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L1 gets an INIT that it intercepts", intercepted),
        Point::new(
            "an INIT that L1 does not intercept resets the processor",
            taken,
        ),
    ]
}

/// How often the sender looks whether L2 runs, before it does without.
const PATIENCE: u64 = 1 << 25;

/// L1 on the first processor: sends INIT to the second one once L2 runs there.
extern "C" fn sender() -> ! {
    // SAFETY: This is L1.
    unsafe {
        for _ in 0..PATIENCE {
            if peek(LOOPS) >= 1000 {
                break;
            }
        }
        // The interrupt command of the x2APIC: INIT, asserted, to the processor 1.
        asm!("wrmsr", in("ecx") 0x830, in("eax") 0x4500, in("edx") 1, options(nostack));
        loop {
            report(DONE, 0, 0);
        }
    }
}

/// Makes the second of two processors about to run L2: the first would start anew after INIT.
fn machine(fixture: &Fixture) -> Result<Machine> {
    let machine = Machine::new(&fixture.kvm, 2, Interrupts::LocalApic)?;
    for vcpu in &machine.vcpus {
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        sregs.apic_base |= 1 << 10;
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    }
    machine.start(0, sender)?;
    machine.start(1, driver)?;
    // All but the first would wait to be started.
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    machine.vcpus[1]
        .set_mp_state(runnable)
        .context("KVM_SET_MP_STATE")?;
    let memory = &machine.memory;
    memory.write(VMRUN_ADDRESS, selftests::guest::layout::VMCB);
    let l2 = memory_test_endless_l2 as *const () as u64;
    vmcb::write(memory, &machine.tables, l2);
    memory.write(LOOPS, 0u64);
    Ok(machine)
}

/// Runs both processors until the first one has sent INIT; returns what became of the second one.
///
/// The first one ends before the second one is interrupted.
fn both(machine: &mut Machine) -> Result<Stop> {
    let [sender, receiver] = &mut machine.vcpus[..] else {
        bail!("there are not two processors");
    };
    std::thread::scope(|scope| {
        let (send, handle) = std::sync::mpsc::channel();
        let receiving = scope.spawn(move || {
            send.send(signal::Thread::this())?;
            // It is about to execute VMRUN.
            match run(receiver) {
                Stop::Said(message) => heard(message)?,
                other => bail!("the guest stopped: {other:?}"),
            };
            Ok(run(receiver))
        });
        let thread = handle.recv().context("the thread ended")?;
        let sent = match run(sender) {
            Stop::Said(message) => heard(message).map(|message| message.kind),
            other => Err(anyhow::anyhow!("the sender stopped: {other:?}")),
        };
        std::thread::sleep(Duration::from_millis(100));
        thread.interrupt()?;
        let received = receiving.join().ok().context("a thread panicked")?;
        expect("what the sender says", sent?, DONE)?;
        received
    })
}

fn intercepted(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.rounds {
        let mut machine = machine(fixture)?;
        vmcb::set_intercept(&machine.memory, exit::INIT);
        match both(&mut machine)? {
            Stop::Said(message) => heard(message)?,
            other => bail!("expected a report of L1, saw {other:?}"),
        };
        let code = machine.memory.read::<u64>(vmcb::EXIT_CODE);
        expect("the exit of L2", code, exit::INIT)?;
    }
    Ok(())
}

fn taken(fixture: &Fixture) -> Result<()> {
    for _ in 0..fixture.rounds {
        let mut machine = machine(fixture)?;
        expect("KVM_RUN", both(&mut machine)?, Stop::Interrupted)?;
        let vcpu = &machine.vcpus[1];
        let state = vcpu.get_mp_state().context("KVM_GET_MP_STATE")?;
        expect("its state", state.mp_state, KVM_MP_STATE_INIT_RECEIVED)?;
        ensure!(!Nested::read(vcpu)?.has(GUEST_MODE), "L2 is active");
        let efer = vcpu.get_sregs().context("KVM_GET_SREGS")?.efer;
        expect("EFER", efer, 0)?;
    }
    Ok(())
}
