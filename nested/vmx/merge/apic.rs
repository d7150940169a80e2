// SPDX-License-Identifier: GPL-2.0

//! The APIC of L2: the pages that L1 provides for it, and its words in vmcs02.
//!
//! L1 names the pages by addresses that may have no memory behind them. The processor would read
//! and write there all the same; L0 cannot let it, and has to decide what to do instead.

use crate::{
    checked::Checked,
    vmx::{
        controls::{Primary, Secondary},
        Vmcs12,
    },
};

/// Whether an address of L1 has memory that vmcs02 can point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// There is memory.
    Memory,
    /// There is none.
    Nothing,
}

/// What to do about the APIC-access page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicAccessPage {
    /// L1 does not ask for one.
    Unused,
    /// vmcs02 points to it.
    Used,
    /// There is no way to go on: the entry is reported to user space as an internal error.
    Missing,
}

/// What to do about the virtual-APIC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualApicPage {
    /// L2 has no TPR shadow, or one that the processor would never use.
    Unused,
    /// vmcs02 points to it.
    Used,
    /// vmcs02 gets an address that makes the processor refuse the entry.
    Illegal,
}

/// What to do about the posted-interrupt descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostedInterruptDescriptor {
    /// L1 does not ask for one.
    Unused,
    /// vmcs02 points to it.
    Used,
    /// L2 runs without; an interrupt that is to be posted is an internal error.
    Missing,
}

/// Decides about the APIC-access page.
#[must_use]
pub fn apic_access_page(
    vmcs12: Checked<'_, Vmcs12>,
    backing: impl FnOnce() -> Backing,
) -> ApicAccessPage {
    if !vmcs12.secondary().virtualize_apic_accesses() {
        return ApicAccessPage::Unused;
    }
    match backing() {
        Backing::Memory => ApicAccessPage::Used,
        Backing::Nothing => ApicAccessPage::Missing,
    }
}

/// Decides about the virtual-APIC page.
#[must_use]
pub fn virtual_apic_page(
    vmcs12: Checked<'_, Vmcs12>,
    backing: impl FnOnce() -> Backing,
) -> VirtualApicPage {
    const CR8_EXITING: Primary = Primary::CR8_LOAD_EXITING.with(Primary::CR8_STORE_EXITING);
    const VIRTUALIZATION: Secondary = Secondary::VIRTUALIZE_APIC_ACCESSES
        .with(Secondary::VIRTUALIZE_X2APIC_MODE)
        .with(Secondary::APIC_REGISTER_VIRT)
        .with(Secondary::VIRTUAL_INTR_DELIVERY);

    if !vmcs12.primary().tpr_shadow() {
        return VirtualApicPage::Unused;
    }
    if backing() == Backing::Memory {
        return VirtualApicPage::Used;
    }

    // With each access to CR8 exiting and nothing of the APIC virtualized, the processor never looks
    // at the page.
    if vmcs12.primary().contains(CR8_EXITING)
        && vmcs12.secondary().without(VIRTUALIZATION) == vmcs12.secondary()
    {
        VirtualApicPage::Unused
    } else {
        VirtualApicPage::Illegal
    }
}

/// Decides about the posted-interrupt descriptor.
#[must_use]
pub fn posted_interrupt_descriptor(
    vmcs12: Checked<'_, Vmcs12>,
    backing: impl FnOnce() -> Backing,
) -> PostedInterruptDescriptor {
    if !vmcs12.pin().posted_interrupts() {
        return PostedInterruptDescriptor::Unused;
    }
    match backing() {
        Backing::Memory => PostedInterruptDescriptor::Used,
        Backing::Nothing => PostedInterruptDescriptor::Missing,
    }
}

/// Returns the vector by which L1's devices notify of posted interrupts for L2, if they do.
#[inline]
pub fn notification_vector(vmcs12: &Vmcs12) -> Option<u16> {
    vmcs12
        .pin()
        .posted_interrupts()
        .then_some(vmcs12.posted_intr_nv)
}

/// Returns the TPR threshold of vmcs02, if it needs one.
#[inline]
pub fn tpr_threshold(vmcs12: Checked<'_, Vmcs12>) -> Option<u32> {
    vmcs12
        .primary()
        .tpr_shadow()
        .then_some(vmcs12.tpr_threshold)
}

/// Returns the guest interrupt status (RVI and SVI) of vmcs02, if it needs one.
#[inline]
pub fn guest_interrupt_status(vmcs12: Checked<'_, Vmcs12>) -> Option<u16> {
    vmcs12
        .secondary()
        .virtual_interrupt_delivery()
        .then_some(vmcs12.guest_intr_status)
}

/// Returns the EOI-exit bitmap of vmcs02: the APIC being L1's, L0 wants no exit of it.
#[inline]
pub fn eoi_exit_bitmap(vmcs12: Checked<'_, Vmcs12>) -> [u64; 4] {
    [
        vmcs12.eoi_exit_bitmap0,
        vmcs12.eoi_exit_bitmap1,
        vmcs12.eoi_exit_bitmap2,
        vmcs12.eoi_exit_bitmap3,
    ]
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_apic))]
mod tests {
    use super::*;
    use crate::vmx::controls::Pin;

    fn vmcs12(pin: u32, primary: u32, secondary: u32) -> Vmcs12 {
        Vmcs12 {
            pin_based_vm_exec_control: pin,
            cpu_based_vm_exec_control: primary,
            secondary_vm_exec_control: secondary,
            tpr_threshold: 3,
            posted_intr_nv: 0xf2,
            guest_intr_status: 0x1234,
            eoi_exit_bitmap0: 1,
            eoi_exit_bitmap3: 4,
            ..Vmcs12::default()
        }
    }

    #[test]
    fn pages_that_l1_does_not_ask_for_are_not_looked_up() {
        let vmcs12 = vmcs12(0, 0, u32::MAX);
        let vmcs12 = Checked::vouch(&vmcs12);
        let mut lookups = 0;
        let mut backing = || {
            lookups += 1;
            Backing::Memory
        };

        assert_eq!(
            apic_access_page(vmcs12, &mut backing),
            ApicAccessPage::Unused
        );
        assert_eq!(
            virtual_apic_page(vmcs12, &mut backing),
            VirtualApicPage::Unused
        );
        assert_eq!(
            posted_interrupt_descriptor(vmcs12, &mut backing),
            PostedInterruptDescriptor::Unused
        );
        assert_eq!(lookups, 0);
    }

    #[test]
    fn an_apic_access_page_without_memory_stops_the_entry() {
        let vmcs12 = vmcs12(
            0,
            Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            Secondary::VIRTUALIZE_APIC_ACCESSES.into_raw(),
        );

        for (backing, expected) in [
            (Backing::Memory, ApicAccessPage::Used),
            (Backing::Nothing, ApicAccessPage::Missing),
        ] {
            assert_eq!(
                apic_access_page(Checked::vouch(&vmcs12), || backing),
                expected
            );
        }
    }

    #[test]
    fn a_virtual_apic_page_without_memory_is_left_out_only_if_it_is_never_used() {
        const SHADOW: u32 = Primary::TPR_SHADOW.into_raw();
        const LOAD: u32 = Primary::CR8_LOAD_EXITING.into_raw();
        const STORE: u32 = Primary::CR8_STORE_EXITING.into_raw();
        const ACTIVATE: u32 = Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();
        const ACCESSES: u32 = Secondary::VIRTUALIZE_APIC_ACCESSES.into_raw();

        for (primary, secondary, expected) in [
            (SHADOW, 0, VirtualApicPage::Illegal),
            (SHADOW | LOAD, 0, VirtualApicPage::Illegal),
            (SHADOW | STORE, 0, VirtualApicPage::Illegal),
            (SHADOW | LOAD | STORE, 0, VirtualApicPage::Unused),
            (
                SHADOW | LOAD | STORE | ACTIVATE,
                ACCESSES,
                VirtualApicPage::Illegal,
            ),
            (
                SHADOW | LOAD | STORE | ACTIVATE,
                Secondary::VIRTUALIZE_X2APIC_MODE.into_raw(),
                VirtualApicPage::Illegal,
            ),
            (SHADOW | LOAD | STORE, ACCESSES, VirtualApicPage::Unused),
        ] {
            let vmcs12 = vmcs12(0, primary, secondary);
            let vmcs12 = Checked::vouch(&vmcs12);

            assert_eq!(virtual_apic_page(vmcs12, || Backing::Nothing), expected);
            assert_eq!(
                virtual_apic_page(vmcs12, || Backing::Memory),
                VirtualApicPage::Used
            );
        }
    }

    #[test]
    fn l2_runs_without_a_descriptor_that_has_no_memory() {
        let vmcs12 = vmcs12(Pin::POSTED_INTR.into_raw(), 0, 0);

        assert_eq!(
            posted_interrupt_descriptor(Checked::vouch(&vmcs12), || Backing::Nothing),
            PostedInterruptDescriptor::Missing
        );
        assert_eq!(notification_vector(&vmcs12), Some(0xf2));
    }

    #[test]
    fn words_are_written_if_their_control_is_set() {
        let without = vmcs12(0, 0, u32::MAX);
        let with = vmcs12(
            0,
            Primary::TPR_SHADOW.into_raw() | Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            Secondary::VIRTUAL_INTR_DELIVERY.into_raw(),
        );

        assert_eq!(tpr_threshold(Checked::vouch(&without)), None);
        assert_eq!(guest_interrupt_status(Checked::vouch(&without)), None);
        assert_eq!(notification_vector(&without), None);
        assert_eq!(tpr_threshold(Checked::vouch(&with)), Some(3));
        assert_eq!(guest_interrupt_status(Checked::vouch(&with)), Some(0x1234));
        assert_eq!(eoi_exit_bitmap(Checked::vouch(&with)), [1, 0, 0, 4]);
    }
}
