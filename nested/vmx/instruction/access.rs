// SPDX-License-Identifier: GPL-2.0

//! VMREAD and VMWRITE.

use super::{InstructionError, Refusal};
use crate::{
    address::Gpa,
    vmx::{
        field::{Component, Field, FieldSet},
        Vmcs12,
    },
};

/// Who accesses a VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accessor {
    /// L1, which accesses its current VMCS.
    L1 {
        /// The current VMCS.
        current: Option<Gpa>,
    },
    /// L2, to which L1 gives a shadow VMCS.
    L2 {
        /// The VMCS to which the VMCS link pointer points: see [`link_pointer()`].
        shadow: Option<Gpa>,
    },
}

impl Accessor {
    /// Returns the VMCS that is accessed. Without one, an access fails.
    pub fn target(self) -> Result<Gpa, Refusal> {
        match self {
            Self::L1 { current: vmcs } | Self::L2 { shadow: vmcs } => {
                vmcs.ok_or(Refusal::FailInvalid)
            }
        }
    }
}

/// Returns the shadow VMCS that L1 gives to L2.
///
/// If all bits of the link pointer are 1, there is none.
pub fn link_pointer(vmcs12: &Vmcs12) -> Option<Gpa> {
    match vmcs12.vmcs_link_pointer {
        u64::MAX => None,
        pointer => Some(Gpa::from_raw(pointer)),
    }
}

/// What VMWRITE does to VM-exit information fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitInformation {
    /// It fails.
    ReadOnly,
    /// It writes them.
    Writable,
}

impl ExitInformation {
    /// Takes `IA32_VMX_MISC` for what it says (SDM, "Miscellaneous Data").
    pub const fn from_misc(misc: u64) -> Self {
        if misc >> 29 & 1 != 0 {
            Self::Writable
        } else {
            Self::ReadOnly
        }
    }
}

/// Checks the encoding that VMREAD takes.
///
/// The field may have to be fetched from vmcs02 before it is read: see [`Field::exit()`].
#[inline]
pub fn check_vmread(encoding: u64, fields: &FieldSet) -> Result<Component, Refusal> {
    fields
        .component(encoding)
        .ok_or(Refusal::Fail(InstructionError::UNSUPPORTED_VMCS_COMPONENT))
}

/// Checks the encoding that VMWRITE takes.
#[inline]
pub fn check_vmwrite(
    encoding: u64,
    fields: &FieldSet,
    exit_information: ExitInformation,
) -> Result<Component, Refusal> {
    let component = check_vmread(encoding, fields)?;

    match exit_information {
        ExitInformation::ReadOnly if component.field().is_read_only() => Err(Refusal::Fail(
            InstructionError::VMWRITE_READ_ONLY_VMCS_COMPONENT,
        )),
        ExitInformation::ReadOnly | ExitInformation::Writable => Ok(component),
    }
}

/// Reads what VMREAD asks for.
#[inline]
pub fn vmread(vmcs12: &Vmcs12, encoding: u64, fields: &FieldSet) -> Result<u64, Refusal> {
    check_vmread(encoding, fields).map(|component| component.read(vmcs12))
}

/// Writes what VMWRITE asks for, and returns the field that it has written.
#[inline]
pub fn vmwrite(
    vmcs12: &mut Vmcs12,
    encoding: u64,
    value: u64,
    fields: &FieldSet,
    exit_information: ExitInformation,
) -> Result<Field, Refusal> {
    let component = check_vmwrite(encoding, fields, exit_information)?;

    component.write(vmcs12, value);
    Ok(component.field())
}

/// The place of an encoding in the VMREAD or the VMWRITE bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapPosition {
    /// The byte of the page.
    pub byte: u64,
    /// The bit of the byte.
    pub mask: u8,
}

impl BitmapPosition {
    /// Finds the place of an encoding. One that has none always exits to L1.
    pub const fn of(encoding: u64) -> Option<Self> {
        if encoding >> 15 != 0 {
            return None;
        }
        Some(Self {
            byte: encoding >> 3,
            mask: 1 << (encoding & 7),
        })
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_access)
)]
mod tests {
    use super::*;
    use crate::vmx::field::{Allowed, CLEAR};

    const NOTHING: Allowed = Allowed {
        pin: 0,
        primary: 0,
        secondary: 0,
        entry: 0,
    };
    const UNSUPPORTED: Refusal = Refusal::Fail(InstructionError::UNSUPPORTED_VMCS_COMPONENT);
    const READ_ONLY: Refusal = Refusal::Fail(InstructionError::VMWRITE_READ_ONLY_VMCS_COMPONENT);

    fn encoding(field: Field) -> u64 {
        u64::from(field.encoding())
    }

    #[test]
    fn without_a_vmcs_an_access_fails() {
        let vmcs = Gpa::from_raw(0x1000);
        let none = Err(Refusal::FailInvalid);

        assert_eq!(Accessor::L1 { current: None }.target(), none);
        assert_eq!(Accessor::L2 { shadow: None }.target(), none);
        assert_eq!(
            Accessor::L1 {
                current: Some(vmcs)
            }
            .target(),
            Ok(vmcs)
        );
        assert_eq!(Accessor::L2 { shadow: Some(vmcs) }.target(), Ok(vmcs));
    }

    #[test]
    fn a_link_pointer_of_ones_is_none() {
        let mut vmcs12 = CLEAR;

        vmcs12.vmcs_link_pointer = u64::MAX;
        assert_eq!(link_pointer(&vmcs12), None);
        vmcs12.vmcs_link_pointer = 0x1000;
        assert_eq!(link_pointer(&vmcs12), Some(Gpa::from_raw(0x1000)));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut vmcs12 = CLEAR;
        let fields = FieldSet::of_l1(&NOTHING);
        let rip = encoding(Field::GUEST_RIP);
        let policy = ExitInformation::ReadOnly;

        let written = vmwrite(&mut vmcs12, rip, 0xffff_8000_0000_1000, &fields, policy);
        assert_eq!(written, Ok(Field::GUEST_RIP));
        assert_eq!(vmread(&vmcs12, rip, &fields), Ok(0xffff_8000_0000_1000));
    }

    #[test]
    fn what_is_not_there_is_neither_read_nor_written() {
        let mut vmcs12 = CLEAR;
        let fields = FieldSet::of_l1(&NOTHING);
        let policy = ExitInformation::Writable;

        for encoding in [
            // Without its control, a field does not exist.
            encoding(Field::EPT_POINTER),
            encoding(Field::EPT_POINTER) | 1,
            // VIRTUAL_PROCESSOR_ID has no high bits. 0xa is no field. Others have reserved bits.
            encoding(Field::GUEST_ES_SELECTOR) | 1,
            0xa,
            encoding(Field::GUEST_RIP) | 1 << 12,
            encoding(Field::GUEST_RIP) | 1 << 15,
            encoding(Field::GUEST_RIP) | 1 << 32,
            u64::MAX,
        ] {
            let written = vmwrite(&mut vmcs12, encoding, u64::MAX, &fields, policy);

            assert_eq!(written, Err(UNSUPPORTED));
            assert_eq!(vmread(&vmcs12, encoding, &fields), Err(UNSUPPORTED));
        }
        assert!(vmcs12 == CLEAR);
    }

    #[test]
    fn exit_information_is_writable_if_misc_says_so() {
        let fields = FieldSet::of_l1(&NOTHING);
        let policy = ExitInformation::from_misc(!(1 << 29));
        let relaxed = ExitInformation::from_misc(1 << 29);

        for field in fields.iter() {
            let mut vmcs12 = CLEAR;
            let encoding = encoding(field);
            let expected = if field.is_read_only() {
                Err(READ_ONLY)
            } else {
                Ok(field)
            };

            assert_eq!(vmwrite(&mut vmcs12, encoding, 1, &fields, policy), expected);
            assert_eq!(field.read(&vmcs12) == 0, field.is_read_only());

            assert_eq!(
                vmwrite(&mut vmcs12, encoding, 1, &fields, relaxed),
                Ok(field)
            );
            assert_eq!(vmread(&vmcs12, encoding, &fields), Ok(1));
        }
    }

    #[test]
    fn a_field_that_is_not_there_is_not_read_only() {
        let fields = FieldSet::of_l1(&NOTHING);
        // Of the area of exit information.
        let result = check_vmwrite(0x447e, &fields, ExitInformation::ReadOnly);

        assert_eq!(result, Err(UNSUPPORTED));
    }

    #[test]
    fn bitmaps_have_places_for_15_bits() {
        let position = |byte, mask| Some(BitmapPosition { byte, mask });

        assert_eq!(BitmapPosition::of(0), position(0, 1));
        assert_eq!(BitmapPosition::of(0x681e), position(0xd03, 1 << 6));
        assert_eq!(BitmapPosition::of(0x7fff), position(0xfff, 1 << 7));
        assert_eq!(BitmapPosition::of(0x8000), None);
        assert_eq!(BitmapPosition::of(1 << 32), None);
    }
}
