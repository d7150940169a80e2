// SPDX-License-Identifier: GPL-2.0

//! The virtual machine control block, by the addresses of its fields.
//!
//! This is written down a second time, and not that of the module: a wrong offset there would be
//! right here.

use super::layout::{
    EXCEPTIONS, GDT, IDT, IO_MAP, KERNEL_CODE, KERNEL_DATA, MSR_MAP, STACK, STACKS, VMCB,
};
use super::memory::GuestMemory;
use super::tables::Tables;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $offset:expr;)*) => {
        $($(#[$doc])* pub const $name: u64 = VMCB + $offset;)*
    };
}

fields! {
    /// Intercepts, six words of 32 bits: the bit of an intercept is its exit code.
    INTERCEPTS = 0x000;
    /// How many PAUSEs do not exit, 16 bits.
    PAUSE_COUNT = 0x03e;
    /// The I/O permission map.
    IOPM = 0x040;
    /// The MSR permission map.
    MSRPM = 0x048;
    /// What L2's TSC is ahead of L1's.
    TSC_OFFSET = 0x050;
    /// The address-space identifier, 32 bits.
    ASID = 0x058;
    /// Virtual interrupts, 32 bits.
    INT_CTL = 0x060;
    /// The vector of the virtual interrupt, 32 bits.
    INT_VECTOR = 0x064;
    /// Interrupt shadow, 32 bits.
    INT_STATE = 0x068;
    /// Why L2 stopped.
    EXIT_CODE = 0x070;
    /// More about the exit.
    EXIT_INFO_1 = 0x078;
    /// More about the exit.
    EXIT_INFO_2 = 0x080;
    /// The event that was being delivered, 32 bits.
    EXIT_INT_INFO = 0x088;
    /// Its error code, 32 bits.
    EXIT_INT_INFO_ERROR = 0x08c;
    /// Nested paging and others.
    MISC_CTL = 0x090;
    /// The event to inject, 32 bits.
    EVENT_INJ = 0x0a8;
    /// Its error code, 32 bits.
    EVENT_INJ_ERROR = 0x0ac;
    /// The nested page table.
    NESTED_CR3 = 0x0b0;
    /// What has not changed, 32 bits.
    CLEAN = 0x0c0;
    /// The next instruction.
    NEXT_RIP = 0x0c8;
    /// The first segment register; each has 16 bytes, in the order ES, CS, SS, DS, FS, GS, GDTR,
    /// LDTR, IDTR, TR.
    SEGMENTS = 0x400;
    /// The register IDTR, as a segment register.
    IDTR = 0x480;
    /// The privilege level, 8 bits.
    CPL = 0x4cb;
    /// The register EFER.
    EFER = 0x4d0;
    /// The register CR4.
    CR4 = 0x548;
    /// The register CR3.
    CR3 = 0x550;
    /// The register CR0.
    CR0 = 0x558;
    /// The register DR7.
    DR7 = 0x560;
    /// The register DR6.
    DR6 = 0x568;
    /// The register RFLAGS.
    RFLAGS = 0x570;
    /// The register RIP.
    RIP = 0x578;
    /// The register RSP.
    RSP = 0x5d8;
    /// The register RAX.
    RAX = 0x5f8;
    /// The register CR2.
    CR2 = 0x640;
    /// The page-attribute table.
    G_PAT = 0x668;
}

/// Exit codes, which are the bits of intercepts, too.
pub mod exit {
    /// CR0 is read; the others follow.
    pub const READ_CR0: u64 = 0;
    /// CR0 is written; the others follow.
    pub const WRITE_CR0: u64 = 0x10;
    /// DR0 is read; the others follow.
    pub const READ_DR0: u64 = 0x20;
    /// DR0 is written; the others follow.
    pub const WRITE_DR0: u64 = 0x30;
    /// Exception 0; the others follow.
    pub const EXCEPTION: u64 = 0x40;
    /// An external interrupt.
    pub const INTR: u64 = 0x60;
    /// A non-maskable interrupt.
    pub const NMI: u64 = 0x61;
    /// A system-management interrupt.
    pub const SMI: u64 = 0x62;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// A virtual interrupt.
    pub const VINTR: u64 = 0x64;
    /// RDTSC.
    pub const RDTSC: u64 = 0x6e;
    /// RDPMC.
    pub const RDPMC: u64 = 0x6f;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// INVD.
    pub const INVD: u64 = 0x76;
    /// PAUSE.
    pub const PAUSE: u64 = 0x77;
    /// HLT.
    pub const HLT: u64 = 0x78;
    /// INVLPG.
    pub const INVLPG: u64 = 0x79;
    /// IN and OUT.
    pub const IOIO: u64 = 0x7b;
    /// RDMSR and WRMSR.
    pub const MSR: u64 = 0x7c;
    /// A switch of tasks.
    pub const TASK_SWITCH: u64 = 0x7d;
    /// A triple fault.
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// VMLOAD.
    pub const VMLOAD: u64 = 0x82;
    /// VMSAVE.
    pub const VMSAVE: u64 = 0x83;
    /// STGI.
    pub const STGI: u64 = 0x84;
    /// CLGI.
    pub const CLGI: u64 = 0x85;
    /// SKINIT.
    pub const SKINIT: u64 = 0x86;
    /// RDTSCP.
    pub const RDTSCP: u64 = 0x87;
    /// WBINVD.
    pub const WBINVD: u64 = 0x89;
    /// MONITOR.
    pub const MONITOR: u64 = 0x8a;
    /// XSETBV.
    pub const XSETBV: u64 = 0x8d;
    /// A fault of the nested page table.
    pub const NPF: u64 = 0x400;
    /// The state that VMRUN should load is not valid.
    pub const INVALID: u64 = u64::MAX;
}

/// Returns the word of intercepts that has the one with an exit code, and its bit.
fn intercept(code: u64) -> (u64, u32) {
    (INTERCEPTS + code / 32 * 4, 1 << (code % 32))
}

/// Sets an intercept.
pub fn set_intercept(memory: &GuestMemory, code: u64) {
    let (word, bit) = intercept(code);
    memory.write(word, memory.read::<u32>(word) | bit);
}

/// Clears an intercept.
pub fn clear_intercept(memory: &GuestMemory, code: u64) {
    let (word, bit) = intercept(code);
    memory.write(word, memory.read::<u32>(word) & !bit);
}

/// Writes a VMCB with which L2 starts at `rip`, in the same mode as L1 and at the same addresses.
pub fn write(memory: &GuestMemory, tables: &Tables, rip: u64) {
    memory.fill(VMCB, 0x1000, 0);
    for code in [exit::SHUTDOWN, exit::VMRUN, exit::VMMCALL] {
        set_intercept(memory, code);
    }
    memory.write(IOPM, IO_MAP);
    memory.write(MSRPM, MSR_MAP);
    memory.write(ASID, 1u32);
    memory.write(MISC_CTL, 1u64);
    memory.write(NESTED_CR3, tables.nested);
    let segment = |index: u64, selector: u16, attributes: u16, limit: u32, base: u64| {
        let address = SEGMENTS + 16 * index;
        memory.write(address, selector);
        memory.write(address + 2, attributes);
        memory.write(address + 4, limit);
        memory.write(address + 8, base);
    };
    for data in [0, 2, 3, 4, 5] {
        segment(data, KERNEL_DATA, 0xc93, u32::MAX, 0);
    }
    segment(1, KERNEL_CODE, 0xa9b, u32::MAX, 0);
    segment(6, 0, 0, 0xfff, GDT);
    segment(8, 0, 0, 0xfff, IDT + 0x1000);
    memory.write(EFER, tables.efer);
    memory.write(CR0, tables.cr0);
    memory.write(CR3, tables.root);
    memory.write(CR4, tables.cr4);
    memory.write(DR6, 0xffff_0ff0u64);
    memory.write(DR7, 0x400u64);
    memory.write(RFLAGS, 2u64);
    memory.write(RIP, rip);
    memory.write(RSP, STACKS + 2 * STACK - 8);
    memory.write(G_PAT, 0x0007_0406_0007_0406u64);
    // L1 and L2 have a record of exceptions each.
    memory.fill(EXCEPTIONS, 0x100, 0);
}
