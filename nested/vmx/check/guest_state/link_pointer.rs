// SPDX-License-Identifier: GPL-2.0

//! Checks on the VMCS link pointer.

use crate::{
    address::Gpa,
    memory::GuestMemory,
    vmx::{
        check::Processor,
        vmcs12::{REVISION, SHADOW_INDICATOR},
        Vmcs12,
    },
};

/// The pointer to no VMCS.
const NONE: u64 = u64::MAX;

/// Makes the checks on the VMCS link pointer, if there is one (SDM, "Checks on Guest Non-Register
/// State").
///
/// `current` is the VMCS itself, if it is in memory of L1.
#[inline]
pub fn check_link_pointer<M: GuestMemory>(
    vmcs12: &Vmcs12,
    current: Option<Gpa>,
    processor: &Processor<'_>,
    memory: &M,
) -> Result<(), LinkPointerCheck> {
    if vmcs12.vmcs_link_pointer == NONE {
        return Ok(());
    }
    let pointer = Gpa::from_raw(vmcs12.vmcs_link_pointer);
    let mut bytes = [0; 4];
    let header = memory
        .read(pointer, &mut bytes)
        .ok()
        .map(|()| u32::from_le_bytes(bytes));

    check_region(vmcs12, pointer, header, current, processor)
}

consistency_checks! {
    /// Makes the checks on the region at `pointer`, the first word of which is `None` if it cannot
    /// be read.
    fn check_region(
        vmcs12: &Vmcs12,
        pointer: Gpa,
        header: Option<u32>,
        current: Option<Gpa>,
        processor: &Processor<'_>,
    ) -> Result<(), LinkPointerCheck> {
        /// The address is that of a page.
        Address: !pointer.is_legal_page(processor.physical_address_width),
        /// The address is not that of the VMCS itself.
        Current: current == Some(pointer),
        /// The region is memory.
        Inaccessible: header.is_none(),
        /// The revision is that of our layout.
        Revision: header.is_some_and(|header| header & !SHADOW_INDICATOR != REVISION),
        /// The region is a shadow VMCS if and only if VMCS shadowing is enabled.
        Shadow: header.is_some_and(|header| {
            (header & SHADOW_INDICATOR != 0) != vmcs12.secondary().vmcs_shadowing()
        }),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_check_link_pointer)
)]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{
            valid::{Case, CURRENT, LINKED, TOO_WIDE},
            Failure, GuestStateCheck,
        },
        controls::Secondary,
    };

    fn failure(check: LinkPointerCheck) -> Option<Failure> {
        Some(Failure::GuestState(GuestStateCheck::LinkPointer(check)))
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        use LinkPointerCheck as Check;

        for &check in LinkPointerCheck::ALL {
            let mut case = Case::new();
            let pointer = &mut case.vmcs12.vmcs_link_pointer;

            match check {
                Check::Address => *pointer |= 1 << 4,
                Check::Current => *pointer = CURRENT,
                Check::Inaccessible => *pointer = 1 << 30,
                Check::Revision => case.memory.words[0].1 ^= 1,
                Check::Shadow => case.memory.words[0].1 = u64::from(REVISION),
            }
            assert_eq!(case.failure(), failure(check));
        }
    }

    #[test]
    fn the_address_is_within_the_physical_addresses() {
        let mut case = Case::new();

        case.vmcs12.vmcs_link_pointer = LINKED | TOO_WIDE;
        assert_eq!(case.failure(), failure(LinkPointerCheck::Address));
    }

    #[test]
    fn there_may_be_no_linked_vmcs() {
        let mut case = Case::new();

        case.vmcs12.vmcs_link_pointer = NONE;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn without_shadowing_the_linked_vmcs_is_no_shadow() {
        let mut case = Case::new();

        case.clear(Secondary::SHADOW_VMCS);
        assert_eq!(case.failure(), failure(LinkPointerCheck::Shadow));
        case.memory.words[0].1 = u64::from(REVISION);
        assert_eq!(case.failure(), None);
    }
}
