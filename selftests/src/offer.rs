// SPDX-License-Identifier: GPL-2.0

//! What KVM offers to guests: CPUID, MSRs, nested state.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_msr_entry, Msrs, KVM_CAP_NESTED_STATE};
use kvm_ioctls::Kvm;

use crate::vm;

/// The capability MSRs of VMX, `IA32_VMX_BASIC` to `IA32_VMX_VMFUNC`.
const VMX_MSRS: RangeInclusive<u32> = 0x480..=0x491;

/// The function of CPUID that describes SVM.
const SVM_FUNCTION: u32 = 0x8000_000a;

/// Values by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer(BTreeMap<String, u64>);

impl Offer {
    /// Asks KVM.
    pub fn read(kvm: &Kvm) -> Result<Self> {
        let mut values = BTreeMap::new();
        for entry in vm::cpuid(kvm)?.as_slice() {
            let name = format!("CPUID {:#x}.{}", entry.function, entry.index);
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            for (register, value) in ["eax", "ebx", "ecx", "edx"].iter().zip(registers) {
                values.insert(format!("{name} {register}"), value.into());
            }
        }
        let list = kvm.get_msr_feature_index_list();
        for &index in list.context("KVM_GET_MSR_FEATURE_INDEX_LIST")?.as_slice() {
            values.insert(feature(index), read_msr(kvm, index)?);
        }
        let list = kvm.get_msr_index_list();
        for index in list.context("KVM_GET_MSR_INDEX_LIST")?.as_slice() {
            values.insert(format!("MSR {index:#x} saved"), 1);
        }
        let state = kvm.check_extension_raw(KVM_CAP_NESTED_STATE.into());
        values.insert("KVM_CAP_NESTED_STATE".into(), u64::try_from(state)?);
        Ok(Self(values))
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Returns whether CPUID has SVM.
    pub fn svm(&self) -> bool {
        self.get("CPUID 0x80000001.0 ecx") >> 2 & 1 == 1
    }

    /// Returns the features of SVM: EDX of the function of CPUID that describes it.
    pub fn svm_features(&self) -> u64 {
        self.get(&format!("CPUID {SVM_FUNCTION:#x}.0 edx"))
    }

    /// Returns whether CPUID has VMX.
    pub fn vmx(&self) -> bool {
        self.get("CPUID 0x1.0 ecx") >> 5 & 1 == 1
    }

    /// Returns the capability MSRs of VMX that a program may read and set.
    pub fn vmx_msrs(&self) -> Vec<u32> {
        VMX_MSRS
            .filter(|index| self.0.contains_key(&feature(*index)))
            .collect()
    }

    /// Returns the size of the nested state, 0 if there is none.
    pub fn nested_state(&self) -> u64 {
        self.get("KVM_CAP_NESTED_STATE")
    }

    /// Returns the offer without what our modules offer and KVM's own code does not: PAUSE-loop
    /// exiting of VMX.
    #[must_use]
    pub fn without_additions(mut self) -> Self {
        /// The allowed 1-setting of the control in `IA32_VMX_PROCBASED_CTLS2`.
        const PAUSE_LOOP_EXITING: u64 = 1 << (32 + 10);

        if let Some(value) = self.0.get_mut(&feature(0x48b)) {
            *value &= !PAUSE_LOOP_EXITING;
        }
        self
    }

    /// Fails if anything differs from `expected`, and lists it.
    pub fn same_as(&self, expected: &Self) -> Result<()> {
        let names = expected.0.keys().chain(self.0.keys());
        let mut differences: Vec<String> = names
            .filter(|name| expected.0.get(*name) != self.0.get(*name))
            .map(|name| {
                let word = |offer: &Self| {
                    let value = offer.0.get(name);
                    value.map_or("nothing".to_owned(), |value| format!("{value:#x}"))
                };
                format!("{name}: expected {}, saw {}", word(expected), word(self))
            })
            .collect();
        differences.sort();
        differences.dedup();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }
}

fn feature(index: u32) -> String {
    format!("feature MSR {index:#x}")
}

/// Returns the value of a feature MSR.
pub fn read_msr(kvm: &Kvm, index: u32) -> Result<u64> {
    let entry = kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry])?;
    match (kvm.get_msrs(&mut msrs), msrs.as_slice()) {
        (Ok(1), [entry]) => Ok(entry.data),
        (result, _) => bail!("KVM_GET_MSRS of {index:#x}: expected 1 value, saw {result:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(values: &[(&str, u64)]) -> Offer {
        Offer(
            values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        )
    }

    #[test]
    fn differences_are_listed_with_both_values() {
        let expected = offer(&[("a", 1), ("b", 2)]);
        let error = offer(&[("b", 3), ("c", 4)]).same_as(&expected).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a: expected 0x1, saw nothing\nb: expected 0x2, saw 0x3\nc: expected nothing, saw 0x4"
        );
        assert!(expected.same_as(&expected).is_ok());
    }

    #[test]
    fn the_bits_are_found() {
        let seen = offer(&[
            ("CPUID 0x80000001.0 ecx", 4),
            ("CPUID 0x8000000a.0 edx", 7),
            ("CPUID 0x1.0 ecx", 32),
            ("feature MSR 0x480", 1),
            ("feature MSR 0x10a", 1),
        ]);
        assert!(seen.svm() && seen.vmx());
        assert_eq!((seen.svm_features(), seen.vmx_msrs()), (7, vec![0x480]));
        assert_eq!(seen.nested_state(), 0);
    }
}
