// SPDX-License-Identifier: GPL-2.0

//! Fields of the guest-state area that are saved as vmcs02 has them, by groups.

use crate::vmx::Vmcs12;

/// vmcs02, as far as it is read here. A field that is read exists on the processor.
pub trait Vmcs02 {
    /// Reads a 16-bit field.
    fn read16(&self, encoding: u32) -> u16;
    /// Reads a 32-bit field.
    fn read32(&self, encoding: u32) -> u32;
    /// Reads a 64-bit field.
    fn read64(&self, encoding: u32) -> u64;
    /// Reads a field of natural width.
    fn read_natural(&self, encoding: u32) -> u64;
}

/// Declares fields of the guest-state area that are saved together.
macro_rules! saved_fields {
    (
        $(#[$meta:meta])*
        fn $save:ident,
        $(#[$pmeta:meta])*
        fn $contains:ident {
            $( $field:ident = $encoding:literal: $read:ident, )*
        }
    ) => {
        $(#[$meta])*
        pub fn $save(vmcs12: &mut Vmcs12, vmcs02: &impl Vmcs02) {
            $( vmcs12.$field = vmcs02.$read($encoding); )*
        }

        $(#[$pmeta])*
        #[inline]
        pub const fn $contains(encoding: u32) -> bool {
            matches!(encoding, $( $encoding )|*)
        }
    };
}

saved_fields! {
    /// Saves what L1 rarely reads.
    fn save_rare,
    /// Returns whether [`save_rare()`] saves a field: it has to, before L1 reads it.
    ///
    /// CS and SS access rights are not: they say mode and privilege of L2, and are always saved.
    fn is_rare {
        guest_es_selector = 0x0800: read16,
        guest_cs_selector = 0x0802: read16,
        guest_ss_selector = 0x0804: read16,
        guest_ds_selector = 0x0806: read16,
        guest_fs_selector = 0x0808: read16,
        guest_gs_selector = 0x080a: read16,
        guest_ldtr_selector = 0x080c: read16,
        guest_tr_selector = 0x080e: read16,
        guest_es_limit = 0x4800: read32,
        guest_cs_limit = 0x4802: read32,
        guest_ss_limit = 0x4804: read32,
        guest_ds_limit = 0x4806: read32,
        guest_fs_limit = 0x4808: read32,
        guest_gs_limit = 0x480a: read32,
        guest_ldtr_limit = 0x480c: read32,
        guest_tr_limit = 0x480e: read32,
        guest_gdtr_limit = 0x4810: read32,
        guest_idtr_limit = 0x4812: read32,
        guest_es_ar_bytes = 0x4814: read32,
        guest_ds_ar_bytes = 0x481a: read32,
        guest_fs_ar_bytes = 0x481c: read32,
        guest_gs_ar_bytes = 0x481e: read32,
        guest_ldtr_ar_bytes = 0x4820: read32,
        guest_tr_ar_bytes = 0x4822: read32,
        guest_es_base = 0x6806: read_natural,
        guest_cs_base = 0x6808: read_natural,
        guest_ss_base = 0x680a: read_natural,
        guest_ds_base = 0x680c: read_natural,
        guest_fs_base = 0x680e: read_natural,
        guest_gs_base = 0x6810: read_natural,
        guest_ldtr_base = 0x6812: read_natural,
        guest_tr_base = 0x6814: read_natural,
        guest_gdtr_base = 0x6816: read_natural,
        guest_idtr_base = 0x6818: read_natural,
        guest_pending_dbg_exceptions = 0x6822: read_natural,
    }
}

saved_fields! {
    /// Saves what is always saved as vmcs02 has it.
    fn save_verbatim,
    /// Returns whether a field is always saved as vmcs02 has it.
    fn is_verbatim {
        guest_cs_ar_bytes = 0x4816: read32,
        guest_ss_ar_bytes = 0x4818: read32,
        guest_interruptibility_info = 0x4824: read32,
        guest_cr3 = 0x6802: read_natural,
        guest_rflags = 0x6820: read_natural,
    }
}

saved_fields! {
    /// Saves the PDPTEs.
    fn save_pdptes,
    /// Returns whether a field is a PDPTE.
    fn is_pdpte {
        guest_pdptr0 = 0x280a: read64,
        guest_pdptr1 = 0x280c: read64,
        guest_pdptr2 = 0x280e: read64,
        guest_pdptr3 = 0x2810: read64,
    }
}

saved_fields! {
    /// Saves the shadow-stack pointers.
    fn save_shadow_stack,
    /// Returns whether a field is a shadow-stack pointer.
    fn is_shadow_stack {
        guest_ssp = 0x682a: read_natural,
        guest_ssp_tbl = 0x682c: read_natural,
    }
}

/// A vmcs02 for tests.
#[cfg(any(test, CONFIG_KUNIT))]
pub(super) mod fake {
    use super::Vmcs02;
    use core::cell::Cell;

    /// A vmcs02 whose fields hold their own encodings, and that counts reads.
    pub(in super::super) struct Encodings(Cell<usize>);

    impl Encodings {
        pub(in super::super) fn new() -> Self {
            Self(Cell::new(0))
        }

        pub(in super::super) fn reads(&self) -> usize {
            self.0.get()
        }

        fn read(&self, encoding: u32, width: u32) -> u64 {
            assert_eq!(encoding >> 13 & 3, width);
            self.0.set(self.0.get() + 1);
            u64::from(encoding)
        }
    }

    impl Vmcs02 for Encodings {
        fn read16(&self, encoding: u32) -> u16 {
            self.read(encoding, 0) as u16
        }

        fn read32(&self, encoding: u32) -> u32 {
            self.read(encoding, 2) as u32
        }

        fn read64(&self, encoding: u32) -> u64 {
            self.read(encoding, 1)
        }

        fn read_natural(&self, encoding: u32) -> u64 {
            self.read(encoding, 3)
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_saved_fields))]
mod tests {
    use super::{fake::Encodings, *};

    #[test]
    fn rare_fields_are_saved_when_they_are_asked_for() {
        let vmcs02 = Encodings::new();
        let mut vmcs12 = Vmcs12::default();

        save_rare(&mut vmcs12, &vmcs02);
        assert_eq!(vmcs02.reads(), 35);
        assert_eq!(
            (0..0x8000).filter(|&encoding| is_rare(encoding)).count(),
            35
        );
        assert_eq!(vmcs12.guest_tr_selector, 0x080e);
        assert_eq!(vmcs12.guest_idtr_limit, 0x4812);
        assert_eq!(vmcs12.guest_tr_ar_bytes, 0x4822);
        assert_eq!(vmcs12.guest_idtr_base, 0x6818);
        assert_eq!(vmcs12.guest_cs_ar_bytes, 0);
    }

    #[test]
    fn no_field_is_in_two_groups() {
        for encoding in 0..0x8000 {
            let groups = usize::from(is_rare(encoding))
                + usize::from(is_verbatim(encoding))
                + usize::from(is_pdpte(encoding))
                + usize::from(is_shadow_stack(encoding));

            assert!(groups <= 1);
        }
    }
}
