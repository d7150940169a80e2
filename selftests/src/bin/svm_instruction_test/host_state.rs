// SPDX-License-Identifier: GPL-2.0

//! What VMRUN and #VMEXIT load from memory, in paging modes with page-directory pointers.

use anyhow::{Context, Result};
use selftests::expect;
use selftests::guest::code::SAYS;
use selftests::guest::driver::RESULT;
use selftests::guest::layout::{BUFFER, HOST_SAVE, KERNEL_CODE, SHARED, VMCB};
use selftests::guest::machine::{heard, run, set_msr, Stop, MSR_VM_HSAVE_PA};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::{Level, Machine};
use selftests::guest_code;
use selftests::tap::Point;

use crate::Fixture;

guest_code! {
    /// L2: calls L0's user space, then L1.
    host_state_l2: "out 0xf2, eax", "nop", "vmmcall", "ud2";
}

/// Page-directory pointers.
const POINTERS: u64 = BUFFER;

/// Page-directory pointers of the nested page tables.
const NESTED_POINTERS: u64 = BUFFER + 0x3000;

/// Page directories, which map the lower 2 GiB to themselves.
const DIRECTORIES: [u64; 2] = [BUFFER + 0x1000, BUFFER + 0x2000];

/// Code of 32 bits.
const CODE: u64 = SHARED + 0x200;

/// EFER: SVME.
const SVME: u64 = 1 << 12;

/// CR4: PAE.
const PAE: u64 = 1 << 5;

/// Attributes of code of 32 bits at CPL 0.
const CODE_32: u16 = 0xc9b;

/// A bit of a page-directory pointer that is reserved.
const RESERVED: u64 = 1 << 1;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "L1 with page-directory pointers runs a 64-bit L2",
            |fixture| {
                let mut machine = in_l2(fixture, Paging::Own)?;
                calls_l1(&mut machine)
            },
        ),
        Point::new(
            "an exit to page-directory pointers that are illegal shuts down",
            |fixture| {
                let mut machine = in_l2(fixture, Paging::Own)?;
                write_pointers(&machine, RESERVED);
                expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::Shutdown)
            },
        ),
        Point::new(
            "nested page tables can have page-directory pointers",
            |fixture| {
                let mut machine = in_l2(fixture, Paging::Nested)?;
                calls_l1(&mut machine)
            },
        ),
        Point::new(
            "the lower bits of a nested CR3 with page-directory pointers are ignored",
            |fixture| {
                let mut machine = in_l2(fixture, Paging::NestedWithLowerBits)?;
                calls_l1(&mut machine)
            },
        ),
        Point::new("an exit to memory that is gone shuts down", |fixture| {
            let mut machine = in_l2(fixture, Paging::Own)?;
            machine.remove_vmcb()?;
            expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::Shutdown)
        }),
        Point::new(
            "VMRUN checks the page-directory pointers of L2",
            |fixture| {
                for (bits, code) in [
                    (RESERVED, exit::INVALID),
                    (1 << 63, exit::INVALID),
                    (0, exit::VMMCALL),
                ] {
                    expect("exit code", run_pae(fixture, bits, 0)?, code)?;
                }
                Ok(())
            },
        ),
        Point::new(
            "VMRUN leaves those of an L2 with nested paging to L2",
            |fixture| expect("exit code", run_pae(fixture, 0, 1)?, exit::VMMCALL),
        ),
    ]
}

/// How L2's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paging {
    /// By its own tables only.
    Own,
    /// By nested page tables, too, in the format of L1's.
    Nested,
    /// As before; CR3 has bits that the processor ignores.
    NestedWithLowerBits,
}

/// Writes page-directory pointers, the first one with some bits more.
///
/// QEMU sets the accessed bit in them, which is reserved: what is to be legal when it is loaded must
/// be written after the processor has used it.
fn write_pointers(machine: &Machine, bits: u64) {
    for pointers in [POINTERS, NESTED_POINTERS] {
        for (index, directory) in (0u64..).zip(DIRECTORIES) {
            machine.memory.write(pointers + 8 * index, directory | 1);
        }
    }
    machine.memory.write(POINTERS, DIRECTORIES[0] | 1 | bits);
}

/// Writes page tables with page-directory pointers; the pages are for all privilege levels.
fn write_tables(machine: &Machine) {
    let memory = &machine.memory;
    memory.fill(POINTERS, 0x4000, 0);
    write_pointers(machine, 0);
    for (index, directory) in (0u64..).zip(DIRECTORIES) {
        for entry in 0..512 {
            // Present, writable, user, accessed, dirty, 2 MiB.
            let page = (index << 30 | entry << 21) | 0xe7;
            memory.write(directory + 8 * entry, page);
        }
    }
}

/// Makes L1 run in 32-bit mode, and L2 in 64-bit mode until it calls user space.
fn in_l2(fixture: &Fixture, paging: Paging) -> Result<Machine> {
    let mut machine = fixture.machine()?;
    write_tables(&machine);
    let memory = machine.memory.clone();
    vmcb::write(&memory, &machine.tables, host_state_l2 as *const () as u64);
    let (enabled, nested) = match paging {
        Paging::Own => (0, 0),
        Paging::Nested => (1, NESTED_POINTERS),
        Paging::NestedWithLowerBits => (1, NESTED_POINTERS | 0x1f),
    };
    memory.write(vmcb::MISC_CTL, enabled as u64);
    memory.write(vmcb::NESTED_CR3, nested);
    // VMRUN; OUT to L1's port.
    for (offset, byte) in (0..).zip([0x0f, 0x01, 0xd8, 0xe7, 0xf1, 0xf4u8]) {
        memory.write(CODE + offset, byte);
    }
    let vcpu = &machine.vcpus[0];
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    (sregs.cs.l, sregs.cs.db) = (0, 1);
    sregs.efer = SVME;
    sregs.cr4 = PAE;
    sregs.cr3 = POINTERS;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    set_msr(vcpu, MSR_VM_HSAVE_PA, HOST_SAVE)?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    (regs.rip, regs.rsp, regs.rflags) = (CODE, SHARED + 0xf00, 2);
    (regs.rax, regs.rdi) = (VMCB, SAYS);
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    hears(&mut machine, Level::L2)?;
    Ok(machine)
}

/// Runs a machine until a level says something.
fn hears(machine: &mut Machine, level: Level) -> Result<()> {
    match run(&mut machine.vcpus[0]) {
        Stop::Said(message) => expect("who says something", heard(message)?.level, level),
        other => anyhow::bail!(
            "the guest stopped: {other:?}, exit code {:#x}",
            machine.memory.read::<u64>(RESULT)
        ),
    }
}

/// Runs L2 to its call of L1.
fn calls_l1(machine: &mut Machine) -> Result<()> {
    write_pointers(machine, 0);
    hears(machine, Level::L1)?;
    expect(
        "exit code",
        machine.memory.read::<u64>(RESULT),
        exit::VMMCALL,
    )?;
    let sregs = machine.vcpus[0].get_sregs().context("KVM_GET_SREGS")?;
    let seen = (sregs.cr3, sregs.cr4, sregs.efer, sregs.cs.l, sregs.cs.db);
    expect(
        "CR3, CR4, EFER, CS.L, CS.D of L1",
        seen,
        (POINTERS, PAE, SVME, 0, 1),
    )
}

/// Runs an L2 in 32-bit mode whose first page-directory pointer has some bits more; returns the exit
/// code.
fn run_pae(fixture: &Fixture, bits: u64, nested: u64) -> Result<u64> {
    let mut machine = fixture.machine()?;
    machine.ready()?;
    write_tables(&machine);
    let memory = machine.memory.clone();
    write_pointers(&machine, bits);
    // VMMCALL.
    for (offset, byte) in (0..).zip([0x0f, 0x01, 0xd9u8]) {
        memory.write(CODE + offset, byte);
    }
    vmcb::write(&memory, &machine.tables, CODE);
    memory.write(vmcb::MISC_CTL, nested);
    memory.write(vmcb::EFER, SVME);
    memory.write(vmcb::CR4, PAE);
    memory.write(vmcb::CR3, POINTERS);
    memory.write(vmcb::SEGMENTS + 16, KERNEL_CODE);
    memory.write(vmcb::SEGMENTS + 16 + 2, CODE_32);
    memory.write(vmcb::RSP, SHARED + 0xf00);
    machine.exited()?;
    Ok(memory.read(RESULT))
}
