// SPDX-License-Identifier: GPL-2.0

//! System-management mode in VMX operation, and while L2 is active.

mod active;
mod root;
mod states;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use kvm_bindings::{
    KVM_STATE_NESTED_SMM_GUEST_MODE, KVM_STATE_NESTED_SMM_VMXON, KVM_VCPUEVENT_VALID_SMM,
};
use kvm_ioctls::Kvm;
use selftests::guest::layout::{MANAGEMENT, VMCS, VMXON_REGION};
use selftests::guest::machine::{self, run, Interrupts, Stop};
use selftests::guest::state::{Nested, FULL, GUEST_MODE, HEADER};
use selftests::guest::vmx::script::Answer;
use selftests::guest::vmx::VmxMachine;
use selftests::guest::{signal, Vendor};
use selftests::{expect, tap};

/// What the processor was interrupted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// Not in VMX operation.
    Nothing,
    /// VMX operation, without a current VMCS.
    Root,
    /// VMX operation with a current VMCS.
    Vmcs,
    /// L2.
    L2,
}

/// The port that the handler writes to.
const PORT: u16 = 0xe0;

/// The handler, in real mode: OUT to the port, RSM.
const HANDLER: [u8; 4] = [0xe6, PORT as u8, 0x0f, 0xaa];

/// The port that L2 writes to.
const CALL: u16 = 0x80;

/// Returns the ports that were written to.
fn ports(stops: &[Stop]) -> Vec<u16> {
    let port = |stop: &Stop| match stop {
        Stop::Out(port, _) => *port,
        _ => 0,
    };
    stops.iter().map(port).collect()
}

/// Runs the processor until it writes to a port.
fn until(machine: &mut VmxMachine, port: u16) -> Result<()> {
    let stop = next(machine)?;
    ensure!(
        matches!(stop, Stop::Out(other, _) if other == port),
        "expected a write to port {port:#x}, saw {stop:?}"
    );
    Ok(())
}

/// Runs the processor until it stops.
fn next(machine: &mut VmxMachine) -> Result<Stop> {
    signal::after(PATIENCE)?;
    let stop = run(&mut machine.machine.vcpus[0]);
    signal::after(Duration::ZERO)?;
    Ok(stop)
}

/// Runs a processor that shuts down, after which it must be possible to use it again.
fn shut_down(machine: &mut VmxMachine) -> Result<()> {
    expect("KVM_RUN", next(machine)?, Stop::Shutdown)?;
    let vcpu = &machine.machine.vcpus[0];
    ensure!(
        !Nested::read(vcpu)?.has(GUEST_MODE),
        "L2 is active after the shutdown"
    );
    let mut events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
    events.smi = Default::default();
    events.flags |= KVM_VCPUEVENT_VALID_SMM;
    vcpu.set_vcpu_events(&events)
        .context("KVM_SET_VCPU_EVENTS")?;
    let off = Nested::read(vcpu)?.off();
    vcpu.set_nested_state(&off.0)
        .context("KVM_SET_NESTED_STATE")?;
    machine.reset()?;
    machine.vmxon()?;
    let done = machine.execute(&root::with_vmcs())?;
    expect("L1 after the reset", done, vec![Answer::Done(0); 3])
}

/// Time after which a processor that does not stop never will.
const PATIENCE: Duration = Duration::from_millis(500);

/// No address.
const NOWHERE: u64 = u64::MAX;

/// CR4.VMXE.
const VMXE: u64 = 1 << 13;

/// Where the handler finds the state that RSM restores, by the offset in the manual.
fn saved(offset: u64) -> u64 {
    MANAGEMENT + 0x8000 + offset
}

struct Fixture {
    kvm: Kvm,
}

impl Fixture {
    /// Creates a machine with a handler, in VMX operation.
    fn machine(&self, handler: &[u8]) -> Result<VmxMachine> {
        let mut machine = self.outside(handler)?;
        machine.vmxon()?;
        Ok(machine)
    }

    /// Creates a machine with a handler that is not in VMX operation.
    fn outside(&self, handler: &[u8]) -> Result<VmxMachine> {
        let mut machine = VmxMachine::new(&self.kvm, Interrupts::None)?;
        machine.machine.manage(handler)?;
        Ok(machine)
    }
}

/// Interrupts the processor by a system-management interrupt.
fn interrupt(machine: &VmxMachine) -> Result<()> {
    machine.machine.vcpus[0].smi().context("KVM_SMI")
}

/// Returns whether the processor is in system-management mode.
fn is_managed(machine: &VmxMachine) -> Result<bool> {
    let events = machine.machine.vcpus[0].get_vcpu_events();
    Ok(events.context("KVM_GET_VCPU_EVENTS")?.smi.smm != 0)
}

/// Checks the state of a processor in system-management mode.
fn check(machine: &VmxMachine, within: Within) -> Result<()> {
    let vcpu = &machine.machine.vcpus[0];
    ensure!(is_managed(machine)?, "it is not in system-management mode");
    let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    expect("CR4.VMXE", sregs.cr4 & VMXE, 0)?;
    expect("CR0.PE and PG", sregs.cr0 & (1 | 1 << 31), 0)?;
    let state = Nested::read(vcpu)?;
    // SAFETY: All bit patterns are values.
    let header = unsafe { state.0.hdr.vmx };
    let (flags, region, vmcs, size) = match within {
        Within::Nothing => (0, NOWHERE, NOWHERE, HEADER),
        Within::Root => (KVM_STATE_NESTED_SMM_VMXON, VMXON_REGION, NOWHERE, HEADER),
        Within::Vmcs => (KVM_STATE_NESTED_SMM_VMXON, VMXON_REGION, VMCS, FULL),
        Within::L2 => (
            KVM_STATE_NESTED_SMM_VMXON | KVM_STATE_NESTED_SMM_GUEST_MODE,
            VMXON_REGION,
            VMCS,
            FULL,
        ),
    };
    expect("flags of the mode", u32::from(header.smm.flags), flags)?;
    expect("address of the region", header.vmxon_pa, region)?;
    expect("address of the VMCS", header.vmcs12_pa, vmcs)?;
    expect("size", state.0.size as usize, size)?;
    ensure!(!state.has(GUEST_MODE), "L2 is active");
    Ok(())
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Vmx) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if !kvm.check_extension(kvm_ioctls::Cap::X86Smm) {
        return tap::skip_all("KVM has no system-management mode");
    }
    let mut points = root::points();
    points.extend(active::points());
    points.extend(states::points());
    tap::run(&points, &Fixture { kvm }, |_| Ok(()))
}
