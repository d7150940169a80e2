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
/// Whoever loads entries from memory reads them again, and checks by [`check_pdptes()`] what it read.
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
