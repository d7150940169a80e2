// SPDX-License-Identifier: GPL-2.0

//! Bits of the words that merging, routing and exiting look at, by their names in KVM.

use super::Vmcs12;

/// Pin-based VM-execution controls.
pub(crate) mod pin {
    /// Reserved bits that are 1 on processors without the "true" capability MSRs.
    pub(crate) const DEFAULT1: u32 = 0x16;
    pub(crate) const EXT_INTR_MASK: u32 = 1 << 0;
    pub(crate) const NMI_EXITING: u32 = 1 << 3;
    pub(crate) const VIRTUAL_NMIS: u32 = 1 << 5;
    pub(crate) const VMX_PREEMPTION_TIMER: u32 = 1 << 6;
    pub(crate) const POSTED_INTR: u32 = 1 << 7;
}

/// Primary processor-based VM-execution controls.
pub(crate) mod primary {
    /// Reserved bits that are 1 on processors without the "true" capability MSRs.
    pub(crate) const DEFAULT1: u32 = 0x0400_6172;
    pub(crate) const INTR_WINDOW_EXITING: u32 = 1 << 2;
    pub(crate) const USE_TSC_OFFSETTING: u32 = 1 << 3;
    pub(crate) const HLT_EXITING: u32 = 1 << 7;
    pub(crate) const INVLPG_EXITING: u32 = 1 << 9;
    pub(crate) const MWAIT_EXITING: u32 = 1 << 10;
    pub(crate) const RDPMC_EXITING: u32 = 1 << 11;
    pub(crate) const RDTSC_EXITING: u32 = 1 << 12;
    pub(crate) const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub(crate) const CR3_STORE_EXITING: u32 = 1 << 16;
    pub(crate) const ACTIVATE_TERTIARY_CONTROLS: u32 = 1 << 17;
    pub(crate) const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub(crate) const CR8_STORE_EXITING: u32 = 1 << 20;
    pub(crate) const TPR_SHADOW: u32 = 1 << 21;
    pub(crate) const NMI_WINDOW_EXITING: u32 = 1 << 22;
    pub(crate) const MOV_DR_EXITING: u32 = 1 << 23;
    pub(crate) const UNCOND_IO_EXITING: u32 = 1 << 24;
    pub(crate) const USE_IO_BITMAPS: u32 = 1 << 25;
    pub(crate) const MONITOR_TRAP_FLAG: u32 = 1 << 27;
    pub(crate) const USE_MSR_BITMAPS: u32 = 1 << 28;
    pub(crate) const MONITOR_EXITING: u32 = 1 << 29;
    pub(crate) const PAUSE_EXITING: u32 = 1 << 30;
    pub(crate) const ACTIVATE_SECONDARY_CONTROLS: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls.
pub(crate) mod secondary {
    pub(crate) const VIRTUALIZE_APIC_ACCESSES: u32 = 1 << 0;
    pub(crate) const ENABLE_EPT: u32 = 1 << 1;
    pub(crate) const DESC: u32 = 1 << 2;
    pub(crate) const ENABLE_RDTSCP: u32 = 1 << 3;
    pub(crate) const VIRTUALIZE_X2APIC_MODE: u32 = 1 << 4;
    pub(crate) const ENABLE_VPID: u32 = 1 << 5;
    pub(crate) const WBINVD_EXITING: u32 = 1 << 6;
    pub(crate) const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub(crate) const APIC_REGISTER_VIRT: u32 = 1 << 8;
    pub(crate) const VIRTUAL_INTR_DELIVERY: u32 = 1 << 9;
    pub(crate) const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    pub(crate) const RDRAND_EXITING: u32 = 1 << 11;
    pub(crate) const ENABLE_INVPCID: u32 = 1 << 12;
    pub(crate) const ENABLE_VMFUNC: u32 = 1 << 13;
    pub(crate) const SHADOW_VMCS: u32 = 1 << 14;
    pub(crate) const ENCLS_EXITING: u32 = 1 << 15;
    pub(crate) const RDSEED_EXITING: u32 = 1 << 16;
    pub(crate) const ENABLE_PML: u32 = 1 << 17;
    pub(crate) const EPT_VIOLATION_VE: u32 = 1 << 18;
    pub(crate) const PT_CONCEAL_VMX: u32 = 1 << 19;
    pub(crate) const ENABLE_XSAVES: u32 = 1 << 20;
    pub(crate) const MODE_BASED_EPT_EXEC: u32 = 1 << 22;
    pub(crate) const PT_USE_GPA: u32 = 1 << 24;
    pub(crate) const TSC_SCALING: u32 = 1 << 25;
    pub(crate) const ENABLE_USR_WAIT_PAUSE: u32 = 1 << 26;
    pub(crate) const BUS_LOCK_DETECTION: u32 = 1 << 30;
    pub(crate) const NOTIFY_VM_EXITING: u32 = 1 << 31;
}

/// Primary VM-exit controls.
pub(crate) mod exit {
    /// Reserved bits that are 1 on processors without the "true" capability MSRs.
    pub(crate) const DEFAULT1: u32 = 0x0003_6dfb;
    pub(crate) const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    pub(crate) const HOST_ADDR_SPACE_SIZE: u32 = 1 << 9;
    pub(crate) const LOAD_IA32_PERF_GLOBAL_CTRL: u32 = 1 << 12;
    pub(crate) const ACK_INTR_ON_EXIT: u32 = 1 << 15;
    pub(crate) const SAVE_IA32_PAT: u32 = 1 << 18;
    pub(crate) const LOAD_IA32_PAT: u32 = 1 << 19;
    pub(crate) const SAVE_IA32_EFER: u32 = 1 << 20;
    pub(crate) const LOAD_IA32_EFER: u32 = 1 << 21;
    pub(crate) const SAVE_VMX_PREEMPTION_TIMER: u32 = 1 << 22;
    pub(crate) const CLEAR_BNDCFGS: u32 = 1 << 23;
    pub(crate) const PT_CONCEAL_PIP: u32 = 1 << 24;
    pub(crate) const CLEAR_IA32_RTIT_CTL: u32 = 1 << 25;
    pub(crate) const LOAD_CET_STATE: u32 = 1 << 28;
    pub(crate) const SAVE_IA32_PERF_GLOBAL_CTRL: u32 = 1 << 30;
}

/// VM-entry controls.
pub(crate) mod entry {
    /// Reserved bits that are 1 on processors without the "true" capability MSRs.
    pub(crate) const DEFAULT1: u32 = 0x11fb;
    pub(crate) const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    pub(crate) const IA32E_MODE: u32 = 1 << 9;
    pub(crate) const SMM: u32 = 1 << 10;
    pub(crate) const DEACT_DUAL_MONITOR: u32 = 1 << 11;
    pub(crate) const LOAD_IA32_PERF_GLOBAL_CTRL: u32 = 1 << 13;
    pub(crate) const LOAD_IA32_PAT: u32 = 1 << 14;
    pub(crate) const LOAD_IA32_EFER: u32 = 1 << 15;
    pub(crate) const LOAD_BNDCFGS: u32 = 1 << 16;
    pub(crate) const PT_CONCEAL_PIP: u32 = 1 << 17;
    pub(crate) const LOAD_IA32_RTIT_CTL: u32 = 1 << 18;
    pub(crate) const LOAD_CET_STATE: u32 = 1 << 20;
}

/// Exception vectors.
pub(crate) mod vector {
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const AC: u8 = 17;
    pub(crate) const VE: u8 = 20;
    pub(crate) const CP: u8 = 21;
}

/// Bits of CR0.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1 << 0;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
}

/// Bits of CR4.
pub(crate) mod cr4 {
    pub(crate) const UMIP: u64 = 1 << 11;
}

/// Bits of `IA32_EFER`.
pub(crate) mod efer {
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
}

/// Questions to the control words of vmcs12.
pub(crate) trait Has {
    /// Returns whether a bit of the pin-based VM-execution controls is set.
    fn has_pin(&self, bit: u32) -> bool;
    /// Returns whether a bit of the primary processor-based VM-execution controls is set.
    fn has_primary(&self, bit: u32) -> bool;
    /// Returns the secondary processor-based VM-execution controls, which are 0 if not activated.
    fn secondary(&self) -> u32;
    /// Returns whether a bit of the active secondary VM-execution controls is set.
    fn has_secondary(&self, bit: u32) -> bool;
    /// Returns whether a bit of the VM-exit controls is set.
    fn has_exit(&self, bit: u32) -> bool;
    /// Returns whether a bit of the VM-entry controls is set.
    fn has_entry(&self, bit: u32) -> bool;
}

impl Has for Vmcs12 {
    #[inline]
    fn has_pin(&self, bit: u32) -> bool {
        self.pin_based_vm_exec_control & bit != 0
    }

    #[inline]
    fn has_primary(&self, bit: u32) -> bool {
        self.cpu_based_vm_exec_control & bit != 0
    }

    #[inline]
    fn secondary(&self) -> u32 {
        if self.has_primary(primary::ACTIVATE_SECONDARY_CONTROLS) {
            self.secondary_vm_exec_control
        } else {
            0
        }
    }

    #[inline]
    fn has_secondary(&self, bit: u32) -> bool {
        self.secondary() & bit != 0
    }

    #[inline]
    fn has_exit(&self, bit: u32) -> bool {
        self.vm_exit_controls & bit != 0
    }

    #[inline]
    fn has_entry(&self, bit: u32) -> bool {
        self.vm_entry_controls & bit != 0
    }
}
