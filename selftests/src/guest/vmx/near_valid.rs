// SPDX-License-Identifier: GPL-2.0

//! Near-valid states of a VMCS: what a processor does with them.
//!
//! A state is a valid one with a few changes that a seed decides. The code runs as L1 and, in a
//! program of its own, on the processor itself: both must do the same. It uses nothing of `std`.
//!
//! L2 never executes an instruction: its EPT is empty, and its timer has run out. What may differ
//! between processors by their capabilities is left as it is. So is what Bochs does not check: that
//! RIP is canonical, single steps that are pending, the upper half of the pending debug exceptions,
//! blocking by virtual NMIs, what is injected while L2 halts, the error code of an interrupt; and
//! what it notices, but says otherwise: a wrong CR4 of L2, and entries to system-management mode.

use super::bits::{entry, exit, pin, primary, reason, secondary};
use super::code::{enter, exited_address, outcome, vmclear, vmptrld, vmread, vmwrite};
use super::field::{self, segment};
use crate::guest::code::{peek, poke};
use crate::guest::layout::{KERNEL_CODE, KERNEL_DATA, TASK, VMX_REGISTERS};

/// What the states depend on.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Environment {
    /// The bits that must be set of pin, primary, secondary, exit and entry controls.
    pub required: [u64; 5],
    /// The first physical address that is too wide.
    pub end: u64,
    /// A page of zeros, which all bitmaps are, and the empty page table of L2.
    pub page: u64,
    /// The VMCS, which has its revision.
    pub vmcs: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Bases of TR, GDTR and IDTR.
    pub bases: [u64; 3],
}

/// A valid page-attribute table.
pub const PAT: u64 = 0x0007_0406_0007_0406;

/// An address that is not canonical with 48 bits, nor with 57.
const NOT_CANONICAL: u64 = 1 << 62;

/// A canonical address of the upper half.
const UPPER: u64 = 0xffff_8000_0000_0000;

/// Stands for the first physical address that is too wide.
pub const WIDE: u64 = 0x5749_4445;

/// Stands for the page.
pub const PAGE: u64 = 0x5041_4745;

/// How a field is changed.
#[derive(Clone, Copy)]
pub enum Change {
    /// One of these bits becomes the other.
    Flip(u64),
    /// It becomes one of these values.
    Set(&'static [u64]),
}

use Change::{Flip, Set};

/// Addresses of pages.
const PAGES: Change = Set(&[PAGE, PAGE + 1, PAGE + 0x800, WIDE, u64::MAX]);

/// Linear addresses.
const LINEAR: Change = Set(&[0, 0x7fff_ffff_ffff, UPPER, NOT_CANONICAL, 1 << 32]);

/// Access rights.
const RIGHTS: Change = Flip(0x1_f0ff);

/// Limits.
const LIMITS: Change = Set(&[
    0,
    0x67,
    0xffff,
    0x1_0000,
    0xf_ffff,
    0x10_0000,
    0xffff_ffff,
    0xf000_0fff,
]);

/// Bases.
const BASES: Change = Set(&[0, 0x1000, 1 << 31, 1 << 32, UPPER, NOT_CANONICAL]);

/// The fields, and how they are changed.
pub const CHANGES: &[(u32, Change)] = &[
    (
        field::PIN,
        Flip(pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMI),
    ),
    (
        field::PRIMARY,
        Flip(
            primary::INTERRUPT_WINDOW
                | primary::NMI_WINDOW
                | primary::TPR_SHADOW
                | primary::IO_BITMAPS
                | primary::MSR_BITMAPS
                | primary::TSC_OFFSETTING
                | primary::HLT,
        ),
    ),
    (
        field::SECONDARY,
        Flip(
            secondary::VPID
                | secondary::UNRESTRICTED
                | secondary::WBINVD
                | secondary::DESCRIPTOR_TABLE
                | secondary::PML
                | secondary::X2APIC,
        ),
    ),
    (
        field::EXIT,
        Flip(
            exit::ACKNOWLEDGE
                | exit::SAVE_PAT
                | exit::LOAD_PAT
                | exit::SAVE_EFER
                | exit::LOAD_EFER
                | exit::SAVE_TIMER,
        ),
    ),
    (
        field::ENTRY,
        Flip(entry::LOAD_DEBUG | entry::LONG_MODE | entry::LOAD_PAT | entry::LOAD_EFER),
    ),
    (field::VPID, Set(&[0, 1, 0xffff])),
    (field::IO_BITMAP_A, PAGES),
    (field::IO_BITMAP_B, PAGES),
    (field::MSR_BITMAP, PAGES),
    (field::VIRTUAL_APIC, PAGES),
    (field::PML_ADDRESS, PAGES),
    (field::TPR_THRESHOLD, Set(&[0, 1, 15, 16])),
    (
        field::ENTRY_EVENT,
        Set(&[
            0x8000_0000,
            0x8000_0020,
            0x8000_0202,
            0x8000_0203,
            0x8000_0306,
            0x8000_0b0d,
            0x8000_0320,
            0x8000_0403,
            0x8000_0501,
            0x8000_0603,
            0x8000_0700,
            0x8000_0701,
            0x8000_0100,
            0x8000_1306,
            0xc000_0306,
            0x0000_0100,
        ]),
    ),
    (field::ENTRY_ERROR_CODE, Set(&[0, 0x7fff, 0x1_0000])),
    (field::ENTRY_LENGTH, Set(&[1, 15, 16])),
    (field::EPTP, Flip(0xf7f)),
    (field::LINK_POINTER, Set(&[u64::MAX, PAGE + 1, WIDE])),
    (field::HOST_SELECTOR, Flip(7)),
    (field::HOST_SELECTOR + 2, Flip(0xf)),
    (field::HOST_SELECTOR + 4, Flip(7)),
    (field::HOST_SELECTOR + 10, Flip(7)),
    (field::HOST_TR_SELECTOR, Flip(7)),
    (field::HOST_BASE, LINEAR),
    (field::HOST_BASE + 2, LINEAR),
    (field::HOST_BASE + 4, Flip(NOT_CANONICAL)),
    (field::HOST_BASE + 8, Flip(NOT_CANONICAL)),
    (field::HOST_SYSENTER, LINEAR),
    (field::HOST_SYSENTER + 2, LINEAR),
    (field::HOST_CR0, Flip(1 | 1 << 5 | 1 << 31)),
    (field::HOST_CR4, Flip(1 << 5 | 1 << 13 | 1 << 31 | 1 << 63)),
    (field::HOST_CR3, Flip(1 << 62)),
    (field::HOST_PAT, Set(&[PAT, PAT | 2, PAT | 8 << 56])),
    (field::HOST_EFER, Flip(1 << 8 | 1 << 9 | 1 << 10)),
    (field::HOST_RIP, Flip(NOT_CANONICAL)),
    (
        field::GUEST_CR0,
        Flip(1 | 2 | 8 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 29 | 1 << 30 | 1 << 31),
    ),
    (field::GUEST_CR4, Flip(0x1ff | 1 << 17)),
    (field::GUEST_CR3, Flip(1 << 62 | 1 << 20)),
    (field::GUEST_DR7, Flip(1 << 10 | 1 << 13 | 1 << 32)),
    (field::GUEST_DEBUGCTL, Set(&[0, 2, 1 << 3, 1 << 5])),
    (field::GUEST_SYSENTER, LINEAR),
    (field::GUEST_SYSENTER + 2, LINEAR),
    (field::GUEST_PAT, Set(&[PAT, PAT | 2, PAT | 8 << 56])),
    (field::GUEST_EFER, Flip(1 << 8 | 1 << 9 | 1 << 10 | 1 << 11)),
    (field::GUEST_RFLAGS, Flip(0x22_862a | 1 << 17 | 1 << 63)),
    (field::ACTIVITY, Set(&[0, 4])),
    (field::INTERRUPTIBILITY, Flip(0x6f)),
    (field::PENDING_DEBUG, Flip(0x101f)),
    (field::GUEST_PDPTE, Flip(3 | 1 << 5 | 1 << 62)),
    (field::GUEST_PDPTE + 6, Flip(3 | 1 << 5 | 1 << 62)),
    (field::GUEST_LIMIT + segment::GDTR, LIMITS),
    (field::GUEST_LIMIT + segment::IDTR, LIMITS),
    (field::GUEST_BASE + segment::GDTR, BASES),
    (field::GUEST_BASE + segment::IDTR, BASES),
];

/// How the fields of a segment register are changed.
pub const OF_SEGMENT: [(u32, Change); 4] = [
    (field::GUEST_SELECTOR, Flip(7)),
    (field::GUEST_RIGHTS, RIGHTS),
    (field::GUEST_LIMIT, LIMITS),
    (field::GUEST_BASE, BASES),
];

/// How many changes there are: those of segment registers count twice.
const KINDS: u64 = CHANGES.len() as u64 + 2 * 8 * 4;

/// The generator SplitMix64.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// Chooses a field and how it is changed.
    fn change(&mut self) -> (u32, Change) {
        let kind = self.below(KINDS);
        let index = kind as usize;
        if let Some(change) = CHANGES.get(index) {
            return *change;
        }
        // The rest are those of segment registers.
        let rest = kind - CHANGES.len() as u64;
        let register = 2 * (rest / 4 % 8) as u32;
        let (first, change) = match rest % 4 {
            0 => OF_SEGMENT[0],
            1 => OF_SEGMENT[1],
            2 => OF_SEGMENT[2],
            _ => OF_SEGMENT[3],
        };
        if first + register == field::GUEST_RIGHTS + segment::CS {
            // KVM refuses a CS that is not usable, of which the manual says nothing.
            return (first + register, Flip(0xf0ff));
        }
        (first + register, change)
    }

    fn apply(&mut self, change: Change, value: u64, environment: &Environment) -> u64 {
        match change {
            Flip(mask) => {
                let mut left = self.below(mask.count_ones().into());
                let mut bits = mask;
                while left != 0 {
                    bits &= bits - 1;
                    left -= 1;
                }
                value ^ (bits & bits.wrapping_neg())
            }
            Set(values) => {
                let chosen = self.below(values.len() as u64) as usize;
                let value = values.get(chosen).copied().unwrap_or(0);
                match value {
                    WIDE => environment.end,
                    PAGE.. if value - PAGE <= 0x800 && value < WIDE => {
                        environment.page + (value - PAGE)
                    }
                    other => other,
                }
            }
        }
    }
}

/// The most changes of a state.
const MOST_CHANGES: u64 = 3;

/// Writes the fields of a valid state.
///
/// # Safety
///
/// Only a hypervisor may call this, with a current VMCS.
unsafe fn write_valid(e: &Environment) {
    let put = |field: u32, value: u64| {
        // SAFETY: As above.
        unsafe { vmwrite(field.into(), value) };
    };
    let [pin_bits, primary_bits, secondary_bits, exit_bits, entry_bits] = e.required;
    put(field::PIN, pin_bits | pin::PREEMPTION_TIMER);
    put(field::PRIMARY, primary_bits | primary::SECONDARY);
    put(field::SECONDARY, secondary_bits | secondary::EPT);
    put(field::EXIT, exit_bits | exit::HOST_64_BIT);
    put(field::ENTRY, entry_bits | entry::LONG_MODE);
    put(field::EPTP, e.page | 0x1e);
    put(field::LINK_POINTER, u64::MAX);
    put(field::VPID, 1);
    put(field::ENTRY_LENGTH, 1);
    for page in [
        field::IO_BITMAP_A,
        field::IO_BITMAP_B,
        field::MSR_BITMAP,
        field::VIRTUAL_APIC,
        field::PML_ADDRESS,
    ] {
        put(page, e.page);
    }
    for zero in [
        field::EXCEPTION_BITMAP,
        field::PFEC_MASK,
        field::PFEC_MATCH,
        field::CR3_TARGET_COUNT,
        field::EXIT_MSR_STORE_COUNT,
        field::EXIT_MSR_LOAD_COUNT,
        field::ENTRY_MSR_LOAD_COUNT,
        field::ENTRY_EVENT,
        field::ENTRY_ERROR_CODE,
        field::TPR_THRESHOLD,
        field::TSC_OFFSET,
        field::CR0_MASK,
        field::CR0_SHADOW,
        field::CR4_MASK,
        field::CR4_SHADOW,
        field::INTERRUPTIBILITY,
        field::ACTIVITY,
        field::PENDING_DEBUG,
        field::PREEMPTION_TIMER,
        field::GUEST_DEBUGCTL,
        field::GUEST_SYSENTER_CS,
        field::GUEST_SYSENTER,
        field::GUEST_SYSENTER + 2,
        field::GUEST_PDPTE,
        field::GUEST_PDPTE + 2,
        field::GUEST_PDPTE + 4,
        field::GUEST_PDPTE + 6,
        field::GUEST_RIP,
        field::GUEST_RSP,
    ] {
        put(zero, 0);
    }
    put(field::GUEST_PAT, PAT);
    put(field::GUEST_EFER, e.efer);
    put(field::GUEST_CR0, e.cr0);
    put(field::GUEST_CR3, e.page);
    put(field::GUEST_CR4, e.cr4);
    put(field::GUEST_DR7, 0x400);
    put(field::GUEST_RFLAGS, 2);
    for register in (0..=segment::IDTR).step_by(2) {
        let (selector, rights, limit) = match register {
            segment::CS => (KERNEL_CODE, 0xa09b, 0xffff_ffff),
            segment::LDTR => (0, 0x1_0000, 0),
            segment::TR => (TASK, 0x8b, 0x67),
            segment::GDTR | segment::IDTR => (0, 0, 0xfff),
            _ => (KERNEL_DATA, 0xc093, 0xffff_ffff),
        };
        if register < segment::GDTR {
            put(field::GUEST_SELECTOR + register, selector.into());
            put(field::GUEST_RIGHTS + register, rights);
        }
        put(field::GUEST_LIMIT + register, limit);
        put(field::GUEST_BASE + register, 0);
    }
    // SAFETY: As above.
    unsafe { write_valid_host(e) };
}

/// Writes the fields of the hypervisor itself.
///
/// # Safety
///
/// Only a hypervisor may call this, with a current VMCS.
unsafe fn write_valid_host(e: &Environment) {
    let put = |field: u32, value: u64| {
        // SAFETY: As above.
        unsafe { vmwrite(field.into(), value) };
    };
    for register in (0..12).step_by(2) {
        let selector = if register == 2 {
            KERNEL_CODE
        } else {
            KERNEL_DATA
        };
        put(field::HOST_SELECTOR + register, selector.into());
    }
    put(field::HOST_TR_SELECTOR, TASK.into());
    put(field::HOST_BASE, 0);
    put(field::HOST_BASE + 2, 0);
    let [task, gdt, idt] = e.bases;
    put(field::HOST_BASE + 4, task);
    put(field::HOST_BASE + 6, gdt);
    put(field::HOST_BASE + 8, idt);
    put(field::HOST_SYSENTER_CS, 0);
    put(field::HOST_SYSENTER, 0);
    put(field::HOST_SYSENTER + 2, 0);
    put(field::HOST_CR0, e.cr0);
    put(field::HOST_CR3, e.cr3);
    put(field::HOST_CR4, e.cr4);
    put(field::HOST_PAT, PAT);
    put(field::HOST_EFER, e.efer);
    put(field::HOST_RSP, VMX_REGISTERS + 15 * 8);
    put(field::HOST_RIP, exited_address());
}

/// Enters states from `first`, and stores a letter for each: `.` if L2 is entered, `7` and `8` for
/// VMfailValid, `a` for an L2 that is not valid, `?` otherwise. In which order its parts are looked
/// at is the processor's affair, and with it the qualification.
///
/// # Safety
///
/// Only a hypervisor may call this, in VMX operation; there is room for the letters at `letters`.
pub unsafe fn run(e: &Environment, seed: u64, first: u64, count: u64, letters: u64) {
    // SAFETY: As above.
    unsafe {
        let mut pointer = e.vmcs;
        let operand = &raw mut pointer as u64;
        vmclear(operand);
        vmptrld(operand);
        write_valid(e);
        for number in 0..count {
            let letter = one(
                e,
                seed ^ (first + number).wrapping_mul(0xd134_2543_de82_ef95),
                operand,
            );
            let at = (letters + number) & !7;
            let shift = 8 * ((letters + number) & 7);
            poke(at, peek(at) & !(0xff << shift) | u64::from(letter) << shift);
        }
    }
}

/// Enters one state.
///
/// # Safety
///
/// Only a hypervisor may call this, with a current VMCS that is valid; so is it after that.
unsafe fn one(e: &Environment, seed: u64, operand: u64) -> u8 {
    let mut random = Random(seed);
    let mut before = [(0, 0); MOST_CHANGES as usize];
    let changes = 1 + random.below(MOST_CHANGES) as usize;
    // SAFETY: As above.
    unsafe {
        for saved in before.iter_mut().take(changes) {
            let (field, change) = random.change();
            let value = vmread(field.into()).1;
            *saved = (field, value);
            vmwrite(field.into(), random.apply(change, value, e));
        }
        let ended = enter(VMX_REGISTERS, 0);
        let letter = match ended {
            outcome::DONE => match vmread(field::EXIT_REASON.into()).1 {
                reason::INVALID_STATE => b'a',
                other if other >> 31 == 0 => b'.',
                _ => b'?',
            },
            outcome::VALID => b'0' + (vmread(field::INSTRUCTION_ERROR.into()).1 & 0xf) as u8,
            _ => b'?',
        };
        if letter == b'.' {
            // The exit has changed what it stores, and the VMCS is launched.
            vmclear(operand);
            vmptrld(operand);
            write_valid(e);
        } else {
            for (field, value) in before.iter().take(changes).rev() {
                vmwrite((*field).into(), *value);
            }
        }
        letter
    }
}
