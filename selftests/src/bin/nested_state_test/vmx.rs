// SPDX-License-Identifier: GPL-2.0

//! Nested states of VMX: in each state of VMX operation, and states that nobody has saved.
//!
//! What KVM answers to the latter is printed, a letter for each: all providers must answer the same.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use selftests::expect;
use selftests::guest::layout::{OTHER_VMCS, VMCS, VMXON_REGION};
use selftests::guest::machine::Interrupts;
use selftests::guest::memory::Guarded;
use selftests::guest::state::{self, Nested, Saved, FULL, GUEST_MODE, HEADER, MOST, RUN_PENDING};
use selftests::guest::vmx::script::{vmclear, vmptrld, vmptrst, vmread, vmwrite, vmxoff, Answer};
use selftests::guest::vmx::{field, VmxMachine};
use selftests::guest::{computing, Machine};
use selftests::tap::{self, Point, Skip};

use crate::moving::run_for;
use crate::Fixture;

/// No address.
const NOWHERE: u64 = u64::MAX;

/// The field that shows whether a VMCS is the one that was saved.
const MARK: u64 = field::GUEST_RSP as u64;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "the state outside of VMX operation is empty, and is restored",
            off,
        ),
        Point::new(
            "the state in VMX operation has its region, and is restored",
            root,
        ),
        Point::new(
            "the state with a current VMCS has it, and is restored",
            current,
        ),
        Point::new("states of all lengths are answered", lengths),
        Point::new(
            "states with one bit of their header changed are answered",
            headers,
        ),
        Point::new("a state whose end is on no page is refused", unmapped),
    ]
}

/// Checks the header of the state.
fn header(machine: &VmxMachine, region: u64, vmcs: u64, size: usize) -> Result<Nested> {
    let state = Nested::read(&machine.machine.vcpus[0])?;
    // SAFETY: All bit patterns are values.
    let seen = unsafe { state.0.hdr.vmx };
    expect("format", state.0.format, 0)?;
    expect("address of the region", seen.vmxon_pa, region)?;
    expect("address of the VMCS", seen.vmcs12_pa, vmcs)?;
    expect("flags of system-management mode", seen.smm.flags, 0)?;
    expect("size", state.0.size as usize, size)?;
    Ok(state)
}

fn off(fixture: &Fixture) -> Result<()> {
    let mut machine = VmxMachine::new(&fixture.kvm, Interrupts::None)?;
    expect(
        "flags",
        header(&machine, NOWHERE, NOWHERE, HEADER)?.0.flags,
        0,
    )?;
    machine.replace(&fixture.kvm)?;
    expect(
        "VMPTRST",
        machine.answer(vmptrst())?,
        Answer::Exception(6, 0),
    )?;
    machine.vmxon()?;
    expect("VMXOFF", machine.answer(vmxoff())?, Answer::Done(0))?;
    header(&machine, NOWHERE, NOWHERE, HEADER)?;
    Ok(())
}

fn root(fixture: &Fixture) -> Result<()> {
    let mut machine = VmxMachine::new(&fixture.kvm, Interrupts::None)?;
    machine.vmxon()?;
    expect(
        "flags",
        header(&machine, VMXON_REGION, NOWHERE, HEADER)?.0.flags,
        0,
    )?;
    machine.replace(&fixture.kvm)?;
    expect("VMPTRST", machine.answer(vmptrst())?, Answer::Done(NOWHERE))?;
    expect(
        "VMCLEAR",
        machine.answer(vmclear(VMXON_REGION))?,
        Answer::Invalid,
    )
}

fn current(fixture: &Fixture) -> Result<()> {
    let mut machine = VmxMachine::new(&fixture.kvm, Interrupts::None)?;
    machine.vmxon()?;
    let done = machine.execute(&[
        vmclear(OTHER_VMCS),
        vmptrld(OTHER_VMCS),
        vmwrite(MARK, 0x5555),
        vmclear(VMCS),
        vmptrld(VMCS),
        vmwrite(MARK, 0x1234_5678),
    ])?;
    expect("the operations", done, vec![Answer::Done(0); 6])?;
    let state = header(&machine, VMXON_REGION, VMCS, FULL)?;
    expect("flags", state.0.flags, 0)?;
    for _ in 0..3 {
        machine.replace(&fixture.kvm)?;
        let seen = machine.execute(&[
            vmptrst(),
            vmread(MARK),
            vmptrld(OTHER_VMCS),
            vmread(MARK),
            vmptrld(VMCS),
        ])?;
        let expected = [VMCS, 0x1234_5678, 0, 0x5555, 0].map(Answer::Done);
        expect("the VMCSs", seen, expected.to_vec())?;
    }
    Ok(())
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
        // Equal times would find it in equal states.
        for attempt in 0..1000 {
            run_for(
                &mut machine,
                Duration::from_micros(700 + 37 * attempt % 1000),
            )?;
            let saved = Saved::read(&machine.vcpus[0], &indices)?;
            if saved.nested.has(GUEST_MODE) && !saved.nested.has(RUN_PENDING) {
                return Ok(Self { machine, saved });
            }
        }
        Err(Skip("L2 was never active when the machine stopped".into()).into())
    }

    /// Offers a state to KVM, which answers by an error number.
    fn offer(&self, state: &Nested) -> Result<(), i32> {
        let vcpu = &self.machine.vcpus[0];
        vcpu.set_nested_state(&state.0)
            .map_err(|error| error.errno())
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

    /// States of the machine: outside of VMX operation, in it, with a VMCS, with L2.
    fn kinds(&self) -> [(&'static str, Nested); 4] {
        let active = self.saved.nested;
        let off = active.off();
        let mut root = off;
        root.0.hdr.vmx.vmxon_pa = VMXON_REGION;
        let mut current = active;
        current.0.flags = 0;
        [
            ("off", off),
            ("root", root),
            ("current", current),
            ("active", active),
        ]
    }
}

/// A letter for what KVM has answered.
pub fn letter(answer: Result<(), i32>) -> char {
    match answer {
        Ok(()) => '+',
        Err(libc::EINVAL) => 'i',
        Err(libc::EFAULT) => 'f',
        Err(libc::ENOMEM) => 'm',
        Err(libc::E2BIG) => 'b',
        Err(_) => '?',
    }
}

/// Prints letters, 64 a line, that must be the same with all providers.
pub fn print(what: &str, letters: &str) {
    for (number, start) in (0..letters.len()).step_by(64).enumerate() {
        let end = letters.len().min(start + 64);
        tap::same(format_args!("{what} {number}"), &letters[start..end]);
    }
}

fn lengths(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    for (name, kind) in stopped.kinds() {
        let mut letters = String::new();
        let sizes = (0..=HEADER).chain([HEADER + 1, FULL - 1, FULL, FULL + 1, MOST - 1, MOST]);
        for size in sizes.chain([MOST + 1, 1 << 20]) {
            let mut state = kind;
            state.0.size = u32::try_from(size)?;
            letters.push(letter(stopped.offer(&state)));
        }
        ensure!(
            letters.contains('+') && letters.contains('i'),
            "{name}: {letters}"
        );
        print(&format!("lengths, {name}"), &letters);
    }
    stopped.restore()
}

fn headers(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    for (name, kind) in stopped.kinds() {
        let mut letters = String::new();
        for bit in (0..48 * 8).filter(|bit| !(32..64).contains(bit)) {
            let mut state = kind;
            state.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            let answer = stopped.offer(&state);
            letters.push(letter(answer));
            if answer.is_ok() {
                // KVM must accept what it gives back.
                let given = Nested::read(&stopped.machine.vcpus[0])?;
                let again = stopped.offer(&given);
                ensure!(again.is_ok(), "{name}, bit {bit}: {again:?}");
            }
        }
        print(&format!("headers, {name}"), &letters);
    }
    stopped.restore()
}

fn unmapped(fixture: &Fixture) -> Result<()> {
    let stopped = Stopped::new(fixture)?;
    let pages = Guarded::new(&stopped.saved.nested.bytes()[..HEADER])?;
    ensure!(
        !pages.offer(&stopped.machine.vcpus[0]),
        "it is accepted without its VMCS"
    );
    stopped.restore()
}
