// SPDX-License-Identifier: GPL-2.0

//! An L1 that executes a list of SVM instructions, and notes how each of them ended.

use core::arch::asm;

use crate::guest::code::{self, peek, poke, report, SAYS};
use crate::guest::layout::{exception, EXCEPTIONS, REGISTERS, VMX_SCRIPT};
use crate::guest::memory::GuestMemory;

/// Where the list is: the number of operations, and these.
const SCRIPT: u64 = VMX_SCRIPT;

/// The outcome of an operation that L1 did not get to.
pub const NOTHING: u64 = u64::MAX;

/// Offsets in an operation.
mod offset {
    pub const KIND: u64 = 0;
    pub const OPERANDS: u64 = 8;
    /// Number of exceptions.
    pub const OUTCOME: u64 = 32;
    pub const VALUE: u64 = 40;
    pub const VECTOR: u64 = 48;
    pub const ERROR: u64 = 56;
    pub const SIZE: u64 = 64;
}

/// Kinds of operations.
pub mod kind {
    /// VMRUN with an address.
    pub const VMRUN: u64 = 1;
    /// VMLOAD with an address.
    pub const VMLOAD: u64 = 2;
    /// VMSAVE with an address.
    pub const VMSAVE: u64 = 3;
    /// STGI.
    pub const STGI: u64 = 4;
    /// CLGI.
    pub const CLGI: u64 = 5;
    /// SKINIT with an address.
    pub const SKINIT: u64 = 6;
    /// INVLPGA with an address and an ASID.
    pub const INVLPGA: u64 = 7;
    /// VMMCALL.
    pub const VMMCALL: u64 = 8;
    /// RDMSR with an index.
    pub const RDMSR: u64 = 9;
    /// WRMSR with an index and a value.
    pub const WRMSR: u64 = 10;
    /// MOV to CR0.
    pub const CR0: u64 = 11;
    /// MOV to CR4.
    pub const CR4: u64 = 12;
    /// Sets bits of a word of memory: its address, which bits, and what they become.
    pub const SET: u64 = 13;
}

/// How an operation ended.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The number of exceptions that it raised, or [`NOTHING`].
    pub outcome: u64,
    /// What it has read.
    pub value: u64,
    /// The vector of the exception.
    pub vector: u64,
    /// Its error code.
    pub error: u64,
}

/// Writes operations where L1 finds them: a kind and operands each.
pub fn write(memory: &GuestMemory, operations: &[(u64, [u64; 3])]) {
    memory.write(SCRIPT, operations.len() as u64);
    for (start, (kind, operands)) in starts().zip(operations) {
        memory.fill(start, offset::SIZE, 0);
        memory.write(start + offset::KIND, *kind);
        memory.write(start + offset::OUTCOME, NOTHING);
        let places = (start + offset::OPERANDS..).step_by(8);
        for (place, operand) in places.zip(operands) {
            memory.write(place, *operand);
        }
    }
}

fn starts() -> impl Iterator<Item = u64> {
    (SCRIPT + 8..).step_by(offset::SIZE as usize)
}

/// Reads how operations ended.
pub fn answers(memory: &GuestMemory, count: usize) -> Vec<Answer> {
    let answer = |start: u64| Answer {
        outcome: memory.read(start + offset::OUTCOME),
        value: memory.read(start + offset::VALUE),
        vector: memory.read(start + offset::VECTOR),
        error: memory.read(start + offset::ERROR),
    };
    starts().take(count).map(answer).collect()
}

/// The program of L1: reports, executes the operations that it then finds, and starts again.
pub extern "C" fn interpreter() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            report(SAYS, 0, 0);
            let count = peek(SCRIPT);
            let mut operation = SCRIPT + 8;
            for _ in 0..count {
                execute(operation);
                operation += offset::SIZE;
            }
        }
    }
}

/// Executes an instruction of L1 that may raise an exception; the scratch register is RDI.
macro_rules! guarded {
    ($code:literal $(, $($operands:tt)*)?) => {
        asm!(
            "lea rdi, [rip + 2f]",
            "mov [{recovery}], rdi",
            $code,
            "2:",
            "mov qword ptr [{recovery}], 0",
            out("rdi") _,
            recovery = const EXCEPTIONS + exception::RECOVERY,
            $($($operands)*)?
        )
    };
}

/// Executes an operation.
///
/// # Safety
///
/// Only L1 may call this, with the address of an operation.
unsafe fn execute(at: u64) {
    // SAFETY: As above; an exception goes on behind the instruction.
    unsafe {
        let own = at + offset::OPERANDS;
        let (first, second, third) = (peek(own), peek(own + 8), peek(own + 16));
        let count = EXCEPTIONS + exception::COUNT;
        let before = peek(count);
        let mut value = 0;
        match peek(at + offset::KIND) {
            kind::VMRUN => code::run_l2(first, REGISTERS),
            kind::VMLOAD => guarded!("vmload rax", in("rax") first),
            kind::VMSAVE => guarded!("vmsave rax", in("rax") first),
            kind::STGI => guarded!("stgi"),
            kind::CLGI => guarded!("clgi"),
            kind::SKINIT => guarded!("skinit eax", in("rax") first),
            kind::INVLPGA => guarded!("invlpga rax, ecx", in("rax") first, in("rcx") second),
            kind::VMMCALL => guarded!("vmmcall", inout("rax") u64::MAX => value),
            kind::RDMSR => {
                let (mut low, mut high) = (0u64, 0u64);
                guarded!("rdmsr", in("rcx") first, inout("rax") low, inout("rdx") high);
                value = high << 32 | low & 0xffff_ffff;
            }
            kind::WRMSR => {
                guarded!("wrmsr", in("rcx") first, in("rax") second, in("rdx") second >> 32);
            }
            kind::CR0 => guarded!("mov cr0, rax", in("rax") first),
            kind::CR4 => guarded!("mov cr4, rax", in("rax") first),
            kind::SET => poke(first, peek(first) & !second | third & second),
            _ => {}
        }
        poke(at + offset::VALUE, value);
        let raised = peek(count).wrapping_sub(before);
        if raised != 0 {
            poke(at + offset::VECTOR, peek(EXCEPTIONS + exception::VECTOR));
            poke(at + offset::ERROR, peek(EXCEPTIONS + exception::ERROR));
        }
        poke(at + offset::OUTCOME, raised);
    }
}
