// SPDX-License-Identifier: GPL-2.0

//! Checks on the host-state area.

use super::{
    registers::{has_only_valid_pat_types, suppresses_while_waiting},
    Mode, Processor, CR0_WP, CR4_CET, CR4_LA57, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME,
};
use crate::vmx::Vmcs12;

/// The requested privilege level and the table indicator of a selector.
const RPL_AND_TI: u16 = 7;

/// Returns the width of linear addresses in L1 after an exit.
#[inline]
const fn linear_address_width(vmcs12: &Vmcs12) -> u32 {
    if vmcs12.host_cr4 & CR4_LA57 != 0 {
        57
    } else {
        48
    }
}

/// Returns whether L1 is in 64-bit mode after an exit.
#[inline]
const fn is_64bit(vmcs12: &Vmcs12) -> bool {
    vmcs12.exit().host_address_space_size()
}

consistency_checks! {
    /// Makes the check on the address-space size that depends on the mode of L1 before VM entry
    /// (SDM, "Checks Related to Address-Space Size").
    pub fn check_mode(vmcs12: &Vmcs12, processor: &Processor<'_>) -> Result<(), ModeCheck> {
        /// The address-space size after an exit is that of L1 now.
        AddressSpaceSize: is_64bit(vmcs12) != (processor.mode == Mode::Ia32e),
    }
}

consistency_checks! {
    /// Makes the checks on the host-state area (SDM, "Checks on Host Control Registers, MSRs, and
    /// SSP", "Checks on Host Segment and Descriptor-Table Registers" and "Checks Related to
    /// Address-Space Size"), whatever mode L1 is in now.
    pub fn check_host_state(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), HostStateCheck> {
        /// CR0 has the bits that must be 1, and none that must be 0.
        Cr0Fixed: !processor.is_host_cr0(vmcs12.host_cr0),
        /// CR4 has the bits that must be 1, and none that must be 0.
        Cr4Fixed: !processor.is_cr4(vmcs12.host_cr4),
        /// CET needs write protection.
        CetWithoutWp: vmcs12.host_cr4 & CR4_CET != 0 && vmcs12.host_cr0 & CR0_WP == 0,
        /// CR3 is within the physical addresses.
        Cr3Reserved: vmcs12.host_cr3 & processor.cr3_reserved != 0,
        /// The stack pointer of SYSENTER is canonical.
        SysenterEsp: !processor.is_canonical(vmcs12.host_ia32_sysenter_esp),
        /// The instruction pointer of SYSENTER is canonical.
        SysenterEip: !processor.is_canonical(vmcs12.host_ia32_sysenter_eip),
        /// The performance counters that are enabled exist.
        PerfGlobalCtrl: vmcs12.exit().load_perf_global_ctrl()
            && vmcs12.host_ia32_perf_global_ctrl & processor.perf_global_ctrl_reserved != 0,
        /// The memory types of the PAT exist.
        Pat: vmcs12.exit().load_pat() && !has_only_valid_pat_types(vmcs12.host_ia32_pat),
        /// EFER has no bit that is reserved.
        EferReserved: vmcs12.exit().load_efer()
            && vmcs12.host_ia32_efer & processor.efer_reserved != 0,
        /// EFER.LMA is as the address-space size.
        EferLma: vmcs12.exit().load_efer()
            && (vmcs12.host_ia32_efer & EFER_LMA != 0) != is_64bit(vmcs12),
        /// EFER.LME is as the address-space size.
        EferLme: vmcs12.exit().load_efer()
            && (vmcs12.host_ia32_efer & EFER_LME != 0) != is_64bit(vmcs12),
        /// S_CET has no bit that is reserved.
        SCetReserved: vmcs12.exit().load_cet_state()
            && vmcs12.host_s_cet & processor.s_cet_reserved != 0,
        /// Tracking of indirect branches is not suppressed while it waits for one.
        SCetSuppress: vmcs12.exit().load_cet_state()
            && suppresses_while_waiting(vmcs12.host_s_cet),
        /// The shadow-stack pointer is aligned.
        SspAlignment: vmcs12.exit().load_cet_state() && vmcs12.host_ssp & 3 != 0,
        /// The table of shadow-stack pointers is canonical.
        SspTable: vmcs12.exit().load_cet_state() && !processor.is_canonical(vmcs12.host_ssp_tbl),

        /// The selector of CS has RPL 0 and refers to the GDT.
        CsSelector: vmcs12.host_cs_selector & RPL_AND_TI != 0,
        /// The selector of SS has RPL 0 and refers to the GDT.
        SsSelector: vmcs12.host_ss_selector & RPL_AND_TI != 0,
        /// The selector of DS has RPL 0 and refers to the GDT.
        DsSelector: vmcs12.host_ds_selector & RPL_AND_TI != 0,
        /// The selector of ES has RPL 0 and refers to the GDT.
        EsSelector: vmcs12.host_es_selector & RPL_AND_TI != 0,
        /// The selector of FS has RPL 0 and refers to the GDT.
        FsSelector: vmcs12.host_fs_selector & RPL_AND_TI != 0,
        /// The selector of GS has RPL 0 and refers to the GDT.
        GsSelector: vmcs12.host_gs_selector & RPL_AND_TI != 0,
        /// The selector of TR has RPL 0 and refers to the GDT.
        TrSelector: vmcs12.host_tr_selector & RPL_AND_TI != 0,
        /// There is a code segment.
        CsNull: vmcs12.host_cs_selector == 0,
        /// There is a task.
        TrNull: vmcs12.host_tr_selector == 0,
        /// There is a stack segment, unless 64-bit mode can do without.
        SsNull: vmcs12.host_ss_selector == 0 && !is_64bit(vmcs12),
        /// The base of FS is canonical.
        FsBase: !processor.is_canonical(vmcs12.host_fs_base),
        /// The base of GS is canonical.
        GsBase: !processor.is_canonical(vmcs12.host_gs_base),
        /// The base of the GDT is canonical.
        GdtrBase: !processor.is_canonical(vmcs12.host_gdtr_base),
        /// The base of the IDT is canonical.
        IdtrBase: !processor.is_canonical(vmcs12.host_idtr_base),
        /// The base of TR is canonical.
        TrBase: !processor.is_canonical(vmcs12.host_tr_base),

        /// Only L1 in 64-bit mode can have such a guest.
        GuestIn64Bit: !is_64bit(vmcs12) && vmcs12.entry().ia32e_mode_guest(),
        /// Process-context identifiers exist in 64-bit mode only.
        PcideIn32Bit: !is_64bit(vmcs12) && vmcs12.host_cr4 & CR4_PCIDE != 0,
        /// RIP has 32 bits outside 64-bit mode.
        RipIn32Bit: !is_64bit(vmcs12) && vmcs12.host_rip >> 32 != 0,
        /// S_CET has 32 bits outside 64-bit mode.
        SCetIn32Bit: !is_64bit(vmcs12)
            && vmcs12.exit().load_cet_state()
            && vmcs12.host_s_cet >> 32 != 0,
        /// The shadow-stack pointer has 32 bits outside 64-bit mode.
        SspIn32Bit: !is_64bit(vmcs12)
            && vmcs12.exit().load_cet_state()
            && vmcs12.host_ssp >> 32 != 0,
        /// 64-bit mode needs physical-address extension.
        PaeIn64Bit: is_64bit(vmcs12) && vmcs12.host_cr4 & CR4_PAE == 0,
        /// RIP is canonical in the paging mode of L1 after the exit.
        RipIn64Bit: is_64bit(vmcs12)
            && !super::is_canonical(vmcs12.host_rip, linear_address_width(vmcs12)),
        /// S_CET is canonical in 64-bit mode.
        SCetIn64Bit: is_64bit(vmcs12)
            && vmcs12.exit().load_cet_state()
            && !processor.is_canonical(vmcs12.host_s_cet),
        /// The shadow-stack pointer is canonical in 64-bit mode.
        SspIn64Bit: is_64bit(vmcs12)
            && vmcs12.exit().load_cet_state()
            && !processor.is_canonical(vmcs12.host_ssp),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_host_state))]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{
            valid::{Case, NON_CANONICAL, TOO_WIDE},
            Failure,
        },
        controls::{Entry, Exit},
    };

    /// Makes the smallest change that violates `check`.
    fn violate(check: HostStateCheck, case: &mut Case) {
        use HostStateCheck as Check;

        if matches!(
            check,
            Check::SsNull
                | Check::GuestIn64Bit
                | Check::PcideIn32Bit
                | Check::RipIn32Bit
                | Check::SCetIn32Bit
                | Check::SspIn32Bit
        ) {
            case.make_l1_32bit();
        }
        let vmcs12 = &mut case.vmcs12;

        match check {
            Check::Cr0Fixed => vmcs12.host_cr0 &= !(1 << 5),
            Check::Cr4Fixed => vmcs12.host_cr4 &= !(1 << 13),
            Check::CetWithoutWp => vmcs12.host_cr0 &= !CR0_WP,
            Check::Cr3Reserved => vmcs12.host_cr3 |= TOO_WIDE,
            Check::SysenterEsp => vmcs12.host_ia32_sysenter_esp = NON_CANONICAL,
            Check::SysenterEip => vmcs12.host_ia32_sysenter_eip = NON_CANONICAL,
            Check::PerfGlobalCtrl => vmcs12.host_ia32_perf_global_ctrl |= 1 << 4,
            Check::Pat => vmcs12.host_ia32_pat = 2,
            Check::EferReserved => vmcs12.host_ia32_efer |= 1 << 1,
            Check::EferLma => vmcs12.host_ia32_efer ^= EFER_LMA,
            Check::EferLme => vmcs12.host_ia32_efer ^= EFER_LME,
            Check::SCetReserved => vmcs12.host_s_cet |= 1 << 6,
            Check::SCetSuppress => vmcs12.host_s_cet |= 3 << 10,
            Check::SspAlignment => vmcs12.host_ssp |= 2,
            Check::SspTable => vmcs12.host_ssp_tbl = NON_CANONICAL,
            Check::CsSelector => vmcs12.host_cs_selector |= 1,
            Check::SsSelector => vmcs12.host_ss_selector |= 2,
            Check::DsSelector => vmcs12.host_ds_selector |= 4,
            Check::EsSelector => vmcs12.host_es_selector |= 1,
            Check::FsSelector => vmcs12.host_fs_selector |= 1,
            Check::GsSelector => vmcs12.host_gs_selector |= 1,
            Check::TrSelector => vmcs12.host_tr_selector |= 4,
            Check::CsNull => vmcs12.host_cs_selector = 0,
            Check::TrNull => vmcs12.host_tr_selector = 0,
            Check::SsNull => vmcs12.host_ss_selector = 0,
            Check::FsBase => vmcs12.host_fs_base = NON_CANONICAL,
            Check::GsBase => vmcs12.host_gs_base = NON_CANONICAL,
            Check::GdtrBase => vmcs12.host_gdtr_base = NON_CANONICAL,
            Check::IdtrBase => vmcs12.host_idtr_base = NON_CANONICAL,
            Check::TrBase => vmcs12.host_tr_base = NON_CANONICAL,
            Check::GuestIn64Bit => vmcs12.vm_entry_controls |= Entry::IA32E_MODE.into_raw(),
            Check::PcideIn32Bit => vmcs12.host_cr4 |= CR4_PCIDE,
            Check::RipIn32Bit => vmcs12.host_rip |= 1 << 32,
            Check::SCetIn32Bit => vmcs12.host_s_cet |= 1 << 32,
            Check::SspIn32Bit => vmcs12.host_ssp |= 1 << 32,
            Check::PaeIn64Bit => vmcs12.host_cr4 &= !CR4_PAE,
            Check::RipIn64Bit => vmcs12.host_rip = NON_CANONICAL,
            Check::SCetIn64Bit => vmcs12.host_s_cet = NON_CANONICAL,
            Check::SspIn64Bit => vmcs12.host_ssp = NON_CANONICAL,
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in HostStateCheck::ALL {
            let mut case = Case::new();

            violate(check, &mut case);
            assert_eq!(case.failure(), Some(Failure::HostState(check)));
        }
    }

    #[test]
    fn the_address_space_size_is_that_of_l1() {
        let failure = Some(Failure::Mode(ModeCheck::AddressSpaceSize));
        let mut case = Case::new();
        case.mode = Mode::Legacy;
        assert_eq!(case.failure(), failure);

        case = Case::new();
        case.make_l1_32bit();
        case.mode = Mode::Ia32e;
        assert_eq!(case.failure(), failure);
    }

    #[test]
    fn cr4_has_no_feature_that_l1_lacks() {
        let mut case = Case::new();

        case.vmcs12.host_cr4 |= 1 << 21;
        assert_eq!(
            case.failure(),
            Some(Failure::HostState(HostStateCheck::Cr4Fixed))
        );
    }

    #[test]
    fn registers_that_are_not_loaded_are_ignored() {
        let mut case = Case::new();

        case.vmcs12.vm_exit_controls &= !Exit::LOAD_IA32_PERF_GLOBAL_CTRL
            .with(Exit::LOAD_IA32_PAT)
            .with(Exit::LOAD_IA32_EFER)
            .with(Exit::LOAD_CET_STATE)
            .into_raw();
        case.vmcs12.host_ia32_perf_global_ctrl = u64::MAX;
        case.vmcs12.host_ia32_pat = u64::MAX;
        case.vmcs12.host_ia32_efer = u64::MAX;
        case.vmcs12.host_s_cet = u64::MAX;
        case.vmcs12.host_ssp = u64::MAX;
        case.vmcs12.host_ssp_tbl = NON_CANONICAL;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn rip_is_checked_in_the_paging_mode_of_l1_after_the_exit() {
        let mut case = Case::new();

        case.vmcs12.host_rip = NON_CANONICAL;
        case.vmcs12.host_cr4 |= CR4_LA57;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn ss_may_be_null_in_64_bit_mode() {
        let mut case = Case::new();

        case.vmcs12.host_ss_selector = 0;
        assert_eq!(case.failure(), None);
    }
}
