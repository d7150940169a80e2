// SPDX-License-Identifier: GPL-2.0

//! The VM-exit and VM-entry controls.

controls! {
    /// The VM-exit controls.
    pub struct Exit, default1 0x0003_6dff {
        /// Save debug controls.
        2: SAVE_DEBUG_CONTROLS, save_debug_controls;
        /// Host address-space size.
        9: HOST_ADDR_SPACE_SIZE, host_address_space_size;
        /// Load IA32_PERF_GLOBAL_CTRL.
        12: LOAD_IA32_PERF_GLOBAL_CTRL, load_perf_global_ctrl;
        /// Acknowledge interrupt on exit.
        15: ACK_INTR_ON_EXIT, acknowledge_interrupt;
        /// Save IA32_PAT.
        18: SAVE_IA32_PAT, save_pat;
        /// Load IA32_PAT.
        19: LOAD_IA32_PAT, load_pat;
        /// Save IA32_EFER.
        20: SAVE_IA32_EFER, save_efer;
        /// Load IA32_EFER.
        21: LOAD_IA32_EFER, load_efer;
        /// Save VMX-preemption timer value.
        22: SAVE_VMX_PREEMPTION_TIMER, save_preemption_timer;
        /// Clear IA32_BNDCFGS.
        23: CLEAR_BNDCFGS, clear_bndcfgs;
        /// Conceal VMX from PT.
        24: PT_CONCEAL_PIP, conceal_vmx_from_pt;
        /// Clear IA32_RTIT_CTL.
        25: CLEAR_IA32_RTIT_CTL, clear_rtit_ctl;
        /// Load CET state.
        28: LOAD_CET_STATE, load_cet_state;
        /// Save IA32_PERF_GLOBAL_CTRL.
        30: SAVE_IA32_PERF_GLOBAL_CTRL, save_perf_global_ctrl;
    }
}

controls! {
    /// The VM-entry controls.
    pub struct Entry, default1 0x0000_11ff {
        /// Load debug controls.
        2: LOAD_DEBUG_CONTROLS, load_debug_controls;
        /// IA-32e mode guest.
        9: IA32E_MODE, ia32e_mode_guest;
        /// Entry to SMM.
        10: SMM, entry_to_smm;
        /// Deactivate dual-monitor treatment.
        11: DEACT_DUAL_MONITOR, deactivate_dual_monitor_treatment;
        /// Load IA32_PERF_GLOBAL_CTRL.
        13: LOAD_IA32_PERF_GLOBAL_CTRL, load_perf_global_ctrl;
        /// Load IA32_PAT.
        14: LOAD_IA32_PAT, load_pat;
        /// Load IA32_EFER.
        15: LOAD_IA32_EFER, load_efer;
        /// Load IA32_BNDCFGS.
        16: LOAD_BNDCFGS, load_bndcfgs;
        /// Conceal VMX from PT.
        17: PT_CONCEAL_PIP, conceal_vmx_from_pt;
        /// Load IA32_RTIT_CTL.
        18: LOAD_IA32_RTIT_CTL, load_rtit_ctl;
        /// Load CET state.
        20: LOAD_CET_STATE, load_cet_state;
    }
}
