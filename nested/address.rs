// SPDX-License-Identifier: GPL-2.0

//! Addresses by whose they are. There is no arithmetic between them, and no conversion.

/// Size of the smallest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Declares a kind of address.
macro_rules! address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn from_raw(raw: u64) -> Self {
                Self(raw)
            }

            /// Returns the raw address.
            pub const fn into_raw(self) -> u64 {
                self.0
            }

            /// Returns the address of the page that this address is in.
            pub const fn page(self) -> Self {
                Self(self.0 & !0xfff)
            }

            /// Returns whether this is the address of a page.
            pub const fn is_page_aligned(self) -> bool {
                self.0 & 0xfff == 0
            }

            /// Returns the address `bytes` above, unless there is none.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
        }
    };
}

address! {
    /// A guest-physical address of L1.
    Gpa
}

address! {
    /// A guest-physical address of L2, which L1's nested page tables translate.
    L2Gpa
}

address! {
    /// A linear address, of the level that the context says.
    Gva
}

impl Gpa {
    /// Returns whether the address has no bit beyond the first `width`.
    pub const fn fits(self, width: u32) -> bool {
        width >= 64 || self.0 >> width == 0
    }

    /// Returns whether this is the address of a page, within `width` bits.
    pub const fn is_legal_page(self, width: u32) -> bool {
        self.is_page_aligned() && self.fits(width)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_address))]
mod tests {
    use super::*;

    #[test]
    fn legal_pages_are_aligned_and_within_the_width() {
        assert!(Gpa::from_raw(0).is_legal_page(36));
        assert!(Gpa::from_raw(0xf_ffff_f000).is_legal_page(36));
        assert!(!Gpa::from_raw(0x10_0000_0000).is_legal_page(36));
        assert!(!Gpa::from_raw(0x1001).is_legal_page(36));
        assert!(Gpa::from_raw(!0xfff).is_legal_page(64));
    }

    #[test]
    fn addresses_do_not_wrap() {
        assert_eq!(Gpa::from_raw(u64::MAX).checked_add(1), None);
        assert_eq!(
            Gpa::from_raw(0x1000).checked_add(8),
            Some(Gpa::from_raw(0x1008))
        );
        assert_eq!(Gpa::from_raw(0x1fff).page(), Gpa::from_raw(0x1000));
    }
}
