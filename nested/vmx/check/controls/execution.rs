// SPDX-License-Identifier: GPL-2.0

//! Checks on the VM-execution control fields.

use crate::{
    address::Gpa,
    vmx::{capability::msrs::ept, check::Processor, controls::Secondary, Vmcs12},
};

consistency_checks! {
    /// Makes the checks on the VM-execution control fields (SDM, "VM-Execution Control Fields"), but
    /// for the EPT pointer.
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

/// The memory type of the EPT paging structures, in an EPT pointer.
const EPTP_MEMORY_TYPE: u64 = 0x7;
/// Memory type uncacheable.
const EPTP_UC: u64 = 0;
/// Memory type write-back.
const EPTP_WB: u64 = 6;
/// One less than the length of a page walk, in an EPT pointer.
const EPTP_PAGE_WALK: u64 = 0x38;
/// A page walk of length 4.
const EPTP_PAGE_WALK_4: u64 = 3 << 3;
/// A page walk of length 5.
const EPTP_PAGE_WALK_5: u64 = 4 << 3;
/// Enables accessed and dirty flags, in an EPT pointer.
const EPTP_AD: u64 = 1 << 6;
/// Reserved bits of an EPT pointer, below the address.
const EPTP_RESERVED: u64 = 0xf80;

consistency_checks! {
    /// Makes the checks on an EPT pointer, of a VMCS or of a list for EPTP switching (SDM,
    /// "Extended-Page-Table Pointer (EPTP)").
    pub fn check_ept_pointer(
        eptp: u64,
        processor: &Processor<'_>,
    ) -> Result<(), EptPointerCheck> {
        /// The memory type is one that is supported.
        MemoryType: match eptp & EPTP_MEMORY_TYPE {
            EPTP_UC => processor.msrs.ept_caps & ept::UC == 0,
            EPTP_WB => processor.msrs.ept_caps & ept::WB == 0,
            _ => true,
        },
        /// The length of page walks is one that is supported.
        PageWalkLength: match eptp & EPTP_PAGE_WALK {
            EPTP_PAGE_WALK_4 => processor.msrs.ept_caps & ept::PAGE_WALK_4 == 0,
            EPTP_PAGE_WALK_5 => processor.msrs.ept_caps & ept::PAGE_WALK_5 == 0,
            _ => true,
        },
        /// Accessed and dirty flags are enabled where they are supported.
        AccessedDirty: eptp & EPTP_AD != 0 && processor.msrs.ept_caps & ept::AD == 0,
        /// Reserved bits are 0.
        Reserved: eptp & EPTP_RESERVED != 0,
        /// The address is within the physical addresses.
        Address: !Gpa::from_raw(eptp).fits(processor.physical_address_width),
    }
}
