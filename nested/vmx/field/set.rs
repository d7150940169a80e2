// SPDX-License-Identifier: GPL-2.0

//! Which fields exist.

use super::{slot, Component, Field, SLOTS};
use crate::vmx::capability::Msrs;

/// The allowed 1-settings of the controls on which fields depend (SDM, "VMX Capability Reporting
/// Facility").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The pin-based VM-execution controls.
    pub pin: u32,
    /// The primary processor-based VM-execution controls.
    pub primary: u32,
    /// The secondary processor-based VM-execution controls.
    pub secondary: u32,
    /// The VM-entry controls.
    pub entry: u32,
}

impl Allowed {
    /// Returns what the VMX capability MSRs of L1 say.
    pub const fn of(msrs: &Msrs) -> Self {
        Self {
            pin: msrs.pinbased_ctls_high,
            primary: msrs.procbased_ctls_high,
            secondary: msrs.secondary_ctls_high,
            entry: msrs.entry_ctls_high,
        }
    }
}

/// The control without which a field does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requires {
    /// "Process posted interrupts".
    PostedInterrupts,
    /// "Activate VMX-preemption timer".
    PreemptionTimer,
    /// "Use TPR shadow".
    TprShadow,
    /// "Activate secondary controls".
    SecondaryControls,
    /// "Virtualize APIC accesses".
    ApicAccesses,
    /// "Enable EPT".
    Ept,
    /// "Enable VPID".
    Vpid,
    /// "Virtual-interrupt delivery".
    InterruptDelivery,
    /// "PAUSE-loop exiting".
    PauseLoop,
    /// "Enable VM functions".
    VmFunctions,
    /// "Enable ENCLS exiting".
    EnclsExiting,
    /// "Enable PML".
    PageModificationLog,
    /// "Enable XSAVES/XRSTORS".
    Xsaves,
    /// "Use TSC scaling".
    TscScaling,
    /// "Load IA32_PERF_GLOBAL_CTRL", at entry.
    PerfGlobalCtrl,
    /// "Load CET state", at entry.
    CetState,
}

impl Requires {
    /// Returns whether the control may be 1.
    pub const fn is_met_by(self, allowed: &Allowed) -> bool {
        let (word, bit) = match self {
            Self::PostedInterrupts => (allowed.pin, 7),
            Self::PreemptionTimer => (allowed.pin, 6),
            Self::TprShadow => (allowed.primary, 21),
            Self::SecondaryControls => (allowed.primary, 31),
            Self::ApicAccesses => (allowed.secondary, 0),
            Self::Ept => (allowed.secondary, 1),
            Self::Vpid => (allowed.secondary, 5),
            Self::InterruptDelivery => (allowed.secondary, 9),
            Self::PauseLoop => (allowed.secondary, 10),
            Self::VmFunctions => (allowed.secondary, 13),
            Self::EnclsExiting => (allowed.secondary, 15),
            Self::PageModificationLog => (allowed.secondary, 17),
            Self::Xsaves => (allowed.secondary, 20),
            Self::TscScaling => (allowed.secondary, 25),
            Self::PerfGlobalCtrl => (allowed.entry, 13),
            Self::CetState => (allowed.entry, 20),
        };

        word >> bit & 1 != 0
    }
}

impl Field {
    /// Returns what a processor has to have for the field to exist in its own VMCS.
    ///
    /// It is what L1 has to have, except for what L0 emulates on any processor.
    const fn requires_of_processor(self) -> Option<Requires> {
        match self {
            Self::GUEST_PML_INDEX | Self::PML_ADDRESS => Some(Requires::PageModificationLog),
            Self::VMX_PREEMPTION_TIMER_VALUE => Some(Requires::PreemptionTimer),
            _ => self.requires(),
        }
    }
}

/// A set of fields: those that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSet {
    words: [u64; SLOTS / 64],
}

impl FieldSet {
    /// Collects the fields that exist for an L1 with these controls.
    pub fn of_l1(allowed: &Allowed) -> Self {
        Self::collect(|field| field.requires(), allowed)
    }

    /// Collects the fields that exist on a processor with these controls: only they can be in a
    /// shadow VMCS.
    pub fn of_processor(allowed: &Allowed) -> Self {
        Self::collect(Field::requires_of_processor, allowed)
    }

    fn collect(requires: impl Fn(Field) -> Option<Requires>, allowed: &Allowed) -> Self {
        let mut words = [0; SLOTS / 64];

        for &field in Field::ALL {
            if requires(field).is_none_or(|control| control.is_met_by(allowed)) {
                let (word, bit) = position(field);

                if let Some(word) = words.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        Self { words }
    }

    /// Returns whether a field exists.
    #[inline]
    pub fn contains(&self, field: Field) -> bool {
        let (word, bit) = position(field);

        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Looks up an encoding as [`Component::from_encoding()`] does, among the fields that exist.
    #[inline]
    pub fn component(&self, encoding: u64) -> Option<Component> {
        Component::from_encoding(encoding).filter(|component| self.contains(component.field()))
    }

    /// Iterates over the fields, in the order of the encodings.
    pub fn iter(&self) -> impl Iterator<Item = Field> + '_ {
        let all = Field::ALL.iter().copied();

        all.filter(|field| self.contains(*field))
    }

    /// Returns `IA32_VMX_VMCS_ENUM`: the highest index of a field, in bits 9:1.
    pub fn vmcs_enum(&self) -> u64 {
        u64::from(self.iter().map(Field::index).max().unwrap_or(0)) << 1
    }
}

/// Returns the word that says whether a field exists, and the bit in it.
#[inline]
const fn position(field: Field) -> (usize, u64) {
    let slot = slot(field.encoding());

    (slot >> 6, 1 << (slot & 63))
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_field_set))]
mod tests {
    use super::*;

    const NOTHING: Allowed = Allowed {
        pin: 0,
        primary: 0,
        secondary: 0,
        entry: 0,
    };
    const EVERYTHING: Allowed = Allowed {
        pin: u32::MAX,
        primary: u32::MAX,
        secondary: u32::MAX,
        entry: u32::MAX,
    };

    /// Returns the number of fields that exist with `allowed` and not without it.
    fn added(allowed: Allowed) -> usize {
        let with = FieldSet::of_l1(&allowed);
        let without = FieldSet::of_l1(&NOTHING);

        with.iter()
            .filter(|field| !without.contains(*field))
            .count()
    }

    #[test]
    fn every_field_exists_if_every_control_may_be_1() {
        let set = FieldSet::of_l1(&EVERYTHING);

        assert!(set.iter().eq(Field::ALL.iter().copied()));
        // TSC_MULTIPLIER has the highest index.
        assert_eq!(set.vmcs_enum(), 0x32);
    }

    #[test]
    fn fields_without_their_control_do_not_exist() {
        let set = FieldSet::of_l1(&NOTHING);

        for &field in Field::ALL {
            let encoding = u64::from(field.encoding());

            assert_eq!(set.contains(field), field.requires().is_none());
            assert_eq!(set.component(encoding).is_some(), set.contains(field));
            assert!(set.component(encoding | 1).is_none() || set.contains(field));
        }
        // VMX_PREEMPTION_TIMER_VALUE is left.
        assert_eq!(set.vmcs_enum(), 0x2e);
    }

    #[test]
    fn what_l0_emulates_is_not_in_the_vmcs_of_each_processor() {
        let l1 = FieldSet::of_l1(&NOTHING);
        let processor = FieldSet::of_processor(&NOTHING);
        let emulated = [
            Field::GUEST_PML_INDEX,
            Field::PML_ADDRESS,
            Field::VMX_PREEMPTION_TIMER_VALUE,
        ];

        for field in l1.iter() {
            assert_eq!(processor.contains(field), !emulated.contains(&field));
        }
        assert_eq!(
            FieldSet::of_processor(&EVERYTHING),
            FieldSet::of_l1(&EVERYTHING)
        );
    }

    #[test]
    fn each_control_brings_its_own_fields() {
        let pin = |bit: u32| Allowed {
            pin: 1 << bit,
            ..NOTHING
        };
        let primary = |bit: u32| Allowed {
            primary: 1 << bit,
            ..NOTHING
        };
        let secondary = |bit: u32| Allowed {
            secondary: 1 << bit,
            ..NOTHING
        };
        let entry = |bit: u32| Allowed {
            entry: 1 << bit,
            ..NOTHING
        };

        // The numbers of the bits are those of the manual.
        for (allowed, first, count) in [
            (pin(7), Field::POSTED_INTR_NV, 2),
            (primary(21), Field::VIRTUAL_APIC_PAGE_ADDR, 2),
            (primary(31), Field::SECONDARY_VM_EXEC_CONTROL, 1),
            (secondary(0), Field::APIC_ACCESS_ADDR, 1),
            (secondary(1), Field::EPT_POINTER, 1),
            (secondary(5), Field::VIRTUAL_PROCESSOR_ID, 1),
            (secondary(9), Field::GUEST_INTR_STATUS, 1),
            (secondary(10), Field::PLE_GAP, 2),
            (secondary(13), Field::VM_FUNCTION_CONTROL, 2),
            (secondary(15), Field::ENCLS_EXITING_BITMAP, 1),
            (secondary(20), Field::XSS_EXIT_BITMAP, 1),
            (secondary(25), Field::TSC_MULTIPLIER, 1),
            (entry(13), Field::GUEST_IA32_PERF_GLOBAL_CTRL, 2),
            (entry(20), Field::GUEST_S_CET, 6),
        ] {
            assert!(FieldSet::of_l1(&allowed).contains(first));
            assert_eq!(added(allowed), count);
        }
        assert_eq!(added(EVERYTHING), 24);
    }
}
