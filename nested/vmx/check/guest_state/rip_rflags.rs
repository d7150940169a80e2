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
