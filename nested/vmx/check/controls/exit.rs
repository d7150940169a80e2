// SPDX-License-Identifier: GPL-2.0

//! Checks on the VM-exit control fields.

use super::is_legal_msr_area;
use crate::vmx::{check::Processor, Vmcs12};

consistency_checks! {
    /// Makes the checks on the VM-exit control fields (SDM, "VM-Exit Control Fields").
    pub fn check_exit_controls(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), ExitControlCheck> {
        /// The VM-exit controls are within what the capability MSR allows.
        ExitReserved: !processor.msrs.allow_exit(vmcs12.exit()),
        /// Only a preemption timer that runs can be saved.
        SaveTimerWithoutTimer: vmcs12.exit().save_preemption_timer()
            && !vmcs12.pin().preemption_timer(),
        /// The area of MSRs to store has no more entries than recommended.
        ///
        /// What happens otherwise is undefined. Refuse, so that the count is bounded from here on.
        MsrStoreCount: vmcs12.vm_exit_msr_store_count > processor.msrs.msr_list_size(),
        /// The area of MSRs to store is aligned and within the physical addresses.
        MsrStoreAddress: vmcs12.vm_exit_msr_store_count != 0
            && !is_legal_msr_area(
                vmcs12.vm_exit_msr_store_addr,
                vmcs12.vm_exit_msr_store_count,
                processor,
            ),
        /// The area of MSRs to load has no more entries than recommended.
        MsrLoadCount: vmcs12.vm_exit_msr_load_count > processor.msrs.msr_list_size(),
        /// The area of MSRs to load is aligned and within the physical addresses.
        MsrLoadAddress: vmcs12.vm_exit_msr_load_count != 0
            && !is_legal_msr_area(
                vmcs12.vm_exit_msr_load_addr,
                vmcs12.vm_exit_msr_load_count,
                processor,
            ),
    }
}
