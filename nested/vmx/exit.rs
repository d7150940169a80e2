// SPDX-License-Identifier: GPL-2.0

//! What a VM exit to L1 does: what L1 finds in vmcs12, and the state that it goes on with.
//!
//! The order is that of the manual. The guest state is saved ([`guest_state`]), the exit is
//! described ([`information`]), MSRs of L2 are stored ([`msr_area`]), the host state is loaded
//! ([`host_state`]), and MSRs of L1 are loaded ([`msr_area`]). What fails on the way cannot be
//! reported to L1 any more, but for the indicator of a VMX abort.

pub mod guest_state;
pub mod host_state;
pub mod information;
pub mod interruption;
pub mod msr_area;

use super::Vmcs12;

open_enum! {
    /// Why an exit failed, as the VMX-abort indicator says it (SDM, "VMX Aborts").
    pub enum Abort: u32 {
        /// `VMX_ABORT_SAVE_GUEST_MSR_FAIL`.
        SAVE_GUEST_MSR_FAIL = 1,
        /// `VMX_ABORT_LOAD_HOST_PDPTE_FAIL`.
        LOAD_HOST_PDPTE_FAIL = 2,
        /// `VMX_ABORT_VMCS_CORRUPTED`.
        VMCS_CORRUPTED = 3,
        /// `VMX_ABORT_LOAD_HOST_MSR_FAIL`.
        LOAD_HOST_MSR_FAIL = 4,
    }
}

impl Abort {
    /// Leaves the indicator in vmcs12. L1's vCPU has to shut down then.
    pub fn save(self, vmcs12: &mut Vmcs12) {
        vmcs12.abort = self.into_raw();
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_exit))]
mod tests {
    use super::*;

    #[test]
    fn an_abort_leaves_its_number() {
        let mut vmcs12 = Vmcs12::default();

        for (abort, number) in [
            (Abort::SAVE_GUEST_MSR_FAIL, 1),
            (Abort::LOAD_HOST_PDPTE_FAIL, 2),
            (Abort::LOAD_HOST_MSR_FAIL, 4),
        ] {
            abort.save(&mut vmcs12);
            assert_eq!(vmcs12.abort, number);
        }
    }
}
