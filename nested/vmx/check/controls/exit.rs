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

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_exit))]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{
            valid::{Case, TOO_WIDE},
            ControlCheck, Failure,
        },
        controls::Pin,
    };

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        use ExitControlCheck as Check;

        for &check in ExitControlCheck::ALL {
            let mut case = Case::new();
            let vmcs12 = &mut case.vmcs12;

            match check {
                Check::ExitReserved => vmcs12.vm_exit_controls &= !1,
                Check::SaveTimerWithoutTimer => {
                    vmcs12.pin_based_vm_exec_control &= !Pin::VMX_PREEMPTION_TIMER.into_raw();
                }
                Check::MsrStoreCount => vmcs12.vm_exit_msr_store_count = 513,
                Check::MsrStoreAddress => vmcs12.vm_exit_msr_store_addr |= 8,
                Check::MsrLoadCount => vmcs12.vm_exit_msr_load_count = u32::MAX,
                Check::MsrLoadAddress => vmcs12.vm_exit_msr_load_addr = TOO_WIDE,
            }
            assert_eq!(
                case.failure(),
                Some(Failure::Controls(ControlCheck::Exit(check)))
            );
        }
    }

    #[test]
    fn an_area_ends_within_the_physical_addresses() {
        let case = Case::new();
        let legal = |address, count| is_legal_msr_area(address, count, &case.processor());

        assert!(legal(TOO_WIDE - 16, 1));
        assert!(!legal(TOO_WIDE - 16, 2));
        assert!(legal(TOO_WIDE - 16 * 512, 512));
        assert!(!legal(u64::MAX - 15, 512));
        assert!(!legal(1, 1));
    }

    #[test]
    fn the_address_of_an_empty_area_is_ignored() {
        let mut case = Case::new();

        case.vmcs12.vm_exit_msr_store_count = 0;
        case.vmcs12.vm_exit_msr_store_addr = u64::MAX;
        case.vmcs12.vm_exit_msr_load_count = 0;
        case.vmcs12.vm_exit_msr_load_addr = u64::MAX;
        case.vmcs12.vm_entry_msr_load_count = 0;
        case.vmcs12.vm_entry_msr_load_addr = u64::MAX;
        assert_eq!(case.failure(), None);
    }
}
