// SPDX-License-Identifier: GPL-2.0

//! The guests: an L1 that executes what the test program has written down, and an L2 that accesses
//! memory once.
//!
//! The test program cannot write L1's page tables itself: KVM does not see that.

use std::arch::asm;

use anyhow::{bail, Result};
use kvm_ioctls::Kvm;
use selftests::guest::code::{peek, poke, report, run_l2, stgi, SAYS};
use selftests::guest::layout::{BUFFER, VMCB, VMX_REGISTERS, VMX_REGISTERS_STEP, VMX_REVISION};
use selftests::guest::machine::{heard, run, Machine, Stop, RFLAGS_IF};
use selftests::guest::vmx::code::{enter, outcome};
use selftests::guest::vmx::control::{self, Capabilities};
use selftests::guest::vmx::{field, script, Fields};
use selftests::guest::{vmcb, GuestMemory, Vendor};
use selftests::guest_code_for_both;

/// The processors of a machine, at most.
pub const PROCESSORS: usize = 4;

/// The programs, one for each processor.
const PROGRAMS: u64 = 0x20_0000;

/// Distance of the programs.
const PROGRAM_STEP: u64 = 0x4_0000;

/// Operations in a program, at most.
pub const OPERATIONS: usize = 0x4_0000 / 0x60;

/// The VMCB, or the VMCS and the region of VMXON, of each processor.
const CONTROL: u64 = BUFFER;

/// Distance of these.
const CONTROL_STEP: u64 = 0x2000;

/// What precedes the operations of a program.
mod header {
    /// Their number.
    pub const COUNT: u64 = 0;
    /// Whether L2 was launched.
    pub const LAUNCHED: u64 = 8;
    /// The descriptor of INVEPT.
    pub const DESCRIPTOR: u64 = 16;
    pub const SIZE: u64 = 0x40;
}

/// An operation in memory.
mod offset {
    pub const KIND: u64 = 0;
    pub const ADDRESS: u64 = 8;
    pub const VALUE: u64 = 16;
    pub const ROOT: u64 = 24;
    pub const TAG: u64 = 32;
    pub const FLUSH: u64 = 40;
    /// Why L2 stopped, and more about it.
    pub const CODE: u64 = 48;
    pub const INFO: u64 = 56;
    pub const PHYSICAL: u64 = 64;
    pub const SIZE: u64 = 0x50;
}

/// Kinds of operations.
mod kind {
    pub const POKE: u64 = 0;
    pub const FILL: u64 = 1;
    pub const READ: u64 = 2;
    pub const WRITE: u64 = 3;
    pub const EXECUTE: u64 = 4;
}

guest_code_for_both! {
    /// L2: reads a word.
    tables_test_svm_read, tables_test_vmx_read: "mov rbx, [rdi]"; call.
    /// L2: writes a word.
    tables_test_svm_write, tables_test_vmx_write: "mov [rdi], rbx"; call.
    /// L2: goes to what should be a call.
    tables_test_svm_execute, tables_test_vmx_execute: "jmp rdi"; call.
}

/// What an L2 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It executes.
    Execute,
}

/// A page table of L1, as it is given to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The EPT pointer, or nCR3.
    pub value: u64,
    /// The address-space identifier; with EPT, none.
    pub tag: u64,
}

/// What L1 flushes before it runs L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// What comes from the table.
    One,
    /// The same, but not what is global; with EPT, there is no difference.
    OneNotGlobal,
    /// All.
    All,
}

/// What L1 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It writes a word.
    Poke(u64, u64),
    /// It writes all entries of a table: address, first entry, step.
    Fill(u64, u64, u64),
    /// It runs L2, with a table, after a flush: address, and value.
    Run(Access, Root, Flush, u64, u64),
}

/// How an L2 stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// The reason.
    pub code: u64,
    /// The qualification, or the first word of information.
    pub info: u64,
    /// The address.
    pub physical: u64,
    /// What L2 has read.
    pub value: u64,
}

fn program(processor: usize) -> u64 {
    PROGRAMS + PROGRAM_STEP * processor as u64
}

fn operation(processor: usize, index: usize) -> u64 {
    program(processor) + header::SIZE + offset::SIZE * index as u64
}

/// Writes what L1 is to do on a processor.
pub fn write(memory: &GuestMemory, processor: usize, operations: &[Operation]) {
    assert!(operations.len() <= OPERATIONS);
    memory.write(program(processor) + header::COUNT, operations.len() as u64);
    for (index, what) in operations.iter().enumerate() {
        let at = operation(processor, index);
        let words = match *what {
            Operation::Poke(address, value) => [kind::POKE, address, value, 0, 0, 0],
            Operation::Fill(address, value, step) => [kind::FILL, address, value, step, 0, 0],
            Operation::Run(access, root, flush, address, value) => {
                let kind = match access {
                    Access::Read => kind::READ,
                    Access::Write => kind::WRITE,
                    Access::Execute => kind::EXECUTE,
                };
                [kind, address, value, root.value, root.tag, flush as u64]
            }
        };
        for (word, value) in (at..).step_by(8).zip(words) {
            memory.write(word, value);
        }
    }
}

/// Reads how L2 has stopped in an operation.
pub fn stopped(memory: &GuestMemory, processor: usize, index: usize) -> Stopped {
    let at = operation(processor, index);
    Stopped {
        code: memory.read(at + offset::CODE),
        info: memory.read(at + offset::INFO),
        physical: memory.read(at + offset::PHYSICAL),
        value: memory.read(at + offset::VALUE),
    }
}

/// What differs between the extensions.
trait Extension {
    /// # Safety
    ///
    /// Only L1 may call this, once.
    unsafe fn begin(processor: usize);

    /// Runs L2 as an operation says, and notes how it stopped.
    ///
    /// # Safety
    ///
    /// Only L1 may call this, with the address of an operation.
    unsafe fn run(processor: usize, at: u64, access: Access);
}

enum Svm {}
enum Vmx {}

fn registers(processor: usize) -> u64 {
    VMX_REGISTERS + VMX_REGISTERS_STEP * processor as u64
}

impl Extension for Svm {
    unsafe fn begin(_: usize) {}

    unsafe fn run(processor: usize, at: u64, access: Access) {
        let control = CONTROL + CONTROL_STEP * processor as u64;
        let field = |field: u64| control + (field - VMCB);
        let registers = registers(processor);
        let code = match access {
            Access::Read => tables_test_svm_read,
            Access::Write => tables_test_svm_write,
            Access::Execute => tables_test_svm_execute,
        };
        // SAFETY: This is L1.
        unsafe {
            let flush = peek(at + offset::FLUSH);
            let flush = if flush == Flush::Nothing as u64 {
                0
            } else if flush == Flush::One as u64 {
                3
            } else if flush == Flush::OneNotGlobal as u64 {
                7
            } else {
                1
            };
            poke(field(vmcb::ASID), peek(at + offset::TAG) | flush << 32);
            poke(field(vmcb::NESTED_CR3), peek(at + offset::ROOT));
            poke(field(vmcb::RIP), code as *const () as u64);
            poke(registers, peek(at + offset::VALUE));
            poke(registers + 4 * 8, peek(at + offset::ADDRESS));
            run_l2(control, registers);
            stgi();
            poke(at + offset::CODE, peek(field(vmcb::EXIT_CODE)));
            poke(at + offset::INFO, peek(field(vmcb::EXIT_INFO_1)));
            poke(at + offset::PHYSICAL, peek(field(vmcb::EXIT_INFO_2)));
            poke(at + offset::VALUE, peek(registers));
        }
    }
}

/// # Safety
///
/// Only L1 may call this, with a current VMCS.
unsafe fn vmread(field: u32) -> u64 {
    let value;
    // SAFETY: As above.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nostack)) };
    value
}

/// # Safety
///
/// Only L1 may call this, with a current VMCS.
unsafe fn vmwrite(field: u32, value: u64) {
    // SAFETY: As above.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
}

impl Extension for Vmx {
    unsafe fn begin(_: usize) {
        // SAFETY: This is L1, and the only processor that runs.
        unsafe { script::execute_all() }
    }

    unsafe fn run(processor: usize, at: u64, access: Access) {
        let registers = registers(processor);
        let program = program(processor);
        let code = match access {
            Access::Read => tables_test_vmx_read,
            Access::Write => tables_test_vmx_write,
            Access::Execute => tables_test_vmx_execute,
        };
        // SAFETY: This is L1.
        unsafe {
            let flush = peek(at + offset::FLUSH);
            let root = peek(at + offset::ROOT);
            if flush != Flush::Nothing as u64 {
                let kind: u64 = if flush == Flush::All as u64 { 2 } else { 1 };
                let descriptor = program + header::DESCRIPTOR;
                poke(descriptor, root);
                poke(descriptor + 8, 0);
                asm!("invept {}, xmmword ptr [{}]", in(reg) kind, in(reg) descriptor,
                     options(nostack));
            }
            vmwrite(field::EPTP, root);
            vmwrite(field::GUEST_RIP, code as *const () as u64);
            poke(registers, peek(at + offset::VALUE));
            poke(registers + 4 * 8, peek(at + offset::ADDRESS));
            let ended = enter(registers, peek(program + header::LAUNCHED));
            poke(program + header::LAUNCHED, 1);
            if ended == outcome::DONE {
                poke(at + offset::CODE, vmread(field::EXIT_REASON));
            } else {
                poke(at + offset::CODE, u64::MAX - ended);
            }
            poke(at + offset::INFO, vmread(field::QUALIFICATION));
            poke(at + offset::PHYSICAL, vmread(field::GUEST_PHYSICAL));
            poke(at + offset::VALUE, peek(registers));
        }
    }
}

/// The program of L1.
extern "C" fn l1<E: Extension, const PROCESSOR: usize>() -> ! {
    // SAFETY: This is L1.
    unsafe {
        E::begin(PROCESSOR);
        loop {
            report(SAYS, 0, 0);
            let count = peek(program(PROCESSOR) + header::COUNT);
            let mut at = operation(PROCESSOR, 0);
            for _ in 0..count {
                execute::<E>(PROCESSOR, at);
                at += offset::SIZE;
            }
        }
    }
}

/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn execute<E: Extension>(processor: usize, at: u64) {
    // SAFETY: This is L1.
    unsafe {
        let (address, value) = (peek(at + offset::ADDRESS), peek(at + offset::VALUE));
        match peek(at + offset::KIND) {
            kind::POKE => poke(address, value),
            kind::FILL => {
                let step = peek(at + offset::ROOT);
                for index in 0..512 {
                    poke(address + 8 * index, value.wrapping_add(step * index));
                }
            }
            kind::READ => E::run(processor, at, Access::Read),
            kind::WRITE => E::run(processor, at, Access::Write),
            _ => E::run(processor, at, Access::Execute),
        }
    }
}

/// Returns the programs of L1, one for each processor.
fn programs<E: Extension>() -> [extern "C" fn() -> !; PROCESSORS] {
    [l1::<E, 0>, l1::<E, 1>, l1::<E, 2>, l1::<E, 3>]
}

/// Makes each processor ready to execute a program; the other words of a program are zeros.
pub fn begin(kvm: &Kvm, machine: &mut Machine) -> Result<()> {
    let programs = match machine.vendor {
        Vendor::Svm => programs::<Svm>(),
        Vendor::Vmx => programs::<Vmx>(),
    };
    for (processor, l1) in (0..machine.vcpus.len()).zip(programs) {
        prepare(kvm, machine, processor)?;
        machine.start(processor, l1)?;
        let first = run(&mut machine.vcpus[processor]);
        let Stop::Said(message) = first else {
            bail!("processor {processor} stopped: {first:?}");
        };
        heard(message)?;
    }
    Ok(())
}

/// Writes what a processor needs to run L2.
fn prepare(kvm: &Kvm, machine: &Machine, processor: usize) -> Result<()> {
    let memory = &machine.memory;
    let index = processor as u64;
    let control = CONTROL + CONTROL_STEP * index;
    if machine.vendor == Vendor::Svm {
        vmcb::write(memory, &machine.tables, 0);
        for offset in (0..0x1000).step_by(8) {
            memory.write(control + offset, memory.read::<u64>(VMCB + offset));
        }
        return Ok(());
    }
    let capabilities = Capabilities::read(kvm)?;
    for region in [control, control + 0x1000] {
        memory.fill(region, 0x1000, 0);
        memory.write(region, capabilities.revision());
    }
    memory.write(VMX_REVISION, u64::from(capabilities.revision()));
    let mut fields = control::fields(&capabilities, &machine.tables, index, 0)?;
    fields.set(field::GUEST_RFLAGS, RFLAGS_IF);
    let mut operations = vec![
        script::vmxon(control + 0x1000),
        script::vmclear(control),
        script::vmptrld(control),
    ];
    operations.extend(
        fields
            .beyond(&Fields::default())
            .map(|(field, value)| script::vmwrite(field.into(), value)),
    );
    script::write(memory, &operations);
    Ok(())
}
