// SPDX-License-Identifier: GPL-2.0

//! What L1 can do, and how it can change the state of L2.

use super::code::{self, Values};
use super::{svm_vocabulary as svm, vmx_vocabulary as vmx};
use crate::guest::vmx::near_valid::Change;
use crate::guest::Vendor;

/// A verb of L1.
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// For each operand what it may be; those of verbs that the generator places itself are empty.
    pub operands: &'static [Values],
    /// How often it is chosen: this many times in the sum of all.
    pub weight: u64,
}

/// A part of the state of L2, and how it is changed.
#[derive(Clone, Copy)]
pub struct Place {
    /// The encoding of the field, or its address.
    pub at: u64,
    /// How many bits it has.
    pub bits: u32,
    /// The changes.
    pub change: Change,
}

/// What L1 can do with an extension.
pub struct Vocabulary {
    /// The verbs.
    pub verbs: &'static [Verb],
    /// The parts of the state.
    pub places: Vec<Place>,
    /// Changes that make L2 begin in another mode.
    pub modes: &'static [&'static [(u64, u32, u64)]],
    /// Controls, with the bits that make about everything exit that L2 does.
    pub exits: &'static [(u64, u32, u64)],
    /// The verb and operands that set the bits of a place.
    pub set: fn(at: u64, bits: u32, value: u64) -> super::Action,
    /// Where L2's RIP is.
    pub rip: u64,
    /// The verb that enters L2 first, with its operand.
    pub enter: (&'static str, u64),
    /// The verb that enters L2 again, with its operand.
    pub again: (&'static str, u64),
}

/// Returns what L1 can do with an extension.
pub fn of(vendor: Vendor) -> Vocabulary {
    match vendor {
        Vendor::Svm => svm::vocabulary(),
        Vendor::Vmx => vmx::vocabulary(),
    }
}

/// Returns the verb with a name, and its number of operands.
pub fn find(vendor: Vendor, name: &str) -> Option<(&'static str, usize)> {
    let verbs = match vendor {
        Vendor::Svm => svm::VERBS,
        Vendor::Vmx => vmx::VERBS,
    };
    let verb = verbs.iter().find(|verb| verb.name == name)?;
    Some((verb.name, verb.operands.len()))
}

/// What L1 may read and write of MSRs.
pub const MSRS: Values = code::MSRS;

/// Values of the control register CR0 of L1.
pub const CR0: Values = &[0x8001_0033, 0x8005_0033, 0x8001_003b, 0xa001_0033];

/// Any value: the generator places the verb itself.
pub const ANY: Values = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_something_to_choose() {
        for vendor in [Vendor::Svm, Vendor::Vmx] {
            for place in of(vendor).places {
                match place.change {
                    Change::Flip(mask) => {
                        assert!(mask != 0 && (place.bits == 64 || mask >> place.bits == 0));
                    }
                    Change::Set(values) => assert!(!values.is_empty()),
                }
            }
        }
    }
}
