// SPDX-License-Identifier: GPL-2.0

//! The control words of vmcs02.
//!
//! One row a control. The comments give the reason where it is not the same for all: normally a
//! control that makes L2 exit comes from both, since either may need the exit, and a control that
//! offers something to L2 comes from L1 alone.

use super::{
    conditions::Circumstances,
    table::{
        merge_table, Row,
        Source::{Both, If, L1If, L1OrIf, Off, On, L0, L1},
    },
};
use crate::{
    checked::Checked,
    vmx::{
        controls::{Entry, Exit, Pin, Primary, Secondary},
        Vmcs12,
    },
};

pub use super::conditions::{Condition, Conditions};

/// Declares the control words of a VMCS that is not vmcs12.
macro_rules! control_words {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            /// Pin-based VM-execution controls.
            pub pin: u32,
            /// Primary processor-based VM-execution controls.
            pub primary: u32,
            /// Secondary processor-based VM-execution controls, 0 if there are none.
            pub secondary: u32,
            /// Primary VM-exit controls.
            pub exit: u32,
            /// VM-entry controls.
            pub entry: u32,
        }
    };
}

control_words! {
    /// The control words of vmcs01: what L0 needs for any guest.
    Vmcs01Controls
}

control_words! {
    /// The control words of vmcs02. Its tertiary VM-execution controls are always 0.
    Vmcs02Controls
}

merge_table! {
    /// Merges the pin-based VM-execution controls.
    fn merge_pin(Pin),
    /// The sources of the pin-based VM-execution controls.
    rows PIN {
        RESERVED1: L0,
        // Interrupts and NMIs are the host's, whatever L1 thinks of them.
        EXT_INTR_MASK: On,
        NMI_EXITING: On,
        VIRTUAL_NMIS: Both,
        // The hardware's timer serves L0; that of L1 is a timer of L0's.
        VMX_PREEMPTION_TIMER: L0,
        // The descriptor is L1's: a vmcs02 with that of L0 would post L1's interrupts to L2.
        POSTED_INTR: L1If(Condition::DescriptorIsMapped),
    }
}

merge_table! {
    /// Merges the primary processor-based VM-execution controls.
    fn merge_primary(Primary),
    /// The sources of the primary processor-based VM-execution controls.
    rows PRIMARY {
        RESERVED1: L0,
        // L0 opens its own windows after the merge, for what is pending then.
        INTR_WINDOW_EXITING: L1,
        NMI_WINDOW_EXITING: L1,
        USE_TSC_OFFSETTING: Both,
        HLT_EXITING: Both,
        INVLPG_EXITING: Both,
        MWAIT_EXITING: Both,
        RDPMC_EXITING: Both,
        RDTSC_EXITING: Both,
        CR3_LOAD_EXITING: Both,
        CR3_STORE_EXITING: Both,
        // IPI virtualization and what else they hold is for L1 itself.
        ACTIVATE_TERTIARY_CONTROLS: Off,
        // With a TPR shadow, CR8 is in L1's virtual-APIC page and only L1 can want to see it.
        CR8_LOAD_EXITING: L1OrIf(Condition::TprShadowIsUnused),
        CR8_STORE_EXITING: L1OrIf(Condition::TprShadowIsUnused),
        // That of vmcs01 would give L2 the virtual-APIC page of L1 itself.
        TPR_SHADOW: L1If(Condition::TprShadowIsUsed),
        MOV_DR_EXITING: Both,
        // The bitmaps of L1 are looked at when the access has exited; no port is L2's own.
        UNCOND_IO_EXITING: On,
        USE_IO_BITMAPS: Off,
        MONITOR_TRAP_FLAG: L1,
        USE_MSR_BITMAPS: If(Condition::MsrBitmapIsMerged),
        MONITOR_EXITING: Both,
        PAUSE_EXITING: Both,
        ACTIVATE_SECONDARY_CONTROLS: Both,
    }
}

merge_table! {
    /// Merges the secondary processor-based VM-execution controls.
    fn merge_secondary(Secondary),
    /// The sources of the secondary processor-based VM-execution controls.
    rows SECONDARY {
        VIRTUALIZE_APIC_ACCESSES: L1,
        // What L2 runs on is L0's table, EPT02 or EPT01, whether or not L1 has one.
        ENABLE_EPT: L0,
        DESC: L1OrIf(Condition::UmipIsEmulated),
        ENABLE_RDTSCP: L1,
        VIRTUALIZE_X2APIC_MODE: L1,
        // The tag is L0's too.
        ENABLE_VPID: L0,
        WBINVD_EXITING: Both,
        UNRESTRICTED_GUEST: L1,
        APIC_REGISTER_VIRT: L1,
        VIRTUAL_INTR_DELIVERY: L1,
        // With the gap and the window of L1, if it has some: see `pause_loop()`.
        PAUSE_LOOP_EXITING: Both,
        RDRAND_EXITING: Both,
        ENABLE_INVPCID: L1,
        // With all functions off in vmcs02, so that each VMFUNC exits and is emulated.
        ENABLE_VMFUNC: L1,
        // VMREAD and VMWRITE of L2 are emulated from L1's bitmaps.
        SHADOW_VMCS: Off,
        ENCLS_EXITING: Both,
        RDSEED_EXITING: Both,
        // L1's log is kept by L0; that of L0 would get addresses of L2.
        ENABLE_PML: Off,
        EPT_VIOLATION_VE: Off,
        PT_CONCEAL_VMX: L0,
        PT_USE_GPA: L0,
        ENABLE_XSAVES: L1,
        MODE_BASED_EPT_EXEC: L1,
        TSC_SCALING: Both,
        ENABLE_USR_WAIT_PAUSE: L1,
        BUS_LOCK_DETECTION: L0,
        NOTIFY_VM_EXITING: L0,
    }
}

merge_table! {
    /// Merges the VM-exit controls: a hardware exit goes to L0, so they are those of L0.
    fn merge_exit(Exit),
    /// The sources of the VM-exit controls.
    rows EXIT {
        RESERVED1: L0,
        SAVE_DEBUG_CONTROLS: L0,
        HOST_ADDR_SPACE_SIZE: L0,
        LOAD_IA32_PERF_GLOBAL_CTRL: L0,
        ACK_INTR_ON_EXIT: L0,
        SAVE_IA32_PAT: L0,
        LOAD_IA32_PAT: L0,
        SAVE_IA32_EFER: L0,
        LOAD_IA32_EFER: If(Condition::EferIsSwitched),
        SAVE_VMX_PREEMPTION_TIMER: L0,
        CLEAR_BNDCFGS: L0,
        PT_CONCEAL_PIP: L0,
        CLEAR_IA32_RTIT_CTL: L0,
        LOAD_CET_STATE: L0,
        SAVE_IA32_PERF_GLOBAL_CTRL: L0,
    }
}

merge_table! {
    /// Merges the VM-entry controls.
    fn merge_entry(Entry),
    /// The sources of the VM-entry controls.
    rows ENTRY {
        RESERVED1: L0,
        LOAD_DEBUG_CONTROLS: Both,
        IA32E_MODE: If(Condition::GuestIsInLongMode),
        SMM: Off,
        DEACT_DUAL_MONITOR: Off,
        // Loaded by an emulated write of the MSR, with its side effects on the virtual PMU.
        LOAD_IA32_PERF_GLOBAL_CTRL: L0,
        LOAD_IA32_PAT: Both,
        LOAD_IA32_EFER: If(Condition::EferIsSwitched),
        LOAD_BNDCFGS: Both,
        PT_CONCEAL_PIP: L0,
        LOAD_IA32_RTIT_CTL: L0,
        LOAD_CET_STATE: Both,
    }
}

/// Merges the control words of vmcs12 and vmcs01.
#[must_use]
pub fn merge_controls(
    vmcs12: Checked<'_, Vmcs12>,
    vmcs01: &Vmcs01Controls,
    circumstances: &Circumstances,
) -> Vmcs02Controls {
    let conditions = Conditions::of(&vmcs12, circumstances);

    Vmcs02Controls {
        pin: merge_pin(vmcs12.pin_based_vm_exec_control, vmcs01.pin, conditions),
        primary: merge_primary(vmcs12.cpu_based_vm_exec_control, vmcs01.primary, conditions),
        secondary: merge_secondary(vmcs12.secondary().into_raw(), vmcs01.secondary, conditions),
        exit: merge_exit(vmcs12.vm_exit_controls, vmcs01.exit, conditions),
        entry: merge_entry(vmcs12.vm_entry_controls, vmcs01.entry, conditions),
    }
}

/// Merges the ENCLS-exiting bitmap, given the leaves that L0 needs to see.
#[inline]
#[must_use]
pub fn merge_encls_exiting_bitmap(vmcs12: Checked<'_, Vmcs12>, l0: u64) -> u64 {
    if vmcs12.secondary().encls_exiting() {
        l0 | vmcs12.encls_exiting_bitmap
    } else {
        l0
    }
}

/// What a loop of PAUSEs is that exits, in ticks of the time-stamp counter (SDM, "Controls for
/// PAUSE-Loop Exiting").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PauseLoop {
    /// The longest time between two PAUSEs of a loop.
    pub gap: u32,
    /// The time that a loop may take.
    pub window: u32,
}

/// Returns what L2 exits for, given what it is for L1.
///
/// There is one detector. L1 gets all that its own finds, and L0 leaves it to L1 to break the loops.
#[inline]
#[must_use]
pub fn pause_loop(vmcs12: Checked<'_, Vmcs12>, l0: PauseLoop) -> PauseLoop {
    if vmcs12.secondary().pause_loop_exiting() {
        PauseLoop {
            gap: vmcs12.ple_gap,
            window: vmcs12.ple_window,
        }
    } else {
        l0
    }
}

/// Returns the XSS-exiting bitmap of vmcs02: that of L1, as L0 has no use for one.
#[inline]
#[must_use]
pub fn xss_exiting_bitmap(vmcs12: Checked<'_, Vmcs12>) -> u64 {
    if vmcs12.secondary().xsaves() {
        vmcs12.xss_exit_bitmap
    } else {
        0
    }
}

#[cfg(test)]
mod formulas;

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_controls))]
mod tests {
    use super::*;
    use crate::vmx::{
        controls::{Entry, Exit, Pin, Primary, Secondary},
        merge::{apic::VirtualApicPage, conditions::PLAIN, table::Source},
    };

    type Merge = fn(u32, u32, Conditions) -> u32;

    const TABLES: &[(&[Row], Merge)] = &[
        (PIN, merge_pin),
        (PRIMARY, merge_primary),
        (SECONDARY, merge_secondary),
        (EXIT, merge_exit),
        (ENTRY, merge_entry),
    ];

    #[test]
    fn a_loop_of_pauses_is_what_l1_says_if_it_says_so() {
        const L0: PauseLoop = PauseLoop { gap: 1, window: 2 };
        let mut vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            ple_gap: 3,
            ple_window: 4,
            ..Vmcs12::default()
        };

        assert_eq!(pause_loop(Checked::vouch(&vmcs12), L0), L0);
        vmcs12.secondary_vm_exec_control = Secondary::PAUSE_LOOP_EXITING.into_raw();
        assert_eq!(
            pause_loop(Checked::vouch(&vmcs12), L0),
            PauseLoop { gap: 3, window: 4 }
        );
        // Without secondary controls, there is no such control.
        vmcs12.cpu_based_vm_exec_control = 0;
        assert_eq!(pause_loop(Checked::vouch(&vmcs12), L0), L0);
    }

    fn all_conditions() -> Conditions {
        Condition::ALL
            .iter()
            .fold(Conditions::NONE, |conditions, &condition| {
                conditions.with(condition)
            })
    }

    /// What a row promises for one bit: set with neither, with L1 only, with L0 only.
    fn promise(source: Source, conditions: Conditions) -> (bool, bool, bool) {
        match source {
            L1 => (false, true, false),
            L0 => (false, false, true),
            Both => (false, true, true),
            On => (true, true, true),
            Off => (false, false, false),
            L1If(condition) => (false, conditions.holds(condition), false),
            L1OrIf(condition) => {
                let holds = conditions.holds(condition);
                (holds, true, holds)
            }
            If(condition) => {
                let holds = conditions.holds(condition);
                (holds, holds, holds)
            }
        }
    }

    #[test]
    fn each_control_reaches_vmcs02_from_where_its_row_says() {
        for conditions in [Conditions::NONE, all_conditions()] {
            for (rows, merge) in TABLES {
                for row in *rows {
                    let (neither, l1, l0) = promise(row.source, conditions);

                    for bit in (0..32).map(|n| 1u32 << n).filter(|bit| row.bits & bit != 0) {
                        assert_eq!(merge(0, 0, conditions) & bit != 0, neither);
                        assert_eq!(merge(bit, 0, conditions) & bit != 0, l1);
                        assert_eq!(merge(0, bit, conditions) & bit != 0, l0);
                    }
                }
            }
        }
    }

    #[test]
    fn each_condition_moves_only_the_rows_that_name_it() {
        for &condition in Condition::ALL {
            let conditions = Conditions::NONE.with(condition);

            for (rows, merge) in TABLES {
                for row in *rows {
                    let named = row.source == L1If(condition)
                        || row.source == L1OrIf(condition)
                        || row.source == If(condition);
                    let moved = [(0, 0), (u32::MAX, 0)].iter().any(|&(l1, l0)| {
                        (merge(l1, l0, conditions) ^ merge(l1, l0, Conditions::NONE)) & row.bits
                            != 0
                    });

                    assert_eq!(moved, named);
                }
            }
        }
    }

    #[test]
    fn bits_that_no_row_names_never_reach_vmcs02() {
        for (rows, merge) in TABLES {
            let named = rows.iter().fold(0, |bits, row| bits | row.bits);

            for conditions in [Conditions::NONE, all_conditions()] {
                assert_eq!(merge(u32::MAX, u32::MAX, conditions) & !named, 0);
            }
        }
    }

    #[test]
    fn no_bit_has_two_rows() {
        for (rows, _) in TABLES {
            let mut seen = 0;

            for row in *rows {
                assert_eq!(seen & row.bits, 0);
                seen |= row.bits;
            }
        }
    }

    /// The decisions that known bugs were about, or that a reader may want to look up here.
    #[test]
    fn decisions_stand_as_they_were_made() {
        let source = |rows: &[Row], bits: u32| {
            rows.iter()
                .find(|row| row.bits == bits)
                .map(|row| row.source)
        };

        for (rows, bits, expected) in [
            (PIN, Pin::EXT_INTR_MASK.into_raw(), On),
            (PIN, Pin::NMI_EXITING.into_raw(), On),
            (PIN, Pin::VIRTUAL_NMIS.into_raw(), Both),
            (PIN, Pin::VMX_PREEMPTION_TIMER.into_raw(), L0),
            (PRIMARY, Primary::INTR_WINDOW_EXITING.into_raw(), L1),
            (PRIMARY, Primary::NMI_WINDOW_EXITING.into_raw(), L1),
            (PRIMARY, Primary::HLT_EXITING.into_raw(), Both),
            (PRIMARY, Primary::UNCOND_IO_EXITING.into_raw(), On),
            (PRIMARY, Primary::USE_IO_BITMAPS.into_raw(), Off),
            (PRIMARY, Primary::ACTIVATE_TERTIARY_CONTROLS.into_raw(), Off),
            (SECONDARY, Secondary::ENABLE_EPT.into_raw(), L0),
            (SECONDARY, Secondary::ENABLE_VPID.into_raw(), L0),
            (SECONDARY, Secondary::UNRESTRICTED_GUEST.into_raw(), L1),
            (SECONDARY, Secondary::ENABLE_PML.into_raw(), Off),
            (SECONDARY, Secondary::SHADOW_VMCS.into_raw(), Off),
            (SECONDARY, Secondary::ENABLE_XSAVES.into_raw(), L1),
            (SECONDARY, Secondary::MODE_BASED_EPT_EXEC.into_raw(), L1),
            (SECONDARY, Secondary::TSC_SCALING.into_raw(), Both),
            (EXIT, Exit::SAVE_IA32_EFER.into_raw(), L0),
            (ENTRY, Entry::SMM.into_raw(), Off),
            (ENTRY, Entry::DEACT_DUAL_MONITOR.into_raw(), Off),
        ] {
            assert_eq!(source(rows, bits), Some(expected));
        }
    }

    #[test]
    fn l2_without_a_tpr_shadow_never_reaches_the_cr8_of_the_hardware() {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: Primary::TPR_SHADOW.into_raw(),
            ..Vmcs12::default()
        };
        let cr8 = Primary::CR8_LOAD_EXITING.into_raw() | Primary::CR8_STORE_EXITING.into_raw();
        let vmcs01 = Vmcs01Controls {
            primary: Primary::TPR_SHADOW.into_raw(),
            ..Vmcs01Controls::default()
        };
        let mut circumstances = PLAIN;

        let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
        assert_eq!(vmcs02.primary & (cr8 | Primary::TPR_SHADOW.into_raw()), cr8);

        circumstances.virtual_apic_page = VirtualApicPage::Used;
        let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &circumstances);
        assert_eq!(
            vmcs02.primary & (cr8 | Primary::TPR_SHADOW.into_raw()),
            Primary::TPR_SHADOW.into_raw()
        );
    }

    #[test]
    fn secondary_controls_that_l1_has_not_activated_do_not_count() {
        let mut vmcs12 = Vmcs12 {
            secondary_vm_exec_control: Secondary::ENABLE_XSAVES.into_raw(),
            xss_exit_bitmap: 7,
            ..Vmcs12::default()
        };
        let vmcs01 = Vmcs01Controls::default();

        let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &PLAIN);
        assert_eq!(vmcs02.secondary, 0);
        assert_eq!(xss_exiting_bitmap(Checked::vouch(&vmcs12)), 0);

        vmcs12.cpu_based_vm_exec_control = Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();
        let vmcs02 = merge_controls(Checked::vouch(&vmcs12), &vmcs01, &PLAIN);
        assert_eq!(vmcs02.secondary, Secondary::ENABLE_XSAVES.into_raw());
        assert_eq!(xss_exiting_bitmap(Checked::vouch(&vmcs12)), 7);
    }

    #[test]
    fn encls_leaves_of_l1_count_if_it_intercepts_encls() {
        let mut vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            encls_exiting_bitmap: 0b10,
            ..Vmcs12::default()
        };

        assert_eq!(merge_encls_exiting_bitmap(Checked::vouch(&vmcs12), 1), 1);
        vmcs12.secondary_vm_exec_control = Secondary::ENCLS_EXITING.into_raw();
        assert_eq!(merge_encls_exiting_bitmap(Checked::vouch(&vmcs12), 1), 3);
    }
}
