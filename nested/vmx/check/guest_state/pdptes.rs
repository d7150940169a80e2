// SPDX-License-Identifier: GPL-2.0

//! Checks on the page-directory-pointer-table entries of L2.

use crate::{
    address::Gpa,
    memory::GuestMemory,
    vmx::{
        check::{beyond, Processor, CR0_PG, CR4_PAE},
        Vmcs12,
    },
};

/// Whether the entry is used.
const PRESENT: u64 = 1 << 0;
/// Reserved bits of an entry, below the address: 2:1 and 8:5.
const RESERVED: u64 = 0x1e6;
/// The address of the table, in CR3.
const TABLE: u64 = 0xffff_ffe0;

/// Returns whether L2 uses PAE paging.
#[inline]
const fn is_pae_paging(vmcs12: &Vmcs12) -> bool {
    !vmcs12.entry().ia32e_mode_guest()
        && vmcs12.guest_cr0 & CR0_PG != 0
        && vmcs12.guest_cr4 & CR4_PAE != 0
}

/// Returns whether an entry is used and has reserved bits.
#[inline]
fn has_reserved(pdpte: u64, processor: &Processor<'_>) -> bool {
    pdpte & PRESENT != 0 && pdpte & (RESERVED | beyond(processor.physical_address_width)) != 0
}

consistency_checks! {
    /// Makes the checks on page-directory-pointer-table entries (SDM, "Checks on Guest
    /// Page-Directory-Pointer-Table Entries"), which are `None` if they cannot be read.
    pub fn check_pdptes(
        pdptes: Option<[u64; 4]>,
        processor: &Processor<'_>,
    ) -> Result<(), PdpteCheck> {
        /// The table is memory.
        Inaccessible: pdptes.is_none(),
        /// Entry 0 has no bit that is reserved.
        Pdpte0: matches!(pdptes, Some([pdpte, _, _, _]) if has_reserved(pdpte, processor)),
        /// Entry 1 has no bit that is reserved.
        Pdpte1: matches!(pdptes, Some([_, pdpte, _, _]) if has_reserved(pdpte, processor)),
        /// Entry 2 has no bit that is reserved.
        Pdpte2: matches!(pdptes, Some([_, _, pdpte, _]) if has_reserved(pdpte, processor)),
        /// Entry 3 has no bit that is reserved.
        Pdpte3: matches!(pdptes, Some([_, _, _, pdpte]) if has_reserved(pdpte, processor)),
    }
}

/// Makes the checks on the entries, if L2 uses PAE paging: with EPT on those in the VMCS, otherwise
/// on those in memory, since addresses of L2 are addresses of L1 then.
///
/// Whoever loads entries from memory reads them again, and checks what it read by
/// [`check_pdptes()`].
#[inline]
pub fn check_guest_pdptes<M: GuestMemory>(
    vmcs12: &Vmcs12,
    processor: &Processor<'_>,
    memory: &M,
) -> Result<(), PdpteCheck> {
    if !is_pae_paging(vmcs12) {
        return Ok(());
    }
    if vmcs12.secondary().ept() {
        let pdptes = [
            vmcs12.guest_pdptr0,
            vmcs12.guest_pdptr1,
            vmcs12.guest_pdptr2,
            vmcs12.guest_pdptr3,
        ];
        check_pdptes(Some(pdptes), processor)
    } else {
        check_pdptes(read(vmcs12.guest_cr3, memory), processor)
    }
}

/// Reads the table that `cr3` refers to.
fn read<M: GuestMemory>(cr3: u64, memory: &M) -> Option<[u64; 4]> {
    let mut bytes = [0; 32];
    let mut pdptes = [0; 4];

    memory.read(Gpa::from_raw(cr3 & TABLE), &mut bytes).ok()?;
    for (pdpte, bytes) in pdptes.iter_mut().zip(bytes.chunks_exact(8)) {
        *pdpte = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some(pdptes)
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_pdptes))]
mod tests {
    use super::*;
    use crate::vmx::check::{
        valid::{Case, TOO_WIDE},
        Failure, GuestStateCheck,
    };

    fn failure(check: PdpteCheck) -> Option<Failure> {
        Some(Failure::GuestState(GuestStateCheck::Pdpte(check)))
    }

    /// Returns L2 with PAE paging, the table of which is in memory, if it is without EPT.
    fn case() -> Case {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.vmcs12.guest_cr3 = 0x1_1020;
        case
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        use PdpteCheck as Check;

        for &check in PdpteCheck::ALL {
            let mut case = case();
            let bad = PRESENT | 1 << 5;

            match check {
                Check::Inaccessible => {
                    case.without_ept();
                    case.vmcs12.guest_cr3 = 1 << 30;
                }
                Check::Pdpte0 => case.vmcs12.guest_pdptr0 = bad,
                Check::Pdpte1 => case.vmcs12.guest_pdptr1 = bad,
                Check::Pdpte2 => case.vmcs12.guest_pdptr2 = bad,
                Check::Pdpte3 => case.vmcs12.guest_pdptr3 = bad,
            }
            assert_eq!(case.failure(), failure(check));
        }
    }

    #[test]
    fn each_reserved_bit_is_checked() {
        for bit in 0..64 {
            let mut case = case();
            let reserved = matches!(bit, 1 | 2 | 5..=8) || 1 << bit >= TOO_WIDE;

            case.vmcs12.guest_pdptr2 = PRESENT | 1 << bit;
            assert_eq!(case.failure().is_some(), reserved);

            // An entry that is not used may be anything.
            case.vmcs12.guest_pdptr2 &= !PRESENT;
            assert_eq!(case.failure(), None);
        }
    }

    #[test]
    fn without_ept_the_entries_are_in_memory() {
        let mut case = case();

        case.without_ept();
        case.vmcs12.guest_pdptr0 = u64::MAX;
        assert_eq!(case.failure(), None);

        case.memory.words[1] = (0x1_1038, PRESENT | 1 << 1);
        assert_eq!(case.failure(), failure(PdpteCheck::Pdpte3));
    }

    #[test]
    fn other_paging_modes_have_no_such_entries() {
        let mut case = Case::new();

        case.vmcs12.guest_pdptr0 = u64::MAX;
        assert_eq!(case.failure(), None);

        case.make_l2_32bit();
        case.vmcs12.guest_cr4 &= !CR4_PAE;
        assert_eq!(case.failure(), None);
    }
}
