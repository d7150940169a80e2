// SPDX-License-Identifier: GPL-2.0

//! CR0, CR4 and `IA32_EFER` of L2.
//!
//! A bit of CR0 or CR4 is owned by L2 if neither L0 nor L1 wants to see changes of it. L1 expects
//! the bits that it has in its guest/host mask to read as its read shadow. Bits that L0 alone owns
//! read as L2 last wrote them: the read shadow of vmcs02 holds them.

use crate::{
    checked::Checked,
    vmx::{bits::efer, Vmcs12},
};

/// What vmcs02 says of a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The bits whose changes exit.
    pub guest_host_mask: u64,
    /// What L2 reads in those bits.
    pub read_shadow: u64,
}

/// Returns a control register as L2 sees it, from the fields of vmcs12.
#[inline]
const fn effective(guest: u64, read_shadow: u64, guest_host_mask: u64) -> u64 {
    (guest & !guest_host_mask) | (read_shadow & guest_host_mask)
}

/// Returns the value of CR0 that L2 sees.
#[inline]
pub const fn effective_cr0(vmcs12: &Vmcs12) -> u64 {
    effective(
        vmcs12.guest_cr0,
        vmcs12.cr0_read_shadow,
        vmcs12.cr0_guest_host_mask,
    )
}

/// Returns the value of CR4 that L2 sees.
#[inline]
pub const fn effective_cr4(vmcs12: &Vmcs12) -> u64 {
    effective(
        vmcs12.guest_cr4,
        vmcs12.cr4_read_shadow,
        vmcs12.cr4_guest_host_mask,
    )
}

/// Merges the mask and the shadow of CR0, given the bits that L0 lets a guest own.
#[inline]
#[must_use]
pub fn merge_cr0(vmcs12: Checked<'_, Vmcs12>, l0_guest_owned: u64) -> Masked {
    Masked {
        guest_host_mask: !l0_guest_owned | vmcs12.cr0_guest_host_mask,
        read_shadow: effective_cr0(&vmcs12),
    }
}

/// Merges the mask and the shadow of CR4, given the bits that L0 lets a guest own.
#[inline]
#[must_use]
pub fn merge_cr4(vmcs12: Checked<'_, Vmcs12>, l0_guest_owned: u64) -> Masked {
    Masked {
        guest_host_mask: !l0_guest_owned | vmcs12.cr4_guest_host_mask,
        read_shadow: effective_cr4(&vmcs12),
    }
}

/// A control register of vmcs02 when L2 has exited.
#[derive(Clone, Copy, Debug)]
pub struct Exited {
    /// The register in the guest-state area of vmcs02.
    pub guest: u64,
    /// The mask and shadow of vmcs02.
    pub masked: Masked,
}

impl Exited {
    /// Returns the register as the guest-state area of vmcs12 has to have it.
    ///
    /// `l1_guest` and `l1_mask` are the register and its mask in vmcs12. What L2 owned is in the
    /// register; what L1 masked L2 cannot have changed; the rest L2 changed in the shadow.
    #[inline]
    #[must_use]
    pub const fn save(&self, l1_guest: u64, l1_mask: u64) -> u64 {
        let owned = !self.masked.guest_host_mask;

        (self.guest & owned) | (l1_guest & l1_mask) | (self.masked.read_shadow & !(l1_mask | owned))
    }
}

/// How L2's state comes to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// L1 enters L2: the VM-entry controls say what is loaded.
    Entry,
    /// L2 had been running, and goes on after SMM or a migration.
    Resumption,
}

/// Returns the `IA32_EFER` that L2 is entered with, given the one in use.
///
/// An L2 that goes on keeps what it has, which L1's field may no longer be. In either case the
/// bits for IA-32e mode follow from the VM-entry controls (SDM, "Loading Guest Control Registers,
/// Debug Registers, and MSRs").
#[inline]
#[must_use]
pub fn entry_efer(vmcs12: Checked<'_, Vmcs12>, load: Load, current: u64) -> u64 {
    const LONG_MODE: u64 = efer::LME | efer::LMA;

    if load == Load::Entry && vmcs12.entry().load_efer() {
        vmcs12.guest_ia32_efer
    } else if vmcs12.entry().ia32e_mode_guest() {
        current | LONG_MODE
    } else {
        current & !LONG_MODE
    }
}

/// Returns the `IA32_PAT` that L2 is entered with, given the one in use.
#[inline]
#[must_use]
pub fn entry_pat(vmcs12: Checked<'_, Vmcs12>, load: Load, current: u64) -> u64 {
    if load == Load::Entry && vmcs12.entry().load_pat() {
        vmcs12.guest_ia32_pat
    } else {
        current
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_registers))]
mod tests {
    use super::*;
    use crate::vmx::controls::Entry;

    /// One bit in all combinations of who owns it and what it is.
    fn for_each_combination(mut check: impl FnMut(Vmcs12, u64)) {
        for bits in 0..16 {
            let bit = |n: u32| (bits >> n) & 1;
            let vmcs12 = Vmcs12 {
                guest_cr0: bit(0),
                cr0_read_shadow: bit(1),
                cr0_guest_host_mask: bit(2),
                guest_cr4: bit(0),
                cr4_read_shadow: bit(1),
                cr4_guest_host_mask: bit(2),
                ..Vmcs12::default()
            };

            check(vmcs12, bit(3));
        }
    }

    #[test]
    fn a_masked_bit_reads_as_the_shadow_and_another_as_the_register() {
        for_each_combination(|vmcs12, _| {
            let expected = if vmcs12.cr0_guest_host_mask == 1 {
                vmcs12.cr0_read_shadow
            } else {
                vmcs12.guest_cr0
            };

            assert_eq!(effective_cr0(&vmcs12), expected);
            assert_eq!(effective_cr4(&vmcs12), expected);
        });
    }

    #[test]
    fn a_bit_is_owned_by_l2_if_both_agree() {
        for_each_combination(|vmcs12, l0_guest_owned| {
            let owned = l0_guest_owned == 1 && vmcs12.cr0_guest_host_mask == 0;
            let cr0 = merge_cr0(Checked::vouch(&vmcs12), l0_guest_owned);
            let cr4 = merge_cr4(Checked::vouch(&vmcs12), l0_guest_owned);

            assert_eq!(cr0.guest_host_mask & 1 == 0, owned);
            // Bits that nobody mentions are not L2's.
            assert_eq!(cr0.guest_host_mask & !1, !1);
            assert_eq!(cr0.read_shadow, effective_cr0(&vmcs12));
            assert_eq!(cr4, cr0);
        });
    }

    #[test]
    fn an_l2_that_changed_nothing_leaves_vmcs12_as_it_was() {
        for_each_combination(|vmcs12, l0_guest_owned| {
            let exited = Exited {
                guest: vmcs12.guest_cr0,
                masked: merge_cr0(Checked::vouch(&vmcs12), l0_guest_owned),
            };

            assert_eq!(
                exited.save(vmcs12.guest_cr0, vmcs12.cr0_guest_host_mask),
                vmcs12.guest_cr0
            );
        });
    }

    #[test]
    fn changes_of_l2_are_saved_from_where_they_went() {
        for_each_combination(|vmcs12, l0_guest_owned| {
            let mut exited = Exited {
                guest: vmcs12.guest_cr0,
                masked: merge_cr0(Checked::vouch(&vmcs12), l0_guest_owned),
            };
            let masked_by_l1 = vmcs12.cr0_guest_host_mask == 1;

            // L2 flips the bit: the processor does it, or L0 where L1 does not mind.
            if exited.masked.guest_host_mask & 1 == 0 {
                exited.guest ^= 1;
            } else if !masked_by_l1 {
                exited.masked.read_shadow ^= 1;
            }

            assert_eq!(
                exited.save(vmcs12.guest_cr0, vmcs12.cr0_guest_host_mask),
                vmcs12.guest_cr0 ^ u64::from(!masked_by_l1)
            );
        });
    }

    #[test]
    fn efer_is_loaded_on_entry_and_kept_on_resumption() {
        const LOAD: u32 = Entry::LOAD_IA32_EFER.into_raw();
        const LONG: u32 = Entry::IA32E_MODE.into_raw();

        for (controls, load, current, expected) in [
            (LOAD, Load::Entry, 0x800, 0xd01),
            (LOAD | LONG, Load::Entry, 0x800, 0xd01),
            (LOAD | LONG, Load::Resumption, 0x800, 0xd00),
            (LOAD, Load::Resumption, 0xd01, 0x801),
            (LONG, Load::Entry, 0x800, 0xd00),
            (0, Load::Entry, 0xd01, 0x801),
        ] {
            let vmcs12 = Vmcs12 {
                vm_entry_controls: controls,
                guest_ia32_efer: 0xd01,
                ..Vmcs12::default()
            };

            assert_eq!(entry_efer(Checked::vouch(&vmcs12), load, current), expected);
        }
    }

    #[test]
    fn pat_is_loaded_if_l1_says_so() {
        for (controls, load, expected) in [
            (Entry::LOAD_IA32_PAT.into_raw(), Load::Entry, 6),
            (Entry::LOAD_IA32_PAT.into_raw(), Load::Resumption, 7),
            (0, Load::Entry, 7),
        ] {
            let vmcs12 = Vmcs12 {
                vm_entry_controls: controls,
                guest_ia32_pat: 6,
                ..Vmcs12::default()
            };

            assert_eq!(entry_pat(Checked::vouch(&vmcs12), load, 7), expected);
        }
    }
}
