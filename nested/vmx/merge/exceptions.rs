// SPDX-License-Identifier: GPL-2.0

//! Which exceptions of L2 exit.

use crate::{
    checked::Checked,
    vmx::{bits::vector, Vmcs12},
};

const PAGE_FAULT: u32 = 1 << vector::PF;

/// What selects the exceptions that exit.
///
/// A page fault exits if (its error code & mask == match) is what bit 14 of the bitmap says: a
/// fault that does not match does the opposite (SDM, "Exception Bitmap").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceptions {
    /// The exception bitmap.
    pub bitmap: u32,
    /// The page-fault error-code mask.
    pub page_fault_mask: u32,
    /// The page-fault error-code match.
    pub page_fault_match: u32,
}

impl Exceptions {
    /// Returns what L1 selected.
    #[inline]
    pub fn of(vmcs12: &Vmcs12) -> Self {
        Self {
            bitmap: vmcs12.exception_bitmap,
            page_fault_mask: vmcs12.page_fault_error_code_mask,
            page_fault_match: vmcs12.page_fault_error_code_match,
        }
    }

    /// Returns whether the bitmap has a vector's bit. There are none above 31.
    #[inline]
    pub const fn select_by_bitmap(&self, vector: u8) -> bool {
        match 1u32.checked_shl(vector as u32) {
            Some(bit) => self.bitmap & bit != 0,
            None => false,
        }
    }

    /// Returns whether an exception exits.
    #[inline]
    pub const fn select(&self, vector: u8, error_code: u32) -> bool {
        let selected = self.select_by_bitmap(vector);

        if vector == vector::PF {
            // The processor knows no bits above 15: those that L0 has put there do not count.
            let error_code = error_code & 0xffff;

            (error_code & self.page_fault_mask == self.page_fault_match) == selected
        } else {
            selected
        }
    }

    /// Merges what L1 selects with the bitmap of L0.
    ///
    /// Masks of L0 and L1 cannot be combined in general. If L0 wants page faults, of whatever kind,
    /// all of them exit; if not, those do that L1 selects.
    #[inline]
    #[must_use]
    pub fn merge(vmcs12: Checked<'_, Vmcs12>, l0_bitmap: u32) -> Self {
        let l1 = Self::of(&vmcs12);
        let bitmap = l1.bitmap | l0_bitmap;

        if l0_bitmap & PAGE_FAULT != 0 {
            Self {
                bitmap,
                page_fault_mask: 0,
                page_fault_match: 0,
            }
        } else {
            Self { bitmap, ..l1 }
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_exceptions))]
mod tests {
    use super::*;

    const UD: u8 = 6;

    fn vmcs12(bitmap: u32, mask: u32, r#match: u32) -> Vmcs12 {
        Vmcs12 {
            exception_bitmap: bitmap,
            page_fault_error_code_mask: mask,
            page_fault_error_code_match: r#match,
            ..Vmcs12::default()
        }
    }

    #[test]
    fn page_faults_are_selected_by_error_code() {
        for (bitmap, mask, r#match, error_code, expected) in [
            (PAGE_FAULT, 0, 0, 2, true),
            (0, 0, 0, 2, false),
            // A match that no error code can have turns the bit's meaning around.
            (PAGE_FAULT, 0, 1, 2, false),
            (0, 0, 1, 2, true),
            // Only faults of present pages.
            (PAGE_FAULT, 1, 1, 3, true),
            (PAGE_FAULT, 1, 1, 2, false),
            (0, 1, 1, 3, false),
            (0, 1, 1, 2, true),
            // Bits above 15 do not count.
            (PAGE_FAULT, 0x1_0000, 0, 0x1_0000, true),
        ] {
            let vmcs12 = vmcs12(bitmap, mask, r#match);

            assert_eq!(
                Exceptions::of(&vmcs12).select(vector::PF, error_code),
                expected
            );
        }
    }

    #[test]
    fn other_exceptions_are_selected_by_their_bit() {
        for vector in (0..=u8::MAX).filter(|&vector| vector != vector::PF) {
            let all = vmcs12(u32::MAX, 0, 0);
            let none = vmcs12(PAGE_FAULT, 0, 0);

            assert_eq!(Exceptions::of(&all).select(vector, 0), vector < 32);
            assert!(!Exceptions::of(&none).select(vector, 0));
        }
    }

    /// Each combination of a few masks: what either wants exits.
    #[test]
    fn what_l1_or_l0_wants_exits() {
        for l0 in [0, PAGE_FAULT, 1 << UD] {
            for bits in 0..32u32 {
                let vmcs12 = vmcs12((bits & 1) << 14, (bits >> 1) & 3, (bits >> 3) & 3);
                let merged = Exceptions::merge(Checked::vouch(&vmcs12), l0);

                for error_code in 0..4 {
                    let l1 = Exceptions::of(&vmcs12).select(vector::PF, error_code);

                    assert_eq!(
                        merged.select(vector::PF, error_code),
                        l1 || l0 & PAGE_FAULT != 0
                    );
                }
                assert_eq!(merged.select(UD, 0), l0 & 1 << UD != 0);
            }
        }
    }
}
