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

/// What happened at exceptions: a record for L1, then one for L2, see [`exception`].
pub const EXCEPTIONS: u64 = 0x5000;

/// Words that a test uses as it likes.
pub const SHARED: u64 = 0x6000;

/// The general-purpose registers of L2, see [`super::code::run_l2`].
pub const REGISTERS: u64 = 0x7000;

/// Address that the driver gives to VMRUN.
pub const VMRUN_ADDRESS: u64 = 0x7100;

/// Where the processor may save L1's state.
pub const HOST_SAVE: u64 = 0x8000;

/// The page tables, those of the image and the nested ones included.
pub const PAGE_TABLES: u64 = 0x1_0000;

/// End of the page tables.
pub const PAGE_TABLES_END: u64 = 0x8_0000;

/// The I/O permission map, three pages.
pub const IO_MAP: u64 = 0x9_0000;

/// The MSR permission map, two pages.
pub const MSR_MAP: u64 = 0x9_4000;

/// Memory that a test uses as it likes.
pub const BUFFER: u64 = 0xa_0000;

/// Bottom of the stacks; each vCPU has [`STACKS_STEP`] bytes for four of them.
pub const STACKS: u64 = 0x10_0000;

/// Bytes of the stacks of a vCPU.
pub const STACKS_STEP: u64 = 0x1_0000;

/// Bytes of a stack.
pub const STACK: u64 = 0x4000;

/// The memory slot of vmcb12.
pub const VMCB: u64 = 0x200_0000;

/// Bytes of the slot of vmcb12.
pub const VMCB_SLOT: u64 = 0x4000;

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
