// SPDX-License-Identifier: GPL-2.0

//! The x2APIC MSRs that vmcs02 virtualizes (SDM, "Virtualizing MSR-Based APIC Accesses").

use super::{Access, Place};
use crate::vmx::Vmcs12;

/// The words of the bitmap that x2APIC MSRs have: 0x800 to 0x8ff.
pub(super) const X2APIC_READS: core::ops::Range<usize> = 0x20..0x24;
pub(super) const X2APIC_WRITES: core::ops::Range<usize> = 0x120..0x124;

const X2APIC_TPR: u32 = 0x808;
const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SELF_IPI: u32 = 0x83f;

/// The accesses to x2APIC MSRs that vmcs02 virtualizes if vmcs12 has the controls for it.
pub(super) struct VirtualX2apic {
    /// What is read in the virtual-APIC page.
    reads: X2apicReads,
    /// All ones if writes of EOI and SELF_IPI are virtualized, else 0.
    eoi_and_self_ipi: u64,
}

/// The registers that are read in the virtual-APIC page. If any is, TPR is written there too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum X2apicReads {
    None,
    Tpr,
    All,
}

impl VirtualX2apic {
    pub(super) fn of(vmcs12: &Vmcs12) -> Self {
        let controls = vmcs12.secondary();
        let virtualized = controls.virtualize_x2apic_mode();

        Self {
            reads: if !virtualized {
                X2apicReads::None
            } else if controls.apic_register_virtualization() {
                X2apicReads::All
            } else {
                X2apicReads::Tpr
            },
            eoi_and_self_ipi: if virtualized && controls.virtual_interrupt_delivery() {
                u64::MAX
            } else {
                0
            },
        }
    }

    /// Returns the reads that are virtualized, of those in a word.
    pub(super) fn reads(&self, word: usize) -> u64 {
        match self.reads {
            X2apicReads::None => 0,
            X2apicReads::Tpr => bit_in(word, X2APIC_TPR, Access::Read),
            X2apicReads::All => u64::MAX,
        }
    }

    /// Returns the writes that are virtualized, of those in a word.
    pub(super) fn writes(&self, word: usize) -> u64 {
        let eoi_and_self_ipi =
            bit_in(word, X2APIC_EOI, Access::Write) | bit_in(word, X2APIC_SELF_IPI, Access::Write);
        let tpr = match self.reads {
            X2apicReads::None => 0,
            X2apicReads::Tpr | X2apicReads::All => bit_in(word, X2APIC_TPR, Access::Write),
        };

        tpr | (eoi_and_self_ipi & self.eoi_and_self_ipi)
    }
}

/// Returns the bit of an access if it is in a word, else 0.
const fn bit_in(word: usize, msr: u32, access: Access) -> u64 {
    match Place::of(msr, access) {
        Some(place) if place.word == word => place.mask,
        _ => 0,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_x2apic_msrs))]
mod tests {
    use super::*;
    use crate::vmx::controls::{Primary, Secondary};

    /// Counts the reads and writes that are virtualized.
    fn virtualized(controls: u32) -> (u32, u32) {
        let x2apic = VirtualX2apic::of(&Vmcs12 {
            cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            secondary_vm_exec_control: controls,
            ..Vmcs12::default()
        });

        (
            X2APIC_READS
                .map(|word| x2apic.reads(word).count_ones())
                .sum(),
            X2APIC_WRITES
                .map(|word| x2apic.writes(word).count_ones())
                .sum(),
        )
    }

    #[test]
    fn controls_say_how_much_is_virtualized() {
        const MODE: u32 = Secondary::VIRTUALIZE_X2APIC_MODE.into_raw();
        const REGISTERS: u32 = Secondary::APIC_REGISTER_VIRT.into_raw();
        const DELIVERY: u32 = Secondary::VIRTUAL_INTR_DELIVERY.into_raw();

        for (controls, expected) in [
            (0, (0, 0)),
            (REGISTERS | DELIVERY, (0, 0)),
            (MODE, (1, 1)),
            (MODE | DELIVERY, (1, 3)),
            (MODE | REGISTERS, (256, 1)),
            (MODE | REGISTERS | DELIVERY, (256, 3)),
        ] {
            assert_eq!(virtualized(controls), expected);
        }
    }
}
