// SPDX-License-Identifier: GPL-2.0

//! What controls of vmcs02 depend on beside the controls of vmcs12 and vmcs01.

use super::apic::{PostedInterruptDescriptor, VirtualApicPage};
use crate::vmx::{
    bits::{cr4, efer},
    Vmcs12,
};

/// A state of affairs that a control of vmcs02 depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Condition {
    /// The posted-interrupt descriptor of L1 is in memory that the processor can reach.
    DescriptorIsMapped,
    /// L1 asks for a TPR shadow, and vmcs02 has it.
    TprShadowIsUsed,
    /// L2 has no TPR shadow: without exits it would read and write the CR8 of the hardware.
    TprShadowIsUnused,
    /// The MSR bitmap of vmcs02 has been merged for this vmcs12.
    MsrBitmapIsMerged,
    /// The processor has no UMIP, L0 emulates it, and L2 has set CR4.UMIP.
    UmipIsEmulated,
    /// L2 is in IA-32e mode.
    GuestIsInLongMode,
    /// The `IA32_EFER` of L2 is not that of L0, and the VMCS can switch it.
    EferIsSwitched,
}

impl Condition {
    /// Every condition.
    pub const ALL: &'static [Self] = &[
        Self::DescriptorIsMapped,
        Self::TprShadowIsUsed,
        Self::TprShadowIsUnused,
        Self::MsrBitmapIsMerged,
        Self::UmipIsEmulated,
        Self::GuestIsInLongMode,
        Self::EferIsSwitched,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The conditions that hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions(u8);

impl Conditions {
    /// No condition holds.
    pub const NONE: Self = Self(0);

    /// Returns the conditions with one more that holds.
    #[must_use]
    pub const fn with(self, condition: Condition) -> Self {
        Self(self.0 | condition.bit())
    }

    /// Returns whether a condition holds.
    pub const fn holds(self, condition: Condition) -> bool {
        self.0 & condition.bit() != 0
    }

    /// Returns all ones if a condition holds, else 0.
    #[inline(always)]
    pub(super) const fn mask(self, condition: Condition) -> u32 {
        if self.holds(condition) {
            u32::MAX
        } else {
            0
        }
    }

    /// Finds out which conditions hold for this entry.
    #[inline]
    pub fn of(vmcs12: &Vmcs12, circumstances: &Circumstances) -> Self {
        let mut conditions = Self::NONE;

        if circumstances.descriptor == PostedInterruptDescriptor::Used {
            conditions = conditions.with(Condition::DescriptorIsMapped);
        }
        // What vmcs12 says counts as well: one of the two has to hold, or CR8 is the hardware's.
        conditions = conditions.with(match circumstances.virtual_apic_page {
            VirtualApicPage::Used | VirtualApicPage::Illegal if vmcs12.primary().tpr_shadow() => {
                Condition::TprShadowIsUsed
            }
            _ => Condition::TprShadowIsUnused,
        });
        if circumstances.msr_bitmap == MsrBitmapUse::Merged {
            conditions = conditions.with(Condition::MsrBitmapIsMerged);
        }
        if circumstances.umip == Umip::Emulated && vmcs12.guest_cr4 & cr4::UMIP != 0 {
            conditions = conditions.with(Condition::UmipIsEmulated);
        }
        if circumstances.guest_efer & efer::LMA != 0 {
            conditions = conditions.with(Condition::GuestIsInLongMode);
        }
        if circumstances.efer_switch == EferSwitch::Vmcs
            && circumstances.guest_efer != circumstances.host_efer
        {
            conditions = conditions.with(Condition::EferIsSwitched);
        }
        conditions
    }
}

/// Whether vmcs02 can use its MSR bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrBitmapUse {
    /// The bitmap says what L1 and L0 want.
    Merged,
    /// L1 has none, or it cannot be read: every access exits.
    Unused,
}

/// How CR4.UMIP is had for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Umip {
    /// The processor has it, or nobody does.
    Native,
    /// L0 intercepts the instructions in question.
    Emulated,
}

/// What switches `IA32_EFER` between L0 and L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EferSwitch {
    /// The VM-entry and VM-exit controls for it.
    Vmcs,
    /// The processor has no such controls; L0 does it in another way.
    Other,
}

/// What the merge has to know of this entry beside vmcs12 and vmcs01.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// What is done about L1's virtual-APIC page.
    pub virtual_apic_page: VirtualApicPage,
    /// What is done about L1's posted-interrupt descriptor.
    pub descriptor: PostedInterruptDescriptor,
    /// Whether there is a merged MSR bitmap.
    pub msr_bitmap: MsrBitmapUse,
    /// Whether L0 emulates UMIP.
    pub umip: Umip,
    /// What switches `IA32_EFER`.
    pub efer_switch: EferSwitch,
    /// The `IA32_EFER` that L2 is entered with, see [`super::control_registers::entry_efer()`].
    pub guest_efer: u64,
    /// The `IA32_EFER` of L0.
    pub host_efer: u64,
}

/// A 64-bit guest of which nothing special is asked.
#[cfg(any(test, CONFIG_KUNIT))]
pub(super) const PLAIN: Circumstances = Circumstances {
    virtual_apic_page: VirtualApicPage::Unused,
    descriptor: PostedInterruptDescriptor::Unused,
    msr_bitmap: MsrBitmapUse::Unused,
    umip: Umip::Native,
    efer_switch: EferSwitch::Vmcs,
    guest_efer: 0xd01,
    host_efer: 0xd01,
};

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_conditions))]
mod tests {
    use super::*;
    use crate::vmx::controls::Primary;

    /// Returns whether a condition holds for an L2 with CR4.UMIP and a TPR shadow after a change.
    fn holds(condition: Condition, change: fn(&mut Circumstances)) -> bool {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: Primary::TPR_SHADOW.into_raw(),
            guest_cr4: cr4::UMIP,
            ..Vmcs12::default()
        };
        let mut circumstances = PLAIN;

        change(&mut circumstances);
        Conditions::of(&vmcs12, &circumstances).holds(condition)
    }

    #[test]
    fn a_plain_guest_is_in_long_mode_without_a_tpr_shadow() {
        for &condition in Condition::ALL {
            let expected = condition == Condition::TprShadowIsUnused
                || condition == Condition::GuestIsInLongMode;

            assert_eq!(holds(condition, |_| ()), expected);
        }
    }

    #[test]
    fn conditions_follow_from_the_circumstances() {
        assert!(holds(Condition::UmipIsEmulated, |c| c.umip = Umip::Emulated));
        assert!(holds(Condition::EferIsSwitched, |c| c.guest_efer = 0));
        assert!(!holds(Condition::EferIsSwitched, |c| {
            c.guest_efer = 0;
            c.efer_switch = EferSwitch::Other;
        }));
        assert!(!holds(Condition::GuestIsInLongMode, |c| c.guest_efer = 0));
        assert!(holds(Condition::MsrBitmapIsMerged, |c| {
            c.msr_bitmap = MsrBitmapUse::Merged;
        }));
        assert!(holds(Condition::DescriptorIsMapped, |c| {
            c.descriptor = PostedInterruptDescriptor::Used;
        }));
        assert!(!holds(Condition::DescriptorIsMapped, |c| {
            c.descriptor = PostedInterruptDescriptor::Missing;
        }));
    }

    #[test]
    fn an_illegal_virtual_apic_page_is_left_to_the_processor_to_refuse() {
        assert!(holds(Condition::TprShadowIsUsed, |c| {
            c.virtual_apic_page = VirtualApicPage::Illegal;
        }));
    }

    #[test]
    fn there_is_no_tpr_shadow_that_vmcs12_does_not_ask_for() {
        for page in [VirtualApicPage::Used, VirtualApicPage::Illegal] {
            let circumstances = Circumstances {
                virtual_apic_page: page,
                ..PLAIN
            };
            let conditions = Conditions::of(&Vmcs12::default(), &circumstances);

            assert!(!conditions.holds(Condition::TprShadowIsUsed));
            assert!(conditions.holds(Condition::TprShadowIsUnused));
        }
    }

    #[test]
    fn umip_that_l2_has_off_needs_no_emulation() {
        let circumstances = Circumstances {
            umip: Umip::Emulated,
            ..PLAIN
        };

        let conditions = Conditions::of(&Vmcs12::default(), &circumstances);
        assert!(!conditions.holds(Condition::UmipIsEmulated));
    }
}
