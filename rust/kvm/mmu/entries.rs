// SPDX-License-Identifier: GPL-2.0

//! L1's page tables for L2, in its memory.

use crate::{
    bindings,
    Vcpu, //
};
use nested::{
    address::Gpa,
    memory::{
        EntrySize,
        Exchange,
        GuestTables,
        Inaccessible, //
    }, //
};

/// Page tables as a vCPU sees them.
pub(super) struct Entries<'a> {
    vcpu: &'a Vcpu,
    /// Pages that the host has to get first are inaccessible.
    resident: bool,
}

impl<'a> Entries<'a> {
    /// Returns the tables for a walk, which may sleep.
    pub(super) fn new(vcpu: &'a Vcpu) -> Self {
        Self {
            vcpu,
            resident: false,
        }
    }

    /// Returns the tables as far as they are in memory: nothing sleeps.
    pub(super) fn resident(vcpu: &'a Vcpu) -> Self {
        Self {
            vcpu,
            resident: true,
        }
    }
}

impl GuestTables for Entries<'_> {
    fn read_entries(
        &self,
        first: Gpa,
        size: EntrySize,
        entries: &mut [u64],
    ) -> Result<(), Inaccessible> {
        // SAFETY: By the invariants of `Vcpu`, whose callers protect memory slots by SRCU. The
        // buffer has the length given.
        let is_read = unsafe {
            bindings::nested_helper_read_entries(
                self.vcpu.as_ptr(),
                first.into_raw(),
                size == EntrySize::Four,
                self.resident,
                entries.as_mut_ptr(),
                entries.len() as u32,
            )
        };

        is_read.then_some(()).ok_or(Inaccessible)
    }

    fn compare_exchange(
        &self,
        entry: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<Exchange, Inaccessible> {
        // SAFETY: As above.
        let result = unsafe {
            bindings::nested_helper_exchange_entry(
                self.vcpu.as_ptr(),
                entry.into_raw(),
                size == EntrySize::Four,
                old,
                new,
            )
        };

        match u32::try_from(result) {
            Ok(bindings::NESTED_EXCHANGE_DONE) => Ok(Exchange::Done),
            Ok(bindings::NESTED_EXCHANGE_CHANGED) => Ok(Exchange::Changed),
            Ok(bindings::NESTED_EXCHANGE_READ_ONLY) => Ok(Exchange::ReadOnly),
            _ => Err(Inaccessible),
        }
    }
}
