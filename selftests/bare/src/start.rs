// SPDX-License-Identifier: GPL-2.0

//! From the boot loader to 64-bit mode.
//!
//! The file looks like a Linux kernel to the boot loader, see "The Linux/x86 Boot Protocol".

use core::arch::global_asm;

global_asm!(
    ".section .setup, \"ax\"",
    ".code16",
    ".org 0x1f1",
    // Sectors for real mode after the first one; the rest of the file, in units of 16 bytes.
    ".byte 1",
    ".word 0",
    ".long bare_paragraphs",
    ".org 0x1fe",
    ".word 0xaa55",
    // The boot loader jumps here, with CS 0x20 above the segment of the file.
    "2:",
    ".byte 0xeb, 3f - 4f",
    "4:",
    ".ascii \"HdrS\"",
    ".word 0x0204",
    ".org 0x211",
    // It is loaded at 1 MiB.
    ".byte 1",
    ".org 0x214",
    ".long 0x100000",
    ".org 0x22c",
    ".long 0x37ffffff",
    ".org 0x240",
    "3:",
    "cli",
    "mov ax, cs",
    "mov ds, ax",
    "movzx eax, ax",
    "shl eax, 4",
    "add eax, offset bare_gdt16 - 0x200",
    "mov [bare_gdtr16 - 0x200 + 2], eax",
    "lgdt [bare_gdtr16 - 0x200]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    // A far jump to 32-bit code.
    ".byte 0x66, 0xea",
    ".long 0x100000",
    ".word 8",
    "bare_gdtr16:",
    ".word 23",
    ".long 0",
    ".balign 8",
    "bare_gdt16:",
    ".quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
    ".org 0x400",
    ".section .start, \"ax\"",
    ".code32",
    ".global bare_start",
    "bare_start:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "cld",
    "mov edi, offset bare_bss",
    "mov ecx, offset bare_end",
    "sub ecx, edi",
    "xor eax, eax",
    "rep stosb",
    "mov esp, offset bare_stack_end",
    // One gigabyte in large pages.
    "mov edi, offset bare_tables",
    "lea eax, [edi + 0x1003]",
    "mov [edi], eax",
    "lea eax, [edi + 0x2003]",
    "mov [edi + 0x1000], eax",
    "mov eax, 0x83",
    "lea ebx, [edi + 0x2000]",
    "mov ecx, 512",
    "2:",
    "mov [ebx], eax",
    "add eax, 0x200000",
    "add ebx, 8",
    "loop 2b",
    "mov cr3, edi",
    // PAE, OSFXSR, OSXMMEXCPT, VMXE.
    "mov eax, 0x2620",
    "mov cr4, eax",
    // SCE, LME, NXE.
    "mov ecx, 0xc0000080",
    "mov eax, 0x901",
    "xor edx, edx",
    "wrmsr",
    // PE, MP, ET, NE, WP, PG.
    "mov eax, 0x80010033",
    "mov cr0, eax",
    "lgdt [bare_gdtr]",
    ".byte 0xea",
    ".long 3f",
    ".word 8",
    ".code64",
    "3:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    // The base of the task is where it is: below 16 MiB.
    "mov eax, offset bare_task",
    "or dword ptr [bare_task_low + 2], eax",
    "mov ax, 0x28",
    "ltr ax",
    "lea rsp, [bare_stack_end]",
    "call {main}",
    "4:",
    "hlt",
    "jmp 4b",
    ".balign 8",
    "bare_gdtr:",
    ".word 0x37",
    ".quad bare_gdt",
    ".section .data",
    ".balign 8",
    ".global bare_gdt",
    "bare_gdt:",
    ".quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0",
    "bare_task_low:",
    ".quad 0x0000890000000067, 0",
    ".section .bss",
    ".balign 0x1000",
    ".global bare_tables",
    "bare_tables:",
    ".skip 0x3000",
    ".global bare_pages",
    "bare_pages:",
    ".skip 0x3000",
    ".global bare_task",
    "bare_task:",
    ".skip 0x1000",
    ".global bare_idt",
    "bare_idt:",
    ".skip 0x1000",
    "bare_stack:",
    ".skip 0x4000",
    "bare_stack_end:",
    ".skip 16",
    ".text",
    main = sym crate::main,
);

extern "C" {
    static bare_gdt: u8;
    static bare_idt: u8;
    static bare_pages: u8;
    static bare_tables: u8;
    static bare_task: u8;
}

/// Where things are.
pub struct Places {
    /// The descriptor table.
    pub gdt: u64,
    /// The interrupt-descriptor table, a page.
    pub idt: u64,
    /// Three pages of zeros.
    pub pages: u64,
    /// The page tables.
    pub tables: u64,
    /// The task-state segment.
    pub task: u64,
}

/// Returns where things are.
pub fn places() -> Places {
    Places {
        gdt: &raw const bare_gdt as u64,
        idt: &raw const bare_idt as u64,
        pages: &raw const bare_pages as u64,
        tables: &raw const bare_tables as u64,
        task: &raw const bare_task as u64,
    }
}
