// SPDX-License-Identifier: GPL-2.0

//! What the guest executes: one operation again and again, between two readings of the TSC.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, _rdtsc};

use selftests::guest::code::{peek, poke, report, DONE};
use selftests::guest::layout::{BUFFER, SHARED};
use selftests::guest_code;

/// How many samples to take.
pub const COUNT: u64 = SHARED + 16;

/// The samples, words.
pub const SAMPLES: u64 = 0x20_0000;

/// Most samples that there is room for.
pub const MOST: u64 = 0x1_0000;

/// The page directory for [`REGION`].
pub const DIRECTORY: u64 = BUFFER;

/// Memory of its own slot, which is mapped page by page.
pub const REGION: u64 = 0x8000_0000;

/// Pages of that memory.
pub const PAGES: u64 = 1024;

/// The port of a device in the kernel below.
pub const KERNEL_PORT: u16 = 0x10;

/// The port of a device in the program below.
pub const USER_PORT: u16 = 0x20;

/// The port at which the program below does what belongs to the operation.
pub const SERVICE_PORT: u16 = 0x30;

/// Interrupts that the processor had.
const INTERRUPTS: u64 = SHARED;

/// The second processor is to stop.
const STOP: u64 = SHARED + 8;

const _: () = assert!(INTERRUPTS == 0x6000);

/// The vector of the timer, and of the answer to a message.
pub const VECTOR: u8 = 0x40;

/// The vector of a message to the second processor.
pub const MESSAGE: u8 = 0x41;

/// TSC ticks from arming a timer to its deadline: more than it takes to arm it.
const DISTANCE: u64 = 300_000;

mod msr {
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const APIC_BASE: u32 = 0x1b;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const APIC_SPURIOUS: u32 = 0x80f;
    pub const APIC_COMMAND: u32 = 0x830;
    pub const APIC_TIMER: u32 = 0x832;
}

guest_code! {
    /// Counts an interrupt.
    benchmark_interrupt:
        "push rax", "push rcx", "push rdx",
        "inc qword ptr [0x6000]",
        "mov ecx, 0x80b", "xor eax, eax", "xor edx, edx", "wrmsr",
        "pop rdx", "pop rcx", "pop rax", "iretq";
    /// Answers a message to the second processor by an interrupt of the first one.
    benchmark_message:
        "push rax", "push rcx", "push rdx",
        "mov ecx, 0x80b", "xor eax, eax", "xor edx, edx", "wrmsr",
        "mov ecx, 0x830", "mov eax, 0x40", "xor edx, edx", "wrmsr",
        "pop rdx", "pop rcx", "pop rax", "iretq";
}

const _: () = assert!(VECTOR == 0x40);

/// Reads an MSR.
///
/// # Safety
///
/// Only a guest may call this.
#[inline(always)]
unsafe fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: As above.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
///
/// Only a guest may call this.
#[inline(always)]
unsafe fn write_msr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: As above.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack));
    }
}

/// Writes to a port.
///
/// # Safety
///
/// Only a guest may call this.
#[inline(always)]
unsafe fn write_port(port: u16) {
    // SAFETY: As above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") 0u8, options(nostack)) }
}

/// Halts until there is an interrupt.
///
/// Bochs takes a virtual interrupt (SVM) that was pending at VMRUN only when the guest enables
/// interrupts, even if they were enabled: hence the second STI.
///
/// # Safety
///
/// Only a guest may call this, with interrupts disabled.
#[inline(always)]
unsafe fn halt() {
    // SAFETY: As above.
    unsafe { asm!("sti", "hlt", "cli", "sti", "nop", "cli", options(nostack)) }
}

/// Halts until the processor has had an interrupt.
///
/// # Safety
///
/// Only a guest may call this, with interrupts disabled.
#[inline(always)]
unsafe fn await_interrupt() {
    // SAFETY: As above.
    unsafe {
        while peek(INTERRUPTS) == 0 {
            halt();
        }
    }
}

/// Switches the local APIC on, in the mode in which its registers are MSRs.
///
/// # Safety
///
/// Only a guest may call this.
unsafe fn enable_apic() {
    // SAFETY: As above.
    unsafe {
        write_msr(msr::APIC_BASE, read_msr(msr::APIC_BASE) | 0xc00);
        write_msr(msr::APIC_SPURIOUS, 0x1ff);
        // The mode in which a deadline is written to an MSR.
        write_msr(msr::APIC_TIMER, 2 << 17 | u64::from(VECTOR));
    }
}

/// Tells the program below that all is done.
///
/// # Safety
///
/// Only a guest may call this.
unsafe fn done() -> ! {
    loop {
        // SAFETY: As above.
        unsafe { report(DONE, 0, 0) };
    }
}

/// Takes the samples; `sample` returns the ticks that one took.
///
/// # Safety
///
/// Only a guest may call this.
#[inline(always)]
unsafe fn sample(mut sample: impl FnMut(u64) -> u64) {
    // SAFETY: As above; there is room for the samples.
    unsafe {
        for number in 0..peek(COUNT) {
            let ticks = sample(number);
            poke(SAMPLES + 8 * number, ticks);
        }
    }
}

/// Measures an operation, which gets the number of the sample.
///
/// # Safety
///
/// Only a guest may call this.
#[inline(always)]
unsafe fn measure(mut operation: impl FnMut(u64)) -> ! {
    // SAFETY: As above.
    unsafe {
        enable_apic();
        let empty = (0..4).map(|_| _rdtsc().abs_diff(_rdtsc())).min();
        let empty = empty.unwrap_or(0);
        sample(|number| {
            let start = _rdtsc();
            operation(number);
            _rdtsc() - start - empty
        });
        done()
    }
}

/// CPUID.
pub extern "C" fn cpuid() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        measure(|_| {
            std::hint::black_box(__cpuid(0));
        })
    }
}

/// A hypercall that does nothing on Intel.
pub extern "C" fn vmcall() -> ! {
    // SAFETY: This is a guest; the number is that of KVM_HC_VAPIC_POLL_IRQ.
    unsafe { measure(|_| asm!("vmcall", inout("rax") 1u64 => _, options(nostack))) }
}

/// A hypercall that does nothing on AMD.
pub extern "C" fn vmmcall() -> ! {
    // SAFETY: As above.
    unsafe { measure(|_| asm!("vmmcall", inout("rax") 1u64 => _, options(nostack))) }
}

/// RDMSR.
pub extern "C" fn rdmsr() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        measure(|_| {
            std::hint::black_box(read_msr(msr::MISC_ENABLE));
        })
    }
}

/// WRMSR of what is there.
pub extern "C" fn wrmsr() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        let value = read_msr(msr::MISC_ENABLE);
        measure(|_| write_msr(msr::MISC_ENABLE, value))
    }
}

/// Writes to a device in the kernel.
pub extern "C" fn kernel_port() -> ! {
    // SAFETY: This is a guest.
    unsafe { measure(|_| write_port(KERNEL_PORT)) }
}

/// Writes to a device in the program.
pub extern "C" fn user_port() -> ! {
    // SAFETY: This is a guest.
    unsafe { measure(|_| write_port(USER_PORT)) }
}

/// Arms a timer and goes on until it has interrupted; a sample is what is not the guest's own.
pub extern "C" fn timer() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        enable_apic();
        asm!("sti", options(nostack));
        sample(|_| {
            poke(INTERRUPTS, 0);
            let start = _rdtsc();
            write_msr(msr::TSC_DEADLINE, start + DISTANCE);
            let mut rounds = 0u64;
            asm!("2:", "inc {}", "cmp qword ptr [0x6000], 0", "je 2b", inout(reg) rounds);
            _rdtsc() - start - 3 * rounds
        });
        done()
    }
}

/// Halts until a timer interrupts; a sample is the time from the deadline.
pub extern "C" fn hlt() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        enable_apic();
        sample(|_| {
            poke(INTERRUPTS, 0);
            let deadline = _rdtsc() + DISTANCE;
            write_msr(msr::TSC_DEADLINE, deadline);
            await_interrupt();
            _rdtsc() - deadline
        });
        done()
    }
}

/// Sends a message to the second processor and halts until the answer is there.
pub extern "C" fn ipi() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        enable_apic();
        let send = || {
            poke(INTERRUPTS, 0);
            write_msr(msr::APIC_COMMAND, 1 << 32 | u64::from(MESSAGE));
            await_interrupt();
        };
        sample(|_| {
            let start = _rdtsc();
            send();
            _rdtsc() - start
        });
        poke(STOP, 1);
        send();
        done()
    }
}

/// The second processor; it asks for a service when it can have messages.
pub extern "C" fn answer() -> ! {
    // SAFETY: This is a guest.
    unsafe {
        enable_apic();
        write_port(SERVICE_PORT);
        while peek(STOP) == 0 {
            halt();
        }
        done()
    }
}

/// Reads each page once; a sample is the time for a page.
pub extern "C" fn read_pages() -> ! {
    // SAFETY: This is a guest, and there is memory.
    unsafe {
        enable_apic();
        write_port(SERVICE_PORT);
        measure(|number| {
            peek(REGION + 0x1000 * number);
        })
    }
}

/// Lets the program below take a page away, and reads others, which are still there.
pub extern "C" fn flush() -> ! {
    // SAFETY: This is a guest, and there is memory.
    unsafe {
        measure(|_| {
            write_port(SERVICE_PORT);
            for page in 1..PAGES / 4 {
                peek(REGION + 0x1000 * page);
            }
        })
    }
}

/// Writes to each page and lets the program below ask which pages are dirty.
pub extern "C" fn dirty_log() -> ! {
    // SAFETY: This is a guest, and there is memory.
    unsafe {
        measure(|number| {
            for page in 0..PAGES {
                poke(REGION + 0x1000 * page, number);
            }
            write_port(SERVICE_PORT);
        })
    }
}
