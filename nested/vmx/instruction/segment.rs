// SPDX-License-Identifier: GPL-2.0

//! Segments, and the accesses that they permit (SDM, "Limit Checking" and "Type Checking").

/// A segment register, as the VMCS has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRegister {
    /// The base address.
    pub base: u64,
    /// The limit, in bytes.
    pub limit: u32,
    /// The access rights, in the format of the VMCS.
    pub access_rights: u32,
}

impl SegmentRegister {
    const WRITABLE_DATA: u32 = 1 << 1;
    const READABLE_CODE: u32 = 1 << 1;
    const EXPAND_DOWN: u32 = 1 << 2;
    const CODE: u32 = 1 << 3;
    const DEFAULT_BIG: u32 = 1 << 14;
    const UNUSABLE: u32 = 1 << 16;

    const fn is(&self, bit: u32) -> bool {
        self.access_rights & bit != 0
    }

    const fn expands_down(&self) -> bool {
        !self.is(Self::CODE) && self.is(Self::EXPAND_DOWN)
    }

    /// Returns whether the type of the segment permits an access.
    const fn permits(&self, direction: Direction) -> bool {
        match (direction, self.is(Self::CODE)) {
            (Direction::Read, false) => true,
            (Direction::Read, true) => self.is(Self::READABLE_CODE),
            (Direction::Write, false) => self.is(Self::WRITABLE_DATA),
            (Direction::Write, true) => false,
        }
    }

    /// Returns whether the segment has all of the bytes from `offset` on.
    const fn reaches(&self, offset: u64, bytes: u64) -> bool {
        let limit = self.limit as u64;
        let last = offset.saturating_add(bytes.saturating_sub(1));

        if self.expands_down() {
            let upper = if self.is(Self::DEFAULT_BIG) {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= upper
        } else {
            // All processors with VMX make no limit checks in flat segments, where an operand may
            // extend from the end to the beginning.
            let flat = self.base == 0 && self.limit == u32::MAX;

            flat || last <= limit
        }
    }
}

/// What an instruction does with its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

consistency_checks! {
    /// Checks whether a segment has the bytes from `offset` on, for an access in protected mode.
    pub fn check_segment(
        segment: &SegmentRegister,
        offset: u64,
        bytes: u64,
        direction: Direction,
    ) -> Result<(), SegmentCheck> {
        /// It has a null selector, or nothing at all.
        Unusable: segment.is(SegmentRegister::UNUSABLE),
        /// It is not for reading, or not for writing.
        Type: !segment.permits(direction),
        /// Some byte is outside.
        Limit: !segment.reaches(offset, bytes),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_segment)
)]
mod tests {
    use super::*;

    const DATA: SegmentRegister = SegmentRegister {
        base: 0x1000,
        limit: 0xfff,
        access_rights: 0xc093,
    };

    fn read(segment: SegmentRegister, offset: u64) -> Result<(), SegmentCheck> {
        check_segment(&segment, offset, 8, Direction::Read)
    }

    #[test]
    fn limits_are_of_the_last_byte() {
        assert_eq!(read(DATA, 0xff8), Ok(()));
        assert_eq!(read(DATA, 0xff9), Err(SegmentCheck::Limit));
        assert_eq!(read(DATA, 0x1000), Err(SegmentCheck::Limit));
        assert_eq!(read(DATA, u64::MAX), Err(SegmentCheck::Limit));
    }

    #[test]
    fn flat_segments_have_no_limit() {
        let flat = SegmentRegister {
            base: 0,
            limit: u32::MAX,
            ..DATA
        };
        let elsewhere = SegmentRegister { base: 16, ..flat };
        let shorter = SegmentRegister {
            limit: 0xffff_fffe,
            ..flat
        };

        assert_eq!(read(flat, 0xffff_fffc), Ok(()));
        assert_eq!(read(elsewhere, 0xffff_fffc), Err(SegmentCheck::Limit));
        assert_eq!(read(shorter, 0xffff_fffc), Err(SegmentCheck::Limit));
    }

    #[test]
    fn the_limit_of_expand_down_segments_is_below() {
        let big = SegmentRegister {
            access_rights: 0xc097,
            ..DATA
        };
        let small = SegmentRegister {
            access_rights: 0x8097,
            ..DATA
        };

        assert_eq!(read(big, 0xfff), Err(SegmentCheck::Limit));
        assert_eq!(read(big, 0x1000), Ok(()));
        assert_eq!(read(big, 0x1_0000), Ok(()));
        assert_eq!(read(big, 0xffff_fff9), Err(SegmentCheck::Limit));
        assert_eq!(read(small, 0xfff8), Ok(()));
        assert_eq!(read(small, 0xfff9), Err(SegmentCheck::Limit));
    }

    #[test]
    fn an_expand_down_segment_with_the_highest_limit_is_empty() {
        let empty = SegmentRegister {
            base: 0,
            limit: u32::MAX,
            access_rights: 0xc097,
        };

        assert_eq!(read(empty, 0), Err(SegmentCheck::Limit));
        assert_eq!(read(empty, 0xffff_fff8), Err(SegmentCheck::Limit));
    }

    #[test]
    fn types_permit_reads_or_writes() {
        for (kind, permits_read, permits_write) in [
            // Data: read-only, read/write, and both expand-down.
            (0x1, true, false),
            (0x3, true, true),
            (0x5, true, false),
            (0x7, true, true),
            // Code: execute-only, execute/read, and both conforming.
            (0x9, false, false),
            (0xb, true, false),
            (0xd, false, false),
            (0xf, true, false),
        ] {
            let segment = SegmentRegister {
                access_rights: 0xc090 | kind,
                limit: if kind & 0xc == 4 { 0 } else { 0xfff },
                ..DATA
            };
            let expected = |permits| {
                if permits {
                    Ok(())
                } else {
                    Err(SegmentCheck::Type)
                }
            };

            assert_eq!(read(segment, 0x10), expected(permits_read));
            assert_eq!(
                check_segment(&segment, 0x10, 8, Direction::Write),
                expected(permits_write)
            );
        }
    }

    #[test]
    fn the_type_of_an_unusable_segment_does_not_matter() {
        for access_rights in [0x1_0000, 0x1_0093, 0x1_0099] {
            let segment = SegmentRegister {
                access_rights,
                ..DATA
            };

            assert_eq!(read(segment, 0), Err(SegmentCheck::Unusable));
        }
    }
}
