// SPDX-License-Identifier: GPL-2.0

//! The guests: an L1 that executes what the test program has written down, and an L2 that accesses
//! memory.
//!
//! The test program cannot write L1's page tables itself: KVM does not see that.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;

use crate::guest::code::{peek, poke, report, run_l2, stgi, SAYS};
use crate::guest::layout::{BUFFER, VMCB, VMX_REGISTERS, VMX_REGISTERS_STEP, VMX_REVISION};
use crate::guest::machine::{heard, run, Machine, Stop, RFLAGS_IF};
use crate::guest::vmx::bits::reason;
use crate::guest::vmx::code::{enter, outcome};
use crate::guest::vmx::control::{self, Capabilities};
use crate::guest::vmx::{field, script, Fields};
use crate::guest::{vmcb, GuestMemory, Vendor};
use crate::guest_code_for_both;
use anyhow::{bail, Result};
use kvm_ioctls::Kvm;

/// The processors of a machine, at most.
pub const PROCESSORS: usize = 4;

/// The programs, one for each processor.
const PROGRAMS: u64 = 0x20_0000;

/// Distance of the programs.
const PROGRAM_STEP: u64 = 0x4_0000;

/// Operations in a program, at most.
pub const OPERATIONS: usize = ((PROGRAM_STEP - header::SIZE) / offset::SIZE) as usize;

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
    /// When L1 had done it.
    pub const TIME: u64 = 72;
    /// What L1 maps in the place of pages that are not there.
    pub const ENTRIES: u64 = 80;
    pub const FIRST: u64 = 88;
    pub const SIZE: u64 = 0x60;
}

/// Kinds of operations.
mod kind {
    pub const POKE: u64 = 0;
    pub const FILL: u64 = 1;
    pub const READ: u64 = 2;
    pub const WRITE: u64 = 3;
    pub const EXECUTE: u64 = 4;
    pub const SWEEP: u64 = 5;
    pub const SWEEP_AT_L1: u64 = 6;
}

guest_code_for_both! {
    /// L2: reads a word.
    tables_test_svm_read, tables_test_vmx_read: "mov rbx, [rdi]"; call.
    /// L2: writes a word.
    tables_test_svm_write, tables_test_vmx_write: "mov [rdi], rbx"; call.
    /// L2: goes to what should be a call.
    tables_test_svm_execute, tables_test_vmx_execute: "jmp rdi"; call.
    /// L2: writes a word of each page.
    tables_test_svm_sweep, tables_test_vmx_sweep:
        "2: mov [rdi], rbx", "add rdi, 0x1000", "dec rbx", "jnz 2b"; call.
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
    /// It runs L2, which writes to pages.
    Sweep(Root, Pages, Supply),
    /// It writes to pages itself.
    SweepAtL1(Pages),
}

/// Pages one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The address of the first one.
    pub address: u64,
    /// Their number, at least 1.
    pub number: u64,
}

/// What L1 writes when L2 has no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Where the entry of the first page is; those of others follow.
    pub entries: u64,
    /// The entry of the first page; that of the next one refers to the next page.
    pub first: u64,
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
            Operation::Sweep(root, pages, supply) => {
                memory.write(at + offset::ENTRIES, supply.entries);
                memory.write(at + offset::FIRST, supply.first);
                let Pages { address, number } = pages;
                [kind::SWEEP, address, number, root.value, root.tag, 0]
            }
            Operation::SweepAtL1(pages) => {
                [kind::SWEEP_AT_L1, pages.address, pages.number, 0, 0, 0]
            }
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

/// Returns the TSC, as L1 reads it, when an operation was done.
pub fn time(memory: &GuestMemory, processor: usize, index: usize) -> u64 {
    memory.read(operation(processor, index) + offset::TIME)
}

/// What an L2 executes.
#[derive(Clone, Copy)]
enum Task {
    Once(Access),
    Sweep,
}

/// What differs between the extensions.
trait Extension {
    /// What L2 executes to stop.
    const CALL: u64;

    /// # Safety
    ///
    /// Only L1 may call this, once.
    unsafe fn begin(processor: usize);

    /// Flushes as an operation says, and makes L2 ready for it.
    ///
    /// # Safety
    ///
    /// Only L1 may call this, with the address of an operation.
    unsafe fn prepare(processor: usize, at: u64, task: Task);

    /// Runs L2, and notes how it stopped.
    ///
    /// # Safety
    ///
    /// As `prepare()`, which was called before.
    unsafe fn run(processor: usize, at: u64);
}

enum Svm {}
enum Vmx {}

fn registers(processor: usize) -> u64 {
    VMX_REGISTERS + VMX_REGISTERS_STEP * processor as u64
}

/// Writes the registers that an operation begins with: RBX and RDI.
///
/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn set_registers(processor: usize, at: u64) {
    // SAFETY: As above.
    unsafe {
        poke(registers(processor), peek(at + offset::VALUE));
        poke(registers(processor) + 4 * 8, peek(at + offset::ADDRESS));
    }
}

impl Svm {
    /// Returns where a field of a processor's VMCB is.
    fn field(processor: usize, field: u64) -> u64 {
        CONTROL + CONTROL_STEP * processor as u64 + (field - VMCB)
    }
}

impl Extension for Svm {
    const CALL: u64 = vmcb::exit::VMMCALL;

    unsafe fn begin(_: usize) {}

    unsafe fn prepare(processor: usize, at: u64, task: Task) {
        let field = |field| Self::field(processor, field);
        let code = match task {
            Task::Once(Access::Read) => tables_test_svm_read,
            Task::Once(Access::Write) => tables_test_svm_write,
            Task::Once(Access::Execute) => tables_test_svm_execute,
            Task::Sweep => tables_test_svm_sweep,
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
            set_registers(processor, at);
        }
    }

    unsafe fn run(processor: usize, at: u64) {
        let field = |field| Self::field(processor, field);
        let registers = registers(processor);
        // SAFETY: This is L1.
        unsafe {
            run_l2(field(VMCB), registers);
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
    const CALL: u64 = reason::VMCALL;

    unsafe fn begin(_: usize) {
        // SAFETY: This is L1, and the only processor that runs.
        unsafe { script::execute_all() }
    }

    unsafe fn prepare(processor: usize, at: u64, task: Task) {
        let program = program(processor);
        let code = match task {
            Task::Once(Access::Read) => tables_test_vmx_read,
            Task::Once(Access::Write) => tables_test_vmx_write,
            Task::Once(Access::Execute) => tables_test_vmx_execute,
            Task::Sweep => tables_test_vmx_sweep,
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
            set_registers(processor, at);
        }
    }

    unsafe fn run(processor: usize, at: u64) {
        let registers = registers(processor);
        let program = program(processor);
        // SAFETY: This is L1.
        unsafe {
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
            kind::READ => once::<E>(processor, at, Access::Read),
            kind::WRITE => once::<E>(processor, at, Access::Write),
            kind::EXECUTE => once::<E>(processor, at, Access::Execute),
            kind::SWEEP => sweep::<E>(processor, at),
            _ => {
                for page in 0..value {
                    poke(address + 0x1000 * page, page);
                }
            }
        }
        poke(at + offset::TIME, _rdtsc());
    }
}

/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn once<E: Extension>(processor: usize, at: u64, access: Access) {
    // SAFETY: As above.
    unsafe {
        E::prepare(processor, at, Task::Once(access));
        E::run(processor, at);
    }
}

/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn sweep<E: Extension>(processor: usize, at: u64) {
    // SAFETY: As above.
    unsafe {
        let (address, pages) = (peek(at + offset::ADDRESS), peek(at + offset::VALUE));
        E::prepare(processor, at, Task::Sweep);
        loop {
            E::run(processor, at);
            let page = peek(at + offset::PHYSICAL).wrapping_sub(address) >> 12;
            if peek(at + offset::CODE) == E::CALL || page >= pages {
                return;
            }
            let entry = peek(at + offset::FIRST) + 0x1000 * page;
            poke(peek(at + offset::ENTRIES) + 8 * page, entry);
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
