// SPDX-License-Identifier: GPL-2.0

//! Modes in which L1 may not use SVM.

use anyhow::{bail, ensure, Context, Result};
use selftests::expect;
use selftests::guest::layout::{BUFFER, SHARED, USER_CODE, USER_DATA};
use selftests::guest::machine::{run, Stop};
use selftests::guest::Machine;
use selftests::tap::Point;

use crate::{
    execute, gif, l1_clgi, l1_invlpga, l1_skinit, l1_stgi, l1_vmload, l1_vmrun, l1_vmsave, Code,
    Fixture, Outcome, GP, UD,
};

/// An instruction, and the last byte of its code.
const INSTRUCTIONS: [(&str, Code, u8); 7] = [
    ("VMRUN", l1_vmrun, 0xd8),
    ("VMLOAD", l1_vmload, 0xda),
    ("VMSAVE", l1_vmsave, 0xdb),
    ("STGI", l1_stgi, 0xdc),
    ("CLGI", l1_clgi, 0xdd),
    ("SKINIT", l1_skinit, 0xde),
    ("INVLPGA", l1_invlpga, 0xdf),
];

/// EFER.SVME.
const SVME: u64 = 1 << 12;

/// RFLAGS.IOPL: reports are allowed at all privilege levels.
const IOPL: u64 = 3 << 12;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("the instructions raise exception GP at CPL 3", |fixture| {
            // No processor of KVM's has SKINIT.
            each(fixture, &[BUFFER, BUFFER + 1], user, |name| match name {
                "SKINIT" => &[UD, GP],
                _ => &[GP],
            })
        }),
        Point::new(
            "the instructions raise exception UD without EFER.SVME",
            // The processor of L0 has it set, and checks addresses before it exits.
            |fixture| each(fixture, &[BUFFER], without_svme, |_| &[UD]),
        ),
        Point::new(
            "the instructions raise exception UD in real mode",
            |fixture| outside_paging(fixture, 0x10, |_| true),
        ),
        Point::new(
            "VMRUN and INVLPGA raise exception UD in protected mode without paging",
            // The processor may execute the others by itself.
            |fixture| outside_paging(fixture, 0x11, |name| matches!(name, "VMRUN" | "INVLPGA")),
        ),
        Point::new("SKINIT raises exception UD", |fixture| {
            let mut machine = fixture.machine()?;
            let outcome = execute(&mut machine, l1_skinit, [BUFFER, 0, 0])?;
            expect("SKINIT", outcome, Outcome::Fault(UD, 0))
        }),
    ]
}

fn user(machine: &Machine) -> Result<()> {
    let vcpu = &machine.vcpus[0];
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    (sregs.cs.selector, sregs.cs.dpl) = (USER_CODE, 3);
    (sregs.ss.selector, sregs.ss.dpl) = (USER_DATA, 3);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rflags |= IOPL;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

fn without_svme(machine: &Machine) -> Result<()> {
    let mut sregs = machine.vcpus[0].get_sregs().context("KVM_GET_SREGS")?;
    sregs.efer &= !SVME;
    machine.vcpus[0].set_sregs(&sregs).context("KVM_SET_SREGS")
}

/// Checks that each instruction raises one of the exceptions, and changes nothing.
fn each(
    fixture: &Fixture,
    addresses: &[u64],
    prepare: impl Fn(&Machine) -> Result<()>,
    vectors: impl Fn(&str) -> &'static [u64],
) -> Result<()> {
    for (name, code, _) in INSTRUCTIONS {
        let mut machine = fixture.machine()?;
        prepare(&machine)?;
        machine.memory.fill(BUFFER, 0x1000, 0x5a);
        for &address in addresses {
            let outcome = execute(&mut machine, code, [address, 1, 0]).context(name)?;
            let Outcome::Fault(vector, error) = outcome else {
                bail!("{name} of {address:#x}: {outcome:?}");
            };
            ensure!(
                vectors(name).contains(&vector) && error == 0,
                "{name} of {address:#x} raises exception {vector} with error code {error:#x}"
            );
            // The handler goes on at CPL 0.
            prepare(&machine)?;
        }
        ensure!(
            gif(&machine)?,
            "{name} has cleared the global interrupt flag"
        );
        let words = (BUFFER..BUFFER + 0x1000).step_by(8);
        for address in words {
            expect(name, machine.memory.read::<u64>(address), 0x5a)?;
        }
    }
    Ok(())
}

/// Code in real mode, or in protected mode without paging.
const CODE: u64 = SHARED + 0x200;

/// Handlers: the one of vector 6 and the one of vector 13, a HLT each.
const HANDLERS: [(u64, u64); 2] = [(UD, SHARED + 0x280), (GP, SHARED + 0x290)];

/// The table of handlers.
const TABLE: u64 = SHARED + 0x300;

/// Checks that each instruction raises exception UD with this value of CR0.
fn outside_paging(fixture: &Fixture, cr0: u64, which: fn(&str) -> bool) -> Result<()> {
    const HLT: u8 = 0xf4;

    let instructions = INSTRUCTIONS.into_iter();
    for (name, _, byte) in instructions.filter(|(name, ..)| which(name)) {
        let mut machine = fixture.machine()?;
        let memory = machine.memory.clone();
        for (offset, byte) in (0..).zip([0x0f, 0x01, byte, HLT]) {
            memory.write(CODE + offset, byte);
        }
        let real = cr0 & 1 == 0;
        for (vector, handler) in HANDLERS {
            memory.write(handler, HLT);
            if real {
                memory.write(TABLE + 4 * vector, u32::try_from(handler)?);
            } else {
                // A present gate of 32 bits for the code segment with selector 8.
                let gate = handler | 8 << 16 | 0x8e << 40;
                memory.write(TABLE + 8 * vector, gate);
            }
        }
        // The descriptor of code of 32 bits; other tests make their own machine.
        memory.write(selftests::guest::layout::GDT + 8, 0x00cf_9b00_0000_ffffu64);
        let vcpu = &machine.vcpus[0];
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        sregs.cr0 = cr0;
        sregs.cr4 = 0;
        sregs.efer = SVME;
        (sregs.cs.l, sregs.cs.db) = (0, u8::from(!real));
        if real {
            for segment in [&mut sregs.cs, &mut sregs.ss, &mut sregs.ds, &mut sregs.es] {
                segment.selector = 0;
                (segment.limit, segment.g, segment.db) = (0xffff, 0, 0);
            }
        }
        (sregs.idt.base, sregs.idt.limit) = (TABLE, 0x3ff);
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
        (regs.rip, regs.rsp, regs.rflags) = (CODE, SHARED + 0xf00, 2);
        (regs.rax, regs.rcx) = (BUFFER, 1);
        vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        expect(name, run(&mut machine.vcpus[0]), Stop::Halt)?;
        let rip = machine.vcpus[0].get_regs()?.rip;
        let handler = HANDLERS.iter().find(|(_, handler)| handler + 1 == rip);
        let vector = handler.map(|(vector, _)| *vector);
        expect(format_args!("the exception of {name}"), vector, Some(UD))?;
    }
    Ok(())
}
