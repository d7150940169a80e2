// SPDX-License-Identifier: GPL-2.0

//! VMX instructions of L1, and its way into L2 and back.

use core::arch::{asm, global_asm};

use crate::guest::code::{peek, poke};
use crate::guest::layout::{exception, EXCEPTIONS};

/// L1's address for the next exception, see [`exception::RECOVERY`].
const RECOVERY: u64 = EXCEPTIONS + exception::RECOVERY;

global_asm!(
    // guest_vmx_enter(rdi: registers of L2, rsi: not 0 for VMRESUME); the registers are in the
    // order of SVM's, with RAX at the end and then the stack of L1. Returns 0 after an exit, 1 if
    // RFLAGS.CF is set, 2 if RFLAGS.ZF is set, 3 after an exception.
    ".global guest_vmx_enter",
    "guest_vmx_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi + 120], rsp",
    "lea rax, [rip + 4f]",
    "mov [{recovery}], rax",
    "test rsi, rsi",
    "mov rbx, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rsi, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rax, [rdi + 112]",
    "mov rdi, [rdi + 32]",
    "jz 2f",
    "vmresume",
    "jmp 3f",
    "2:",
    "vmlaunch",
    "3:",
    "mov eax, 1",
    "jc 5f",
    "mov eax, 2",
    "jmp 5f",
    "4:",
    "mov eax, 3",
    "jmp 5f",
    ".global guest_vmx_exited",
    "guest_vmx_exited:",
    "push rax",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rbp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rbx",
    "mov rsp, [rsp + 120]",
    "xor eax, eax",
    "5:",
    "mov qword ptr [{recovery}], 0",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    recovery = const RECOVERY,
);

extern "C" {
    fn guest_vmx_enter(registers: u64, resume: u64) -> u64;
    static guest_vmx_exited: u8;
}

/// Returns the address at which L1 goes on after an exit of L2.
pub fn exited_address() -> u64 {
    &raw const guest_vmx_exited as u64
}

/// How an instruction of L1 ended.
pub mod outcome {
    /// It succeeded; an entry: L2 has run and exited.
    pub const DONE: u64 = 0;
    /// VMfailInvalid.
    pub const INVALID: u64 = 1;
    /// VMfailValid.
    pub const VALID: u64 = 2;
    /// An exception.
    pub const EXCEPTION: u64 = 3;
}

/// L1: VMLAUNCH, or VMRESUME if `resume` is not 0; returns an [`outcome`].
///
/// # Safety
///
/// Only L1 may call this, with the address of registers.
#[inline]
pub unsafe fn enter(registers: u64, resume: u64) -> u64 {
    // SAFETY: As above.
    unsafe { guest_vmx_enter(registers, resume) }
}

/// Executes an instruction of L1 that may raise an exception, and evaluates to its outcome.
macro_rules! guarded {
    ($code:literal $(, $($operands:tt)*)?) => {{
        let carry: u8;
        let zero: u8;
        // SAFETY: The caller is L1; an exception goes on at the label.
        unsafe {
            asm!(
                "lea {scratch}, [rip + 2f]",
                "mov [{recovery}], {scratch}",
                // Clears the flags: not all of the instructions change them.
                "or {scratch}, 1",
                $code,
                "2:",
                "setc {carry}",
                "setz {zero}",
                scratch = out(reg) _,
                carry = out(reg_byte) carry,
                zero = out(reg_byte) zero,
                recovery = const RECOVERY,
                $($($operands)*)?
            );
        }
        // SAFETY: The caller is L1.
        unsafe { finish(carry, zero) }
    }};
}

/// # Safety
///
/// Only L1 may call this.
unsafe fn finish(carry: u8, zero: u8) -> u64 {
    // SAFETY: As above.
    let happened = unsafe { peek(RECOVERY) } == 0;
    // SAFETY: As above.
    unsafe { poke(RECOVERY, 0) };
    if happened {
        outcome::EXCEPTION
    } else if carry != 0 {
        outcome::INVALID
    } else if zero != 0 {
        outcome::VALID
    } else {
        outcome::DONE
    }
}

/// Defines an instruction with an operand in memory that is a physical address.
macro_rules! pointer_instructions {
    ($($(#[$doc:meta])* $name:ident: $code:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// Only L1 may call this.
        pub unsafe fn $name(operand: u64) -> u64 {
            guarded!($code, operand = in(reg) operand)
        }
    )*};
}

pointer_instructions! {
    /// VMXON; the operand is the address of the pointer, as for the others.
    vmxon: "vmxon qword ptr [{operand}]";
    /// VMCLEAR.
    vmclear: "vmclear qword ptr [{operand}]";
    /// VMPTRLD.
    vmptrld: "vmptrld qword ptr [{operand}]";
    /// VMPTRST.
    vmptrst: "vmptrst qword ptr [{operand}]";
}

/// VMXOFF.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmxoff() -> u64 {
    guarded!("vmxoff")
}

/// VMCALL.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmcall() -> u64 {
    guarded!("vmcall", inout("rax") u64::MAX => _)
}

/// VMLAUNCH just after MOV SS, which must fail: an exit of L2 would go nowhere.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmlaunch_after_mov_ss() -> u64 {
    guarded!("mov {ss:e}, ss\n mov ss, {ss:e}\n vmlaunch", ss = out(reg) _)
}

/// VMFUNC.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmfunc(function: u64, argument: u64) -> u64 {
    guarded!("vmfunc", in("rax") function, in("rcx") argument)
}

/// VMREAD to a register.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmread(field: u64) -> (u64, u64) {
    let mut value = 0;
    let outcome =
        guarded!("vmread {value}, {field}", value = inout(reg) value, field = in(reg) field);
    (outcome, value)
}

/// VMREAD to memory.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmread_memory(field: u64, operand: u64) -> u64 {
    guarded!("vmread qword ptr [{operand}], {field}", operand = in(reg) operand, field = in(reg) field)
}

/// VMWRITE from a register.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmwrite(field: u64, value: u64) -> u64 {
    guarded!("vmwrite {field}, {value}", value = in(reg) value, field = in(reg) field)
}

/// VMWRITE from memory.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn vmwrite_memory(field: u64, operand: u64) -> u64 {
    guarded!("vmwrite {field}, qword ptr [{operand}]", operand = in(reg) operand, field = in(reg) field)
}

/// INVEPT; the operand is the address of the descriptor.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn invept(kind: u64, operand: u64) -> u64 {
    guarded!("invept {kind}, xmmword ptr [{operand}]", operand = in(reg) operand, kind = in(reg) kind)
}

/// INVVPID; the operand is the address of the descriptor.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn invvpid(kind: u64, operand: u64) -> u64 {
    guarded!("invvpid {kind}, xmmword ptr [{operand}]", operand = in(reg) operand, kind = in(reg) kind)
}

/// RDMSR.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn rdmsr(index: u64) -> (u64, u64) {
    let (mut low, mut high) = (0u64, 0u64);
    let outcome = guarded!("rdmsr", in("rcx") index, inout("rax") low, inout("rdx") high);
    (outcome, high << 32 | low & 0xffff_ffff)
}

/// WRMSR.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn wrmsr(index: u64, value: u64) -> u64 {
    guarded!("wrmsr", in("rcx") index, in("rax") value, in("rdx") value >> 32)
}

/// Writes CR0.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn set_cr0(value: u64) -> u64 {
    guarded!("mov cr0, {value}", value = in(reg) value)
}

/// Writes CR4.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn set_cr4(value: u64) -> u64 {
    guarded!("mov cr4, {value}", value = in(reg) value)
}
