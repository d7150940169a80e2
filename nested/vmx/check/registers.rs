// SPDX-License-Identifier: GPL-2.0

//! What is valid in a register, of L1 and of L2 alike.

/// Returns whether all bits of `address` above the first `width` are equal to the last of them.
#[inline]
pub const fn is_canonical(address: u64, width: u32) -> bool {
    let shift = width.wrapping_sub(1);
    let upper = address.wrapping_shr(shift);

    upper == 0 || upper == u64::MAX.wrapping_shr(shift)
}

/// Returns whether each byte of a PAT is a memory type: UC, WC, WT, WP, WB or UC-.
#[inline]
pub(super) const fn has_only_valid_pat_types(pat: u64) -> bool {
    // Types are below 8; 2 and 3, which have bit 1 without bit 2, do not exist.
    pat & 0xf8f8_f8f8_f8f8_f8f8 == 0 && (pat << 1) & !pat & 0x0404_0404_0404_0404 == 0
}

/// Returns whether S_CET has both SUPPRESS and the tracker that waits for ENDBRANCH.
#[inline]
pub(super) const fn suppresses_while_waiting(s_cet: u64) -> bool {
    const SUPPRESS: u64 = 1 << 10;
    const WAIT_FOR_ENDBRANCH: u64 = 1 << 11;

    s_cet & SUPPRESS != 0 && s_cet & WAIT_FOR_ENDBRANCH != 0
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_registers))]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_extend_their_highest_bit() {
        assert!(is_canonical(0, 48));
        assert!(is_canonical(0x7fff_ffff_ffff, 48));
        assert!(!is_canonical(0x8000_0000_0000, 48));
        assert!(!is_canonical(0xffff_7fff_ffff_ffff, 48));
        assert!(is_canonical(0xffff_8000_0000_0000, 48));
        assert!(is_canonical(u64::MAX, 48));
        assert!(is_canonical(0x8000_0000_0000, 57));
        assert!(!is_canonical(1 << 56, 57));
    }

    #[test]
    fn each_byte_of_a_pat_is_a_memory_type() {
        for byte in 0..=255u64 {
            let exists = matches!(byte, 0 | 1 | 4..=7);

            for position in 0..8 {
                assert_eq!(has_only_valid_pat_types(byte << (8 * position)), exists);
            }
        }
        assert!(has_only_valid_pat_types(0x0007_0406_0007_0406));
    }

    #[test]
    fn suppression_and_waiting_exclude_each_other() {
        assert!(!suppresses_while_waiting(0x400));
        assert!(!suppresses_while_waiting(0x800));
        assert!(suppresses_while_waiting(0xc00));
    }
}
