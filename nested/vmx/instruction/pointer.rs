// SPDX-License-Identifier: GPL-2.0

//! The pointers that VMXON, VMCLEAR and VMPTRLD take, and the regions that they point to.

use super::{InstructionError, Refusal};
use crate::{
    address::Gpa,
    memory::GuestMemory,
    vmx::vmcs12::{REVISION, SHADOW_INDICATOR},
};

/// What a pointer is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The width of L1's physical addresses.
    pub physical_address_width: u32,
    /// The VMXON region, which is not for VMCLEAR and VMPTRLD.
    pub vmxon_region: Gpa,
}

/// Whether L1 may make a VMCS a shadow VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowVmcs {
    /// It may: "VMCS shadowing" is there.
    Supported,
    /// It may not.
    Unsupported,
}

/// Checks the pointer that VMXON takes.
pub fn check_vmxon(pointer: Gpa, physical_address_width: u32) -> Result<(), Refusal> {
    if pointer.is_legal_page(physical_address_width) {
        Ok(())
    } else {
        Err(Refusal::FailInvalid)
    }
}

/// Checks the region that VMXON takes, which it reads.
///
/// A VMXON region is never a shadow VMCS: all 32 bits are compared.
pub fn check_vmxon_region<M: GuestMemory>(memory: &M, pointer: Gpa) -> Result<(), Refusal> {
    if read_revision(memory, pointer) == REVISION {
        Ok(())
    } else {
        Err(Refusal::FailInvalid)
    }
}

/// Checks the pointer that VMCLEAR takes.
pub fn check_vmclear(pointer: Gpa, limits: &Limits) -> Result<(), Refusal> {
    check(
        pointer,
        limits,
        InstructionError::VMCLEAR_INVALID_ADDRESS,
        InstructionError::VMCLEAR_VMXON_POINTER,
    )
}

/// Checks the pointer that VMPTRLD takes.
pub fn check_vmptrld(pointer: Gpa, limits: &Limits) -> Result<(), Refusal> {
    check(
        pointer,
        limits,
        InstructionError::VMPTRLD_INVALID_ADDRESS,
        InstructionError::VMPTRLD_VMXON_POINTER,
    )
}

/// Checks the first word of the VMCS that VMPTRLD takes: [`read_revision()`], or the first word of
/// a snapshot.
pub fn check_vmptrld_revision(word: u32, shadow: ShadowVmcs) -> Result<(), Refusal> {
    let revision = match shadow {
        ShadowVmcs::Supported => word & !SHADOW_INDICATOR,
        ShadowVmcs::Unsupported => word,
    };
    if revision == REVISION {
        Ok(())
    } else {
        Err(Refusal::Fail(
            InstructionError::VMPTRLD_INCORRECT_VMCS_REVISION_ID,
        ))
    }
}

/// Reads the first word of a region: the revision, and the indicator of a shadow VMCS.
///
/// Where there is no memory all bits are 1, as on a bus that nobody answers on.
pub fn read_revision<M: GuestMemory>(memory: &M, pointer: Gpa) -> u32 {
    let mut word = [0; 4];

    match memory.read(pointer, &mut word) {
        Ok(()) => u32::from_le_bytes(word),
        Err(_) => u32::MAX,
    }
}

fn check(
    pointer: Gpa,
    limits: &Limits,
    invalid_address: InstructionError,
    vmxon_pointer: InstructionError,
) -> Result<(), Refusal> {
    if !pointer.is_legal_page(limits.physical_address_width) {
        Err(Refusal::Fail(invalid_address))
    } else if pointer == limits.vmxon_region {
        Err(Refusal::Fail(vmxon_pointer))
    } else {
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_pointer)
)]
mod tests {
    use super::*;
    use crate::memory::Inaccessible;

    const WIDTH: u32 = 40;
    const GOOD: Gpa = Gpa::from_raw(0x12_3456_7000);
    const UNALIGNED: Gpa = Gpa::from_raw(0x12_3456_7800);
    const TOO_WIDE: Gpa = Gpa::from_raw(1 << WIDTH);
    const VMXON_REGION: Gpa = Gpa::from_raw(0x1000);
    const LIMITS: Limits = Limits {
        physical_address_width: WIDTH,
        vmxon_region: VMXON_REGION,
    };

    /// One page of memory at [`GOOD`], which begins with a word.
    struct Page(u32);

    impl GuestMemory for Page {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            if gpa != GOOD || bytes.len() != 4 {
                return Err(Inaccessible);
            }
            bytes.copy_from_slice(&self.0.to_le_bytes());
            Ok(())
        }

        fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    #[test]
    fn vmxon_takes_an_aligned_address_within_the_width() {
        assert_eq!(check_vmxon(GOOD, WIDTH), Ok(()));
        assert_eq!(check_vmxon(UNALIGNED, WIDTH), Err(Refusal::FailInvalid));
        assert_eq!(check_vmxon(TOO_WIDE, WIDTH), Err(Refusal::FailInvalid));
    }

    #[test]
    fn vmxon_takes_a_region_with_the_revision() {
        assert_eq!(check_vmxon_region(&Page(REVISION), GOOD), Ok(()));

        for bit in 0..32 {
            let page = Page(REVISION ^ 1 << bit);

            assert_eq!(check_vmxon_region(&page, GOOD), Err(Refusal::FailInvalid));
        }
        let nowhere = check_vmxon_region(&Page(REVISION), VMXON_REGION);
        assert_eq!(nowhere, Err(Refusal::FailInvalid));
    }

    #[test]
    fn vmclear_and_vmptrld_say_what_is_wrong_with_a_pointer() {
        for (pointer, vmclear, vmptrld) in [
            (
                UNALIGNED,
                InstructionError::VMCLEAR_INVALID_ADDRESS,
                InstructionError::VMPTRLD_INVALID_ADDRESS,
            ),
            (
                TOO_WIDE,
                InstructionError::VMCLEAR_INVALID_ADDRESS,
                InstructionError::VMPTRLD_INVALID_ADDRESS,
            ),
            (
                VMXON_REGION,
                InstructionError::VMCLEAR_VMXON_POINTER,
                InstructionError::VMPTRLD_VMXON_POINTER,
            ),
        ] {
            assert_eq!(check_vmclear(pointer, &LIMITS), Err(Refusal::Fail(vmclear)));
            assert_eq!(check_vmptrld(pointer, &LIMITS), Err(Refusal::Fail(vmptrld)));
        }
        assert_eq!(check_vmclear(GOOD, &LIMITS), Ok(()));
        assert_eq!(check_vmptrld(GOOD, &LIMITS), Ok(()));
    }

    #[test]
    fn vmptrld_takes_a_shadow_vmcs_if_there_are_any() {
        let wrong = Refusal::Fail(InstructionError::VMPTRLD_INCORRECT_VMCS_REVISION_ID);
        let shadow = 1 << 31 | REVISION;

        for (word, supported, unsupported) in [
            (REVISION, Ok(()), Ok(())),
            (shadow, Ok(()), Err(wrong)),
            (REVISION + 1, Err(wrong), Err(wrong)),
            (shadow + 1, Err(wrong), Err(wrong)),
            (0, Err(wrong), Err(wrong)),
        ] {
            assert_eq!(
                check_vmptrld_revision(word, ShadowVmcs::Supported),
                supported
            );
            assert_eq!(
                check_vmptrld_revision(word, ShadowVmcs::Unsupported),
                unsupported
            );
        }
    }

    #[test]
    fn where_there_is_no_memory_there_is_no_vmcs() {
        let word = read_revision(&Page(REVISION), VMXON_REGION);

        assert_eq!(word, u32::MAX);
        assert!(check_vmptrld_revision(word, ShadowVmcs::Supported).is_err());
    }
}
