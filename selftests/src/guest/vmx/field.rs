// SPDX-License-Identifier: GPL-2.0

//! The fields of the VMCS, by their encodings.
//!
//! This is written down a second time, and not that of the module: a wrong encoding there would be
//! right here.

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $encoding:expr;)*) => {
        $($(#[$doc])* pub const $name: u32 = $encoding;)*
    };
}

fields! {
    /// The tag of L2's translations.
    VPID = 0x0000;
    /// The vector that notifies of posted interrupts.
    POSTED_VECTOR = 0x0002;
    /// Selectors of L2: ES, CS, SS, DS, FS, GS, LDTR, TR, in steps of 2.
    GUEST_SELECTOR = 0x0800;
    /// The virtual interrupt that is requested, and in the upper half the one in service.
    INTERRUPT_STATUS = 0x0810;
    /// L2's index of the page-modification log.
    PML_INDEX = 0x0812;
    /// Selectors of L1: ES, CS, SS, DS, FS, GS, TR, in steps of 2.
    HOST_SELECTOR = 0x0c00;
    /// The selector of L1's task.
    HOST_TR_SELECTOR = 0x0c0c;
    /// The bitmap of ports below 0x8000.
    IO_BITMAP_A = 0x2000;
    /// The bitmap of the other ports.
    IO_BITMAP_B = 0x2002;
    /// The bitmap of MSRs.
    MSR_BITMAP = 0x2004;
    /// MSRs to store on VM exits.
    EXIT_MSR_STORE = 0x2006;
    /// MSRs to load on VM exits.
    EXIT_MSR_LOAD = 0x2008;
    /// MSRs to load on VM entries.
    ENTRY_MSR_LOAD = 0x200a;
    /// The page-modification log.
    PML_ADDRESS = 0x200e;
    /// What L2's TSC is ahead.
    TSC_OFFSET = 0x2010;
    /// The virtual-APIC page.
    VIRTUAL_APIC = 0x2012;
    /// The APIC-access page.
    APIC_ACCESS = 0x2014;
    /// The descriptor of posted interrupts.
    POSTED_DESCRIPTOR = 0x2016;
    /// The functions that L2 may call.
    VMFUNC_CONTROLS = 0x2018;
    /// L1's page table for L2.
    EPTP = 0x201a;
    /// The first of four bitmaps of interrupts whose end exits, in steps of 2.
    EOI_EXIT = 0x201c;
    /// The list of page tables among which L2 may choose.
    EPTP_LIST = 0x2024;
    /// Which fields L2 may read.
    VMREAD_BITMAP = 0x2026;
    /// Which fields L2 may write.
    VMWRITE_BITMAP = 0x2028;
    /// What L2's TSC is multiplied by.
    TSC_MULTIPLIER = 0x2032;
    /// The physical address of L2 of an EPT violation.
    GUEST_PHYSICAL = 0x2400;
    /// The VMCS that L2's VMREAD and VMWRITE are for.
    LINK_POINTER = 0x2800;
    /// L2's DEBUGCTL.
    GUEST_DEBUGCTL = 0x2802;
    /// L2's page-attribute table.
    GUEST_PAT = 0x2804;
    /// L2's EFER.
    GUEST_EFER = 0x2806;
    /// The first page-directory pointer of L2, in steps of 2.
    GUEST_PDPTE = 0x280a;
    /// L1's page-attribute table.
    HOST_PAT = 0x2c00;
    /// L1's EFER.
    HOST_EFER = 0x2c02;
    /// Pin-based controls.
    PIN = 0x4000;
    /// Primary processor-based controls.
    PRIMARY = 0x4002;
    /// The exceptions that exit.
    EXCEPTION_BITMAP = 0x4004;
    /// Bits of a page fault's error code that matter.
    PFEC_MASK = 0x4006;
    /// What they must be.
    PFEC_MATCH = 0x4008;
    /// The number of values of CR3 that do not exit.
    CR3_TARGET_COUNT = 0x400a;
    /// Exit controls.
    EXIT = 0x400c;
    /// Number of MSRs to store on VM exits.
    EXIT_MSR_STORE_COUNT = 0x400e;
    /// Number of MSRs to load on VM exits.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// Entry controls.
    ENTRY = 0x4012;
    /// Number of MSRs to load on VM entries.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// The event to inject.
    ENTRY_EVENT = 0x4016;
    /// Its error code.
    ENTRY_ERROR_CODE = 0x4018;
    /// The length of the instruction that it is from.
    ENTRY_LENGTH = 0x401a;
    /// The priority up to which interrupts are held back.
    TPR_THRESHOLD = 0x401c;
    /// Secondary processor-based controls.
    SECONDARY = 0x401e;
    /// The most ticks from one PAUSE of a loop to the next.
    PLE_GAP = 0x4020;
    /// The most ticks of a loop of PAUSE.
    PLE_WINDOW = 0x4022;
    /// Why the last VMX instruction failed.
    INSTRUCTION_ERROR = 0x4400;
    /// Why L2 stopped.
    EXIT_REASON = 0x4402;
    /// The event that was an exit.
    EXIT_EVENT = 0x4404;
    /// Its error code.
    EXIT_ERROR_CODE = 0x4406;
    /// The event that was being delivered.
    VECTORING_EVENT = 0x4408;
    /// Its error code.
    VECTORING_ERROR_CODE = 0x440a;
    /// Bytes of the instruction that was an exit.
    EXIT_LENGTH = 0x440c;
    /// More about the instruction.
    EXIT_INSTRUCTION = 0x440e;
    /// Limits of L2's segments, in the order of selectors; then GDTR and IDTR.
    GUEST_LIMIT = 0x4800;
    /// Access rights of L2's segments, in the order of selectors.
    GUEST_RIGHTS = 0x4814;
    /// What L2's last instruction blocks.
    INTERRUPTIBILITY = 0x4824;
    /// Whether L2 executes instructions.
    ACTIVITY = 0x4826;
    /// L2's SYSENTER_CS.
    GUEST_SYSENTER_CS = 0x482a;
    /// Ticks until L2 exits.
    PREEMPTION_TIMER = 0x482e;
    /// L1's SYSENTER_CS.
    HOST_SYSENTER_CS = 0x4c00;
    /// Bits of CR0 that L1 owns.
    CR0_MASK = 0x6000;
    /// Bits of CR4 that L1 owns.
    CR4_MASK = 0x6002;
    /// What L2 reads of them.
    CR0_SHADOW = 0x6004;
    /// What L2 reads of them.
    CR4_SHADOW = 0x6006;
    /// The first value of CR3 that does not exit, in steps of 2.
    CR3_TARGET = 0x6008;
    /// More about the exit.
    QUALIFICATION = 0x6400;
    /// The linear address of the exit.
    GUEST_LINEAR = 0x640a;
    /// L2's CR0.
    GUEST_CR0 = 0x6800;
    /// L2's CR3.
    GUEST_CR3 = 0x6802;
    /// L2's CR4.
    GUEST_CR4 = 0x6804;
    /// Bases of L2's segments, in the order of selectors; then GDTR and IDTR.
    GUEST_BASE = 0x6806;
    /// L2's DR7.
    GUEST_DR7 = 0x681a;
    /// L2's RSP.
    GUEST_RSP = 0x681c;
    /// L2's RIP.
    GUEST_RIP = 0x681e;
    /// L2's RFLAGS.
    GUEST_RFLAGS = 0x6820;
    /// Debug exceptions that L2 has yet to see.
    PENDING_DEBUG = 0x6822;
    /// L2's SYSENTER_ESP; its SYSENTER_EIP follows.
    GUEST_SYSENTER = 0x6824;
    /// L1's CR0.
    HOST_CR0 = 0x6c00;
    /// L1's CR3.
    HOST_CR3 = 0x6c02;
    /// L1's CR4.
    HOST_CR4 = 0x6c04;
    /// L1's bases of FS, GS, TR, GDTR and IDTR, in steps of 2.
    HOST_BASE = 0x6c06;
    /// L1's SYSENTER_ESP; its SYSENTER_EIP follows.
    HOST_SYSENTER = 0x6c10;
    /// L1's RSP.
    HOST_RSP = 0x6c14;
    /// L1's RIP.
    HOST_RIP = 0x6c16;
}

/// Positions of segment registers among the fields of L2.
pub mod segment {
    /// ES.
    pub const ES: u32 = 0;
    /// CS.
    pub const CS: u32 = 2;
    /// SS.
    pub const SS: u32 = 4;
    /// DS.
    pub const DS: u32 = 6;
    /// FS.
    pub const FS: u32 = 8;
    /// GS.
    pub const GS: u32 = 10;
    /// LDTR.
    pub const LDTR: u32 = 12;
    /// TR.
    pub const TR: u32 = 14;
    /// GDTR, which has no selector and no access rights.
    pub const GDTR: u32 = 16;
    /// IDTR, which has no selector and no access rights.
    pub const IDTR: u32 = 18;
}
