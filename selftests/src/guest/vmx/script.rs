// SPDX-License-Identifier: GPL-2.0

//! An L1 that executes a list of VMX instructions, and notes how each of them ended.

use super::code::{self, outcome};
use super::field;
use crate::guest::code::{peek, poke, report, SAYS};
use crate::guest::layout::{exception, EXCEPTIONS, VMX_REGISTERS, VMX_SCRIPT, VMX_SCRIPT_END};
use crate::guest::memory::GuestMemory;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {
        /// Kinds of operations.
        mod kind {
            $(pub const $name: u64 = $kind;)*
        }
        /// The names of operations, by their kinds.
        const NAMES: &[(u64, &str)] = &[$(($kind, stringify!($name)),)*];
    };
}

operations! {
    VMXON = 1;
    VMXOFF = 2;
    VMCLEAR = 3;
    VMPTRLD = 4;
    VMPTRST = 5;
    VMREAD = 6;
    VMWRITE = 7;
    VMLAUNCH = 8;
    VMRESUME = 9;
    INVEPT = 10;
    INVVPID = 11;
    VMCALL = 12;
    VMFUNC = 13;
    RDMSR = 14;
    WRMSR = 15;
    CR0 = 16;
    CR4 = 17;
    VMREAD_MEMORY = 18;
    VMWRITE_MEMORY = 19;
    MOV_SS_VMLAUNCH = 20;
    POKE = 21;
}

/// Offsets in an operation in memory.
mod offset {
    pub const KIND: u64 = 0;
    pub const OPERANDS: u64 = 8;
    pub const ADDRESS: u64 = 32;
    pub const OUTCOME: u64 = 40;
    pub const VALUE: u64 = 48;
    pub const VECTOR: u64 = 56;
    pub const ERROR: u64 = 64;
    /// The number of VMfailValid.
    pub const NUMBER: u64 = 72;
    pub const SIZE: u64 = 80;
}

/// An instruction that L1 executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    kind: u64,
    operands: [u64; 3],
    /// The address of the operand in memory, if it is another one than that of the operands here.
    address: u64,
}

impl Operation {
    /// Gives an instruction's operand in memory another address.
    #[must_use]
    pub fn at(mut self, address: u64) -> Self {
        self.address = address;
        self
    }

    /// Returns the name of the instruction.
    pub fn name(&self) -> &'static str {
        let name = NAMES.iter().find(|(kind, _)| *kind == self.kind);
        name.map_or("an unknown operation", |(_, name)| name)
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident($($operand:ident),*) = $kind:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name($($operand: u64),*) -> Operation {
            let mut operands = [0; 3];
            let given: &[u64] = &[$($operand),*];
            operands[..given.len()].copy_from_slice(given);
            Operation { kind: kind::$kind, operands, address: 0 }
        }
    )*};
}

constructors! {
    /// VMXON with a region.
    vmxon(region) = VMXON;
    /// VMXOFF.
    vmxoff() = VMXOFF;
    /// VMCLEAR of a VMCS.
    vmclear(vmcs) = VMCLEAR;
    /// VMPTRLD of a VMCS.
    vmptrld(vmcs) = VMPTRLD;
    /// VMPTRST; its value is what it stores.
    vmptrst() = VMPTRST;
    /// VMREAD; its value is that of the field.
    vmread(field) = VMREAD;
    /// VMREAD to memory; its value is what is there.
    vmread_memory(field) = VMREAD_MEMORY;
    /// VMWRITE of a value.
    vmwrite(field, value) = VMWRITE;
    /// VMWRITE of a value from memory.
    vmwrite_memory(value, field) = VMWRITE_MEMORY;
    /// VMLAUNCH.
    vmlaunch() = VMLAUNCH;
    /// VMLAUNCH just after MOV SS, which must fail.
    vmlaunch_after_mov_ss() = MOV_SS_VMLAUNCH;
    /// VMRESUME.
    vmresume() = VMRESUME;
    /// INVEPT with the two words of its descriptor, and its type.
    invept(eptp, reserved, kind) = INVEPT;
    /// INVVPID with the two words of its descriptor, and its type.
    invvpid(tag, linear, kind) = INVVPID;
    /// VMCALL.
    vmcall() = VMCALL;
    /// VMFUNC.
    vmfunc(function, argument) = VMFUNC;
    /// RDMSR; its value is that of the MSR.
    rdmsr(index) = RDMSR;
    /// WRMSR.
    wrmsr(index, value) = WRMSR;
    /// A write to L1's memory: one that KVM notices if it tracks the page.
    poke_memory(address, value) = POKE;
    /// A write of CR0.
    set_cr0(value) = CR0;
    /// A write of CR4.
    set_cr4(value) = CR4;
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It succeeded, with a value if it has one; an entry: L2 has run and exited.
    Done(u64),
    /// VMfailInvalid.
    Invalid,
    /// VMfailValid with a number.
    Valid(u64),
    /// An exception with an error code.
    Exception(u64, u64),
    /// L1 did not get to it.
    Nothing,
}

/// Writes operations where L1 finds them.
pub fn write(memory: &GuestMemory, operations: &[Operation]) {
    let count = operations.len() as u64;
    let end = VMX_SCRIPT + 8 + count * offset::SIZE;
    assert!(end <= VMX_SCRIPT_END, "too long a script");
    memory.write(VMX_SCRIPT, count);
    for (start, operation) in starts().zip(operations) {
        memory.fill(start, offset::SIZE, 0);
        memory.write(start + offset::KIND, operation.kind);
        for (at, operand) in (start + offset::OPERANDS..)
            .step_by(8)
            .zip(operation.operands)
        {
            memory.write(at, operand);
        }
        memory.write(start + offset::ADDRESS, operation.address);
        memory.write(start + offset::OUTCOME, u64::MAX);
    }
}

/// The addresses of operations.
fn starts() -> impl Iterator<Item = u64> {
    (VMX_SCRIPT + 8..).step_by(offset::SIZE as usize)
}

/// Reads how operations ended.
pub fn answers(memory: &GuestMemory, count: usize) -> Vec<Answer> {
    let answer = |start: u64| {
        let word = |offset: u64| memory.read::<u64>(start + offset);
        match word(offset::OUTCOME) {
            outcome::DONE => Answer::Done(word(offset::VALUE)),
            outcome::INVALID => Answer::Invalid,
            outcome::VALID => Answer::Valid(word(offset::NUMBER)),
            outcome::EXCEPTION => Answer::Exception(word(offset::VECTOR), word(offset::ERROR)),
            _ => Answer::Nothing,
        }
    };
    starts().take(count).map(answer).collect()
}

/// The program of L1: reports, executes the operations that it then finds, and starts again.
pub extern "C" fn interpreter() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            report(SAYS, 0, 0);
            execute_all();
        }
    }
}

/// Executes the operations that the test program has written.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn execute_all() {
    // SAFETY: As above.
    unsafe {
        let count = peek(VMX_SCRIPT);
        let mut operation = VMX_SCRIPT + 8;
        for _ in 0..count {
            execute(operation);
            operation += offset::SIZE;
        }
    }
}

/// Executes an operation.
///
/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn execute(at: u64) {
    // SAFETY: As above.
    unsafe {
        let kind = peek(at + offset::KIND);
        let own = at + offset::OPERANDS;
        let (first, second, third) = (peek(own), peek(own + 8), peek(own + 16));
        let address = match peek(at + offset::ADDRESS) {
            0 => own,
            other => other,
        };
        let mut value = 0;
        let ended = match kind {
            kind::VMXON => code::vmxon(address),
            kind::VMXOFF => code::vmxoff(),
            kind::VMCLEAR => code::vmclear(address),
            kind::VMPTRLD => code::vmptrld(address),
            kind::VMPTRST => {
                let ended = code::vmptrst(address);
                value = peek(own);
                ended
            }
            kind::VMREAD => {
                let (ended, read) = code::vmread(first);
                value = read;
                ended
            }
            kind::VMWRITE => code::vmwrite(first, second),
            kind::VMREAD_MEMORY => {
                let ended = code::vmread_memory(first, address);
                value = peek(own);
                ended
            }
            kind::VMWRITE_MEMORY => code::vmwrite_memory(second, address),
            kind::VMLAUNCH => code::enter(VMX_REGISTERS, 0),
            kind::VMRESUME => code::enter(VMX_REGISTERS, 1),
            kind::MOV_SS_VMLAUNCH => code::vmlaunch_after_mov_ss(),
            kind::INVEPT => code::invept(third, address),
            kind::INVVPID => code::invvpid(third, address),
            kind::VMCALL => code::vmcall(),
            kind::VMFUNC => code::vmfunc(first, second),
            kind::RDMSR => {
                let (ended, read) = code::rdmsr(first);
                value = read;
                ended
            }
            kind::WRMSR => code::wrmsr(first, second),
            kind::POKE => {
                poke(first, second);
                outcome::DONE
            }
            kind::CR0 => code::set_cr0(first),
            kind::CR4 => code::set_cr4(first),
            _ => u64::MAX,
        };
        poke(at + offset::VALUE, value);
        if ended == outcome::EXCEPTION {
            poke(at + offset::VECTOR, peek(EXCEPTIONS + exception::VECTOR));
            poke(at + offset::ERROR, peek(EXCEPTIONS + exception::ERROR));
        }
        if ended == outcome::VALID {
            let number = code::vmread(field::INSTRUCTION_ERROR.into()).1;
            poke(at + offset::NUMBER, number);
        }
        poke(at + offset::OUTCOME, ended);
    }
}
