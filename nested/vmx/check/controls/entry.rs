// SPDX-License-Identifier: GPL-2.0

//! Checks on the VM-entry control fields, but for those of event injection.

use super::is_legal_msr_area;
use crate::vmx::{check::Processor, Vmcs12};

consistency_checks! {
    /// Makes the checks on the VM-entry control fields (SDM, "VM-Entry Control Fields"), but for
    /// those of event injection.
    pub fn check_entry_controls(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), EntryControlCheck> {
        /// The VM-entry controls are within what the capability MSR allows.
        EntryReserved: !processor.msrs.allow_entry(vmcs12.entry()),
        /// The area of MSRs to load has no more entries than recommended.
        ///
        /// What happens otherwise is undefined. Refuse, so that the count is bounded from here on.
        MsrLoadCount: vmcs12.vm_entry_msr_load_count > processor.msrs.msr_list_size(),
        /// The area of MSRs to load is aligned and within the physical addresses.
        MsrLoadAddress: vmcs12.vm_entry_msr_load_count != 0
            && !is_legal_msr_area(
                vmcs12.vm_entry_msr_load_addr,
                vmcs12.vm_entry_msr_load_count,
                processor,
            ),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_entry))]
mod tests {
    use super::*;
    use crate::vmx::check::{
        valid::{Case, TOO_WIDE},
        ControlCheck, Failure,
    };

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in EntryControlCheck::ALL {
            let mut case = Case::new();
            let vmcs12 = &mut case.vmcs12;

            match check {
                EntryControlCheck::EntryReserved => vmcs12.vm_entry_controls &= !1,
                EntryControlCheck::MsrLoadCount => vmcs12.vm_entry_msr_load_count = 513,
                EntryControlCheck::MsrLoadAddress => {
                    vmcs12.vm_entry_msr_load_addr = TOO_WIDE - 16;
                    vmcs12.vm_entry_msr_load_count = 2;
                }
            }
            assert_eq!(
                case.failure(),
                Some(Failure::Controls(ControlCheck::Entry(check)))
            );
        }
    }
}
