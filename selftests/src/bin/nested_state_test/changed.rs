// SPDX-License-Identifier: GPL-2.0

//! Nested states of VMX with a changed VMCS.
//!
//! The state that is changed is the same each time, and what becomes of each is printed, a letter
//! for each: all providers must say the same. What one provider refuses when the state is restored,
//! another one may leave to the processor, which refuses to enter L2: that is the same.

use std::ops::Range;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use selftests::expect;
use selftests::guest::layout::{STACK, STACKS, VMX_REGISTERS, VMX_REGISTERS_STEP};
use selftests::guest::machine::{run, Interrupts, Stop};
use selftests::guest::state::{self, Nested, Saved, FULL, GUEST_MODE, HEADER};
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::script::{self, vmlaunch, vmread, Answer};
use selftests::guest::vmx::{field, Operation, VmxMachine};
use selftests::guest::{signal, Random};
use selftests::guest_code;
use selftests::tap::{self, Point};

use crate::vmx::{letter, print};
use crate::Fixture;

guest_code! {
    /// L2: calls user space, which changes its state, and then L1.
    state_test_changed_l2: "out 0x80, al", "vmcall", "ud2";
}

/// Where the registers of L1 are in the VMCS. An L1 on wrong tracks may spin with interrupts off,
/// and Bochs does not interrupt that.
const HOST_STATE: Range<usize> = 584..704;

/// A byte of the secondary controls, and in it PAUSE-loop exiting, which the C code does not offer.
const PAUSE_LOOP: (usize, u8) = (805, 1 << 2);

/// How long L2 may run: more than L0 needs to find that it cannot.
const TIME: Duration = Duration::from_millis(2);

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "states with changed fields of the VMCS are answered",
            fields,
        ),
        Point::new(
            "states with random bytes in their VMCS are answered",
            random_bytes,
        ),
    ]
}

/// A machine that has stopped where L2 calls user space.
struct Stopped {
    machine: VmxMachine,
    saved: Saved,
    /// What L1 executes.
    script: Vec<Operation>,
    /// What is on L1's stack, and where its registers are.
    memory: Vec<(u64, u64)>,
}

impl Stopped {
    fn new(fixture: &Fixture) -> Result<Self> {
        let mut machine = VmxMachine::new(&fixture.kvm, Interrupts::None)?;
        machine.vmxon()?;
        let fields = machine.fields(state_test_changed_l2 as *const () as u64)?;
        let mut script = machine.load(&fields);
        script.extend([vmlaunch(), vmread(field::EXIT_REASON.into())]);
        script::write(machine.memory(), &script);
        let vcpu = &mut machine.machine.vcpus[0];
        signal::after(Duration::from_millis(500))?;
        expect("KVM_RUN", run(vcpu), Stop::Out(0x80, vec![0]))?;
        signal::after(Duration::ZERO)?;
        signal::complete(vcpu)?;
        let saved = Saved::read(vcpu, &state::msrs(&fixture.kvm, vcpu)?)?;
        ensure!(saved.nested.has(GUEST_MODE), "L2 is not active");
        let stack = (STACKS..STACKS + STACK).step_by(8);
        let registers = (VMX_REGISTERS..VMX_REGISTERS + VMX_REGISTERS_STEP).step_by(8);
        let word = |address| (address, machine.memory().read(address));
        let memory = stack.chain(registers).map(word).collect();
        Ok(Self {
            machine,
            saved,
            script,
            memory,
        })
    }

    /// Makes the machine what it was, but for the nested state.
    fn restore(&self) -> Result<()> {
        let memory = self.machine.memory();
        script::write(memory, &self.script);
        for (address, word) in &self.memory {
            memory.write(*address, *word);
        }
        self.saved.restore_others(&self.machine.machine.vcpus[0])
    }

    /// Offers a state to KVM, which must take back what it gives if it accepts; returns a letter.
    fn offer(&mut self, state: &Nested) -> Result<char> {
        let vcpu = &mut self.machine.machine.vcpus[0];
        let answer = vcpu.set_nested_state(&state.0);
        let answer = answer.map_err(|error| error.errno());
        if answer.is_err() {
            return Ok(letter(answer));
        }
        let given = Nested::read(vcpu)?;
        ensure!(
            given.0.flags & GUEST_MODE == state.0.flags & GUEST_MODE,
            "L2 is not active"
        );
        let again = vcpu.set_nested_state(&given.0);
        ensure!(again.is_ok(), "what is given back is refused: {again:?}");
        let host = HEADER + HOST_STATE.start..HEADER + HOST_STATE.end;
        if state.bytes()[host.clone()] != self.saved.nested.bytes()[host] {
            return Ok(letter(answer));
        }
        // Whatever it does is right, if the kernel survives and the machine can be set again.
        signal::after(TIME)?;
        let stop = run(vcpu);
        signal::after(Duration::ZERO)?;
        vcpu.set_kvm_immediate_exit(0);
        let answers = script::answers(self.machine.memory(), self.script.len());
        let refused = Some(&Answer::Done(reason::INVALID_STATE));
        Ok(match stop {
            Stop::Said(_) if answers.last() == refused => letter(Err(libc::EINVAL)),
            _ => letter(answer),
        })
    }
}

/// Offers states that `change` makes of one, and prints what becomes of them.
fn offer_all(
    fixture: &Fixture,
    what: &str,
    rounds: u64,
    mut change: impl FnMut(u64, &mut [u8]),
) -> Result<()> {
    let mut stopped = Stopped::new(fixture)?;
    let mut letters = String::new();
    for round in 0..rounds {
        let mut state = stopped.saved.nested;
        change(round, &mut state.bytes_mut()[HEADER..FULL]);
        let offered = stopped.offer(&state);
        letters.push(offered.with_context(|| format!("round {round}"))?);
        if round % 64 == 63 {
            // What an L2 on wrong tracks has left must not hide what comes later.
            stopped = Stopped::new(fixture)?;
        } else {
            stopped.restore()?;
        }
    }
    let accepted = letters.chars().filter(|letter| *letter == '+').count() as u64;
    tap::note(format_args!("{accepted} of {rounds} accepted"));
    print(what, &letters);
    ensure!(accepted * 20 >= rounds, "too few were accepted");
    Ok(())
}

/// The bytes of the VMCS that have fields.
const FIELDS: u64 = 0x400;

fn fields(fixture: &Fixture) -> Result<()> {
    // Each second byte in turn, so that each field is hit.
    offer_all(fixture, "fields", FIELDS / 2, |round, vmcs| {
        vmcs[2 * round as usize] ^= 1 << (round % 8);
    })
}

fn random_bytes(fixture: &Fixture) -> Result<()> {
    let mut random = Random::new(fixture.seed);
    offer_all(fixture, "random", fixture.rounds, |_, vmcs| {
        for _ in 0..=random.below(3) {
            let (at, byte) = (random.below(FIELDS) as usize, random.number() as u8);
            // With another L1 it is not seen how L2 is refused when it is entered.
            if !HOST_STATE.contains(&at) {
                vmcs[at] = byte;
            }
        }
        vmcs[PAUSE_LOOP.0] &= !PAUSE_LOOP.1;
    })
}
