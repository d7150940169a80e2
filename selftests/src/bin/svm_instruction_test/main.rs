// SPDX-License-Identifier: GPL-2.0

//! The instructions and the MSRs of SVM: what they do, and how they fail.

mod host_state;
mod msrs;
mod permission;
mod step;
mod transfer;

use std::process::ExitCode;

use anyhow::{Context, Result};
use selftests::guest::code::{self, SAYS};
use selftests::guest::driver::driver;
use selftests::guest::layout::{exception, EXCEPTIONS};
use selftests::guest::machine::{self, heard, run, Interrupts, Stop};
use selftests::guest::state::{Nested, GIF_SET};
use selftests::guest::{Machine, Vendor};
use selftests::tap::Point;
use selftests::{expect, guest_code, tap};

guest_code! {
    /// L1: VMRUN.
    l1_vmrun: "vmrun rax", "jmp l1_done";
    /// L1: VMLOAD.
    l1_vmload: "vmload rax", "jmp l1_done";
    /// L1: VMSAVE.
    l1_vmsave: "vmsave rax", "jmp l1_done";
    /// L1: STGI.
    l1_stgi: "stgi", "jmp l1_done";
    /// L1: CLGI.
    l1_clgi: "clgi", "jmp l1_done";
    /// L1: INVLPGA.
    l1_invlpga: "invlpga rax, ecx", "jmp l1_done";
    /// L1: SKINIT.
    l1_skinit: "skinit eax", "jmp l1_done";
    /// L1: VMMCALL.
    l1_vmmcall: "vmmcall", "jmp l1_done";
    /// L1: RDMSR.
    l1_rdmsr: "rdmsr", "jmp l1_done";
    /// L1: WRMSR.
    l1_wrmsr: "wrmsr", "jmp l1_done";
    /// L1: the instruction is complete.
    l1_done: "mov esi, 1", "out 0xf1, eax", "ud2";
    /// L1: the instruction has raised an exception.
    l1_fault: "mov esi, 2", "out 0xf1, eax", "ud2";
    /// L2: calls L1.
    l2_call: "vmmcall", "ud2";
}

/// An instruction of L1 and what comes after it.
type Code = unsafe extern "C" fn();

/// The instruction is complete.
const DONE: u64 = 1;

/// The vector of the exception for what is undefined.
const UD: u64 = 6;

/// The vector of the exception for what is not allowed.
const GP: u64 = 13;

/// How an instruction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The next one followed.
    Done,
    /// It raised an exception, with a vector and an error code.
    Fault(u64, u64),
    /// The machine stopped.
    Stopped(Stop),
}

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
}

impl Fixture {
    /// Creates a machine that is about to begin with the driver.
    fn machine(&self) -> Result<Machine> {
        let machine = Machine::new(&self.kvm, 1, Interrupts::None)?;
        machine.start(0, driver)?;
        Ok(machine)
    }
}

/// Lets L1 execute an instruction with these values of RAX, RCX and RDX.
fn execute(machine: &mut Machine, code: Code, registers: [u64; 3]) -> Result<Outcome> {
    let vcpu = &machine.vcpus[0];
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rip = code as *const () as u64;
    [regs.rax, regs.rcx, regs.rdx] = registers;
    regs.rdi = SAYS;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    let memory = machine.memory.clone();
    memory.fill(EXCEPTIONS, 0x40, 0);
    let recovery = EXCEPTIONS + exception::RECOVERY;
    memory.write(recovery, l1_fault as *const () as u64);
    let message = match run(&mut machine.vcpus[0]) {
        Stop::Said(message) => heard(message)?,
        other => return Ok(Outcome::Stopped(other)),
    };
    if message.first == DONE {
        return Ok(Outcome::Done);
    }
    let at: u64 = memory.read(EXCEPTIONS + exception::RIP);
    expect("the faulting instruction", at, code as *const () as u64)?;
    Ok(Outcome::Fault(
        memory.read(EXCEPTIONS + exception::VECTOR),
        memory.read(EXCEPTIONS + exception::ERROR),
    ))
}

/// Returns whether the global interrupt flag is set.
fn gif(machine: &Machine) -> Result<bool> {
    Ok(Nested::read(&machine.vcpus[0])?.has(GIF_SET))
}

fn flag(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.machine()?;
    for (code, expected) in [
        (l1_stgi as Code, true),
        (l1_clgi, false),
        (l1_clgi, false),
        (l1_stgi, true),
        (l1_stgi, true),
    ] {
        let outcome = execute(&mut machine, code, [0; 3])?;
        expect("the instruction", outcome, Outcome::Done)?;
        expect("the global interrupt flag", gif(&machine)?, expected)?;
    }
    Ok(())
}

fn invlpga(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.machine()?;
    for address in [0, code::exception_stub(0, 0), 1 << 47, u64::MAX] {
        for asid in [0, 1, 2, u64::from(u32::MAX)] {
            let outcome = execute(&mut machine, l1_invlpga, [address, asid, 0])?;
            let what = format_args!("INVLPGA of {address:#x}, {asid}");
            expect(what, outcome, Outcome::Done)?;
        }
    }
    Ok(())
}

fn vmmcall(fixture: &Fixture) -> Result<()> {
    const NO_SUCH_CALL: u64 = 0x7fff_0000;
    const ENOSYS: i64 = 1000;

    let mut machine = fixture.machine()?;
    let outcome = execute(&mut machine, l1_vmmcall, [NO_SUCH_CALL, 0, 0])?;
    expect("the instruction", outcome, Outcome::Done)?;
    let rax = machine.vcpus[0].get_regs()?.rax;
    expect("the answer of L0", rax as i64, -ENOSYS)
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Svm) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let mut points = permission::points();
    points.push(Point::new(
        "STGI and CLGI change the global interrupt flag",
        flag,
    ));
    points.push(Point::new("INVLPGA takes all addresses and ASIDs", invlpga));
    points.push(Point::new("VMMCALL of L1 calls L0", vmmcall));
    points.extend(transfer::points());
    points.extend(msrs::points());
    points.extend(host_state::points());
    points.extend(step::points());
    tap::run(&points, &Fixture { kvm }, |_| Ok(()))
}
