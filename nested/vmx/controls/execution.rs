// SPDX-License-Identifier: GPL-2.0

//! The VM-execution controls.

controls! {
    /// The pin-based VM-execution controls.
    pub struct Pin, default1 0x0000_0016 {
        /// External-interrupt exiting.
        0: EXT_INTR_MASK, external_interrupt_exiting;
        /// NMI exiting.
        3: NMI_EXITING, nmi_exiting;
        /// Virtual NMIs.
        5: VIRTUAL_NMIS, virtual_nmis;
        /// Activate VMX-preemption timer.
        6: VMX_PREEMPTION_TIMER, preemption_timer;
        /// Process posted interrupts.
        7: POSTED_INTR, posted_interrupts;
    }
}

controls! {
    /// The primary processor-based VM-execution controls.
    pub struct Primary, default1 0x0401_e172 {
        /// Interrupt-window exiting.
        2: INTR_WINDOW_EXITING, interrupt_window_exiting;
        /// Use TSC offsetting.
        3: USE_TSC_OFFSETTING, tsc_offsetting;
        /// HLT exiting.
        7: HLT_EXITING, hlt_exiting;
        /// INVLPG exiting.
        9: INVLPG_EXITING, invlpg_exiting;
        /// MWAIT exiting.
        10: MWAIT_EXITING, mwait_exiting;
        /// RDPMC exiting.
        11: RDPMC_EXITING, rdpmc_exiting;
        /// RDTSC exiting.
        12: RDTSC_EXITING, rdtsc_exiting;
        /// CR3-load exiting.
        15: CR3_LOAD_EXITING, cr3_load_exiting;
        /// CR3-store exiting.
        16: CR3_STORE_EXITING, cr3_store_exiting;
        /// Activate tertiary controls.
        17: ACTIVATE_TERTIARY_CONTROLS, tertiary_controls;
        /// CR8-load exiting.
        19: CR8_LOAD_EXITING, cr8_load_exiting;
        /// CR8-store exiting.
        20: CR8_STORE_EXITING, cr8_store_exiting;
        /// Use TPR shadow.
        21: TPR_SHADOW, tpr_shadow;
        /// NMI-window exiting.
        22: NMI_WINDOW_EXITING, nmi_window_exiting;
        /// MOV-DR exiting.
        23: MOV_DR_EXITING, mov_dr_exiting;
        /// Unconditional I/O exiting.
        24: UNCOND_IO_EXITING, unconditional_io_exiting;
        /// Use I/O bitmaps.
        25: USE_IO_BITMAPS, io_bitmaps;
        /// Monitor trap flag.
        27: MONITOR_TRAP_FLAG, monitor_trap_flag;
        /// Use MSR bitmaps.
        28: USE_MSR_BITMAPS, msr_bitmaps;
        /// MONITOR exiting.
        29: MONITOR_EXITING, monitor_exiting;
        /// PAUSE exiting.
        30: PAUSE_EXITING, pause_exiting;
        /// Activate secondary controls.
        31: ACTIVATE_SECONDARY_CONTROLS, secondary_controls;
    }
}

controls! {
    /// The secondary processor-based VM-execution controls.
    pub struct Secondary, default1 0 {
        /// Virtualize APIC accesses.
        0: VIRTUALIZE_APIC_ACCESSES, virtualize_apic_accesses;
        /// Enable EPT.
        1: ENABLE_EPT, ept;
        /// Descriptor-table exiting.
        2: DESC, descriptor_table_exiting;
        /// Enable RDTSCP.
        3: ENABLE_RDTSCP, rdtscp;
        /// Virtualize x2APIC mode.
        4: VIRTUALIZE_X2APIC_MODE, virtualize_x2apic_mode;
        /// Enable VPID.
        5: ENABLE_VPID, vpid;
        /// WBINVD exiting.
        6: WBINVD_EXITING, wbinvd_exiting;
        /// Unrestricted guest.
        7: UNRESTRICTED_GUEST, unrestricted_guest;
        /// APIC-register virtualization.
        8: APIC_REGISTER_VIRT, apic_register_virtualization;
        /// Virtual-interrupt delivery.
        9: VIRTUAL_INTR_DELIVERY, virtual_interrupt_delivery;
        /// PAUSE-loop exiting.
        10: PAUSE_LOOP_EXITING, pause_loop_exiting;
        /// RDRAND exiting.
        11: RDRAND_EXITING, rdrand_exiting;
        /// Enable INVPCID.
        12: ENABLE_INVPCID, invpcid;
        /// Enable VM functions.
        13: ENABLE_VMFUNC, vmfunc;
        /// VMCS shadowing.
        14: SHADOW_VMCS, vmcs_shadowing;
        /// Enable ENCLS exiting.
        15: ENCLS_EXITING, encls_exiting;
        /// RDSEED exiting.
        16: RDSEED_EXITING, rdseed_exiting;
        /// Enable PML.
        17: ENABLE_PML, pml;
        /// EPT-violation #VE.
        18: EPT_VIOLATION_VE, ept_violation_ve;
        /// Conceal VMX from PT.
        19: PT_CONCEAL_VMX, conceal_vmx_from_pt;
        /// Enable XSAVES/XRSTORS.
        20: ENABLE_XSAVES, xsaves;
        /// Mode-based execute control for EPT.
        22: MODE_BASED_EPT_EXEC, mode_based_execute_control;
        /// Intel PT uses guest physical addresses.
        24: PT_USE_GPA, pt_uses_guest_physical_addresses;
        /// Use TSC scaling.
        25: TSC_SCALING, tsc_scaling;
        /// Enable user wait and pause.
        26: ENABLE_USR_WAIT_PAUSE, user_wait_and_pause;
        /// VMM bus-lock detection.
        30: BUS_LOCK_DETECTION, bus_lock_detection;
        /// Instruction timeout.
        31: NOTIFY_VM_EXITING, instruction_timeout;
    }
}
