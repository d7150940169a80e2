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
