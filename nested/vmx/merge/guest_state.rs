// SPDX-License-Identifier: GPL-2.0

//! The guest state that an entry loads if L1 has changed it: otherwise vmcs02 has it still.

use crate::vmx::{field::Field, Vmcs12};

/// vmcs02, as far as it is written here. A field that is written exists on the processor.
pub trait Vmcs02 {
    /// Writes a field, with as many low bits of `value` as it has.
    fn write(&mut self, field: Field, value: u64);
}

/// Declares fields of the guest-state area that are loaded together.
macro_rules! loaded_fields {
    ($(#[$meta:meta])* fn $load:ident { $( $field:ident, )* }) => {
        $(#[$meta])*
        pub fn $load(vmcs12: &Vmcs12, vmcs02: &mut impl Vmcs02) {
            $( vmcs02.write(Field::$field, Field::$field.read(vmcs12)); )*
        }
    };
}

loaded_fields! {
    /// Loads the segment registers, and the registers of the descriptor tables.
    fn load_segments {
        GUEST_ES_SELECTOR,
        GUEST_CS_SELECTOR,
        GUEST_SS_SELECTOR,
        GUEST_DS_SELECTOR,
        GUEST_FS_SELECTOR,
        GUEST_GS_SELECTOR,
        GUEST_LDTR_SELECTOR,
        GUEST_TR_SELECTOR,
        GUEST_ES_LIMIT,
        GUEST_CS_LIMIT,
        GUEST_SS_LIMIT,
        GUEST_DS_LIMIT,
        GUEST_FS_LIMIT,
        GUEST_GS_LIMIT,
        GUEST_LDTR_LIMIT,
        GUEST_TR_LIMIT,
        GUEST_GDTR_LIMIT,
        GUEST_IDTR_LIMIT,
        GUEST_ES_AR_BYTES,
        GUEST_CS_AR_BYTES,
        GUEST_SS_AR_BYTES,
        GUEST_DS_AR_BYTES,
        GUEST_FS_AR_BYTES,
        GUEST_GS_AR_BYTES,
        GUEST_LDTR_AR_BYTES,
        GUEST_TR_AR_BYTES,
        GUEST_ES_BASE,
        GUEST_CS_BASE,
        GUEST_SS_BASE,
        GUEST_DS_BASE,
        GUEST_FS_BASE,
        GUEST_GS_BASE,
        GUEST_LDTR_BASE,
        GUEST_TR_BASE,
        GUEST_GDTR_BASE,
        GUEST_IDTR_BASE,
    }
}

loaded_fields! {
    /// Loads what else L1 rarely writes.
    fn load_rare {
        GUEST_SYSENTER_CS,
        GUEST_PENDING_DBG_EXCEPTIONS,
        GUEST_SYSENTER_ESP,
        GUEST_SYSENTER_EIP,
    }
}

loaded_fields! {
    /// Loads the PDPTEs.
    fn load_pdptes {
        GUEST_PDPTR0,
        GUEST_PDPTR1,
        GUEST_PDPTR2,
        GUEST_PDPTR3,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_merge_guest_state)
)]
mod tests {
    use super::*;
    use crate::vmx::{exit::guest_state::is_rare, field::Kind};

    /// A vmcs02 that checks what is written, and counts it.
    struct Fields<'a> {
        vmcs12: &'a Vmcs12,
        written: usize,
        rare: usize,
    }

    impl Vmcs02 for Fields<'_> {
        fn write(&mut self, field: Field, value: u64) {
            assert_eq!(value, field.read(self.vmcs12));
            assert_eq!(field.kind(), Kind::GuestState);
            self.written += 1;
            self.rare += usize::from(is_rare(u32::from(field.encoding())));
        }
    }

    fn load(load: impl FnOnce(&Vmcs12, &mut Fields<'_>)) -> (usize, usize) {
        let mut vmcs12 = Vmcs12::default();
        for &field in Field::ALL {
            field.write(&mut vmcs12, u64::from(field.encoding()));
        }
        let mut fields = Fields {
            vmcs12: &vmcs12,
            written: 0,
            rare: 0,
        };

        load(&vmcs12, &mut fields);
        (fields.written, fields.rare)
    }

    #[test]
    fn each_segment_register_has_four_fields_and_each_table_two() {
        // The access rights of CS and SS are saved with each exit.
        assert_eq!(load(|from, to| load_segments(from, to)), (36, 34));
    }

    #[test]
    fn the_rest_is_loaded() {
        assert_eq!(load(|from, to| load_rare(from, to)), (4, 1));
        assert_eq!(load(|from, to| load_pdptes(from, to)), (4, 0));
    }
}
