// SPDX-License-Identifier: GPL-2.0

//! Checks on RIP, RFLAGS and the shadow-stack pointer of L2.

use super::segments::AccessRights;
use crate::vmx::{
    check::{controls::Event, is_canonical, Processor, CR0_PE, RFLAGS_IF, RFLAGS_VM},
    Vmcs12,
};

/// Bits of RFLAGS that are 0: 63:22, 15, 5 and 3.
const RFLAGS_RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
/// The bit of RFLAGS that is 1.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Returns whether L2 is in 64-bit mode.
#[inline]
const fn is_64bit(vmcs12: &Vmcs12) -> bool {
    vmcs12.entry().ia32e_mode_guest() && AccessRights::of_cs(vmcs12).is_64bit()
}

/// Returns whether all bits of `address` beyond the linear addresses are equal, which is less than
/// that it is canonical.
#[inline]
fn has_equal_upper_bits(address: u64, processor: &Processor<'_>) -> bool {
    is_canonical(address, processor.linear_address_width.wrapping_add(1))
}

consistency_checks! {
    /// Makes the checks on RIP, RFLAGS and SSP (SDM, "Checks on Guest RIP, RFLAGS, and SSP").
    pub fn check_rip_rflags(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), RipRflagsCheck> {
        /// RIP has 32 bits outside 64-bit mode.
        RipIn32Bit: !is_64bit(vmcs12) && vmcs12.guest_rip >> 32 != 0,
        /// RIP has the bits of a linear address in 64-bit mode, canonical or not.
        RipIn64Bit: is_64bit(vmcs12) && !has_equal_upper_bits(vmcs12.guest_rip, processor),
        /// Reserved bits of RFLAGS are 0.
        RflagsReserved: vmcs12.guest_rflags & RFLAGS_RESERVED != 0,
        /// Bit 1 of RFLAGS is 1.
        RflagsFixed: vmcs12.guest_rflags & RFLAGS_FIXED == 0,
        /// There is no virtual-8086 mode in IA-32e mode, and none in real mode.
        Virtual8086: vmcs12.guest_rflags & RFLAGS_VM != 0
            && (vmcs12.entry().ia32e_mode_guest() || vmcs12.guest_cr0 & CR0_PE == 0),
        /// An external interrupt is injected only while interrupts are enabled.
        InterruptFlag: Event::of(vmcs12).is(Event::EXTERNAL_INTERRUPT)
            && vmcs12.guest_rflags & RFLAGS_IF == 0,
        /// The shadow-stack pointer is aligned.
        SspAlignment: vmcs12.entry().load_cet_state() && vmcs12.guest_ssp & 3 != 0,
        /// The shadow-stack pointer has 32 bits outside 64-bit mode.
        SspIn32Bit: vmcs12.entry().load_cet_state()
            && !is_64bit(vmcs12)
            && vmcs12.guest_ssp >> 32 != 0,
        /// The shadow-stack pointer has the bits of a linear address in 64-bit mode.
        SspIn64Bit: vmcs12.entry().load_cet_state()
            && is_64bit(vmcs12)
            && !has_equal_upper_bits(vmcs12.guest_ssp, processor),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_rip_rflags))]
mod tests {
    use super::*;
    use crate::vmx::check::{
        valid::{Case, NON_CANONICAL},
        Failure, GuestStateCheck, CR0_PG,
    };

    fn failure(check: RipRflagsCheck) -> Option<Failure> {
        Some(Failure::GuestState(GuestStateCheck::RipRflags(check)))
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        use RipRflagsCheck as Check;

        for &check in RipRflagsCheck::ALL {
            let mut case = Case::new();

            match check {
                Check::RipIn32Bit => {
                    case.make_l2_32bit();
                    case.vmcs12.guest_rip |= 1 << 32;
                }
                Check::RipIn64Bit => case.vmcs12.guest_rip = 1 << 48,
                Check::RflagsReserved => case.vmcs12.guest_rflags |= 1 << 3,
                Check::RflagsFixed => case.vmcs12.guest_rflags &= !RFLAGS_FIXED,
                Check::Virtual8086 => case.enter_virtual_8086(),
                Check::InterruptFlag => {
                    case.inject(Event::EXTERNAL_INTERRUPT, 0x20);
                    case.vmcs12.guest_rflags &= !RFLAGS_IF;
                }
                Check::SspAlignment => case.vmcs12.guest_ssp |= 1,
                Check::SspIn32Bit => {
                    case.make_l2_32bit();
                    case.vmcs12.guest_ssp |= 1 << 32;
                }
                Check::SspIn64Bit => case.vmcs12.guest_ssp = 1 << 48,
            }
            assert_eq!(case.failure(), failure(check));
        }
    }

    #[test]
    fn rip_and_ssp_need_not_be_canonical() {
        let mut case = Case::new();

        case.vmcs12.guest_rip = NON_CANONICAL;
        case.vmcs12.guest_ssp = NON_CANONICAL;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn compatibility_mode_has_32_bits() {
        let mut case = Case::new();

        case.vmcs12.guest_cs_ar_bytes = 0xc09b;
        assert_eq!(case.failure(), failure(RipRflagsCheck::RipIn32Bit));
        case.vmcs12.guest_rip = 0xffff_ffff;
        case.vmcs12.guest_ssp = 0xffff_fffc;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn real_mode_has_no_virtual_8086_mode() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.enter_virtual_8086();
        case.vmcs12.guest_cr0 &= !(CR0_PE | CR0_PG);
        assert_eq!(case.failure(), failure(RipRflagsCheck::Virtual8086));
    }
}
