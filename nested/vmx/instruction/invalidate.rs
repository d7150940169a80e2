// SPDX-License-Identifier: GPL-2.0

//! INVEPT and INVVPID.
//!
//! Both have a type in a register and a descriptor in memory. The descriptor is read even if the
//! type needs nothing of it, but only if there is such a type: hence two steps each.

use super::{address::is_canonical, Fault, InstructionError, Refusal};
use crate::{
    address::Gva,
    vmx::{
        eptp::{EptVpidCapability, Eptp},
        field::{Allowed, Requires},
    },
};
use core::num::NonZeroU16;

/// The size of a descriptor in bytes.
pub const DESCRIPTOR_SIZE: usize = 16;

/// The one number for all that is wrong with an operand.
const INVALID_OPERAND: Refusal = Refusal::Fail(InstructionError::INVALID_OPERAND_TO_INVEPT_INVVPID);

/// Checks whether L1 has INVEPT, before its permission to execute it.
pub fn check_invept_supported(
    allowed: &Allowed,
    capability: EptVpidCapability,
) -> Result<(), Refusal> {
    if Requires::Ept.is_met_by(allowed) && capability.has(EptVpidCapability::INVEPT) {
        Ok(())
    } else {
        Err(Refusal::Fault(Fault::InvalidOpcode, c"InveptUnsupported"))
    }
}

/// Checks whether L1 has INVVPID, before its permission to execute it.
pub fn check_invvpid_supported(
    allowed: &Allowed,
    capability: EptVpidCapability,
) -> Result<(), Refusal> {
    if Requires::Vpid.is_met_by(allowed) && capability.has(EptVpidCapability::INVVPID) {
        Ok(())
    } else {
        Err(Refusal::Fault(Fault::InvalidOpcode, c"InvvpidUnsupported"))
    }
}

/// An identifier of a virtual processor. That of the host, 0, is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vpid(NonZeroU16);

impl Vpid {
    /// Takes a number, unless it is 0 or has more than 16 bits.
    pub fn new(raw: u64) -> Option<Self> {
        u16::try_from(raw).ok().and_then(NonZeroU16::new).map(Self)
    }

    /// Returns the number.
    pub const fn into_raw(self) -> u16 {
        self.0.get()
    }
}

/// The type of an INVEPT, one that L1 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InveptType {
    /// What an EPT pointer translates.
    SingleContext,
    /// What any EPT pointer translates.
    Global,
}

/// What an INVEPT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invept {
    /// To invalidate what an EPT pointer translates.
    SingleContext(Eptp),
    /// To invalidate what any EPT pointer translates.
    Global,
}

impl InveptType {
    /// Checks the number in the register, of which L1 uses as much as its operand size says.
    pub fn new(raw: u64, capability: EptVpidCapability) -> Result<Self, Refusal> {
        let (kind, feature) = match raw {
            1 => (
                Self::SingleContext,
                EptVpidCapability::INVEPT_SINGLE_CONTEXT,
            ),
            2 => (Self::Global, EptVpidCapability::INVEPT_ALL_CONTEXTS),
            _ => return Err(INVALID_OPERAND),
        };
        if capability.has(feature) {
            Ok(kind)
        } else {
            Err(INVALID_OPERAND)
        }
    }

    /// Checks the descriptor, of which the second half is not looked at.
    pub fn request(
        self,
        descriptor: [u8; DESCRIPTOR_SIZE],
        capability: EptVpidCapability,
        physical_address_width: u32,
    ) -> Result<Invept, Refusal> {
        match self {
            Self::SingleContext => {
                let [raw, _] = halves(descriptor);

                Eptp::new(raw, capability, physical_address_width)
                    .map(Invept::SingleContext)
                    .map_err(|_| INVALID_OPERAND)
            }
            Self::Global => Ok(Invept::Global),
        }
    }
}

/// The type of an INVVPID, one that L1 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvvpidType {
    /// The translations of an address.
    IndividualAddress,
    /// All with a VPID.
    SingleContext,
    /// All with any VPID.
    AllContexts,
    /// All with a VPID that are not global.
    SingleContextRetainingGlobals,
}

/// What an INVVPID asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invvpid {
    /// To invalidate the translations of an address.
    IndividualAddress {
        /// With this VPID.
        vpid: Vpid,
        /// The address, in L2.
        linear: Gva,
    },
    /// To invalidate all translations with a VPID.
    SingleContext(Vpid),
    /// To invalidate all translations with any VPID.
    AllContexts,
    /// To invalidate all translations with a VPID that are not global.
    SingleContextRetainingGlobals(Vpid),
}

impl InvvpidType {
    /// Checks the number in the register, of which L1 uses as much as its operand size says.
    pub fn new(raw: u64, capability: EptVpidCapability) -> Result<Self, Refusal> {
        let (kind, feature) = match raw {
            0 => (
                Self::IndividualAddress,
                EptVpidCapability::INVVPID_INDIVIDUAL_ADDRESS,
            ),
            1 => (
                Self::SingleContext,
                EptVpidCapability::INVVPID_SINGLE_CONTEXT,
            ),
            2 => (Self::AllContexts, EptVpidCapability::INVVPID_ALL_CONTEXTS),
            3 => (
                Self::SingleContextRetainingGlobals,
                EptVpidCapability::INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS,
            ),
            _ => return Err(INVALID_OPERAND),
        };
        if capability.has(feature) {
            Ok(kind)
        } else {
            Err(INVALID_OPERAND)
        }
    }

    /// Checks the descriptor. The width is that of the processor's linear addresses: neither the
    /// paging mode nor linear-address masking make an address that is invalidated another one.
    pub fn request(
        self,
        descriptor: [u8; DESCRIPTOR_SIZE],
        linear_address_width: u32,
    ) -> Result<Invvpid, Refusal> {
        let [raw, linear] = halves(descriptor);

        // The bits beyond a VPID are reserved, also if there is no need of the VPID.
        if raw >> 16 != 0 {
            return Err(INVALID_OPERAND);
        }
        let vpid = || Vpid::new(raw).ok_or(INVALID_OPERAND);

        Ok(match self {
            Self::IndividualAddress => {
                let vpid = vpid()?;

                if !is_canonical(linear, linear_address_width) {
                    return Err(INVALID_OPERAND);
                }
                Invvpid::IndividualAddress {
                    vpid,
                    linear: Gva::from_raw(linear),
                }
            }
            Self::SingleContext => Invvpid::SingleContext(vpid()?),
            Self::AllContexts => Invvpid::AllContexts,
            Self::SingleContextRetainingGlobals => Invvpid::SingleContextRetainingGlobals(vpid()?),
        })
    }
}

/// Splits a descriptor into its two words.
fn halves(descriptor: [u8; DESCRIPTOR_SIZE]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = descriptor;

    [[a, b, c, d, e, f, g, h], rest].map(u64::from_le_bytes)
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_invalidate)
)]
mod tests {
    use super::*;

    const ALL: EptVpidCapability = EptVpidCapability::new(u64::MAX);
    const NONE: EptVpidCapability = EptVpidCapability::new(0);
    const WIDTH: u32 = 48;

    fn descriptor(low: u64, high: u64) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let (first, second) = bytes.split_at_mut(8);

        first.copy_from_slice(&low.to_le_bytes());
        second.copy_from_slice(&high.to_le_bytes());
        bytes
    }

    fn invvpid(raw: u64, low: u64, high: u64) -> Result<Invvpid, Refusal> {
        InvvpidType::new(raw, ALL)?.request(descriptor(low, high), WIDTH)
    }

    fn invept(raw: u64, low: u64, high: u64) -> Result<Invept, Refusal> {
        InveptType::new(raw, ALL)?.request(descriptor(low, high), ALL, 40)
    }

    #[test]
    fn the_instructions_need_control_and_capability() {
        const EPT: u32 = 1 << 1;
        const VPID: u32 = 1 << 5;

        let has = |secondary, capability| {
            let allowed = Allowed {
                pin: 0,
                primary: 0,
                secondary,
                entry: 0,
            };
            let capability = EptVpidCapability::new(capability);
            (
                check_invept_supported(&allowed, capability).is_ok(),
                check_invvpid_supported(&allowed, capability).is_ok(),
            )
        };

        assert_eq!(has(EPT | VPID, 1 << 20 | 1 << 32), (true, true));
        assert_eq!(has(EPT, 1 << 20 | 1 << 32), (true, false));
        assert_eq!(has(VPID, 1 << 20 | 1 << 32), (false, true));
        assert_eq!(has(EPT | VPID, 1 << 20), (true, false));
        assert_eq!(has(EPT | VPID, 1 << 32), (false, true));
        assert_eq!(has(0, u64::MAX), (false, false));
    }

    #[test]
    fn an_instruction_that_l1_does_not_have_is_undefined() {
        let nothing = Allowed {
            pin: 0,
            primary: 0,
            secondary: 0,
            entry: 0,
        };
        let undefined = |check| Err(Refusal::Fault(Fault::InvalidOpcode, check));

        assert_eq!(
            check_invept_supported(&nothing, ALL),
            undefined(c"InveptUnsupported")
        );
        assert_eq!(
            check_invvpid_supported(&nothing, ALL),
            undefined(c"InvvpidUnsupported")
        );
    }

    #[test]
    fn there_are_no_other_types() {
        for raw in (0..64).chain([1 << 32, 1 << 32 | 1, u64::MAX]) {
            assert_eq!(InveptType::new(raw, ALL).is_ok(), matches!(raw, 1 | 2));
            assert_eq!(InvvpidType::new(raw, ALL).is_ok(), raw < 4);
            assert_eq!(InveptType::new(raw, NONE), Err(INVALID_OPERAND));
            assert_eq!(InvvpidType::new(raw, NONE), Err(INVALID_OPERAND));
        }
    }

    #[test]
    fn each_type_is_a_feature() {
        for raw in 0..4 {
            for bit in 0..64 {
                let capability = EptVpidCapability::new(1 << bit);

                let found = InveptType::new(raw, capability).is_ok();
                assert_eq!(found, matches!((raw, bit), (1, 25) | (2, 26)));

                let found = InvvpidType::new(raw, capability).is_ok();
                assert_eq!(found, bit == 40 + raw);
            }
        }
    }

    #[test]
    fn invept_of_a_single_context_needs_a_good_pointer() {
        let eptp = Eptp::new(0x1234_505e, ALL, 40);

        assert_eq!(
            invept(1, 0x1234_505e, u64::MAX),
            eptp.map(Invept::SingleContext).map_err(|_| INVALID_OPERAND)
        );
        for bad in [0x1234_505f, 0x1234_5056, 0x1234_5f5e, 0x100_0000_005e] {
            assert_eq!(invept(1, bad, 0), Err(INVALID_OPERAND));
        }
    }

    #[test]
    fn global_invept_takes_any_descriptor() {
        assert_eq!(invept(2, u64::MAX, u64::MAX), Ok(Invept::Global));
    }

    #[test]
    fn invvpid_finds_vpid_and_address() {
        let linear = Gva::from_raw(0xffff_8000_0000_1234);
        let vpid = Vpid(NonZeroU16::MAX);

        assert_eq!(vpid.into_raw(), 0xffff);
        assert_eq!(
            invvpid(0, 0xffff, linear.into_raw()),
            Ok(Invvpid::IndividualAddress { vpid, linear })
        );
        assert_eq!(
            invvpid(1, 0xffff, u64::MAX),
            Ok(Invvpid::SingleContext(vpid))
        );
        assert_eq!(invvpid(2, 0xffff, u64::MAX), Ok(Invvpid::AllContexts));
        assert_eq!(
            invvpid(3, 0xffff, u64::MAX),
            Ok(Invvpid::SingleContextRetainingGlobals(vpid))
        );
    }

    #[test]
    fn invvpid_needs_a_vpid_other_than_0_unless_for_all() {
        for raw in [0, 1, 3] {
            assert_eq!(invvpid(raw, 0, 0), Err(INVALID_OPERAND));
        }
        assert_eq!(invvpid(2, 0, 0), Ok(Invvpid::AllContexts));
    }

    #[test]
    fn reserved_bits_of_the_vpid_are_refused() {
        for raw in 0..4 {
            for bit in 16..64 {
                assert_eq!(invvpid(raw, 1 | 1 << bit, 0), Err(INVALID_OPERAND));
            }
        }
    }

    #[test]
    fn invvpid_of_an_address_needs_a_canonical_one() {
        assert_eq!(invvpid(0, 1, 1 << 47), Err(INVALID_OPERAND));
        assert_eq!(invvpid(0, 1, 0xfffe_8000_0000_0000), Err(INVALID_OPERAND));
        assert!(invvpid(0, 1, 0x7fff_ffff_ffff).is_ok());
        assert!(invvpid(1, 1, 1 << 47).is_ok());
    }
}
