// SPDX-License-Identifier: GPL-2.0

//! What a processor, or KVM to L1, offers of VMX.

#[cfg(any(test, CONFIG_KUNIT))]
pub(in crate::vmx) mod hosts;
pub mod msrs;
mod offer;
mod restrict;

pub use msrs::{Msr, Msrs};
pub use offer::{Enabled, Host, PREEMPTION_TIMER_RATE};
pub use restrict::Refusal;

/// The words of the VMX capability MSRs that enumerate features (SDM, "VMX Capability Reporting
/// Facility").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Allowed 1-settings of the pin-based VM-execution controls.
    pub pin: u32,
    /// Allowed 1-settings of the primary processor-based VM-execution controls.
    pub primary: u32,
    /// Allowed 1-settings of the secondary processor-based VM-execution controls.
    pub secondary: u32,
    /// Bits 31:0 of `IA32_VMX_EPT_VPID_CAP`.
    pub ept: u32,
}

feature_set! {
    /// Features of VMX that a hypervisor makes use of.
    pub struct Features from Words {
        "ept": secondary[1],
        "ept-exec-only": ept[0],
        "ept-5level": ept[7],
        "ept-2m": ept[16],
        "ept-1g": ept[17],
        "ept-ad": ept[21],
        "mbec": secondary[22],
        "ept-ve": secondary[18],
        "pml": secondary[17],
        "vpid": secondary[5],
        "unrestricted-guest": secondary[7],
        "shadow-vmcs": secondary[14],
        "virtual-nmis": pin[5],
        "preemption-timer": pin[6],
        "mtf": primary[27],
        "ple": secondary[10],
        "tpr-shadow": primary[21],
        "apic-access": secondary[0],
        "x2apic": secondary[4],
        "apic-registers": secondary[8],
        "vid": secondary[9],
        "posted-interrupts": pin[7],
        "tsc-scaling": secondary[25],
        "vmfunc": secondary[13],
        "xsaves": secondary[20],
        "waitpkg": secondary[26],
        "encls": secondary[15],
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_capability))]
mod tests {
    use super::*;

    const NONE: Words = Words {
        pin: 0,
        primary: 0,
        secondary: 0,
        ept: 0,
    };

    fn members(words: Words) -> usize {
        let mut count = 0;

        Features::new(words).for_each(|_, member| count += usize::from(member));
        count
    }

    #[test]
    fn each_feature_is_a_bit_of_one_word() {
        let mut features = 0;
        Features::new(NONE).for_each(|_, _| features += 1);

        let mut found = 0;
        for bit in 0..32 {
            let bit = 1 << bit;

            found += members(Words { pin: bit, ..NONE });
            found += members(Words {
                primary: bit,
                ..NONE
            });
            found += members(Words {
                secondary: bit,
                ..NONE
            });
            found += members(Words { ept: bit, ..NONE });
        }
        assert_eq!(found, features);
        assert_eq!(members(NONE), 0);
    }

    #[cfg(test)]
    #[test]
    fn names_are_listed_in_order() {
        let words = Words {
            pin: 1 << 5,
            secondary: 1 << 1 | 1 << 5,
            ..NONE
        };

        assert_eq!(Features::new(words).to_string(), "ept vpid virtual-nmis");
        assert_eq!(Features::new(NONE).to_string(), "-");
    }
}
