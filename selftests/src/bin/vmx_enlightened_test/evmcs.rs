// SPDX-License-Identifier: GPL-2.0

//! An enlightened VMCS in the memory of a guest (TLFS, "Enlightened VMCS").

use selftests::guest::vmx::{field, Fields};
use selftests::guest::GuestMemory;

/// Fields with consecutive encodings, their number, and the offset of the first one.
const FIELDS: [(u32, u32, u64); 46] = [
    (field::HOST_SELECTOR, 7, 0x8),
    (field::HOST_PAT, 2, 0x18),
    (field::HOST_CR0, 3, 0x28),
    (field::HOST_SYSENTER, 2, 0x40),
    (field::HOST_RIP, 1, 0x50),
    (field::HOST_SYSENTER_CS, 1, 0x58),
    (field::PIN, 1, 0x5c),
    (field::EXIT, 1, 0x60),
    (field::SECONDARY, 1, 0x64),
    (field::IO_BITMAP_A, 3, 0x68),
    (field::GUEST_SELECTOR, 8, 0x80),
    (field::GUEST_LIMIT, 10, 0x90),
    (field::GUEST_RIGHTS, 8, 0xb8),
    (field::GUEST_BASE, 10, 0xd8),
    (field::EXIT_MSR_STORE, 3, 0x140),
    (field::CR3_TARGET, 4, 0x158),
    (field::PFEC_MASK, 2, 0x178),
    (field::CR3_TARGET_COUNT, 1, 0x180),
    (field::EXIT_MSR_STORE_COUNT, 2, 0x184),
    (field::ENTRY_MSR_LOAD_COUNT, 1, 0x18c),
    (field::TSC_OFFSET, 2, 0x190),
    (field::LINK_POINTER, 1, 0x1a0),
    (field::GUEST_DEBUGCTL, 3, 0x1a8),
    (field::GUEST_PDPTE, 4, 0x1c0),
    (field::PENDING_DEBUG, 1, 0x1e0),
    (field::GUEST_SYSENTER, 2, 0x1e8),
    (field::ACTIVITY, 1, 0x1f8),
    (field::GUEST_SYSENTER_CS, 1, 0x1fc),
    (field::CR0_MASK, 4, 0x200),
    (field::GUEST_CR0, 3, 0x220),
    (field::GUEST_DR7, 1, 0x238),
    (field::HOST_BASE, 5, 0x240),
    (field::HOST_RSP, 1, 0x268),
    (field::EPTP, 1, 0x270),
    (field::VPID, 1, 0x278),
    (field::GUEST_PHYSICAL, 1, 0x2a8),
    (field::INSTRUCTION_ERROR, 8, 0x2b0),
    (field::QUALIFICATION, 1, 0x2d0),
    (field::GUEST_LINEAR, 1, 0x2f8),
    (field::GUEST_RSP, 1, 0x300),
    (field::GUEST_RFLAGS, 1, 0x308),
    (field::INTERRUPTIBILITY, 1, 0x310),
    (field::PRIMARY, 1, 0x314),
    (field::EXCEPTION_BITMAP, 1, 0x318),
    (field::ENTRY, 1, 0x31c),
    // With the event, its error code and length, and the threshold of the priority.
    (field::ENTRY_EVENT, 4, 0x320),
];

/// Where L2's RIP is, which is in no group.
const GUEST_RIP: u64 = 0x330;

/// The version, and what says why an exit failed.
const VERSION: u64 = 0;

/// Where the marks are of groups that have not changed.
pub const CLEAN: u64 = 0x338;

/// Where L1 says what L0 may do for L2.
pub const ENLIGHTENMENTS: u64 = 0x344;

/// The MSR bitmap is looked at only if it is not marked as clean.
pub const MSR_BITMAP_IS_ENLIGHTENED: u32 = 2;

/// An enlightened VMCS.
#[derive(Clone, Copy)]
pub struct Evmcs<'a> {
    memory: &'a GuestMemory,
    address: u64,
}

/// Returns the offset of a field.
fn offset(encoding: u32) -> Option<u64> {
    if encoding == field::GUEST_RIP {
        return Some(GUEST_RIP);
    }
    FIELDS.iter().find_map(|(first, count, offset)| {
        let index = encoding.checked_sub(*first)? / 2;
        (index < *count).then(|| offset + u64::from(index) * size(encoding))
    })
}

/// Returns the bytes of a field.
fn size(encoding: u32) -> u64 {
    match encoding >> 13 & 3 {
        0 => 2,
        2 => 4,
        _ => 8,
    }
}

impl<'a> Evmcs<'a> {
    /// Refers to the one at an address.
    pub fn at(memory: &'a GuestMemory, address: u64) -> Self {
        Self { memory, address }
    }

    /// Makes it one of a version with the fields given, of which nothing is marked as clean.
    pub fn write(self, version: u32, fields: &Fields) {
        self.memory.fill(self.address, 0x1000, 0);
        self.put_word(VERSION, version);
        for (field, value) in fields.all() {
            self.put(field, value);
        }
    }

    /// Gives a field a value; fields that an enlightened VMCS lacks must be 0.
    pub fn put(self, field: u32, value: u64) {
        let Some(offset) = offset(field) else {
            assert_eq!(value, 0, "there is no field {field:#x}");
            return;
        };
        let at = self.address + offset;
        match size(field) {
            2 => self.memory.write(at, value as u16),
            4 => self.memory.write(at, value as u32),
            _ => self.memory.write(at, value),
        }
    }

    /// Returns the value of a field.
    pub fn get(self, field: u32) -> u64 {
        let at = self.address + offset(field).expect("a field that there is");
        match size(field) {
            2 => self.memory.read::<u16>(at).into(),
            4 => self.memory.read::<u32>(at).into(),
            _ => self.memory.read(at),
        }
    }

    /// Sets bits of a field.
    pub fn set(self, field: u32, bits: u64) {
        self.put(field, self.get(field) | bits);
    }

    /// Writes a word that is no field.
    pub fn put_word(self, offset: u64, value: u32) {
        self.memory.write(self.address + offset, value);
    }

    /// Reads a word that is no field.
    pub fn word(self, offset: u64) -> u32 {
        self.memory.read(self.address + offset)
    }
}
