// SPDX-License-Identifier: GPL-2.0

//! What L1's processor can do, and a VMCS with which L2 runs.

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;

pub use super::bits::{entry, exit, pin, primary, reason, secondary};
use super::code::exited_address;
use super::field::{self, segment};
use super::fields::Fields;
use crate::guest::layout::{
    GDT, IDT, KERNEL_CODE, KERNEL_DATA, STACK, STACKS, STACKS_STEP, TASK, TSS, TSS_STEP,
    VMX_REGISTERS, VMX_REGISTERS_STEP,
};
use crate::guest::tables::Tables;
use crate::offer;

/// What L1's capability MSRs say.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    basic: u64,
    /// The MSRs of pin, primary, exit and entry controls, the true ones where there are any.
    controls: [u64; 4],
    secondary: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
}

/// The control words, in the order of their capability MSRs.
const WORDS: [u32; 4] = [field::PIN, field::PRIMARY, field::EXIT, field::ENTRY];

impl Capabilities {
    /// Asks KVM.
    pub fn read(kvm: &Kvm) -> Result<Self> {
        let read = |index| offer::read_msr(kvm, index);
        let basic = read(0x480)?;
        let first = if basic >> 55 & 1 == 1 { 0x48d } else { 0x481 };
        Ok(Self {
            basic,
            controls: [
                read(first)?,
                read(first + 1)?,
                read(first + 2)?,
                read(first + 3)?,
            ],
            secondary: read(0x48b)?,
            misc: read(0x485)?,
            ept_vpid: read(0x48c)?,
        })
    }

    /// The revision of the VMCS.
    pub fn revision(&self) -> u32 {
        (self.basic & 0x7fff_ffff) as u32
    }

    /// Returns whether an exception to inject must have an error code exactly if the processor gives
    /// it one.
    pub fn checks_error_codes(&self) -> bool {
        self.basic >> 56 & 1 == 0
    }

    fn word(&self, word: u32) -> u64 {
        let index = WORDS.iter().position(|other| *other == word);
        index.map_or(self.secondary, |index| self.controls[index])
    }

    /// Returns the bits of a control word that must be set.
    pub fn required(&self, word: u32) -> u64 {
        self.word(word) & 0xffff_ffff
    }

    /// Returns the bits of a control word that may be set.
    pub fn allowed(&self, word: u32) -> u64 {
        self.word(word) >> 32
    }
}

/// Returns the fields of a VMCS with which L2 starts at `rip`, in the same mode as L1 and at the
/// same addresses; L1 is the vCPU with a number.
pub fn fields(caps: &Capabilities, tables: &Tables, vcpu: u64, rip: u64) -> Result<Fields> {
    let mut fields = Fields::default();
    for (word, wanted) in [
        (field::PIN, 0),
        (field::PRIMARY, primary::SECONDARY),
        (field::SECONDARY, secondary::EPT),
        (field::EXIT, exit::HOST_64_BIT),
        (field::ENTRY, entry::LONG_MODE),
    ] {
        ensure!(
            caps.allowed(word) & wanted == wanted,
            "control {word:#x} cannot be {wanted:#x}"
        );
        fields.put(word, caps.required(word) | wanted);
    }
    // What is not needed stays off, also where it is on by default.
    for word in [
        field::EXCEPTION_BITMAP,
        field::PFEC_MASK,
        field::PFEC_MATCH,
        field::CR3_TARGET_COUNT,
        field::EXIT_MSR_STORE_COUNT,
        field::EXIT_MSR_LOAD_COUNT,
        field::ENTRY_MSR_LOAD_COUNT,
        field::ENTRY_EVENT,
        field::ENTRY_ERROR_CODE,
        field::ENTRY_LENGTH,
        field::TPR_THRESHOLD,
        field::CR0_MASK,
        field::CR0_SHADOW,
        field::CR4_MASK,
        field::CR4_SHADOW,
        field::INTERRUPTIBILITY,
        field::ACTIVITY,
        field::GUEST_SYSENTER_CS,
        field::GUEST_SYSENTER,
        field::GUEST_SYSENTER + 2,
        field::PENDING_DEBUG,
        field::GUEST_DEBUGCTL,
        field::HOST_SYSENTER_CS,
        field::HOST_SYSENTER,
        field::HOST_SYSENTER + 2,
        field::HOST_BASE,
        field::HOST_BASE + 2,
        field::TSC_OFFSET,
    ] {
        fields.put(word, 0);
    }
    // Write-back, four levels.
    fields.put(field::EPTP, tables.nested | 0x1e);
    fields.put(field::LINK_POINTER, u64::MAX);
    guest(&mut fields, tables, vcpu, rip);
    host(&mut fields, tables, vcpu);
    Ok(fields)
}

/// Sets a segment register of L2, or a descriptor-table register, which has limit and base only.
pub fn put_segment(
    fields: &mut Fields,
    at: u32,
    selector: u16,
    rights: u64,
    (limit, base): (u64, u64),
) {
    if at < segment::GDTR {
        fields.put(field::GUEST_SELECTOR + at, selector.into());
        fields.put(field::GUEST_RIGHTS + at, rights);
    }
    fields.put(field::GUEST_LIMIT + at, limit);
    fields.put(field::GUEST_BASE + at, base);
}

fn guest(fields: &mut Fields, tables: &Tables, vcpu: u64, rip: u64) {
    let mut segment = |at, selector, rights, limit, base| {
        put_segment(fields, at, selector, rights, (limit, base));
    };
    for data in [
        segment::ES,
        segment::SS,
        segment::DS,
        segment::FS,
        segment::GS,
    ] {
        segment(data, KERNEL_DATA, 0xc093, 0xffff_ffff, 0);
    }
    segment(segment::CS, KERNEL_CODE, 0xa09b, 0xffff_ffff, 0);
    segment(segment::LDTR, 0, 0x1_0000, 0, 0);
    segment(segment::TR, TASK, 0x8b, 0x67, TSS + vcpu * TSS_STEP);
    segment(segment::GDTR, 0, 0, 0xfff, GDT);
    segment(segment::IDTR, 0, 0, 0xfff, IDT + 0x1000);
    fields.put(field::GUEST_CR0, tables.cr0);
    fields.put(field::GUEST_CR3, tables.root);
    fields.put(field::GUEST_CR4, tables.cr4);
    fields.put(field::GUEST_DR7, 0x400);
    fields.put(
        field::GUEST_RSP,
        STACKS + vcpu * STACKS_STEP + 2 * STACK - 8,
    );
    fields.put(field::GUEST_RIP, rip);
    fields.put(field::GUEST_RFLAGS, 2);
}

fn host(fields: &mut Fields, tables: &Tables, vcpu: u64) {
    for at in (0..12).step_by(2) {
        let selector = if at == 2 { KERNEL_CODE } else { KERNEL_DATA };
        fields.put(field::HOST_SELECTOR + at, selector.into());
    }
    fields.put(field::HOST_TR_SELECTOR, TASK.into());
    fields.put(field::HOST_BASE + 4, TSS + vcpu * TSS_STEP);
    fields.put(field::HOST_BASE + 6, GDT);
    fields.put(field::HOST_BASE + 8, IDT);
    fields.put(field::HOST_CR0, tables.cr0);
    fields.put(field::HOST_CR3, tables.root);
    fields.put(field::HOST_CR4, tables.cr4);
    // The registers of L2 are pushed there.
    let registers = VMX_REGISTERS + vcpu * VMX_REGISTERS_STEP;
    fields.put(field::HOST_RSP, registers + 15 * 8);
    fields.put(field::HOST_RIP, exited_address());
}
