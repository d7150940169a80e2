// SPDX-License-Identifier: GPL-2.0

//! What guests execute: reports, exceptions, and the way into L2.

use core::arch::{asm, global_asm};

use super::layout::{exception, EXCEPTIONS, KERNEL_CODE, KERNEL_DATA};

/// The port of reports of L1; those of L2 and L3 are the next ones.
pub const PORT: u16 = 0xf1;

/// Nothing more happens at the level.
pub const DONE: u64 = 0;

/// The level says something that the test knows how to read.
pub const SAYS: u64 = 1;

/// The level found something wrong.
pub const WRONG: u64 = 2;

/// The level had an exception that it did not expect: its vector, and the instruction.
pub const EXCEPTION: u64 = 3;

global_asm!(
    // One stub of 16 bytes for each vector and level.
    ".macro guest_stubs level",
    ".balign 16",
    ".global guest_stubs_\\level",
    "guest_stubs_\\level:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp guest_exception_\\level",
    ".set vector, vector + 1",
    ".endr",
    // Stack: rbx, rax, vector, error code, rip, cs, rflags, rsp, ss.
    "guest_exception_\\level:",
    "push rax",
    "push rbx",
    "mov ebx, {records} + \\level * {size}",
    "mov rax, [rsp + 16]",
    "mov [rbx + {vector}], rax",
    "mov rax, [rsp + 24]",
    "mov [rbx + {error}], rax",
    "mov rax, [rsp + 32]",
    "mov [rbx + {rip}], rax",
    "inc qword ptr [rbx + {count}]",
    "mov rax, [rbx + {recovery}]",
    "test rax, rax",
    "jz 2f",
    "mov qword ptr [rbx + {recovery}], 0",
    "mov [rsp + 32], rax",
    "mov qword ptr [rsp + 40], {cs}",
    "mov qword ptr [rsp + 64], {ss}",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "2:",
    "mov edi, {unexpected}",
    "mov rsi, [rbx + {vector}]",
    "mov rdx, [rbx + {rip}]",
    "out {port} + \\level, eax",
    "jmp 2b",
    ".endm",
    "guest_stubs 0",
    "guest_stubs 1",
    "guest_stubs 2",
    // guest_run_l2(rdi: address of vmcb12, rsi: registers of L2).
    ".global guest_run_l2",
    "guest_run_l2:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rsi",
    "lea rax, [rip + 3f]",
    "mov [{records} + {recovery}], rax",
    "mov rax, rdi",
    "mov rbx, [rsi]",
    "mov rcx, [rsi + 8]",
    "mov rdx, [rsi + 16]",
    "mov rdi, [rsi + 32]",
    "mov rbp, [rsi + 40]",
    "mov r8, [rsi + 48]",
    "mov r9, [rsi + 56]",
    "mov r10, [rsi + 64]",
    "mov r11, [rsi + 72]",
    "mov r12, [rsi + 80]",
    "mov r13, [rsi + 88]",
    "mov r14, [rsi + 96]",
    "mov r15, [rsi + 104]",
    "mov rsi, [rsi + 24]",
    "vmrun rax",
    "3:",
    "xchg rsi, [rsp]",
    "mov [rsi], rbx",
    "mov [rsi + 8], rcx",
    "mov [rsi + 16], rdx",
    "mov [rsi + 32], rdi",
    "mov [rsi + 40], rbp",
    "mov [rsi + 48], r8",
    "mov [rsi + 56], r9",
    "mov [rsi + 64], r10",
    "mov [rsi + 72], r11",
    "mov [rsi + 80], r12",
    "mov [rsi + 88], r13",
    "mov [rsi + 96], r14",
    "mov [rsi + 104], r15",
    "pop rax",
    "mov [rsi + 24], rax",
    "mov qword ptr [{records} + {recovery}], 0",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    records = const EXCEPTIONS,
    size = const exception::SIZE,
    vector = const exception::VECTOR,
    error = const exception::ERROR,
    rip = const exception::RIP,
    count = const exception::COUNT,
    recovery = const exception::RECOVERY,
    cs = const KERNEL_CODE,
    ss = const KERNEL_DATA,
    unexpected = const EXCEPTION,
    port = const PORT,
);

extern "C" {
    fn guest_run_l2(vmcb: u64, registers: u64);
    static guest_stubs_0: u8;
    static guest_stubs_1: u8;
    static guest_stubs_2: u8;
}

/// Returns the address of the handler of an exception; level 0 is L1.
pub fn exception_stub(level: u64, vector: u64) -> u64 {
    let stubs = match level {
        0 => &raw const guest_stubs_0,
        1 => &raw const guest_stubs_1,
        _ => &raw const guest_stubs_2,
    };
    stubs as u64 + 16 * vector
}

/// L1: runs L2 until it exits, or until VMRUN raises an exception.
///
/// The registers are RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15.
///
/// # Safety
///
/// Only L1 may call this, with addresses of a VMCB and of registers.
#[inline]
pub unsafe fn run_l2(vmcb: u64, registers: u64) {
    // SAFETY: As above.
    unsafe { guest_run_l2(vmcb, registers) }
}

/// Reads a word.
///
/// # Safety
///
/// Only a guest may call this, with an address of its memory.
#[inline]
pub unsafe fn peek(address: u64) -> u64 {
    // SAFETY: As above.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a word.
///
/// # Safety
///
/// Only a guest may call this, with an address of its memory.
#[inline]
pub unsafe fn poke(address: u64, value: u64) {
    // SAFETY: As above.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// L1: says something to the test program.
///
/// # Safety
///
/// Only L1 may call this.
#[inline]
pub unsafe fn report(kind: u64, first: u64, second: u64) {
    // SAFETY: As above.
    unsafe { report_of::<0>(kind, first, second) }
}

/// Says something to the test program; level 0 is L1.
///
/// # Safety
///
/// Only a guest of that level may call this.
#[inline]
pub unsafe fn report_of<const LEVEL: u16>(kind: u64, first: u64, second: u64) {
    // SAFETY: As above; the test program sees the registers.
    unsafe {
        asm!("out {port}, eax", port = const PORT + LEVEL, in("rdi") kind, in("rsi") first,
             in("rdx") second, options(nostack));
    }
}

/// L1: sets the global interrupt flag.
///
/// # Safety
///
/// Only L1 may call this.
#[inline]
pub unsafe fn stgi() {
    // SAFETY: As above.
    unsafe { asm!("stgi", options(nostack)) }
}

/// Defines code of a guest by its instructions.
#[macro_export]
macro_rules! guest_code {
    ($($(#[$doc:meta])* $name:ident: $($line:literal),+;)*) => {$(
        ::core::arch::global_asm!(
            concat!(".global ", stringify!($name)),
            concat!(stringify!($name), ":"),
            $($line,)+
        );
        extern "C" {
            $(#[$doc])*
            pub fn $name();
        }
    )*};
}
