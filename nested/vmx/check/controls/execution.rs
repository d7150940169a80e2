// SPDX-License-Identifier: GPL-2.0

//! Checks on the VM-execution control fields.

use crate::{
    address::Gpa,
    vmx::{check::Processor, controls::Secondary, Vmcs12},
};

consistency_checks! {
    /// Makes the checks on the VM-execution control fields but the EPT pointer (SDM, "VM-Execution
    /// Control Fields").
    pub fn check_execution_controls(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), ExecutionControlCheck> {
        /// The pin-based controls are within what the capability MSR allows.
        PinReserved: !processor.msrs.allow_pin(vmcs12.pin()),
        /// The primary controls are within what the capability MSR allows.
        PrimaryReserved: !processor.msrs.allow_primary(vmcs12.primary()),
        /// The secondary controls are within what the capability MSR allows.
        SecondaryReserved: vmcs12.primary().secondary_controls()
            && !processor
                .msrs
                .allow_secondary(Secondary::from_raw(vmcs12.secondary_vm_exec_control)),
        /// There are as many CR3-target values.
        Cr3TargetCount: vmcs12.cr3_target_count > processor.msrs.cr3_target_count(),
        /// The first I/O bitmap is a page.
        IoBitmapA: vmcs12.primary().io_bitmaps() && !processor.is_page(vmcs12.io_bitmap_a),
        /// The second I/O bitmap is a page.
        IoBitmapB: vmcs12.primary().io_bitmaps() && !processor.is_page(vmcs12.io_bitmap_b),
        /// The MSR bitmap is a page.
        MsrBitmap: vmcs12.primary().msr_bitmaps() && !processor.is_page(vmcs12.msr_bitmap),
        /// The virtual APIC is a page.
        VirtualApicAddress: vmcs12.primary().tpr_shadow()
            && !processor.is_page(vmcs12.virtual_apic_page_addr),
        /// The TPR threshold is a priority class, unless virtual-interrupt delivery ignores it.
        TprThreshold: vmcs12.primary().tpr_shadow()
            && !vmcs12.secondary().virtual_interrupt_delivery()
            && vmcs12.tpr_threshold >> 4 != 0,
        /// Virtualization of the x2APIC needs the TPR shadow.
        X2apicWithoutTprShadow: vmcs12.secondary().virtualize_x2apic_mode()
            && !vmcs12.primary().tpr_shadow(),
        /// Virtualization of APIC registers needs the TPR shadow.
        ApicRegistersWithoutTprShadow: vmcs12.secondary().apic_register_virtualization()
            && !vmcs12.primary().tpr_shadow(),
        /// Virtual-interrupt delivery needs the TPR shadow.
        InterruptDeliveryWithoutTprShadow: vmcs12.secondary().virtual_interrupt_delivery()
            && !vmcs12.primary().tpr_shadow(),
        /// Virtual NMIs need NMI exiting.
        VirtualNmisWithoutNmiExiting: vmcs12.pin().virtual_nmis() && !vmcs12.pin().nmi_exiting(),
        /// NMI windows need virtual NMIs.
        NmiWindowWithoutVirtualNmis: vmcs12.primary().nmi_window_exiting()
            && !vmcs12.pin().virtual_nmis(),
        /// The APIC-access page is a page.
        ApicAccessAddress: vmcs12.secondary().virtualize_apic_accesses()
            && !processor.is_page(vmcs12.apic_access_addr),
        /// An APIC is accessed by memory or by MSRs.
        X2apicWithApicAccesses: vmcs12.secondary().virtualize_x2apic_mode()
            && vmcs12.secondary().virtualize_apic_accesses(),
        /// Virtual-interrupt delivery needs external-interrupt exiting.
        InterruptDeliveryWithoutExiting: vmcs12.secondary().virtual_interrupt_delivery()
            && !vmcs12.pin().external_interrupt_exiting(),
        /// Posted interrupts need virtual-interrupt delivery.
        PostedInterruptsWithoutDelivery: vmcs12.pin().posted_interrupts()
            && !vmcs12.secondary().virtual_interrupt_delivery(),
        /// Posted interrupts need the acknowledgement of interrupts by an exit.
        PostedInterruptsWithoutAcknowledge: vmcs12.pin().posted_interrupts()
            && !vmcs12.exit().acknowledge_interrupt(),
        /// The notification vector is a vector.
        PostedInterruptVector: vmcs12.pin().posted_interrupts()
            && vmcs12.posted_intr_nv & 0xff00 != 0,
        /// The posted-interrupt descriptor is a cache line.
        PostedInterruptDescriptor: vmcs12.pin().posted_interrupts()
            && (vmcs12.posted_intr_desc_addr & 0x3f != 0
                || !Gpa::from_raw(vmcs12.posted_intr_desc_addr)
                    .fits(processor.physical_address_width)),
        /// VPID 0 is that of L1.
        Vpid: vmcs12.secondary().vpid() && vmcs12.virtual_processor_id == 0,
        /// Page-modification logging needs EPT.
        PmlWithoutEpt: vmcs12.secondary().pml() && !vmcs12.secondary().ept(),
        /// The page-modification log is a page.
        PmlAddress: vmcs12.secondary().pml() && !processor.is_page(vmcs12.pml_address),
        /// An unrestricted guest needs EPT.
        UnrestrictedGuestWithoutEpt: vmcs12.secondary().unrestricted_guest()
            && !vmcs12.secondary().ept(),
        /// Mode-based execute control needs EPT.
        ModeBasedExecuteWithoutEpt: vmcs12.secondary().mode_based_execute_control()
            && !vmcs12.secondary().ept(),
        /// The VM functions are within what the capability MSR allows.
        VmFunctionReserved: vmcs12.secondary().vmfunc()
            && vmcs12.vm_function_control & !processor.msrs.vmfunc_controls != 0,
        /// EPTP switching needs EPT.
        EptpSwitchingWithoutEpt: vmcs12.eptp_switching() && !vmcs12.secondary().ept(),
        /// The list of EPT pointers is a page.
        EptpListAddress: vmcs12.eptp_switching() && !processor.is_page(vmcs12.eptp_list_address),
        /// The VMREAD bitmap is a page.
        VmreadBitmap: vmcs12.secondary().vmcs_shadowing()
            && !processor.is_page(vmcs12.vmread_bitmap),
        /// The VMWRITE bitmap is a page.
        VmwriteBitmap: vmcs12.secondary().vmcs_shadowing()
            && !processor.is_page(vmcs12.vmwrite_bitmap),
        /// A TSC that is scaled does not stand still.
        TscMultiplier: vmcs12.secondary().tsc_scaling() && vmcs12.tsc_multiplier == 0,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_execution))]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{
            valid::{Case, TOO_WIDE},
            ControlCheck, Failure,
        },
        controls::{Exit, Pin, Primary},
        eptp::EptpCheck,
    };

    /// Makes the smallest change that violates `check`.
    fn violate(check: ExecutionControlCheck, case: &mut Case) {
        use ExecutionControlCheck as Check;

        match check {
            Check::PinReserved => case.vmcs12.pin_based_vm_exec_control |= 1 << 8,
            Check::PrimaryReserved => case.vmcs12.cpu_based_vm_exec_control &= !(1 << 1),
            Check::SecondaryReserved => case.set(Secondary::EPT_VIOLATION_VE),
            Check::Cr3TargetCount => case.vmcs12.cr3_target_count = 1,
            Check::IoBitmapA => case.vmcs12.io_bitmap_a |= 1,
            Check::IoBitmapB => case.vmcs12.io_bitmap_b |= TOO_WIDE,
            Check::MsrBitmap => case.vmcs12.msr_bitmap |= 1 << 11,
            Check::VirtualApicAddress => case.vmcs12.virtual_apic_page_addr |= 8,
            Check::TprThreshold => {
                case.vmcs12.pin_based_vm_exec_control &= !Pin::POSTED_INTR.into_raw();
                case.clear(Secondary::VIRTUAL_INTR_DELIVERY);
                case.vmcs12.tpr_threshold = 0x10;
            }
            Check::X2apicWithoutTprShadow => {
                case.without_tpr_shadow();
                case.set(Secondary::VIRTUALIZE_X2APIC_MODE);
            }
            Check::ApicRegistersWithoutTprShadow => {
                case.without_tpr_shadow();
                case.set(Secondary::APIC_REGISTER_VIRT);
            }
            Check::InterruptDeliveryWithoutTprShadow => {
                case.without_tpr_shadow();
                case.set(Secondary::VIRTUAL_INTR_DELIVERY);
            }
            Check::VirtualNmisWithoutNmiExiting => {
                case.vmcs12.pin_based_vm_exec_control &= !Pin::NMI_EXITING.into_raw();
            }
            Check::NmiWindowWithoutVirtualNmis => {
                case.vmcs12.pin_based_vm_exec_control &= !Pin::VIRTUAL_NMIS.into_raw();
            }
            Check::ApicAccessAddress => {
                case.clear(Secondary::VIRTUALIZE_X2APIC_MODE);
                case.set(Secondary::VIRTUALIZE_APIC_ACCESSES);
                case.vmcs12.apic_access_addr |= 1;
            }
            Check::X2apicWithApicAccesses => case.set(Secondary::VIRTUALIZE_APIC_ACCESSES),
            Check::InterruptDeliveryWithoutExiting => {
                case.vmcs12.pin_based_vm_exec_control &= !Pin::EXT_INTR_MASK.into_raw();
            }
            Check::PostedInterruptsWithoutDelivery => {
                case.clear(Secondary::VIRTUAL_INTR_DELIVERY);
            }
            Check::PostedInterruptsWithoutAcknowledge => {
                case.vmcs12.vm_exit_controls &= !Exit::ACK_INTR_ON_EXIT.into_raw();
            }
            Check::PostedInterruptVector => case.vmcs12.posted_intr_nv = 0x100,
            Check::PostedInterruptDescriptor => case.vmcs12.posted_intr_desc_addr |= 1 << 5,
            Check::Vpid => case.vmcs12.virtual_processor_id = 0,
            Check::PmlWithoutEpt => {
                case.without_ept();
                case.set(Secondary::ENABLE_PML);
            }
            Check::PmlAddress => case.vmcs12.pml_address |= 1,
            Check::UnrestrictedGuestWithoutEpt => {
                case.without_ept();
                case.set(Secondary::UNRESTRICTED_GUEST);
            }
            Check::ModeBasedExecuteWithoutEpt => {
                case.without_ept();
                case.set(Secondary::MODE_BASED_EPT_EXEC);
            }
            Check::VmFunctionReserved => case.vmcs12.vm_function_control |= 1 << 1,
            Check::EptpSwitchingWithoutEpt => {
                case.without_ept();
                case.set(Secondary::ENABLE_VMFUNC);
            }
            Check::EptpListAddress => case.vmcs12.eptp_list_address |= 1,
            Check::VmreadBitmap => case.vmcs12.vmread_bitmap |= 1,
            Check::VmwriteBitmap => case.vmcs12.vmwrite_bitmap |= 1,
            Check::TscMultiplier => case.vmcs12.tsc_multiplier = 0,
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in ExecutionControlCheck::ALL {
            let mut case = Case::new();

            violate(check, &mut case);
            assert_eq!(
                case.failure(),
                Some(Failure::Controls(ControlCheck::Execution(check)))
            );
        }
    }

    #[test]
    fn addresses_of_what_is_not_used_are_ignored() {
        let mut case = Case::new();

        case.without_ept();
        case.without_tpr_shadow();
        case.clear(
            Secondary::SHADOW_VMCS
                .with(Secondary::ENABLE_VPID)
                .with(Secondary::TSC_SCALING),
        );
        case.vmcs12.cpu_based_vm_exec_control &=
            !(Primary::USE_IO_BITMAPS.with(Primary::USE_MSR_BITMAPS)).into_raw();
        case.vmcs12.vmcs_link_pointer = u64::MAX;
        for address in [
            &mut case.vmcs12.io_bitmap_a,
            &mut case.vmcs12.io_bitmap_b,
            &mut case.vmcs12.msr_bitmap,
            &mut case.vmcs12.virtual_apic_page_addr,
            &mut case.vmcs12.apic_access_addr,
            &mut case.vmcs12.posted_intr_desc_addr,
            &mut case.vmcs12.ept_pointer,
            &mut case.vmcs12.pml_address,
            &mut case.vmcs12.vm_function_control,
            &mut case.vmcs12.eptp_list_address,
            &mut case.vmcs12.vmread_bitmap,
            &mut case.vmcs12.vmwrite_bitmap,
        ] {
            *address = u64::MAX;
        }
        case.vmcs12.tpr_threshold = u32::MAX;
        case.vmcs12.posted_intr_nv = u16::MAX;
        case.vmcs12.virtual_processor_id = 0;
        case.vmcs12.tsc_multiplier = 0;
        assert_eq!(case.failure(), None);

        // Nor do secondary controls count that are not activated.
        case.vmcs12.cpu_based_vm_exec_control &= !Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();
        case.vmcs12.secondary_vm_exec_control = u32::MAX;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn the_posted_interrupt_descriptor_is_within_the_physical_addresses() {
        let mut case = Case::new();

        case.vmcs12.posted_intr_desc_addr = TOO_WIDE;
        assert_eq!(
            case.failure(),
            Some(Failure::Controls(ControlCheck::Execution(
                ExecutionControlCheck::PostedInterruptDescriptor
            )))
        );
        case.vmcs12.posted_intr_desc_addr = TOO_WIDE - 64;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn the_ept_pointer_is_checked_if_it_is_used() {
        let mut case = Case::new();

        case.vmcs12.ept_pointer |= TOO_WIDE;
        assert_eq!(
            case.failure(),
            Some(Failure::Controls(ControlCheck::EptPointer(
                EptpCheck::Address
            )))
        );
        case.without_ept();
        assert_eq!(case.failure(), None);
    }
}
