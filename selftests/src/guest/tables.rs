// SPDX-License-Identifier: GPL-2.0

//! Page tables and descriptors: what a processor in 64-bit mode needs.

use anyhow::{ensure, Result};

use super::code;
use super::layout::{
    idt, GDT, IMAGE, KERNEL_CODE, PAGE_TABLES, PAGE_TABLES_END, RAM, STACK, STACKS, STACKS_STEP,
    TSS, TSS_STEP, VMCB, VMCB_SLOT,
};
use super::memory::GuestMemory;
use super::Vendor;

/// Present, writable, for all privilege levels, accessed, dirty.
const ENTRY: u64 = 0x67;

/// The entry is no table but a large page.
const LARGE: u64 = 1 << 7;

/// An entry of EPT that refers to a table: readable, writable, executable.
const EPT_TABLE: u64 = 7;

/// An entry of EPT that refers to a page: the same, write-back.
const EPT_PAGE: u64 = 0x37;

/// CR4.VMXE.
const VMXE: u64 = 1 << 13;

/// EFER.SVME.
const SVME: u64 = 1 << 12;

/// Bits of an entry that are its address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the control registers contain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tables {
    /// The page table of L1 and L2.
    pub root: u64,
    /// The nested page table of L1.
    pub nested: u64,
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

/// The image of this program.
pub struct Image {
    /// Where it begins.
    pub start: u64,
    /// Bytes, whole pages.
    pub size: u64,
}

extern "C" {
    // Defined by the linker.
    static __executable_start: u8;
    static _end: u8;
}

impl Image {
    /// Returns where the image is.
    pub fn of_this_program() -> Self {
        let start = &raw const __executable_start as u64 & !0xfff;
        let end = (&raw const _end as u64).next_multiple_of(0x1000);
        Self {
            start,
            size: end - start,
        }
    }
}

/// A page table.
#[derive(Clone, Copy)]
struct Root {
    address: u64,
    /// Bits of entries that refer to tables.
    table: u64,
    /// Bits of entries that refer to pages.
    page: u64,
}

/// Builds page tables.
struct Builder<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Builder<'_> {
    fn table(&mut self) -> Result<u64> {
        let table = self.next;
        ensure!(table < PAGE_TABLES_END, "too many page tables");
        self.memory.fill(table, 0x1000, 0);
        self.next += 0x1000;
        Ok(table)
    }

    /// Maps a page whose entry is at `level`, 1 being the lowest.
    fn map(&mut self, root: Root, from: u64, to: u64, level: u32) -> Result<()> {
        let slot = |table: u64, level: u32| table + 8 * (from >> (3 + 9 * level) & 0x1ff);
        let mut table = root.address;
        for above in (level + 1..=4).rev() {
            let slot = slot(table, above);
            if self.memory.read::<u64>(slot) == 0 {
                let below = self.table()?;
                self.memory.write(slot, below | root.table);
            }
            table = self.memory.read::<u64>(slot) & ADDRESS;
        }
        let large = if level > 1 { LARGE } else { 0 };
        self.memory
            .write(slot(table, level), to | root.page | large);
        Ok(())
    }

    /// Maps all memory below the image to itself.
    fn identity(&mut self, root: Root) -> Result<()> {
        for page in (0..RAM).chain(VMCB..VMCB + VMCB_SLOT).step_by(0x1000) {
            self.map(root, page, page, 1)?;
        }
        Ok(())
    }
}

/// Writes page tables and descriptors for `vcpus` processors.
pub fn write(memory: &GuestMemory, image: &Image, vcpus: u64, vendor: Vendor) -> Result<Tables> {
    ensure!(
        image.start >= IMAGE,
        "the program must be position-independent"
    );
    let mut builder = Builder {
        memory,
        next: PAGE_TABLES,
    };
    let root = Root {
        address: builder.table()?,
        table: ENTRY,
        page: ENTRY,
    };
    builder.identity(root)?;
    for offset in (0..image.size).step_by(0x1000) {
        builder.map(root, image.start + offset, IMAGE + offset, 1)?;
    }
    let nested = nested(&mut builder, image, vendor)?;
    descriptors(memory, vcpus);
    let (vmxe, svme) = match vendor {
        Vendor::Svm => (0, SVME),
        Vendor::Vmx => (VMXE, 0),
    };
    Ok(Tables {
        root: root.address,
        nested,
        // PE, MP, ET, NE, WP, PG.
        cr0: 0x8001_0033,
        // PAE, OSFXSR, OSXMMEXCPT.
        cr4: 0x620 | vmxe,
        // SCE, LME, LMA, NXE.
        efer: 0xd01 | svme,
    })
}

/// Writes a page table of L1 for L2, which maps everything to itself; returns its address.
fn nested(builder: &mut Builder<'_>, image: &Image, vendor: Vendor) -> Result<u64> {
    let (table, page) = match vendor {
        Vendor::Svm => (ENTRY, ENTRY),
        Vendor::Vmx => (EPT_TABLE, EPT_PAGE),
    };
    let address = builder.table()?;
    let root = Root {
        address,
        table,
        page,
    };
    builder.identity(root)?;
    for offset in (0..image.size).step_by(0x20_0000) {
        builder.map(root, IMAGE + offset, IMAGE + offset, 2)?;
    }
    Ok(address)
}

/// Writes descriptors of segments, tasks and interrupts.
fn descriptors(memory: &GuestMemory, vcpus: u64) {
    let segments = [
        0u64,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
    ];
    for (address, segment) in (GDT..).step_by(8).zip(segments) {
        memory.write(address, segment);
    }
    for vcpu in 0..vcpus {
        let tss = TSS + vcpu * TSS_STEP;
        let stacks = STACKS + vcpu * STACKS_STEP;
        // The third stack is for exceptions of L1, the fourth for those of L2 and L3.
        for (offset, stack) in [(0x04, 3), (0x24, 3), (0x2c, 4), (0x34, 4)] {
            let top = stacks + stack * STACK;
            memory.write(tss + offset, u32::try_from(top).unwrap());
            memory.write(tss + offset + 4, 0u32);
        }
        memory.write(tss + 0x66, 0x68u16);
    }
    for level in 0..3 {
        for vector in 0..32 {
            gate(memory, level, vector, code::exception_stub(level, vector));
        }
    }
}

/// Writes the descriptor of the handler of an exception or interrupt; level 0 is L1.
pub fn gate(memory: &GuestMemory, level: u64, vector: u64, handler: u64) {
    let gate = idt(level) + 16 * vector;
    // A present interrupt gate, for INT3 at all privilege levels, with a stack.
    let attributes = 0xee00 | (1 + level);
    let low = handler & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | attributes << 32
        | (handler >> 16 & 0xffff) << 48;
    memory.write(gate, low);
    memory.write(gate + 8, handler >> 32);
}

/// Returns where the nested page table at `table` has the entry of a page of 4 KiB.
pub fn nested_entry(memory: &GuestMemory, table: u64, page: u64) -> u64 {
    table_of(memory, table, page) + 8 * (page >> 12 & 0x1ff)
}

/// Returns the table that has the entry of a page of 4 KiB, below the one at `table`.
pub fn table_of(memory: &GuestMemory, mut table: u64, page: u64) -> u64 {
    for level in (1..4).rev() {
        let slot = table + 8 * (page >> (12 + 9 * level) & 0x1ff);
        table = memory.read::<u64>(slot) & ADDRESS;
    }
    table
}

/// Copies a page table to four pages, as far as it concerns a page of 4 KiB, which the copy has
/// elsewhere; returns the address of the copy.
pub fn with_page_at(memory: &GuestMemory, table: u64, page: u64, to: u64, copy: u64) -> u64 {
    let mut old = table;
    for level in (0..4u64).rev() {
        let new = copy + 0x1000 * (3 - level);
        for offset in (0..0x1000).step_by(8) {
            memory.write(new + offset, memory.read::<u64>(old + offset));
        }
        let slot = new + 8 * (page >> (12 + 9 * level) & 0x1ff);
        let entry = memory.read::<u64>(slot);
        let below = if level == 0 { to } else { new + 0x1000 };
        memory.write(slot, entry & !ADDRESS | below);
        old = entry & ADDRESS;
    }
    copy
}
