// SPDX-License-Identifier: GPL-2.0

//! Where things are in the memory of a guest.

/// Bytes of the memory at address 0.
pub const RAM: u64 = 4 << 20;

/// The descriptor table.
pub const GDT: u64 = 0x1000;

/// The task-state segments, one for each vCPU, in steps of [`TSS_STEP`].
pub const TSS: u64 = 0x2000;

/// Distance of two task-state segments.
pub const TSS_STEP: u64 = 0x100;

/// The interrupt-descriptor table of L1; that of L2 is on the next page.
pub const IDT: u64 = 0x3000;

/// What happened at exceptions: a record for L1, then one for L2 and one for L3, see [`exception`].
pub const EXCEPTIONS: u64 = 0x5000;

/// Words that a test uses as it likes.
pub const SHARED: u64 = 0x6000;

/// The general-purpose registers of L2, see [`super::code::run_l2`].
pub const REGISTERS: u64 = 0x7000;

/// Address that the driver gives to VMRUN.
pub const VMRUN_ADDRESS: u64 = 0x7100;

/// The registers of L2 with VMX, in steps of [`VMX_REGISTERS_STEP`] for each vCPU; RAX is the last.
pub const VMX_REGISTERS: u64 = 0x7800;

/// Distance of the registers with VMX.
pub const VMX_REGISTERS_STEP: u64 = 0x100;

/// How the last entry of L2 ended with VMX.
pub const VMX_OUTCOME: u64 = 0x7700;

/// The revision of VMCSs.
pub const VMX_REVISION: u64 = 0x7708;

/// Where the processor may save L1's state.
pub const HOST_SAVE: u64 = 0x8000;

/// The interrupt-descriptor table of L3.
const IDT_OF_L3: u64 = 0xc000;

/// The interrupt-vector table of an L2 in real mode; what it refers to follows it.
pub const VECTORS: u64 = 0xd000;

/// Returns the address of the interrupt-descriptor table of a level; level 0 is L1.
pub const fn idt(level: u64) -> u64 {
    match level {
        2 => IDT_OF_L3,
        _ => IDT + 0x1000 * level,
    }
}

/// The page tables, those of the image and the nested ones included.
pub const PAGE_TABLES: u64 = 0x1_0000;

/// End of the page tables.
pub const PAGE_TABLES_END: u64 = 0x8_0000;

/// The I/O permission map, three pages.
pub const IO_MAP: u64 = 0x9_0000;

/// The MSR permission map, two pages.
pub const MSR_MAP: u64 = 0x9_4000;

/// The virtual-APIC page; the pages that VMX may need follow.
pub const VIRTUAL_APIC: u64 = 0x9_6000;

/// The APIC-access page.
pub const APIC_ACCESS: u64 = 0x9_7000;

/// The page-modification log.
pub const PML: u64 = 0x9_8000;

/// The list of page tables for VMFUNC.
pub const EPTP_LIST: u64 = 0x9_9000;

/// A list of MSRs to load or store.
pub const MSR_LIST: u64 = 0x9_a000;

/// The bitmap of fields that L2 may not read; that of fields it may not write is the next page.
pub const VMREAD_BITMAP: u64 = 0x9_b000;

/// Memory that a test uses as it likes.
pub const BUFFER: u64 = 0xa_0000;

/// What an L1 with VMX executes: the number of operations, and these.
pub const VMX_SCRIPT: u64 = 0xb_0000;

/// End of these.
pub const VMX_SCRIPT_END: u64 = 0x10_0000;

/// Bottom of the stacks; each vCPU has [`STACKS_STEP`] bytes for four of them.
pub const STACKS: u64 = 0x10_0000;

/// Bytes of the stacks of a vCPU.
pub const STACKS_STEP: u64 = 0x1_0000;

/// Bytes of a stack.
pub const STACK: u64 = 0x4000;

/// The base of the memory of system-management mode.
pub const MANAGEMENT: u64 = 0x30_0000;

/// The memory slot of vmcb12.
pub const VMCB: u64 = 0x200_0000;

/// Bytes of the slot of vmcb12.
pub const VMCB_SLOT: u64 = 0x4000;

/// The VMCS of L2.
pub const VMCS: u64 = VMCB;

/// Another VMCS.
pub const OTHER_VMCS: u64 = VMCB + 0x1000;

/// The region of VMXON.
pub const VMXON_REGION: u64 = VMCB + 0x2000;

/// The VMCS that L2's VMREAD and VMWRITE are for.
pub const SHADOW_VMCS: u64 = VMCB + 0x3000;

/// The memory slot of the program's image.
pub const IMAGE: u64 = 0x4000_0000;

/// An address within all address widths at which there is no memory.
pub const NOWHERE: u64 = 0x3000_0000;

/// The selector of code at CPL 0.
pub const KERNEL_CODE: u16 = 0x08;

/// The selector of data at CPL 0.
pub const KERNEL_DATA: u16 = 0x10;

/// The selector of code at CPL 3.
pub const USER_CODE: u16 = 0x1b;

/// The selector of data at CPL 3.
pub const USER_DATA: u16 = 0x23;

/// The selector of the task.
pub const TASK: u16 = 0x28;

/// Offsets in the record of exceptions of a level.
pub mod exception {
    /// Bytes of a record.
    pub const SIZE: u64 = 0x40;
    /// The vector of the last one.
    pub const VECTOR: u64 = 0;
    /// Its error code, or 0.
    pub const ERROR: u64 = 8;
    /// The instruction that it came from or was going to.
    pub const RIP: u64 = 16;
    /// How many there were.
    pub const COUNT: u64 = 24;
    /// Where to go on after the next one; 0: it is unexpected.
    pub const RECOVERY: u64 = 32;
}
