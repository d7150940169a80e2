// SPDX-License-Identifier: GPL-2.0

//! Random programs of L1 and L2, and what L1 observes of them.
//!
//! A [`Case`] has the code of L2, and the steps that L1 takes: fields of vmcs12 or vmcb12 that it
//! changes, instructions, entries of L2. [`generate`] makes one from a seed and a number; it is the
//! same for both vendors, whose [`vocabulary`] differs. A [`Subject`] is a machine that runs cases,
//! each from the same state, and notes what L1 could see. [`text`] is the form in which a case is
//! kept in a file, and [`shrink`] makes a case smaller.

pub mod allowed;
pub mod code;
pub mod corpus;
pub mod generate;
pub mod mode;
pub mod observe;
pub mod shrink;
pub mod stage;
pub mod svm;
pub mod svm_script;
pub mod svm_vocabulary;
pub mod text;
pub mod vmx;
pub mod vmx_vocabulary;
pub mod vocabulary;

use anyhow::Result;
use kvm_ioctls::Kvm;

use crate::guest::Vendor;
use observe::Seen;

/// What L1 or L2 does: a verb of the [`vocabulary`] or of [`code`], and what it is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The verb.
    pub verb: &'static str,
    /// The operands; those that the verb does not have are 0.
    pub operands: [u64; 3],
}

impl Action {
    /// Puts a verb and operands together.
    pub fn new(verb: &'static str, given: &[u64]) -> Self {
        let mut operands = [0; 3];
        for (operand, value) in operands.iter_mut().zip(given) {
            *operand = *value;
        }
        Self { verb, operands }
    }
}

/// A program of L1 and L2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Whose extension L1 uses.
    pub vendor: Vendor,
    /// What L2 executes, from the first one on.
    pub code: Vec<Action>,
    /// What L1 does, from a VMCS or VMCB on with which L2 would run.
    pub steps: Vec<Action>,
}

/// A machine that runs cases.
pub trait Subject {
    /// Runs a case, and returns what L1 observes.
    fn run(&mut self, case: &Case) -> Result<Vec<Seen>>;

    /// Returns the fields that L1 can read, if it does so by instructions.
    fn offer(&self) -> &[u32] {
        &[]
    }

    /// Gives guests more time, this many times the usual one, before they are taken for lost.
    fn be_patient(&mut self, patience: u32);

    /// Returns the value that a field has when L1 begins.
    fn initial(&self, field: u64) -> u64;
}

/// Creates a machine for the cases of a vendor.
pub fn subject(kvm: &Kvm, vendor: Vendor) -> Result<Box<dyn Subject>> {
    Ok(match vendor {
        Vendor::Svm => Box::new(svm::Svm::new(kvm)?),
        Vendor::Vmx => Box::new(vmx::Vmx::new(kvm)?),
    })
}
