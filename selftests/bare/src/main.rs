// SPDX-License-Identifier: GPL-2.0

//! Enters near-valid states of a VMCS on the processor itself.
//!
//! It is booted in the place of a kernel, and prints what `vmx_near_valid_test` prints, which does
//! the same with the same code as L1.

#![no_std]
#![no_main]

mod guest;
mod start;

use core::arch::asm;

use guest::code::exception_stub;
use guest::layout::{EXCEPTIONS, KERNEL_CODE};
use guest::vmx::code::{rdmsr, vmxon, wrmsr};
use guest::vmx::near_valid::{self, Environment};

/// The first serial port.
const COM1: u16 = 0x3f8;

/// States; the test may try fewer.
const STATES: u64 = 8192;

/// States in a line.
const LINE: u64 = 64;

/// The seed, which is the default of the test.
const SEED: u64 = 1;

/// The MSR that allows VMXON, and its value for that.
const FEATURE_CONTROL: (u64, u64) = (0x3a, 5);

/// Writes a byte to a port.
fn out(port: u16, value: u8) {
    // SAFETY: The ports are those of the serial port and of the interrupt controllers.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) }
}

/// Prints text on the serial port.
fn print(text: &[u8]) {
    for byte in text {
        loop {
            let status: u8;
            // SAFETY: Reading the status of the serial port has no effect.
            unsafe { asm!("in al, dx", in("dx") COM1 + 5, out("al") status, options(nostack)) };
            if status & 0x20 != 0 {
                break;
            }
        }
        out(COM1, *byte);
    }
}

/// Prints a number.
fn print_number(number: u64) {
    if number >= 10 {
        print_number(number / 10);
    }
    print(&[b'0' + (number % 10) as u8]);
}

/// How a line of a program begins on the console of a kernel, which is what the lab looks for.
const PREFIX: &[u8] = b"[    0.000000] | ";

/// Prints a line in the form that the lab takes for one of user space.
fn line(text: &[u8]) {
    print(PREFIX);
    print(text);
    print(b"\r\n");
}

/// Lets exceptions go on where the code of L1 wants that.
fn catch_exceptions(idt: u64) {
    for vector in 0..32 {
        let handler = exception_stub(0, vector);
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | 0x8e00 << 32
            | (handler >> 16 & 0xffff) << 48;
        let gate = (idt + 16 * vector) as *mut u64;
        // SAFETY: The table has room for all of them.
        unsafe {
            gate.write_volatile(low);
            gate.add(1).write_volatile(handler >> 32);
        }
    }
    for word in 0..16 {
        // SAFETY: Nothing of the firmware is there that would be needed again.
        unsafe { ((EXCEPTIONS + 8 * word) as *mut u64).write_volatile(0) };
    }
    let descriptor = [0xfff | idt << 16, idt >> 48];
    // SAFETY: The table has a gate for each exception.
    unsafe { asm!("lidt [{}]", in(reg) &descriptor, options(nostack)) };
}

/// Reads a capability MSR.
fn capability(index: u64) -> u64 {
    // SAFETY: An MSR that does not exist raises an exception that is caught.
    unsafe { rdmsr(index).1 }
}

/// Returns how wide physical addresses are.
fn physical_width() -> u32 {
    let widths: u32;
    // SAFETY: The instruction has no effect but on registers; RBX is the compiler's.
    unsafe {
        asm!(
            "push rbx",
            "cpuid",
            "pop rbx",
            inout("eax") 0x8000_0008u32 => widths,
            out("ecx") _,
            out("edx") _,
        );
    }
    widths & 0xff
}

/// Begins in 64-bit mode, with interrupts off.
pub extern "C" fn main() -> ! {
    // No interrupt, whatever the firmware has left.
    out(0x21, 0xff);
    out(0xa1, 0xff);
    // Eight bits in a character.
    out(COM1 + 3, 3);
    let places = start::places();
    catch_exceptions(places.idt);
    line(b"=== lab: up level=0");
    line(b"test: vmx_near_valid_test begin");
    let basic = capability(0x480);
    let first = if basic >> 55 & 1 == 1 { 0x48d } else { 0x481 };
    let required = |index: u64| capability(index) & 0xffff_ffff;
    let [page, region, vmcs] = [0, 1, 2].map(|number| places.pages + 0x1000 * number);
    for address in [region, vmcs] {
        // SAFETY: These pages are for that.
        unsafe { (address as *mut u32).write_volatile((basic & 0x7fff_ffff) as u32) };
    }
    let (mut cr0, mut cr4): (u64, u64);
    // SAFETY: These instructions have no effect.
    unsafe {
        asm!("mov {}, cr0", out(reg) cr0, options(nostack));
        asm!("mov {}, cr4", out(reg) cr4, options(nostack));
    }
    // What the processor adds of its own is not wanted.
    (cr0, cr4) = (cr0 & 0xffff_ffff, cr4 & 0xffff_ffff);
    let width = physical_width();
    let environment = Environment {
        required: [
            required(first),
            required(first + 1),
            required(0x48b),
            required(first + 2),
            required(first + 3),
        ],
        end: 1 << width,
        page,
        vmcs,
        cr0,
        cr3: places.tables,
        cr4,
        // SCE, LME, LMA, NXE.
        efer: 0xd01,
        bases: [places.task, places.gdt, places.idt],
    };
    // SAFETY: This is a hypervisor, in 64-bit mode; if one of these fails, so do all entries.
    unsafe {
        wrmsr(FEATURE_CONTROL.0, FEATURE_CONTROL.1);
        vmxon(&raw const region as u64);
    }
    for start in (0..STATES).step_by(LINE as usize) {
        let mut letters = [0u64; LINE as usize / 8];
        let address = &raw mut letters as u64;
        // SAFETY: As above; there is room for the letters.
        unsafe { near_valid::run(&environment, SEED, start, LINE, address) };
        print(PREFIX);
        print(b"# same: states from ");
        print_number(start);
        print(b": ");
        for word in letters {
            // Written behind the compiler's back.
            // SAFETY: The reference is valid.
            print(&unsafe { (&raw const word).read_volatile() }.to_le_bytes());
        }
        print(b"\r\n");
    }
    line(b"test: vmx_near_valid_test end status=0");
    line(b"=== lab: end status=0");
    loop {
        // SAFETY: Nothing is left to be done.
        unsafe { asm!("cli", "hlt") };
    }
}

/// Nothing here may panic; if it does, the lab sees that nothing comes any more.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    line(b"=== lab: fail panic");
    loop {
        // SAFETY: Nothing is left to be done.
        unsafe { asm!("cli", "hlt") };
    }
}
