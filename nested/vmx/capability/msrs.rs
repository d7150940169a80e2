// SPDX-License-Identifier: GPL-2.0

//! The VMX capability MSRs that L1 sees.

use crate::vmx::controls::{Entry, Exit, Pin, Primary, Secondary};

open_enum! {
    /// The number of a VMX capability MSR (SDM, "VMX Capability Reporting Facility").
    pub enum Msr: u32 {
        /// Basic information.
        IA32_VMX_BASIC = 0x480,
        /// Pin-based VM-execution controls, without the default1 bits that may be 0.
        IA32_VMX_PINBASED_CTLS = 0x481,
        /// Primary VM-execution controls, without the default1 bits that may be 0.
        IA32_VMX_PROCBASED_CTLS = 0x482,
        /// VM-exit controls, without the default1 bits that may be 0.
        IA32_VMX_EXIT_CTLS = 0x483,
        /// VM-entry controls, without the default1 bits that may be 0.
        IA32_VMX_ENTRY_CTLS = 0x484,
        /// Miscellaneous data.
        IA32_VMX_MISC = 0x485,
        /// Bits of CR0 that must be 1.
        IA32_VMX_CR0_FIXED0 = 0x486,
        /// Bits of CR0 that may be 1.
        IA32_VMX_CR0_FIXED1 = 0x487,
        /// Bits of CR4 that must be 1.
        IA32_VMX_CR4_FIXED0 = 0x488,
        /// Bits of CR4 that may be 1.
        IA32_VMX_CR4_FIXED1 = 0x489,
        /// The highest index of a VMCS field.
        IA32_VMX_VMCS_ENUM = 0x48a,
        /// Secondary VM-execution controls.
        IA32_VMX_PROCBASED_CTLS2 = 0x48b,
        /// EPT and VPID.
        IA32_VMX_EPT_VPID_CAP = 0x48c,
        /// Pin-based VM-execution controls.
        IA32_VMX_TRUE_PINBASED_CTLS = 0x48d,
        /// Primary VM-execution controls.
        IA32_VMX_TRUE_PROCBASED_CTLS = 0x48e,
        /// VM-exit controls.
        IA32_VMX_TRUE_EXIT_CTLS = 0x48f,
        /// VM-entry controls.
        IA32_VMX_TRUE_ENTRY_CTLS = 0x490,
        /// VM functions.
        IA32_VMX_VMFUNC = 0x491,
    }
}

/// Bits and fields of `IA32_VMX_BASIC`.
pub mod basic {
    /// The identifier of the layout of a VMCS.
    pub const REVISION: u64 = 0x7fff_ffff;
    /// The size of a VMCS region in bytes.
    pub const REGION_SIZE: u64 = 0x1fff << 32;
    /// Physical addresses of what VMX uses are limited to 32 bits.
    pub const PHYS_ADDR_32BIT_ONLY: u64 = 1 << 48;
    /// Dual-monitor treatment of SMM.
    pub const DUAL_MONITOR_TREATMENT: u64 = 1 << 49;
    /// The memory type of a VMCS.
    pub const MEMORY_TYPE: u64 = 0xf << 50;
    /// Memory type write-back.
    pub const MEMORY_TYPE_WB: u64 = 6 << 50;
    /// Exits for INS and OUTS report the instruction.
    pub const INOUT: u64 = 1 << 54;
    /// There are "true" MSRs, thus default1 controls that may be 0.
    pub const TRUE_CTLS: u64 = 1 << 55;
    /// A hardware exception may be injected with or without an error code, whatever its vector.
    pub const NO_HW_ERROR_CODE_CC: u64 = 1 << 56;
}

/// Bits and fields of `IA32_VMX_MISC`.
pub mod misc {
    /// The preemption timer counts down by 1 when the TSC bit of this number changes.
    pub const PREEMPTION_TIMER_RATE: u32 = 0x1f;
    /// An exit stores IA32_EFER.LMA in the control "IA-32e mode guest".
    pub const SAVE_EFER_LMA: u32 = 1 << 5;
    /// Activity state HLT.
    pub const ACTIVITY_HLT: u32 = 1 << 6;
    /// Activity state shutdown.
    pub const ACTIVITY_SHUTDOWN: u32 = 1 << 7;
    /// Activity state wait-for-SIPI.
    pub const ACTIVITY_WAIT_SIPI: u32 = 1 << 8;
    /// Intel PT may be used in VMX operation.
    pub const INTEL_PT: u32 = 1 << 14;
    /// RDMSR can read IA32_SMBASE in SMM.
    pub const RDMSR_IN_SMM: u32 = 1 << 15;
    /// The number of CR3-target values.
    pub const CR3_TARGET_COUNT: u32 = 0x1ff << 16;
    /// The recommended maximum of an MSR area: 512 times one more than this field.
    pub const MSR_LIST_SIZE: u32 = 7 << 25;
    /// SMIs can be blocked by VMXOFF.
    pub const VMXOFF_BLOCK_SMI: u32 = 1 << 28;
    /// VMWRITE can write VM-exit information fields.
    pub const VMWRITE_SHADOW_RO_FIELDS: u32 = 1 << 29;
    /// Software events can be injected with an instruction length of 0.
    pub const ZERO_LEN_INS: u32 = 1 << 30;
}

/// Bits of `IA32_VMX_EPT_VPID_CAP`, its low half.
pub mod ept {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u32 = 1 << 0;
    /// Page walks of length 4.
    pub const PAGE_WALK_4: u32 = 1 << 6;
    /// Page walks of length 5.
    pub const PAGE_WALK_5: u32 = 1 << 7;
    /// Paging structures of memory type uncacheable.
    pub const UC: u32 = 1 << 8;
    /// Paging structures of memory type write-back.
    pub const WB: u32 = 1 << 14;
    /// 2-MByte pages.
    pub const PAGE_2MB: u32 = 1 << 16;
    /// 1-GByte pages.
    pub const PAGE_1GB: u32 = 1 << 17;
    /// INVEPT.
    pub const INVEPT: u32 = 1 << 20;
    /// Accessed and dirty flags.
    pub const AD: u32 = 1 << 21;
    /// Advanced information of exits for EPT violations.
    pub const ADVANCED_VMEXIT_INFO: u32 = 1 << 22;
    /// INVEPT of a single context.
    pub const EXTENT_CONTEXT: u32 = 1 << 25;
    /// INVEPT of all contexts.
    pub const EXTENT_GLOBAL: u32 = 1 << 26;
}

/// Bits of `IA32_VMX_EPT_VPID_CAP`, its high half.
pub mod vpid {
    /// INVVPID.
    pub const INVVPID: u32 = 1 << 0;
    /// INVVPID of an individual address.
    pub const EXTENT_INDIVIDUAL_ADDR: u32 = 1 << 8;
    /// INVVPID of a single context.
    pub const EXTENT_SINGLE_CONTEXT: u32 = 1 << 9;
    /// INVVPID of all contexts.
    pub const EXTENT_GLOBAL_CONTEXT: u32 = 1 << 10;
    /// INVVPID of a single context, retaining global translations.
    pub const EXTENT_SINGLE_NON_GLOBAL: u32 = 1 << 11;
}

/// The VMX capability MSRs of a virtual processor.
///
/// The layout and the names of the members are those of KVM. Of the control words the "true" MSRs
/// are stored: `low` are the bits that must be 1, `high` those that may be 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Msrs {
    /// Primary VM-execution controls that must be 1.
    pub procbased_ctls_low: u32,
    /// Primary VM-execution controls that may be 1.
    pub procbased_ctls_high: u32,
    /// Secondary VM-execution controls that must be 1.
    pub secondary_ctls_low: u32,
    /// Secondary VM-execution controls that may be 1.
    pub secondary_ctls_high: u32,
    /// Pin-based VM-execution controls that must be 1.
    pub pinbased_ctls_low: u32,
    /// Pin-based VM-execution controls that may be 1.
    pub pinbased_ctls_high: u32,
    /// VM-exit controls that must be 1.
    pub exit_ctls_low: u32,
    /// VM-exit controls that may be 1.
    pub exit_ctls_high: u32,
    /// VM-entry controls that must be 1.
    pub entry_ctls_low: u32,
    /// VM-entry controls that may be 1.
    pub entry_ctls_high: u32,
    /// `IA32_VMX_MISC`, its low half: see [`misc`].
    pub misc_low: u32,
    /// `IA32_VMX_MISC`, its high half: the revision of the MSEG.
    pub misc_high: u32,
    /// Capabilities of EPT: see [`ept`].
    pub ept_caps: u32,
    /// Capabilities of VPIDs: see [`vpid`].
    pub vpid_caps: u32,
    /// `IA32_VMX_BASIC`: see [`basic`].
    pub basic: u64,
    /// Bits of CR0 that must be 1.
    pub cr0_fixed0: u64,
    /// Bits of CR0 that may be 1.
    pub cr0_fixed1: u64,
    /// Bits of CR4 that must be 1.
    pub cr4_fixed0: u64,
    /// Bits of CR4 that may be 1.
    pub cr4_fixed1: u64,
    /// The highest index of a VMCS field, in bits 9:1.
    pub vmcs_enum: u64,
    /// VM functions.
    pub vmfunc_controls: u64,
}

const _: () = assert!(size_of::<Msrs>() == 112);

/// Makes an MSR of its halves.
pub(in crate::vmx) const fn join(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Takes an MSR apart, into its low and its high half.
pub(super) const fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();

    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

/// Returns whether `word` has all bits that must be 1, and none but those that may be 1.
#[inline]
const fn allowed(word: u32, must_be_1: u32, may_be_1: u32) -> bool {
    word & may_be_1 | must_be_1 == word
}

impl Msrs {
    /// Returns what RDMSR reads, for an MSR that exists.
    pub const fn read(&self, msr: Msr) -> Option<u64> {
        // Without "true" MSRs, software expects that the default1 controls must be 1.
        let (default1, true_msr) = match msr {
            Msr::IA32_VMX_PINBASED_CTLS => {
                (Pin::DEFAULT1.into_raw(), Msr::IA32_VMX_TRUE_PINBASED_CTLS)
            }
            Msr::IA32_VMX_PROCBASED_CTLS => (
                Primary::DEFAULT1.into_raw(),
                Msr::IA32_VMX_TRUE_PROCBASED_CTLS,
            ),
            Msr::IA32_VMX_EXIT_CTLS => (Exit::DEFAULT1.into_raw(), Msr::IA32_VMX_TRUE_EXIT_CTLS),
            Msr::IA32_VMX_ENTRY_CTLS => (Entry::DEFAULT1.into_raw(), Msr::IA32_VMX_TRUE_ENTRY_CTLS),
            _ => (0, msr),
        };
        let value = match true_msr {
            Msr::IA32_VMX_BASIC => self.basic,
            Msr::IA32_VMX_TRUE_PINBASED_CTLS => {
                join(self.pinbased_ctls_low, self.pinbased_ctls_high)
            }
            Msr::IA32_VMX_TRUE_PROCBASED_CTLS => {
                join(self.procbased_ctls_low, self.procbased_ctls_high)
            }
            Msr::IA32_VMX_TRUE_EXIT_CTLS => join(self.exit_ctls_low, self.exit_ctls_high),
            Msr::IA32_VMX_TRUE_ENTRY_CTLS => join(self.entry_ctls_low, self.entry_ctls_high),
            Msr::IA32_VMX_PROCBASED_CTLS2 => {
                join(self.secondary_ctls_low, self.secondary_ctls_high)
            }
            Msr::IA32_VMX_MISC => join(self.misc_low, self.misc_high),
            Msr::IA32_VMX_CR0_FIXED0 => self.cr0_fixed0,
            Msr::IA32_VMX_CR0_FIXED1 => self.cr0_fixed1,
            Msr::IA32_VMX_CR4_FIXED0 => self.cr4_fixed0,
            Msr::IA32_VMX_CR4_FIXED1 => self.cr4_fixed1,
            Msr::IA32_VMX_VMCS_ENUM => self.vmcs_enum,
            Msr::IA32_VMX_EPT_VPID_CAP => join(self.ept_caps, self.vpid_caps),
            Msr::IA32_VMX_VMFUNC => self.vmfunc_controls,
            _ => return None,
        };

        Some(value | default1 as u64)
    }

    /// Returns whether L1 may use these pin-based VM-execution controls.
    #[inline]
    pub const fn allow_pin(&self, word: Pin) -> bool {
        allowed(
            word.into_raw(),
            self.pinbased_ctls_low,
            self.pinbased_ctls_high,
        )
    }

    /// Returns whether L1 may use these primary VM-execution controls.
    #[inline]
    pub const fn allow_primary(&self, word: Primary) -> bool {
        allowed(
            word.into_raw(),
            self.procbased_ctls_low,
            self.procbased_ctls_high,
        )
    }

    /// Returns whether L1 may use these secondary VM-execution controls, once they are activated.
    #[inline]
    pub const fn allow_secondary(&self, word: Secondary) -> bool {
        allowed(
            word.into_raw(),
            self.secondary_ctls_low,
            self.secondary_ctls_high,
        )
    }

    /// Returns whether L1 may use these VM-exit controls.
    #[inline]
    pub const fn allow_exit(&self, word: Exit) -> bool {
        allowed(word.into_raw(), self.exit_ctls_low, self.exit_ctls_high)
    }

    /// Returns whether L1 may use these VM-entry controls.
    #[inline]
    pub const fn allow_entry(&self, word: Entry) -> bool {
        allowed(word.into_raw(), self.entry_ctls_low, self.entry_ctls_high)
    }

    /// Returns the primary VM-execution controls that may be 1.
    #[inline]
    pub const fn primary(&self) -> Primary {
        Primary::from_raw(self.procbased_ctls_high)
    }

    /// Returns the number of CR3-target values.
    #[inline]
    pub const fn cr3_target_count(&self) -> u32 {
        (self.misc_low & misc::CR3_TARGET_COUNT) >> 16
    }

    /// Returns the maximum number of entries of an MSR area.
    #[inline]
    pub const fn msr_list_size(&self) -> u32 {
        ((self.misc_low & misc::MSR_LIST_SIZE) >> 25)
            .wrapping_add(1)
            .wrapping_mul(512)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_capability_msrs))]
mod tests {
    use super::*;

    #[test]
    fn every_capability_msr_can_be_read_and_no_other() {
        let msrs = Msrs::default();

        for number in 0..0x1000 {
            let msr = Msr::from_raw(number);

            assert_eq!(msrs.read(msr).is_some(), msr.name().is_some());
        }
    }

    #[test]
    fn halves_are_joined_in_order() {
        let msrs = Msrs {
            misc_low: 1,
            misc_high: 2,
            ept_caps: 3,
            vpid_caps: 4,
            ..Msrs::default()
        };

        assert_eq!(msrs.read(Msr::IA32_VMX_MISC), Some(0x2_0000_0001));
        assert_eq!(msrs.read(Msr::IA32_VMX_EPT_VPID_CAP), Some(0x4_0000_0003));
        assert_eq!(split(0x4_0000_0003), (3, 4));
    }

    #[test]
    fn default1_controls_must_be_1_without_the_true_msrs() {
        let msrs = Msrs {
            procbased_ctls_low: 0x0400_6172,
            procbased_ctls_high: 0xfff9_fffe,
            ..Msrs::default()
        };

        assert_eq!(
            msrs.read(Msr::IA32_VMX_TRUE_PROCBASED_CTLS),
            Some(0xfff9_fffe_0400_6172)
        );
        assert_eq!(
            msrs.read(Msr::IA32_VMX_PROCBASED_CTLS),
            Some(0xfff9_fffe_0401_e172)
        );
    }

    #[test]
    fn allowed_settings_bound_a_word_from_both_sides() {
        let msrs = Msrs {
            pinbased_ctls_low: 0x16,
            pinbased_ctls_high: 0x3f,
            ..Msrs::default()
        };

        assert!(msrs.allow_pin(Pin::from_raw(0x16)));
        assert!(msrs.allow_pin(Pin::from_raw(0x3f)));
        assert!(!msrs.allow_pin(Pin::from_raw(0x14)));
        assert!(!msrs.allow_pin(Pin::from_raw(0x56)));
    }

    #[test]
    fn msr_areas_have_multiples_of_512_entries() {
        assert_eq!(Msrs::default().msr_list_size(), 512);
        assert_eq!(
            Msrs {
                misc_low: u32::MAX,
                ..Msrs::default()
            }
            .msr_list_size(),
            4096
        );
    }
}
