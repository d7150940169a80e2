// SPDX-License-Identifier: GPL-2.0

//! What KVM offers of VMX to L1.
//!
//! The tables are allow-lists: a control that no row names is not offered.

#[cfg(any(test, CONFIG_KUNIT))]
mod tests;

use super::msrs::{basic, ept, join, misc, vpid, Msrs};
use crate::vmx::{
    controls::{Entry, Exit, Pin, Primary, Secondary, VMFUNC_EPTP_SWITCHING},
    vmcs12::{REGION_SIZE, REVISION},
};

/// CR0.PE, CR0.NE and CR0.PG, which must be 1 in VMX operation.
const CR0_FIXED0: u64 = 1 << 31 | 1 << 5 | 1 << 0;
/// CR4.VMXE, which must be 1 in VMX operation.
const CR4_FIXED0: u64 = 1 << 13;
/// CR4.UMIP.
const CR4_UMIP: u64 = 1 << 11;

/// The preemption timer of L1 counts down when bit 5 of the TSC changes, on all processors.
pub const PREEMPTION_TIMER_RATE: u32 = 5;

/// The size of a VMCS region in bytes.
const REGION_BYTES: u32 = 4096;
const _: () = assert!(REGION_BYTES as usize == REGION_SIZE);

/// What KVM makes use of on this host, by itself or because of a module parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enabled {
    /// EPT.
    pub ept: bool,
    /// Accessed and dirty flags of EPT.
    pub ept_ad_bits: bool,
    /// Mode-based execute control for EPT.
    pub mbec: bool,
    /// VPIDs.
    pub vpid: bool,
    /// Unrestricted guests.
    pub unrestricted_guest: bool,
    /// The TPR shadow together with virtualized APIC accesses.
    pub flexpriority: bool,
    /// APIC virtualization with posted interrupts.
    pub apicv: bool,
    /// SGX.
    pub sgx: bool,
    /// Shadow stacks or indirect-branch tracking.
    pub cet: bool,
    /// CR4.UMIP, emulated because the processor does not have it.
    pub umip_emulation: bool,
}

/// What the host has: the words of KVM's `vmcs_config`, and what KVM makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// `IA32_VMX_BASIC`.
    pub basic: u64,
    /// The pin-based VM-execution controls that may be 1.
    pub pin: Pin,
    /// The primary VM-execution controls that may be 1.
    pub primary: Primary,
    /// The secondary VM-execution controls that may be 1.
    pub secondary: Secondary,
    /// The VM-exit controls that may be 1.
    pub exit: Exit,
    /// The VM-entry controls that may be 1.
    pub entry: Entry,
    /// `IA32_VMX_MISC`, its low half.
    pub misc: u32,
    /// `IA32_VMX_EPT_VPID_CAP`, its low half.
    pub ept: u32,
    /// `IA32_VMX_CR0_FIXED1`.
    pub cr0_fixed1: u64,
    /// `IA32_VMX_CR4_FIXED1`.
    pub cr4_fixed1: u64,
    /// The highest index of a field of vmcs12.
    pub highest_field_index: u32,
    /// What KVM makes use of.
    pub enabled: Enabled,
}

/// The condition of a control that KVM emulates on all hosts.
const EMULATED: bool = true;

/// Declares which controls of a word are offered: one row a control, with what it needs.
macro_rules! offer {
    (
        $(#[$meta:meta])*
        fn $func:ident($host:ident) -> $word:ident {
            $( $control:ident: $condition:expr, )*
        }
    ) => {
        $(#[$meta])*
        const fn $func($host: &Host) -> $word {
            let offered = $word::DEFAULT1;
            $(
                let offered = if $condition { offered.with($word::$control) } else { offered };
            )*
            offered
        }
    };
}

offer! {
    /// Offers pin-based VM-execution controls.
    fn offer_pin(host) -> Pin {
        EXT_INTR_MASK: host.pin.external_interrupt_exiting(),
        NMI_EXITING: host.pin.nmi_exiting(),
        VIRTUAL_NMIS: host.pin.virtual_nmis(),
        VMX_PREEMPTION_TIMER: EMULATED,
        POSTED_INTR: host.pin.posted_interrupts() && host.enabled.apicv,
    }
}

offer! {
    /// Offers primary VM-execution controls.
    fn offer_primary(host) -> Primary {
        INTR_WINDOW_EXITING: host.primary.interrupt_window_exiting(),
        USE_TSC_OFFSETTING: host.primary.tsc_offsetting(),
        HLT_EXITING: host.primary.hlt_exiting(),
        INVLPG_EXITING: host.primary.invlpg_exiting(),
        MWAIT_EXITING: host.primary.mwait_exiting(),
        RDPMC_EXITING: host.primary.rdpmc_exiting(),
        RDTSC_EXITING: host.primary.rdtsc_exiting(),
        CR3_LOAD_EXITING: EMULATED,
        CR3_STORE_EXITING: EMULATED,
        CR8_LOAD_EXITING: host.primary.cr8_load_exiting(),
        CR8_STORE_EXITING: host.primary.cr8_store_exiting(),
        TPR_SHADOW: host.primary.tpr_shadow(),
        NMI_WINDOW_EXITING: host.primary.nmi_window_exiting(),
        MOV_DR_EXITING: host.primary.mov_dr_exiting(),
        UNCOND_IO_EXITING: host.primary.unconditional_io_exiting(),
        USE_IO_BITMAPS: host.primary.io_bitmaps(),
        MONITOR_TRAP_FLAG: host.primary.monitor_trap_flag(),
        // The bitmaps of L1 are read by software, even if the host runs L2 without any.
        USE_MSR_BITMAPS: EMULATED,
        MONITOR_EXITING: host.primary.monitor_exiting(),
        PAUSE_EXITING: host.primary.pause_exiting(),
        ACTIVATE_SECONDARY_CONTROLS: host.primary.secondary_controls(),
    }
}

offer! {
    /// Offers secondary VM-execution controls.
    fn offer_secondary(host) -> Secondary {
        VIRTUALIZE_APIC_ACCESSES: host.enabled.flexpriority,
        ENABLE_EPT: host.enabled.ept,
        DESC: host.secondary.descriptor_table_exiting(),
        ENABLE_RDTSCP: host.secondary.rdtscp(),
        VIRTUALIZE_X2APIC_MODE: host.secondary.virtualize_x2apic_mode(),
        ENABLE_VPID: host.enabled.vpid,
        WBINVD_EXITING: host.secondary.wbinvd_exiting(),
        UNRESTRICTED_GUEST: host.enabled.unrestricted_guest,
        APIC_REGISTER_VIRT: host.secondary.apic_register_virtualization(),
        VIRTUAL_INTR_DELIVERY: host.secondary.virtual_interrupt_delivery(),
        PAUSE_LOOP_EXITING: host.secondary.pause_loop_exiting(),
        RDRAND_EXITING: host.secondary.rdrand_exiting(),
        ENABLE_INVPCID: host.secondary.invpcid(),
        ENABLE_VMFUNC: host.secondary.vmfunc(),
        SHADOW_VMCS: EMULATED,
        ENCLS_EXITING: host.enabled.sgx,
        RDSEED_EXITING: host.secondary.rdseed_exiting(),
        ENABLE_PML: host.enabled.ept && host.enabled.ept_ad_bits,
        ENABLE_XSAVES: host.secondary.xsaves(),
        MODE_BASED_EPT_EXEC: host.enabled.ept && host.enabled.mbec,
        TSC_SCALING: host.secondary.tsc_scaling(),
        ENABLE_USR_WAIT_PAUSE: host.secondary.user_wait_and_pause(),
    }
}

offer! {
    /// Offers VM-exit controls.
    fn offer_exit(host) -> Exit {
        SAVE_DEBUG_CONTROLS: EMULATED,
        HOST_ADDR_SPACE_SIZE: host.exit.host_address_space_size(),
        LOAD_IA32_PERF_GLOBAL_CTRL: EMULATED,
        ACK_INTR_ON_EXIT: EMULATED,
        SAVE_IA32_PAT: host.exit.save_pat(),
        LOAD_IA32_PAT: host.exit.load_pat(),
        SAVE_IA32_EFER: EMULATED,
        LOAD_IA32_EFER: EMULATED,
        SAVE_VMX_PREEMPTION_TIMER: EMULATED,
        CLEAR_BNDCFGS: host.exit.clear_bndcfgs(),
        LOAD_CET_STATE: host.exit.load_cet_state() && host.enabled.cet,
    }
}

offer! {
    /// Offers VM-entry controls.
    fn offer_entry(host) -> Entry {
        LOAD_DEBUG_CONTROLS: EMULATED,
        IA32E_MODE: host.entry.ia32e_mode_guest(),
        LOAD_IA32_PERF_GLOBAL_CTRL: EMULATED,
        LOAD_IA32_PAT: host.entry.load_pat(),
        LOAD_IA32_EFER: EMULATED,
        LOAD_BNDCFGS: host.entry.load_bndcfgs(),
        LOAD_CET_STATE: host.entry.load_cet_state() && host.enabled.cet,
    }
}

/// Offers capabilities of EPT.
const fn offer_ept(host: &Host) -> u32 {
    const OF_PROCESSOR: u32 = ept::EXECUTE_ONLY
        | ept::PAGE_WALK_4
        | ept::PAGE_WALK_5
        | ept::WB
        | ept::INVEPT
        | ept::ADVANCED_VMEXIT_INFO;
    const EMULATED: u32 = ept::PAGE_2MB | ept::PAGE_1GB | ept::EXTENT_CONTEXT | ept::EXTENT_GLOBAL;

    if !host.enabled.ept {
        return 0;
    }
    let ad = if host.enabled.ept_ad_bits { ept::AD } else { 0 };

    host.ept & OF_PROCESSOR | EMULATED | ad
}

/// Offers capabilities of VPIDs.
const fn offer_vpid(host: &Host) -> u32 {
    if !host.enabled.vpid {
        return 0;
    }
    vpid::INVVPID
        | vpid::EXTENT_INDIVIDUAL_ADDR
        | vpid::EXTENT_SINGLE_CONTEXT
        | vpid::EXTENT_GLOBAL_CONTEXT
        | vpid::EXTENT_SINGLE_NON_GLOBAL
}

impl Host {
    /// Computes the VMX capability MSRs that L1 sees.
    pub const fn offer(&self) -> Msrs {
        Msrs {
            // What is default1 must be 1, except for what L1 may turn off freely.
            procbased_ctls_low: Primary::DEFAULT1
                .without(Primary::CR3_LOAD_EXITING)
                .without(Primary::CR3_STORE_EXITING)
                .into_raw(),
            procbased_ctls_high: offer_primary(self).into_raw(),
            secondary_ctls_low: Secondary::DEFAULT1.into_raw(),
            secondary_ctls_high: offer_secondary(self).into_raw(),
            pinbased_ctls_low: Pin::DEFAULT1.into_raw(),
            pinbased_ctls_high: offer_pin(self).into_raw(),
            exit_ctls_low: Exit::DEFAULT1.without(Exit::SAVE_DEBUG_CONTROLS).into_raw(),
            exit_ctls_high: offer_exit(self).into_raw(),
            entry_ctls_low: Entry::DEFAULT1
                .without(Entry::LOAD_DEBUG_CONTROLS)
                .into_raw(),
            entry_ctls_high: offer_entry(self).into_raw(),
            misc_low: self.misc & misc::SAVE_EFER_LMA
                | misc::VMWRITE_SHADOW_RO_FIELDS
                | PREEMPTION_TIMER_RATE
                | misc::ACTIVITY_HLT
                | misc::ACTIVITY_WAIT_SIPI,
            misc_high: 0,
            ept_caps: offer_ept(self),
            vpid_caps: offer_vpid(self),
            // It describes the VMCS of L1, which has our layout, not that of the processor.
            basic: join(REVISION, REGION_BYTES)
                | basic::MEMORY_TYPE_WB
                | basic::TRUE_CTLS
                | self.basic & (basic::INOUT | basic::NO_HW_ERROR_CODE_CC),
            cr0_fixed0: CR0_FIXED0,
            cr0_fixed1: self.cr0_fixed1,
            cr4_fixed0: CR4_FIXED0,
            cr4_fixed1: if self.enabled.umip_emulation {
                self.cr4_fixed1 | CR4_UMIP
            } else {
                self.cr4_fixed1
            },
            // The index is in bits 9:1, as in the encoding of a field.
            vmcs_enum: (self.highest_field_index as u64) << 1,
            // KVM emulates the switch, but L2 gets past VMFUNC only if the processor knows it.
            vmfunc_controls: if self.enabled.ept && self.secondary.vmfunc() {
                VMFUNC_EPTP_SWITCHING
            } else {
                0
            },
        }
    }
}
