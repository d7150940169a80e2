// SPDX-License-Identifier: GPL-2.0

//! Checks on the control registers, debug registers, MSRs and descriptor-table registers of L2.

use crate::vmx::{
    check::{
        registers::{has_only_valid_pat_types, suppresses_while_waiting},
        Processor, CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME,
    },
    Vmcs12,
};

/// Reserved bits of `IA32_BNDCFGS`, below the base.
const BNDCFGS_RESERVED: u64 = 0xffc;
/// The base in `IA32_BNDCFGS`.
const BNDCFGS_BASE: u64 = !0xfff;

consistency_checks! {
    /// Makes the checks on registers other than EFER (SDM, "Checks on Guest Control Registers,
    /// Debug Registers, and MSRs" and "Checks on Guest Descriptor-Table Registers").
    pub fn check_registers(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), RegisterCheck> {
        /// CR0 has the bits that must be 1, and none that must be 0.
        Cr0Fixed: !processor.is_guest_cr0(vmcs12.guest_cr0, vmcs12.secondary()),
        /// Paging needs protected mode.
        PagingWithoutProtection: vmcs12.guest_cr0 & (CR0_PG | CR0_PE) == CR0_PG,
        /// CR4 has the bits that must be 1, and none that must be 0.
        Cr4Fixed: !processor.is_cr4(vmcs12.guest_cr4),
        /// CET needs write protection.
        CetWithoutWp: vmcs12.guest_cr4 & CR4_CET != 0 && vmcs12.guest_cr0 & CR0_WP == 0,
        /// DEBUGCTL has no bit that is reserved.
        Debugctl: vmcs12.entry().load_debug_controls()
            && vmcs12.guest_ia32_debugctl & processor.debugctl_reserved != 0,
        /// IA-32e mode needs paging.
        Ia32eWithoutPaging: vmcs12.entry().ia32e_mode_guest() && vmcs12.guest_cr0 & CR0_PG == 0,
        /// IA-32e mode needs physical-address extension.
        Ia32eWithoutPae: vmcs12.entry().ia32e_mode_guest() && vmcs12.guest_cr4 & CR4_PAE == 0,
        /// Process-context identifiers need IA-32e mode.
        PcideWithoutIa32e: !vmcs12.entry().ia32e_mode_guest()
            && vmcs12.guest_cr4 & CR4_PCIDE != 0,
        /// CR3 is within the physical addresses.
        Cr3Reserved: vmcs12.guest_cr3 & processor.cr3_reserved != 0,
        /// DR7 has 32 bits.
        Dr7: vmcs12.entry().load_debug_controls() && vmcs12.guest_dr7 >> 32 != 0,
        /// The stack pointer of SYSENTER is canonical.
        SysenterEsp: !processor.is_canonical(vmcs12.guest_sysenter_esp),
        /// The instruction pointer of SYSENTER is canonical.
        SysenterEip: !processor.is_canonical(vmcs12.guest_sysenter_eip),
        /// S_CET is canonical.
        SCetCanonical: vmcs12.entry().load_cet_state()
            && !processor.is_canonical(vmcs12.guest_s_cet),
        /// S_CET has no bit that is reserved.
        SCetReserved: vmcs12.entry().load_cet_state()
            && vmcs12.guest_s_cet & processor.s_cet_reserved != 0,
        /// Tracking of indirect branches is not suppressed while it waits for one.
        SCetSuppress: vmcs12.entry().load_cet_state()
            && suppresses_while_waiting(vmcs12.guest_s_cet),
        /// The table of shadow-stack pointers is canonical.
        SspTable: vmcs12.entry().load_cet_state() && !processor.is_canonical(vmcs12.guest_ssp_tbl),
        /// The performance counters that are enabled exist.
        PerfGlobalCtrl: vmcs12.entry().load_perf_global_ctrl()
            && vmcs12.guest_ia32_perf_global_ctrl & processor.perf_global_ctrl_reserved != 0,
        /// The memory types of the PAT exist.
        Pat: vmcs12.entry().load_pat() && !has_only_valid_pat_types(vmcs12.guest_ia32_pat),
        /// BNDCFGS has no bit that is reserved.
        BndcfgsReserved: vmcs12.entry().load_bndcfgs()
            && vmcs12.guest_bndcfgs & BNDCFGS_RESERVED != 0,
        /// The base in BNDCFGS is canonical.
        BndcfgsBase: vmcs12.entry().load_bndcfgs()
            && !processor.is_canonical(vmcs12.guest_bndcfgs & BNDCFGS_BASE),

        /// The base of the GDT is canonical.
        GdtrBase: !processor.is_canonical(vmcs12.guest_gdtr_base),
        /// The base of the IDT is canonical.
        IdtrBase: !processor.is_canonical(vmcs12.guest_idtr_base),
        /// The limit of the GDT has 16 bits.
        GdtrLimit: vmcs12.guest_gdtr_limit >> 16 != 0,
        /// The limit of the IDT has 16 bits.
        IdtrLimit: vmcs12.guest_idtr_limit >> 16 != 0,
    }
}

consistency_checks! {
    /// Makes the checks on EFER, for VM entry only.
    ///
    /// An exit that does not save EFER leaves the field of a VMCS as it was, even if L2 changed the
    /// register. Thus what user space restores may be what VM entry would refuse.
    pub fn check_efer(vmcs12: &Vmcs12, processor: &Processor<'_>) -> Result<(), EferCheck> {
        /// EFER has no bit that is reserved.
        EferReserved: vmcs12.entry().load_efer()
            && vmcs12.guest_ia32_efer & processor.efer_reserved != 0,
        /// EFER.LMA is as the control.
        EferLma: vmcs12.entry().load_efer()
            && (vmcs12.guest_ia32_efer & EFER_LMA != 0) != vmcs12.entry().ia32e_mode_guest(),
        /// EFER.LME is as EFER.LMA, while paging is enabled.
        EferLme: vmcs12.entry().load_efer()
            && vmcs12.guest_cr0 & CR0_PG != 0
            && (vmcs12.guest_ia32_efer & EFER_LME != 0) != vmcs12.entry().ia32e_mode_guest(),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_check_guest_registers)
)]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{
            valid::{Case, NON_CANONICAL, TOO_WIDE},
            Failure, GuestStateCheck,
        },
        controls::Entry,
    };

    /// Makes the smallest change that violates `check`.
    fn violate(check: RegisterCheck, case: &mut Case) {
        use RegisterCheck as Check;

        if check == Check::PcideWithoutIa32e {
            case.make_l2_32bit();
        }
        let vmcs12 = &mut case.vmcs12;

        match check {
            Check::Cr0Fixed => vmcs12.guest_cr0 &= !(1 << 5),
            Check::PagingWithoutProtection => vmcs12.guest_cr0 &= !CR0_PE,
            Check::Cr4Fixed => vmcs12.guest_cr4 &= !(1 << 13),
            Check::CetWithoutWp => vmcs12.guest_cr0 &= !CR0_WP,
            Check::Debugctl => vmcs12.guest_ia32_debugctl |= 1 << 2,
            Check::Ia32eWithoutPaging => vmcs12.guest_cr0 &= !CR0_PG,
            Check::Ia32eWithoutPae => vmcs12.guest_cr4 &= !CR4_PAE,
            Check::PcideWithoutIa32e => vmcs12.guest_cr4 |= CR4_PCIDE,
            Check::Cr3Reserved => vmcs12.guest_cr3 |= TOO_WIDE,
            Check::Dr7 => vmcs12.guest_dr7 |= 1 << 32,
            Check::SysenterEsp => vmcs12.guest_sysenter_esp = NON_CANONICAL,
            Check::SysenterEip => vmcs12.guest_sysenter_eip = NON_CANONICAL,
            Check::SCetCanonical => vmcs12.guest_s_cet = NON_CANONICAL,
            Check::SCetReserved => vmcs12.guest_s_cet |= 1 << 9,
            Check::SCetSuppress => vmcs12.guest_s_cet |= 3 << 10,
            Check::SspTable => vmcs12.guest_ssp_tbl = NON_CANONICAL,
            Check::PerfGlobalCtrl => vmcs12.guest_ia32_perf_global_ctrl |= 1 << 4,
            Check::Pat => vmcs12.guest_ia32_pat = 3,
            Check::BndcfgsReserved => vmcs12.guest_bndcfgs |= 1 << 2,
            Check::BndcfgsBase => vmcs12.guest_bndcfgs |= NON_CANONICAL,
            Check::GdtrBase => vmcs12.guest_gdtr_base = NON_CANONICAL,
            Check::IdtrBase => vmcs12.guest_idtr_base = NON_CANONICAL,
            Check::GdtrLimit => vmcs12.guest_gdtr_limit |= 1 << 16,
            Check::IdtrLimit => vmcs12.guest_idtr_limit |= 1 << 31,
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in RegisterCheck::ALL {
            let mut case = Case::new();

            violate(check, &mut case);
            assert_eq!(
                case.failure(),
                Some(Failure::GuestState(GuestStateCheck::Registers(check)))
            );
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_efer_is_named() {
        for &check in EferCheck::ALL {
            let mut case = Case::new();

            case.vmcs12.guest_ia32_efer ^= match check {
                EferCheck::EferReserved => 1 << 1,
                EferCheck::EferLma => EFER_LMA,
                EferCheck::EferLme => EFER_LME,
            };
            assert_eq!(
                case.failure(),
                Some(Failure::GuestState(GuestStateCheck::Efer(check)))
            );
        }
    }

    #[test]
    fn lme_is_free_without_paging() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.vmcs12.guest_cr0 &= !CR0_PG;
        case.vmcs12.guest_ia32_efer = EFER_LME;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn only_an_unrestricted_guest_is_without_paging() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.vmcs12.guest_cr0 &= !CR0_PG;
        assert_eq!(case.failure(), None);

        case.restrict_guest();
        assert_eq!(
            case.failure(),
            Some(Failure::GuestState(GuestStateCheck::Registers(
                RegisterCheck::Cr0Fixed
            )))
        );
    }

    #[test]
    fn registers_that_are_not_loaded_are_ignored() {
        let mut case = Case::new();

        case.vmcs12.vm_entry_controls &= !Entry::LOAD_DEBUG_CONTROLS
            .with(Entry::LOAD_IA32_PERF_GLOBAL_CTRL)
            .with(Entry::LOAD_IA32_PAT)
            .with(Entry::LOAD_IA32_EFER)
            .with(Entry::LOAD_BNDCFGS)
            .with(Entry::LOAD_CET_STATE)
            .into_raw();
        case.vmcs12.guest_ia32_debugctl = u64::MAX;
        case.vmcs12.guest_dr7 = u64::MAX;
        case.vmcs12.guest_ia32_perf_global_ctrl = u64::MAX;
        case.vmcs12.guest_ia32_pat = u64::MAX;
        case.vmcs12.guest_ia32_efer = u64::MAX;
        case.vmcs12.guest_bndcfgs = u64::MAX;
        case.vmcs12.guest_s_cet = u64::MAX;
        case.vmcs12.guest_ssp = u64::MAX;
        case.vmcs12.guest_ssp_tbl = NON_CANONICAL;
        assert_eq!(case.failure(), None);
    }
}
