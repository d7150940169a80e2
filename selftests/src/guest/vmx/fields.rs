// SPDX-License-Identifier: GPL-2.0

//! Values of the fields of a VMCS.

use std::collections::BTreeMap;

use super::field::ENTRY_EVENT;

/// Values of fields.
#[derive(Clone, Debug, Default)]
pub struct Fields(BTreeMap<u32, u64>);

impl Fields {
    /// Returns the value of a field, 0 if it has none.
    pub fn get(&self, field: u32) -> u64 {
        self.0.get(&field).copied().unwrap_or(0)
    }

    /// Gives a field a value.
    pub fn put(&mut self, field: u32, value: u64) {
        self.0.insert(field, value);
    }

    /// Sets bits of a field.
    pub fn set(&mut self, field: u32, bits: u64) {
        self.put(field, self.get(field) | bits);
    }

    /// Clears bits of a field.
    pub fn clear(&mut self, field: u32, bits: u64) {
        self.put(field, self.get(field) & !bits);
    }

    /// Forgets the fields that a VM exit writes.
    pub fn forget_guest_state(&mut self) {
        self.0
            .retain(|field, _| field >> 10 & 3 != 2 && *field != ENTRY_EVENT);
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Returns all fields that have a value.
    pub fn all(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().map(|(field, value)| (*field, *value))
    }

    /// Returns the fields whose value in `other` is not the same.
    pub fn beyond<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (u32, u64)> + 'a {
        self.all()
            .filter(|(field, value)| other.0.get(field) != Some(value))
    }
}
