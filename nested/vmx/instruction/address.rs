// SPDX-License-Identifier: GPL-2.0

//! The linear address of an operand in memory, and whether it may be accessed there.
//!
//! An exit for an instruction of VMX comes before the checks of its operand, so that they are left
//! to L0 (SDM, "Relative Priority of Faults and VM Exits").

use super::{
    operand::{Memory, Register, Segment},
    permission::{Mode, Processor},
    segment::{check_segment, Direction, SegmentCheck, SegmentRegister},
    Fault, Refusal,
};
use crate::address::Gva;

/// Registers of the processor that executes an instruction.
pub trait Registers {
    /// Returns the value of a general-purpose register.
    fn general(&self, register: Register) -> u64;

    /// Returns a segment register.
    fn segment(&self, segment: Segment) -> SegmentRegister;
}

/// The bits of a linear address that are ignored (SDM, "Linear-Address Masking (LAM)").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masking {
    /// None.
    None,
    /// Bits 62:48.
    Lam48,
    /// Bits 62:57.
    Lam57,
}

impl Masking {
    /// Replaces the ignored bits by the highest that is not.
    const fn apply(self, address: u64) -> u64 {
        const SIGN: u64 = 1 << 63;

        let extended = match self {
            Self::None => return address,
            Self::Lam48 => sign_extend(address, 48),
            Self::Lam57 => sign_extend(address, 57),
        };
        extended & !SIGN | address & SIGN
    }
}

/// What addresses of the processor look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Protected mode: segments matter, linear addresses have 32 bits.
    Protected,
    /// 64-bit mode: only FS and GS have a base, linear addresses are canonical.
    SixtyFourBit {
        /// The width of linear addresses: 48, or 57 with 5-level paging.
        width: u32,
        /// What is ignored of addresses whose highest bit is 0, which are those of user code.
        user: Masking,
        /// What is ignored of the other addresses.
        supervisor: Masking,
    },
}

impl Processor {
    const CR3_LAM_U57: u64 = 1 << 61;
    const CR3_LAM_U48: u64 = 1 << 62;
    const CR4_LA57: u64 = 1 << 12;
    const CR4_LAM_SUP: u64 = 1 << 28;

    /// Returns what addresses look like. There are no instructions of VMX in modes other than
    /// protected and 64-bit mode.
    pub const fn addressing(&self) -> Addressing {
        if !matches!(self.mode(), Mode::SixtyFourBit) {
            return Addressing::Protected;
        }
        let five_levels = self.cr4 & Self::CR4_LA57 != 0;

        Addressing::SixtyFourBit {
            width: if five_levels { 57 } else { 48 },
            user: if self.cr3 & Self::CR3_LAM_U57 != 0 {
                Masking::Lam57
            } else if self.cr3 & Self::CR3_LAM_U48 != 0 {
                Masking::Lam48
            } else {
                Masking::None
            },
            supervisor: match (self.cr4 & Self::CR4_LAM_SUP != 0, five_levels) {
                (false, _) => Masking::None,
                (true, false) => Masking::Lam48,
                (true, true) => Masking::Lam57,
            },
        }
    }
}

consistency_checks! {
    /// Checks whether the bytes from `address` on have canonical addresses.
    pub fn check_canonical(address: u64, bytes: u64, width: u32) -> Result<(), CanonicalCheck> {
        /// The first has none.
        FirstByte: !is_canonical(address, width),
        /// The last has none.
        LastByte: !is_canonical(address.wrapping_add(bytes.saturating_sub(1)), width),
    }
}

/// Returns whether an address is sign-extended from its first `width` bits.
pub const fn is_canonical(address: u64, width: u32) -> bool {
    sign_extend(address, width) == address
}

/// Extends a number of `width` bits, from 1 to 64.
const fn sign_extend(value: u64, width: u32) -> u64 {
    let unused = 64_u32.saturating_sub(width);

    (value.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64
}

/// Computes the linear address of an operand of `bytes` bytes (SDM, "Operand Addressing").
pub fn linear_address<R: Registers>(
    operand: &Memory,
    bytes: u64,
    direction: Direction,
    addressing: Addressing,
    registers: &R,
) -> Result<Gva, Refusal> {
    let general = |register: Option<Register>| register.map_or(0, |r| registers.general(r));
    let index = general(operand.index).wrapping_shl(operand.scale);

    // High bits of the displacement are undefined if the address size is small: they are lost.
    let offset = operand.address_size.truncate(
        operand
            .displacement
            .wrapping_add(general(operand.base))
            .wrapping_add(index),
    );

    match addressing {
        Addressing::Protected => {
            let segment = registers.segment(operand.segment);

            check_segment(&segment, offset, bytes, direction).map_err(|check| {
                let fault = match check {
                    SegmentCheck::Type => Fault::GeneralProtection,
                    SegmentCheck::Unusable | SegmentCheck::Limit => fault_in(operand.segment),
                };
                Refusal::Fault(fault, check.name())
            })?;
            Ok(Gva::from_raw(
                segment.base.wrapping_add(offset) & 0xffff_ffff,
            ))
        }
        Addressing::SixtyFourBit {
            width,
            user,
            supervisor,
        } => {
            let address = match operand.segment {
                // The address size does not limit the sum.
                Segment::Fs | Segment::Gs => {
                    registers.segment(operand.segment).base.wrapping_add(offset)
                }
                Segment::Es | Segment::Cs | Segment::Ss | Segment::Ds => offset,
            };
            let masking = if address >> 63 == 0 { user } else { supervisor };
            let address = masking.apply(address);

            check_canonical(address, bytes, width)
                .map_err(|check| Refusal::Fault(fault_in(operand.segment), check.name()))?;
            Ok(Gva::from_raw(address))
        }
    }
}

/// Returns the fault for an address that a segment does not have.
const fn fault_in(segment: Segment) -> Fault {
    match segment {
        Segment::Ss => Fault::Stack,
        Segment::Es | Segment::Cs | Segment::Ds | Segment::Fs | Segment::Gs => {
            Fault::GeneralProtection
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_address)
)]
mod tests {
    use super::{
        super::{
            operand::{AddressSize, Information},
            permission::Operation,
        },
        *,
    };
    use core::ffi::CStr;

    const DATA: SegmentRegister = SegmentRegister {
        base: 0x1000,
        limit: 0xfff,
        access_rights: 0xc093,
    };
    const FLAT: SegmentRegister = SegmentRegister {
        base: 0,
        limit: u32::MAX,
        access_rights: 0xc093,
    };
    const LONG: Addressing = Addressing::SixtyFourBit {
        width: 48,
        user: Masking::None,
        supervisor: Masking::None,
    };

    /// Each general-purpose register has its number in all bytes, each segment is the same.
    struct Same(SegmentRegister);

    impl Registers for Same {
        fn general(&self, register: Register) -> u64 {
            u64::from(register.number()) * 0x0101_0101_0101_0101
        }

        fn segment(&self, _: Segment) -> SegmentRegister {
            self.0
        }
    }

    /// Describes an operand that has a displacement only.
    fn at(segment: u32, address_size: u32, displacement: u64) -> Result<Memory, Refusal> {
        let field = address_size << 7 | segment << 15 | 1 << 22 | 1 << 27;

        Information::new(field, displacement).memory()
    }

    fn protected(
        register: SegmentRegister,
        offset: u64,
        direction: Direction,
    ) -> Result<Gva, Refusal> {
        let operand = at(3, 1, offset)?;

        linear_address(
            &operand,
            8,
            direction,
            Addressing::Protected,
            &Same(register),
        )
    }

    fn long(segment: u32, displacement: u64, addressing: Addressing) -> Result<Gva, Refusal> {
        let operand = at(segment, 2, displacement)?;

        linear_address(&operand, 8, Direction::Read, addressing, &Same(DATA))
    }

    fn fault(fault: Fault, check: &'static CStr) -> Result<Gva, Refusal> {
        Err(Refusal::Fault(fault, check))
    }

    fn gva(raw: u64) -> Result<Gva, Refusal> {
        Ok(Gva::from_raw(raw))
    }

    #[test]
    fn base_index_scale_and_displacement_are_added() -> Result<(), Refusal> {
        // 0x10(%r1, %r2, 8)
        let field = 3 | 2 << 7 | 3 << 15 | 2 << 18 | 1 << 23;
        let operand = Information::new(field, 0x10).memory()?;
        let address = linear_address(&operand, 8, Direction::Read, LONG, &Same(DATA));
        // 0x0202020202020202 * 8 + 0x0101010101010101 + 0x10
        assert_eq!(
            address,
            fault(Fault::GeneralProtection, c"CanonicalCheck::FirstByte")
        );

        let small = Memory {
            address_size: AddressSize::Bits32,
            ..operand
        };
        let address = linear_address(&small, 8, Direction::Read, LONG, &Same(DATA));
        assert_eq!(address, gva(0x1111_1121));

        let smaller = Memory {
            address_size: AddressSize::Bits16,
            ..operand
        };
        let address = linear_address(&smaller, 8, Direction::Read, LONG, &Same(DATA));
        assert_eq!(address, gva(0x1121));
        Ok(())
    }

    #[test]
    fn in_64_bit_mode_only_fs_and_gs_have_a_base() {
        for segment in 0..6 {
            let base = if segment >= 4 { DATA.base } else { 0 };

            assert_eq!(long(segment, 0x2000, LONG), gva(base + 0x2000));
        }
    }

    #[test]
    fn in_64_bit_mode_the_sum_of_base_and_offset_is_not_truncated() -> Result<(), Refusal> {
        let operand = at(4, 1, 0xffff_ffff)?;
        let address = linear_address(&operand, 8, Direction::Read, LONG, &Same(DATA));

        assert_eq!(address, gva(0x1_0000_0fff));
        Ok(())
    }

    #[test]
    fn in_64_bit_mode_addresses_are_canonical() {
        let last = 0x7fff_ffff_fff8;

        assert_eq!(long(3, last, LONG), gva(last));
        assert_eq!(
            long(3, last + 1, LONG),
            fault(Fault::GeneralProtection, c"CanonicalCheck::LastByte")
        );
        assert_eq!(
            long(3, 1 << 47, LONG),
            fault(Fault::GeneralProtection, c"CanonicalCheck::FirstByte")
        );
        assert_eq!(
            long(2, 1 << 47, LONG),
            fault(Fault::Stack, c"CanonicalCheck::FirstByte")
        );
        assert_eq!(
            long(3, 0xffff_8000_0000_0000, LONG),
            gva(0xffff_8000_0000_0000)
        );
        // From the end of the addresses to the beginning.
        assert_eq!(long(3, u64::MAX, LONG), gva(u64::MAX));
    }

    #[test]
    fn five_level_paging_widens_addresses() {
        let wide = Addressing::SixtyFourBit {
            width: 57,
            user: Masking::None,
            supervisor: Masking::None,
        };

        assert_eq!(long(3, 1 << 47, wide), gva(1 << 47));
        assert_eq!(
            long(3, 1 << 56, wide),
            fault(Fault::GeneralProtection, c"CanonicalCheck::FirstByte")
        );
    }

    #[test]
    fn masked_bits_are_ignored() {
        let masked = Addressing::SixtyFourBit {
            width: 48,
            user: Masking::Lam57,
            supervisor: Masking::Lam48,
        };

        assert_eq!(
            long(3, 0x7e00_7fff_0000_0000, masked),
            gva(0x7fff_0000_0000)
        );
        assert_eq!(
            long(3, 0x0100_0000_0000_0000, masked),
            fault(Fault::GeneralProtection, c"CanonicalCheck::FirstByte")
        );
        assert_eq!(
            long(3, 0x8012_8000_0000_0000, masked),
            gva(0xffff_8000_0000_0000)
        );
        // Bit 63 is not masked.
        assert_eq!(
            long(3, 0xffff_0000_0000_0000, masked),
            fault(Fault::GeneralProtection, c"CanonicalCheck::FirstByte")
        );
    }

    #[test]
    fn in_protected_mode_the_base_is_added_and_the_sum_truncated() {
        let high = SegmentRegister {
            base: 0xffff_f000,
            limit: 0xffff_fffe,
            ..DATA
        };

        assert_eq!(protected(DATA, 0x10, Direction::Write), gva(0x1010));
        assert_eq!(protected(high, 0x2000, Direction::Read), gva(0x1000));
    }

    #[test]
    fn faults_of_other_segments_are_general() {
        let refused = |check| fault(Fault::GeneralProtection, check);
        let read_only = SegmentRegister {
            access_rights: 0xc091,
            ..DATA
        };
        let unusable = SegmentRegister {
            access_rights: 0x1_0000,
            ..DATA
        };

        assert_eq!(
            protected(DATA, 0xff9, Direction::Write),
            refused(c"SegmentCheck::Limit")
        );
        assert_eq!(
            protected(read_only, 0, Direction::Write),
            refused(c"SegmentCheck::Type")
        );
        assert_eq!(
            protected(unusable, 0, Direction::Write),
            refused(c"SegmentCheck::Unusable")
        );
    }

    #[test]
    fn the_processor_says_what_addresses_look_like() {
        const CR4_LA57: u64 = 1 << 12;
        const CR4_LAM_SUP: u64 = 1 << 28;
        const LAM_U48: u64 = 1 << 62;
        const LAM_U57: u64 = 1 << 61;

        for (cr3, cr4, width, user, supervisor) in [
            (0, 0, 48, Masking::None, Masking::None),
            (0, CR4_LA57, 57, Masking::None, Masking::None),
            (LAM_U48, CR4_LA57, 57, Masking::Lam48, Masking::None),
            (LAM_U57, 0, 48, Masking::Lam57, Masking::None),
            (LAM_U57 | LAM_U48, 0, 48, Masking::Lam57, Masking::None),
            (0, CR4_LAM_SUP, 48, Masking::None, Masking::Lam48),
            (0, CR4_LAM_SUP | CR4_LA57, 57, Masking::None, Masking::Lam57),
        ] {
            let long = Processor {
                cr0: 0x8000_0021,
                cr3,
                cr4,
                rflags: 2,
                efer: 0x500,
                cs_access_rights: 0xa09b,
                privilege_level: 0,
                operation: Operation::Root,
            };
            let protected = Processor { efer: 0, ..long };
            let expected = Addressing::SixtyFourBit {
                width,
                user,
                supervisor,
            };

            assert_eq!(long.addressing(), expected);
            assert_eq!(protected.addressing(), Addressing::Protected);
        }
    }

    #[test]
    fn faults_of_the_stack_segment_are_its_own() -> Result<(), Refusal> {
        let unusable = SegmentRegister {
            access_rights: 0x1_0000,
            ..FLAT
        };
        let read_only = SegmentRegister {
            access_rights: 0xc091,
            ..FLAT
        };
        let operand = at(2, 1, 0x1000)?;
        let stack = |register| {
            let addressing = Addressing::Protected;

            linear_address(&operand, 8, Direction::Write, addressing, &Same(register))
        };

        assert_eq!(stack(FLAT), gva(0x1000));
        assert_eq!(stack(DATA), fault(Fault::Stack, c"SegmentCheck::Limit"));
        assert_eq!(
            stack(unusable),
            fault(Fault::Stack, c"SegmentCheck::Unusable")
        );
        assert_eq!(
            stack(read_only),
            fault(Fault::GeneralProtection, c"SegmentCheck::Type")
        );
        assert_eq!(
            protected(unusable, 0, Direction::Read),
            fault(Fault::GeneralProtection, c"SegmentCheck::Unusable")
        );
        Ok(())
    }
}
