// SPDX-License-Identifier: GPL-2.0

//! The tables against formulas, for vmcs01 as KVM sets it up and any vmcs12 that L1 may have.

use super::*;
use crate::vmx::{
    controls::{Pin, Primary},
    merge::{
        apic::{PostedInterruptDescriptor, VirtualApicPage},
        conditions::{MsrBitmapUse, PLAIN},
    },
};

/// Every combination of the bits of a mask.
fn subsets(mask: u32) -> impl Iterator<Item = u32> {
    let mut next = Some(0u32);

    std::iter::from_fn(move || {
        let subset = next?;
        let following = subset.wrapping_sub(mask) & mask;

        next = (following != 0).then_some(following);
        Some(subset)
    })
}

#[test]
fn pin_controls_are_both_but_for_the_timer_and_posted_interrupts() {
    let required =
        Pin::DEFAULT1.into_raw() | Pin::EXT_INTR_MASK.into_raw() | Pin::NMI_EXITING.into_raw();

    for l0 in subsets(
        Pin::VIRTUAL_NMIS.into_raw()
            | Pin::VMX_PREEMPTION_TIMER.into_raw()
            | Pin::POSTED_INTR.into_raw(),
    ) {
        for l1 in subsets(0xe9) {
            for mapped in [false, true] {
                let vmcs12 = Vmcs12 {
                    pin_based_vm_exec_control: Pin::DEFAULT1.into_raw() | l1,
                    ..Vmcs12::default()
                };
                let vmcs01 = Vmcs01Controls {
                    pin: required | l0,
                    ..Vmcs01Controls::default()
                };
                let circumstances = Circumstances {
                    descriptor: if mapped {
                        PostedInterruptDescriptor::Used
                    } else {
                        PostedInterruptDescriptor::Unused
                    },
                    ..PLAIN
                };
                let mut expected = required | l0 | (l1 & !Pin::VMX_PREEMPTION_TIMER.into_raw());
                if !mapped || l1 & Pin::POSTED_INTR.into_raw() == 0 {
                    expected &= !Pin::POSTED_INTR.into_raw();
                }

                let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
                assert_eq!(vmcs02.pin, expected);
            }
        }
    }
}

#[test]
fn primary_controls_are_both_but_for_windows_bitmaps_and_the_tpr_shadow() {
    const CR8: u32 = Primary::CR8_LOAD_EXITING.into_raw() | Primary::CR8_STORE_EXITING.into_raw();
    const L0_ONLY: u32 = Primary::INTR_WINDOW_EXITING.into_raw()
        | Primary::NMI_WINDOW_EXITING.into_raw()
        | Primary::TPR_SHADOW.into_raw()
        | CR8;
    // Controls that are merged alike are set and cleared together.
    const ALIKE: u32 = Primary::HLT_EXITING.into_raw()
        | Primary::MOV_DR_EXITING.into_raw()
        | Primary::MWAIT_EXITING.into_raw();

    let always = Primary::DEFAULT1.into_raw()
        | Primary::USE_TSC_OFFSETTING.into_raw()
        | Primary::UNCOND_IO_EXITING.into_raw();

    for l0 in subsets(L0_ONLY | Primary::USE_MSR_BITMAPS.into_raw()) {
        for l1 in subsets(
            L0_ONLY | Primary::USE_MSR_BITMAPS.into_raw() | Primary::USE_IO_BITMAPS.into_raw(),
        ) {
            for alike in [0, ALIKE] {
                let vmcs12 = Vmcs12 {
                    cpu_based_vm_exec_control: Primary::DEFAULT1.into_raw() | l1 | alike,
                    ..Vmcs12::default()
                };
                let vmcs01 = Vmcs01Controls {
                    primary: always | l0,
                    ..Vmcs01Controls::default()
                };
                let circumstances = Circumstances {
                    virtual_apic_page: VirtualApicPage::Used,
                    msr_bitmap: if l1 & Primary::USE_MSR_BITMAPS.into_raw() != 0 {
                        MsrBitmapUse::Merged
                    } else {
                        MsrBitmapUse::Unused
                    },
                    ..PLAIN
                };
                let mut expected = always | alike | (l1 & !Primary::USE_IO_BITMAPS.into_raw());
                if l1 & Primary::TPR_SHADOW.into_raw() == 0 {
                    expected |= CR8;
                }

                let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
                assert_eq!(vmcs02.primary, expected);
            }
        }
    }
}
