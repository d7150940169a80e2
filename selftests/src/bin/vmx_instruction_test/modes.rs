// SPDX-License-Identifier: GPL-2.0

//! Modes of the processor in which there are no VMX instructions.

use anyhow::{Context, Result};
use selftests::expect;
use selftests::guest::code::SAYS;
use selftests::guest::layout::{exception, BUFFER, EXCEPTIONS, STACK, STACKS};
use selftests::guest::vmx::script::interpreter;
use selftests::guest::vmx::VmxMachine;
use selftests::tap::Point;

use crate::Fixture;

/// The instructions outside of 64-bit mode; their operands in memory are at EAX.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("VMLAUNCH", &[0x0f, 0x01, 0xc2]),
    ("VMRESUME", &[0x0f, 0x01, 0xc3]),
    ("VMXOFF", &[0x0f, 0x01, 0xc4]),
    ("VMPTRLD", &[0x0f, 0xc7, 0x30]),
    ("VMPTRST", &[0x0f, 0xc7, 0x38]),
    ("VMCLEAR", &[0x66, 0x0f, 0xc7, 0x30]),
    ("VMXON", &[0xf3, 0x0f, 0xc7, 0x30]),
    ("VMREAD", &[0x0f, 0x78, 0xc8]),
    ("VMWRITE", &[0x0f, 0x79, 0xc8]),
    ("INVEPT", &[0x66, 0x0f, 0x38, 0x80, 0x08]),
    ("INVVPID", &[0x66, 0x0f, 0x38, 0x81, 0x08]),
];

/// Where L1 executes them.
const CODE: u64 = BUFFER;

/// Where the interrupt vectors of real mode are.
const VECTORS: u64 = BUFFER + 0x1000;

/// Where exception UD goes in real mode.
const HANDLER: u64 = BUFFER + 0x2000;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("in compatibility mode all are undefined", |fixture| {
            let mut machine = fixture.root()?;
            INSTRUCTIONS.iter().try_for_each(|(name, code)| {
                compatibility(&mut machine, code).with_context(|| (*name).to_owned())
            })
        }),
        Point::new("in real mode all are undefined", |fixture| {
            let mut machine = fixture.off()?;
            INSTRUCTIONS.iter().try_for_each(|(name, code)| {
                real(&mut machine, code).with_context(|| (*name).to_owned())
            })
        }),
    ]
}

fn write_code(machine: &VmxMachine, address: u64, code: &[u8]) {
    for (at, byte) in (address..).zip(code) {
        machine.memory().write(at, *byte);
    }
}

fn compatibility(machine: &mut VmxMachine, code: &[u8]) -> Result<()> {
    write_code(machine, CODE, code);
    let memory = machine.memory();
    memory.fill(EXCEPTIONS, exception::SIZE, 0);
    // The interpreter begins again after the exception.
    let recovery = interpreter as *const () as u64;
    memory.write(EXCEPTIONS + exception::RECOVERY, recovery);
    let vcpu = &machine.machine.vcpus[0];
    let (mut sregs, mut regs) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    (sregs.cs.l, sregs.cs.db) = (0, 1);
    (regs.rip, regs.rax, regs.rsp) = (CODE, CODE + 0x800, STACKS + STACK - 8);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    machine.machine.hear()?;
    let read = |offset| machine.memory().read::<u64>(EXCEPTIONS + offset);
    expect("exceptions", read(exception::COUNT), 1)?;
    expect("exception", read(exception::VECTOR), 6)?;
    expect("address of the exception", read(exception::RIP), CODE)
}

fn real(machine: &mut VmxMachine, code: &[u8]) -> Result<()> {
    write_code(machine, CODE, code);
    let memory = machine.memory();
    for vector in 0..32 {
        // mov edi, SAYS; mov esi, vector; out 0xf1, ax
        let handler = HANDLER + 0x20 * vector;
        let vector_byte = u8::try_from(vector)?;
        let says = u8::try_from(SAYS)?;
        let bytes = [
            0x66,
            0xbf,
            says,
            0,
            0,
            0,
            0x66,
            0xbe,
            vector_byte,
            0,
            0,
            0,
            0xe7,
            0xf1,
        ];
        write_code(machine, handler, &bytes);
        let segment = u32::try_from(HANDLER >> 4)? << 16;
        memory.write(
            VECTORS + 4 * vector,
            segment | u32::try_from(handler - HANDLER)?,
        );
    }
    let vcpu = &machine.machine.vcpus[0];
    let (mut sregs, mut regs) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    let before = (sregs, regs);
    sregs.cr0 = 0x30;
    sregs.efer = 0;
    (sregs.idt.base, sregs.idt.limit) = (VECTORS, 0x3ff);
    for segment in [
        &mut sregs.cs,
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        segment.base = CODE;
        segment.selector = u16::try_from(CODE >> 4)?;
        (segment.limit, segment.g, segment.db, segment.l) = (0xffff, 0, 0, 0);
    }
    (regs.rip, regs.rsp, regs.rbx, regs.rsi) = (0, 0xf000, 0x800, 0x800);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    let message = machine.machine.hear()?;
    let vcpu = &machine.machine.vcpus[0];
    vcpu.set_sregs(&before.0).context("KVM_SET_SREGS")?;
    vcpu.set_regs(&before.1).context("KVM_SET_REGS")?;
    expect("exception", message.first, 6)
}
