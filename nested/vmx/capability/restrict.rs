// SPDX-License-Identifier: GPL-2.0

//! Restriction of the VMX capability MSRs by user space.
//!
//! User space may take from a VM what KVM offers, for instance because not every host that the VM
//! migrates to has it. It can never add to the offer, whatever it wrote before.

use super::msrs::{basic, join, misc, split, Msr, Msrs};
use crate::vmx::controls::Pin;

/// Why user space may not give a value to a capability MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such MSR.
    Unknown,
    /// The MSR follows from another one, or from CPUID.
    Derived,
    /// A control that must be 1 would be free.
    ControlFreed,
    /// A control would be allowed that is not offered.
    ControlGained,
    /// A feature of `IA32_VMX_BASIC` is not offered, or the bit is reserved.
    BasicGained,
    /// Physical addresses are not limited to 32 bits.
    PhysicalAddresses,
    /// The layout of a VMCS has one revision.
    Revision,
    /// A VMCS region is larger.
    RegionSize,
    /// The memory type of a VMCS is another.
    MemoryType,
    /// A feature of `IA32_VMX_MISC` is not offered, or the bit is reserved.
    MiscGained,
    /// The preemption timer has another rate.
    PreemptionTimerRate,
    /// There are fewer CR3-target values.
    Cr3TargetCount,
    /// An MSR area has fewer entries.
    MsrListSize,
    /// The revision of the MSEG is another.
    MsegRevision,
    /// A capability of EPT or VPIDs is not offered.
    EptVpidGained,
    /// A bit of CR0 or CR4 that must be 1 would be free.
    FixedBitFreed,
    /// A VM function is not offered.
    VmFunctionGained,
}

impl Refusal {
    /// Returns the sentence for a log.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "no such MSR",
            Self::Derived => "the MSR follows from others",
            Self::ControlFreed => "a control must be 1",
            Self::ControlGained => "a control is not offered",
            Self::BasicGained => "a feature or reserved bit of IA32_VMX_BASIC is not offered",
            Self::PhysicalAddresses => "physical addresses are not limited to 32 bits",
            Self::Revision => "the revision of a VMCS is fixed",
            Self::RegionSize => "a VMCS region is larger",
            Self::MemoryType => "the memory type of a VMCS is fixed",
            Self::MiscGained => "a feature or reserved bit of IA32_VMX_MISC is not offered",
            Self::PreemptionTimerRate => "the rate of the preemption timer is fixed",
            Self::Cr3TargetCount => "there are fewer CR3-target values",
            Self::MsrListSize => "an MSR area has fewer entries",
            Self::MsegRevision => "the revision of the MSEG is fixed",
            Self::EptVpidGained => "a capability of EPT or VPIDs is not offered",
            Self::FixedBitFreed => "a bit of CR0 or CR4 must be 1",
            Self::VmFunctionGained => "a VM function is not offered",
        }
    }
}

/// Returns whether `value` has a bit of `mask` that `offered` does not have.
const fn gains(value: u64, offered: u64, mask: u64) -> bool {
    value & !offered & mask != 0
}

/// Checks `IA32_VMX_BASIC`.
fn check_basic(offered: u64, value: u64) -> Result<(), Refusal> {
    const RESERVED: u64 = 0x7f << 57 | 7 << 45 | 1 << 31;
    const FEATURES: u64 = basic::DUAL_MONITOR_TREATMENT
        | basic::INOUT
        | basic::TRUE_CTLS
        | basic::NO_HW_ERROR_CODE_CC;

    if gains(value, offered, FEATURES | RESERVED) {
        return Err(Refusal::BasicGained);
    }
    if value & basic::PHYS_ADDR_32BIT_ONLY != 0 {
        return Err(Refusal::PhysicalAddresses);
    }
    if value & basic::REVISION != offered & basic::REVISION {
        return Err(Refusal::Revision);
    }
    if value & basic::REGION_SIZE < offered & basic::REGION_SIZE {
        return Err(Refusal::RegionSize);
    }
    if value & basic::MEMORY_TYPE != offered & basic::MEMORY_TYPE {
        return Err(Refusal::MemoryType);
    }
    Ok(())
}

/// Checks an MSR of controls: the low half must be 1, the high half may be 1.
fn check_controls(offered: u64, value: u64) -> Result<(), Refusal> {
    const MUST_BE_1: u64 = 0xffff_ffff;

    if gains(offered, value, MUST_BE_1) {
        return Err(Refusal::ControlFreed);
    }
    if gains(value, offered, !MUST_BE_1) {
        return Err(Refusal::ControlGained);
    }
    Ok(())
}

/// Checks `IA32_VMX_MISC`. The rate of a preemption timer that L1 does not have is of no interest.
fn check_misc(offered: u64, value: u64, pin: Pin) -> Result<(), Refusal> {
    const RESERVED: u32 = 1 << 31 | 0x1f << 9;
    const FEATURES: u32 = misc::SAVE_EFER_LMA
        | misc::ACTIVITY_HLT
        | misc::ACTIVITY_SHUTDOWN
        | misc::ACTIVITY_WAIT_SIPI
        | misc::INTEL_PT
        | misc::RDMSR_IN_SMM
        | misc::VMXOFF_BLOCK_SMI
        | misc::VMWRITE_SHADOW_RO_FIELDS
        | misc::ZERO_LEN_INS;

    let (offered, offered_mseg) = split(offered);
    let (value, mseg) = split(value);

    if value & !offered & (FEATURES | RESERVED) != 0 {
        return Err(Refusal::MiscGained);
    }
    if pin.preemption_timer()
        && value & misc::PREEMPTION_TIMER_RATE != offered & misc::PREEMPTION_TIMER_RATE
    {
        return Err(Refusal::PreemptionTimerRate);
    }
    if value & misc::CR3_TARGET_COUNT > offered & misc::CR3_TARGET_COUNT {
        return Err(Refusal::Cr3TargetCount);
    }
    if value & misc::MSR_LIST_SIZE > offered & misc::MSR_LIST_SIZE {
        return Err(Refusal::MsrListSize);
    }
    if mseg != offered_mseg {
        return Err(Refusal::MsegRevision);
    }
    Ok(())
}

/// Checks bits of CR0 or CR4 that must be 1.
fn check_fixed0(offered: u64, value: u64) -> Result<(), Refusal> {
    if gains(offered, value, u64::MAX) {
        return Err(Refusal::FixedBitFreed);
    }
    Ok(())
}

impl Msrs {
    /// Writes a value of user space, of which nothing must go beyond what KVM has `offered`.
    ///
    /// The caller refuses it in VMX operation, in which capabilities do not change.
    pub fn restrict(&mut self, offered: &Msrs, msr: Msr, value: u64) -> Result<(), Refusal> {
        let offer = offered.read(msr).ok_or(Refusal::Unknown)?;
        let (low, high) = split(value);

        match msr {
            Msr::IA32_VMX_BASIC => {
                check_basic(offer, value)?;
                self.basic = value;
            }
            Msr::IA32_VMX_TRUE_PINBASED_CTLS => {
                check_controls(offer, value)?;
                (self.pinbased_ctls_low, self.pinbased_ctls_high) = (low, high);
            }
            Msr::IA32_VMX_TRUE_PROCBASED_CTLS => {
                check_controls(offer, value)?;
                (self.procbased_ctls_low, self.procbased_ctls_high) = (low, high);
            }
            Msr::IA32_VMX_TRUE_EXIT_CTLS => {
                check_controls(offer, value)?;
                (self.exit_ctls_low, self.exit_ctls_high) = (low, high);
            }
            Msr::IA32_VMX_TRUE_ENTRY_CTLS => {
                check_controls(offer, value)?;
                (self.entry_ctls_low, self.entry_ctls_high) = (low, high);
            }
            Msr::IA32_VMX_PROCBASED_CTLS2 => {
                check_controls(offer, value)?;
                (self.secondary_ctls_low, self.secondary_ctls_high) = (low, high);
            }
            Msr::IA32_VMX_MISC => {
                check_misc(offer, value, Pin::from_raw(self.pinbased_ctls_high))?;
                (self.misc_low, self.misc_high) = (low, high);
            }
            Msr::IA32_VMX_CR0_FIXED0 => {
                check_fixed0(offer, value)?;
                self.cr0_fixed0 = value;
            }
            Msr::IA32_VMX_CR4_FIXED0 => {
                check_fixed0(offer, value)?;
                self.cr4_fixed0 = value;
            }
            Msr::IA32_VMX_EPT_VPID_CAP => {
                if gains(value, join(offered.ept_caps, offered.vpid_caps), u64::MAX) {
                    return Err(Refusal::EptVpidGained);
                }
                (self.ept_caps, self.vpid_caps) = (low, high);
            }
            // A hint to L1, on which nothing here depends.
            Msr::IA32_VMX_VMCS_ENUM => self.vmcs_enum = value,
            Msr::IA32_VMX_VMFUNC => {
                if gains(value, offer, u64::MAX) {
                    return Err(Refusal::VmFunctionGained);
                }
                self.vmfunc_controls = value;
            }
            _ => return Err(Refusal::Derived),
        }
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_capability_restrict)
)]
mod tests {
    use super::*;
    use crate::vmx::capability::hosts::EVERYTHING;

    /// Writes `change` of what is offered in `msr`.
    fn write(msr: Msr, change: impl FnOnce(u64) -> u64) -> Result<(), Refusal> {
        let offered = EVERYTHING.offer();
        let mut msrs = offered;
        let value = change(offered.read(msr).unwrap_or(0));
        let result = msrs.restrict(&offered, msr, value);

        match result {
            Ok(()) => assert_eq!(msrs.read(msr), Some(value)),
            Err(_) => assert_eq!(msrs, offered),
        }
        result
    }

    /// Clears each bit of `msr` that is 1, and sets each that is 0; returns those that were taken.
    fn taken(msr: Msr) -> (u64, u64) {
        let offer = EVERYTHING.offer().read(msr).unwrap_or(0);
        let mut taken = 0;

        for bit in 0..64 {
            if write(msr, |value| value ^ 1 << bit).is_ok() {
                taken |= 1 << bit;
            }
        }
        (offer & taken, !offer & taken)
    }

    const CONTROLS: [Msr; 5] = [
        Msr::IA32_VMX_TRUE_PINBASED_CTLS,
        Msr::IA32_VMX_TRUE_PROCBASED_CTLS,
        Msr::IA32_VMX_TRUE_EXIT_CTLS,
        Msr::IA32_VMX_TRUE_ENTRY_CTLS,
        Msr::IA32_VMX_PROCBASED_CTLS2,
    ];

    #[test]
    fn what_is_offered_can_be_written_back() {
        for &msr in Msr::NAMED {
            let expected = match msr {
                Msr::IA32_VMX_PINBASED_CTLS
                | Msr::IA32_VMX_PROCBASED_CTLS
                | Msr::IA32_VMX_EXIT_CTLS
                | Msr::IA32_VMX_ENTRY_CTLS
                | Msr::IA32_VMX_CR0_FIXED1
                | Msr::IA32_VMX_CR4_FIXED1 => Err(Refusal::Derived),
                _ => Ok(()),
            };
            assert_eq!(write(msr, |value| value), expected);
        }
        assert_eq!(
            write(Msr::from_raw(0x492), |value| value),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn controls_can_be_lost_or_fixed_but_not_gained_or_freed() {
        for msr in CONTROLS {
            let offer = EVERYTHING.offer().read(msr).unwrap_or(0);
            let low = 0xffff_ffff;

            assert_eq!(taken(msr), (offer & !low, !offer & low));
        }
    }

    #[test]
    fn features_can_be_lost_but_not_gained() {
        // Features, and fields that may get smaller, of which there are none.
        assert_eq!(taken(Msr::IA32_VMX_MISC), (0x2000_0160, 0));
        assert_eq!(taken(Msr::IA32_VMX_VMFUNC), (1, 0));
        assert_eq!(
            taken(Msr::IA32_VMX_EPT_VPID_CAP),
            (0x0000_0f01_0673_40c1, 0)
        );
        // A region may be said to be larger.
        assert_eq!(
            taken(Msr::IA32_VMX_BASIC),
            (0x01c0_0000_0000_0000, 0x0000_0fff_0000_0000)
        );
    }

    #[test]
    fn bits_of_control_registers_can_be_fixed_but_not_freed() {
        for msr in [Msr::IA32_VMX_CR0_FIXED0, Msr::IA32_VMX_CR4_FIXED0] {
            let offer = EVERYTHING.offer().read(msr).unwrap_or(0);

            assert_eq!(taken(msr), (0, !offer));
        }
    }

    #[test]
    fn the_highest_index_of_a_field_is_free() {
        assert_eq!(taken(Msr::IA32_VMX_VMCS_ENUM), (0x32, !0x32));
    }

    #[test]
    fn what_was_given_up_can_be_taken_back() {
        let offered = EVERYTHING.offer();

        for msr in CONTROLS {
            let mut msrs = offered;
            let offer = offered.read(msr).unwrap_or(0);

            assert_eq!(msrs.restrict(&offered, msr, offer & 0xffff_ffff), Ok(()));
            assert_eq!(msrs.restrict(&offered, msr, offer), Ok(()));
            assert_eq!(msrs, offered);
        }
    }

    #[test]
    fn every_refusal_of_a_field_is_named() {
        let basic = |change: fn(u64) -> u64| write(Msr::IA32_VMX_BASIC, change);
        let misc = |change: fn(u64) -> u64| write(Msr::IA32_VMX_MISC, change);

        assert_eq!(basic(|value| value | 1 << 31), Err(Refusal::BasicGained));
        assert_eq!(basic(|value| value | 1 << 45), Err(Refusal::BasicGained));
        assert_eq!(basic(|value| value | 1 << 49), Err(Refusal::BasicGained));
        assert_eq!(basic(|value| value | 1 << 57), Err(Refusal::BasicGained));
        assert_eq!(
            basic(|value| value | 1 << 48),
            Err(Refusal::PhysicalAddresses)
        );
        assert_eq!(basic(|value| value ^ 1), Err(Refusal::Revision));
        assert_eq!(
            basic(|value| value & !basic::REGION_SIZE),
            Err(Refusal::RegionSize)
        );
        assert_eq!(
            basic(|value| value & !basic::MEMORY_TYPE),
            Err(Refusal::MemoryType)
        );
        assert_eq!(misc(|value| value | 1 << 9), Err(Refusal::MiscGained));
        assert_eq!(misc(|value| value | 1 << 30), Err(Refusal::MiscGained));
        assert_eq!(misc(|value| value | 1 << 31), Err(Refusal::MiscGained));
        assert_eq!(misc(|value| value ^ 1), Err(Refusal::PreemptionTimerRate));
        assert_eq!(misc(|value| value | 1 << 16), Err(Refusal::Cr3TargetCount));
        assert_eq!(misc(|value| value | 1 << 25), Err(Refusal::MsrListSize));
        assert_eq!(misc(|value| value | 1 << 32), Err(Refusal::MsegRevision));
    }

    #[test]
    fn the_rate_of_a_preemption_timer_is_free_without_the_timer() {
        let offered = EVERYTHING.offer();
        let mut msrs = offered;
        let misc = offered.read(Msr::IA32_VMX_MISC).unwrap_or(0);

        msrs.pinbased_ctls_high &= !Pin::VMX_PREEMPTION_TIMER.into_raw();
        assert_eq!(
            msrs.restrict(&offered, Msr::IA32_VMX_MISC, misc & !0x1f),
            Ok(())
        );
    }
}
