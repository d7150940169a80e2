// SPDX-License-Identifier: GPL-2.0

//! The tables against formulas, for vmcs01 as KVM sets it up and any vmcs12 that L1 may have.

use super::*;
use crate::vmx::{
    bits::{pin, primary},
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
    let required = pin::DEFAULT1 | pin::EXT_INTR_MASK | pin::NMI_EXITING;

    for l0 in subsets(pin::VIRTUAL_NMIS | pin::VMX_PREEMPTION_TIMER | pin::POSTED_INTR) {
        for l1 in subsets(0xe9) {
            for mapped in [false, true] {
                let vmcs12 = Vmcs12 {
                    pin_based_vm_exec_control: pin::DEFAULT1 | l1,
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
                let mut expected = required | l0 | (l1 & !pin::VMX_PREEMPTION_TIMER);
                if !mapped || l1 & pin::POSTED_INTR == 0 {
                    expected &= !pin::POSTED_INTR;
                }

                let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
                assert_eq!(vmcs02.pin, expected);
            }
        }
    }
}

#[test]
fn primary_controls_are_both_but_for_windows_bitmaps_and_the_tpr_shadow() {
    const CR8: u32 = primary::CR8_LOAD_EXITING | primary::CR8_STORE_EXITING;
    const L0_ONLY: u32 =
        primary::INTR_WINDOW_EXITING | primary::NMI_WINDOW_EXITING | primary::TPR_SHADOW | CR8;
    // Controls that are merged alike are set and cleared together.
    const ALIKE: u32 = primary::HLT_EXITING | primary::MOV_DR_EXITING | primary::MWAIT_EXITING;

    let always = primary::DEFAULT1 | primary::USE_TSC_OFFSETTING | primary::UNCOND_IO_EXITING;

    for l0 in subsets(L0_ONLY | primary::USE_MSR_BITMAPS) {
        for l1 in subsets(L0_ONLY | primary::USE_MSR_BITMAPS | primary::USE_IO_BITMAPS) {
            for alike in [0, ALIKE] {
                let vmcs12 = Vmcs12 {
                    cpu_based_vm_exec_control: primary::DEFAULT1 | l1 | alike,
                    ..Vmcs12::default()
                };
                let vmcs01 = Vmcs01Controls {
                    primary: always | l0,
                    ..Vmcs01Controls::default()
                };
                let circumstances = Circumstances {
                    virtual_apic_page: VirtualApicPage::Used,
                    msr_bitmap: if l1 & primary::USE_MSR_BITMAPS != 0 {
                        MsrBitmapUse::Merged
                    } else {
                        MsrBitmapUse::Unused
                    },
                    ..PLAIN
                };
                let mut expected = always | alike | (l1 & !primary::USE_IO_BITMAPS);
                if l1 & primary::TPR_SHADOW == 0 {
                    expected |= CR8;
                }

                let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
                assert_eq!(vmcs02.primary, expected);
            }
        }
    }
}
