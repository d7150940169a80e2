// SPDX-License-Identifier: GPL-2.0

//! The VMCS that L1 wrote, in the layout of KVM.

/// Identifies the layout of [`Vmcs12`] to L1 (SDM, "Format of the VMCS Region").
pub const REVISION: u32 = 0x11e5_7ed0;

/// Marks a shadow VMCS, in the same word.
pub const SHADOW_INDICATOR: u32 = 1 << 31;

/// What L1 reserves for a VMCS, in bytes.
pub const REGION_SIZE: usize = 4096;

/// A VMCS of L1.
///
/// Migration depends on the layout, which is that of KVM: fields are never moved. Each has its
/// name in KVM, and is as wide as it is in 64-bit mode.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(any(test, CONFIG_KUNIT), derive(Default))]
#[repr(C)]
pub struct Vmcs12 {
    /// Revision of the layout, and the indicator of a shadow VMCS in bit 31.
    pub revision: u32,
    /// The VMX-abort indicator.
    pub abort: u32,
    /// Whether the VMCS is clear (0) or launched (1).
    pub launch_state: u32,
    /// Not used.
    pub padding: [u32; 7],
    /// The VMCS field `IO_BITMAP_A`.
    pub io_bitmap_a: u64,
    /// The VMCS field `IO_BITMAP_B`.
    pub io_bitmap_b: u64,
    /// The VMCS field `MSR_BITMAP`.
    pub msr_bitmap: u64,
    /// The VMCS field `VM_EXIT_MSR_STORE_ADDR`.
    pub vm_exit_msr_store_addr: u64,
    /// The VMCS field `VM_EXIT_MSR_LOAD_ADDR`.
    pub vm_exit_msr_load_addr: u64,
    /// The VMCS field `VM_ENTRY_MSR_LOAD_ADDR`.
    pub vm_entry_msr_load_addr: u64,
    /// The VMCS field `TSC_OFFSET`.
    pub tsc_offset: u64,
    /// The VMCS field `VIRTUAL_APIC_PAGE_ADDR`.
    pub virtual_apic_page_addr: u64,
    /// The VMCS field `APIC_ACCESS_ADDR`.
    pub apic_access_addr: u64,
    /// The VMCS field `POSTED_INTR_DESC_ADDR`.
    pub posted_intr_desc_addr: u64,
    /// The VMCS field `EPT_POINTER`.
    pub ept_pointer: u64,
    /// The VMCS field `EOI_EXIT_BITMAP0`.
    pub eoi_exit_bitmap0: u64,
    /// The VMCS field `EOI_EXIT_BITMAP1`.
    pub eoi_exit_bitmap1: u64,
    /// The VMCS field `EOI_EXIT_BITMAP2`.
    pub eoi_exit_bitmap2: u64,
    /// The VMCS field `EOI_EXIT_BITMAP3`.
    pub eoi_exit_bitmap3: u64,
    /// The VMCS field `XSS_EXIT_BITMAP`.
    pub xss_exit_bitmap: u64,
    /// The VMCS field `GUEST_PHYSICAL_ADDRESS`.
    pub guest_physical_address: u64,
    /// The VMCS field `VMCS_LINK_POINTER`.
    pub vmcs_link_pointer: u64,
    /// The VMCS field `GUEST_IA32_DEBUGCTL`.
    pub guest_ia32_debugctl: u64,
    /// The VMCS field `GUEST_IA32_PAT`.
    pub guest_ia32_pat: u64,
    /// The VMCS field `GUEST_IA32_EFER`.
    pub guest_ia32_efer: u64,
    /// The VMCS field `GUEST_IA32_PERF_GLOBAL_CTRL`.
    pub guest_ia32_perf_global_ctrl: u64,
    /// The VMCS field `GUEST_PDPTR0`.
    pub guest_pdptr0: u64,
    /// The VMCS field `GUEST_PDPTR1`.
    pub guest_pdptr1: u64,
    /// The VMCS field `GUEST_PDPTR2`.
    pub guest_pdptr2: u64,
    /// The VMCS field `GUEST_PDPTR3`.
    pub guest_pdptr3: u64,
    /// The VMCS field `GUEST_BNDCFGS`.
    pub guest_bndcfgs: u64,
    /// The VMCS field `HOST_IA32_PAT`.
    pub host_ia32_pat: u64,
    /// The VMCS field `HOST_IA32_EFER`.
    pub host_ia32_efer: u64,
    /// The VMCS field `HOST_IA32_PERF_GLOBAL_CTRL`.
    pub host_ia32_perf_global_ctrl: u64,
    /// The VMCS field `VMREAD_BITMAP`.
    pub vmread_bitmap: u64,
    /// The VMCS field `VMWRITE_BITMAP`.
    pub vmwrite_bitmap: u64,
    /// The VMCS field `VM_FUNCTION_CONTROL`.
    pub vm_function_control: u64,
    /// The VMCS field `EPTP_LIST_ADDRESS`.
    pub eptp_list_address: u64,
    /// The VMCS field `PML_ADDRESS`.
    pub pml_address: u64,
    /// The VMCS field `ENCLS_EXITING_BITMAP`.
    pub encls_exiting_bitmap: u64,
    /// The VMCS field `TSC_MULTIPLIER`.
    pub tsc_multiplier: u64,
    /// Not used.
    pub padding64: [u64; 1],
    /// The VMCS field `CR0_GUEST_HOST_MASK`.
    pub cr0_guest_host_mask: u64,
    /// The VMCS field `CR4_GUEST_HOST_MASK`.
    pub cr4_guest_host_mask: u64,
    /// The VMCS field `CR0_READ_SHADOW`.
    pub cr0_read_shadow: u64,
    /// The VMCS field `CR4_READ_SHADOW`.
    pub cr4_read_shadow: u64,
    /// Not used.
    pub dead_space: [u64; 4],
    /// The VMCS field `EXIT_QUALIFICATION`.
    pub exit_qualification: u64,
    /// The VMCS field `GUEST_LINEAR_ADDRESS`.
    pub guest_linear_address: u64,
    /// The VMCS field `GUEST_CR0`.
    pub guest_cr0: u64,
    /// The VMCS field `GUEST_CR3`.
    pub guest_cr3: u64,
    /// The VMCS field `GUEST_CR4`.
    pub guest_cr4: u64,
    /// The VMCS field `GUEST_ES_BASE`.
    pub guest_es_base: u64,
    /// The VMCS field `GUEST_CS_BASE`.
    pub guest_cs_base: u64,
    /// The VMCS field `GUEST_SS_BASE`.
    pub guest_ss_base: u64,
    /// The VMCS field `GUEST_DS_BASE`.
    pub guest_ds_base: u64,
    /// The VMCS field `GUEST_FS_BASE`.
    pub guest_fs_base: u64,
    /// The VMCS field `GUEST_GS_BASE`.
    pub guest_gs_base: u64,
    /// The VMCS field `GUEST_LDTR_BASE`.
    pub guest_ldtr_base: u64,
    /// The VMCS field `GUEST_TR_BASE`.
    pub guest_tr_base: u64,
    /// The VMCS field `GUEST_GDTR_BASE`.
    pub guest_gdtr_base: u64,
    /// The VMCS field `GUEST_IDTR_BASE`.
    pub guest_idtr_base: u64,
    /// The VMCS field `GUEST_DR7`.
    pub guest_dr7: u64,
    /// The VMCS field `GUEST_RSP`.
    pub guest_rsp: u64,
    /// The VMCS field `GUEST_RIP`.
    pub guest_rip: u64,
    /// The VMCS field `GUEST_RFLAGS`.
    pub guest_rflags: u64,
    /// The VMCS field `GUEST_PENDING_DBG_EXCEPTIONS`.
    pub guest_pending_dbg_exceptions: u64,
    /// The VMCS field `GUEST_SYSENTER_ESP`.
    pub guest_sysenter_esp: u64,
    /// The VMCS field `GUEST_SYSENTER_EIP`.
    pub guest_sysenter_eip: u64,
    /// The VMCS field `HOST_CR0`.
    pub host_cr0: u64,
    /// The VMCS field `HOST_CR3`.
    pub host_cr3: u64,
    /// The VMCS field `HOST_CR4`.
    pub host_cr4: u64,
    /// The VMCS field `HOST_FS_BASE`.
    pub host_fs_base: u64,
    /// The VMCS field `HOST_GS_BASE`.
    pub host_gs_base: u64,
    /// The VMCS field `HOST_TR_BASE`.
    pub host_tr_base: u64,
    /// The VMCS field `HOST_GDTR_BASE`.
    pub host_gdtr_base: u64,
    /// The VMCS field `HOST_IDTR_BASE`.
    pub host_idtr_base: u64,
    /// The VMCS field `HOST_IA32_SYSENTER_ESP`.
    pub host_ia32_sysenter_esp: u64,
    /// The VMCS field `HOST_IA32_SYSENTER_EIP`.
    pub host_ia32_sysenter_eip: u64,
    /// The VMCS field `HOST_RSP`.
    pub host_rsp: u64,
    /// The VMCS field `HOST_RIP`.
    pub host_rip: u64,
    /// The VMCS field `HOST_S_CET`.
    pub host_s_cet: u64,
    /// The VMCS field `HOST_SSP`.
    pub host_ssp: u64,
    /// The VMCS field `HOST_SSP_TBL`.
    pub host_ssp_tbl: u64,
    /// The VMCS field `GUEST_S_CET`.
    pub guest_s_cet: u64,
    /// The VMCS field `GUEST_SSP`.
    pub guest_ssp: u64,
    /// The VMCS field `GUEST_SSP_TBL`.
    pub guest_ssp_tbl: u64,
    /// Not used.
    pub paddingl: [u64; 2],
    /// The VMCS field `PIN_BASED_VM_EXEC_CONTROL`.
    pub pin_based_vm_exec_control: u32,
    /// The VMCS field `CPU_BASED_VM_EXEC_CONTROL`.
    pub cpu_based_vm_exec_control: u32,
    /// The VMCS field `EXCEPTION_BITMAP`.
    pub exception_bitmap: u32,
    /// The VMCS field `PAGE_FAULT_ERROR_CODE_MASK`.
    pub page_fault_error_code_mask: u32,
    /// The VMCS field `PAGE_FAULT_ERROR_CODE_MATCH`.
    pub page_fault_error_code_match: u32,
    /// The VMCS field `CR3_TARGET_COUNT`.
    pub cr3_target_count: u32,
    /// The VMCS field `VM_EXIT_CONTROLS`.
    pub vm_exit_controls: u32,
    /// The VMCS field `VM_EXIT_MSR_STORE_COUNT`.
    pub vm_exit_msr_store_count: u32,
    /// The VMCS field `VM_EXIT_MSR_LOAD_COUNT`.
    pub vm_exit_msr_load_count: u32,
    /// The VMCS field `VM_ENTRY_CONTROLS`.
    pub vm_entry_controls: u32,
    /// The VMCS field `VM_ENTRY_MSR_LOAD_COUNT`.
    pub vm_entry_msr_load_count: u32,
    /// The VMCS field `VM_ENTRY_INTR_INFO_FIELD`.
    pub vm_entry_intr_info_field: u32,
    /// The VMCS field `VM_ENTRY_EXCEPTION_ERROR_CODE`.
    pub vm_entry_exception_error_code: u32,
    /// The VMCS field `VM_ENTRY_INSTRUCTION_LEN`.
    pub vm_entry_instruction_len: u32,
    /// The VMCS field `TPR_THRESHOLD`.
    pub tpr_threshold: u32,
    /// The VMCS field `SECONDARY_VM_EXEC_CONTROL`.
    pub secondary_vm_exec_control: u32,
    /// The VMCS field `VM_INSTRUCTION_ERROR`.
    pub vm_instruction_error: u32,
    /// The VMCS field `VM_EXIT_REASON`.
    pub vm_exit_reason: u32,
    /// The VMCS field `VM_EXIT_INTR_INFO`.
    pub vm_exit_intr_info: u32,
    /// The VMCS field `VM_EXIT_INTR_ERROR_CODE`.
    pub vm_exit_intr_error_code: u32,
    /// The VMCS field `IDT_VECTORING_INFO_FIELD`.
    pub idt_vectoring_info_field: u32,
    /// The VMCS field `IDT_VECTORING_ERROR_CODE`.
    pub idt_vectoring_error_code: u32,
    /// The VMCS field `VM_EXIT_INSTRUCTION_LEN`.
    pub vm_exit_instruction_len: u32,
    /// The VMCS field `VMX_INSTRUCTION_INFO`.
    pub vmx_instruction_info: u32,
    /// The VMCS field `GUEST_ES_LIMIT`.
    pub guest_es_limit: u32,
    /// The VMCS field `GUEST_CS_LIMIT`.
    pub guest_cs_limit: u32,
    /// The VMCS field `GUEST_SS_LIMIT`.
    pub guest_ss_limit: u32,
    /// The VMCS field `GUEST_DS_LIMIT`.
    pub guest_ds_limit: u32,
    /// The VMCS field `GUEST_FS_LIMIT`.
    pub guest_fs_limit: u32,
    /// The VMCS field `GUEST_GS_LIMIT`.
    pub guest_gs_limit: u32,
    /// The VMCS field `GUEST_LDTR_LIMIT`.
    pub guest_ldtr_limit: u32,
    /// The VMCS field `GUEST_TR_LIMIT`.
    pub guest_tr_limit: u32,
    /// The VMCS field `GUEST_GDTR_LIMIT`.
    pub guest_gdtr_limit: u32,
    /// The VMCS field `GUEST_IDTR_LIMIT`.
    pub guest_idtr_limit: u32,
    /// The VMCS field `GUEST_ES_AR_BYTES`.
    pub guest_es_ar_bytes: u32,
    /// The VMCS field `GUEST_CS_AR_BYTES`.
    pub guest_cs_ar_bytes: u32,
    /// The VMCS field `GUEST_SS_AR_BYTES`.
    pub guest_ss_ar_bytes: u32,
    /// The VMCS field `GUEST_DS_AR_BYTES`.
    pub guest_ds_ar_bytes: u32,
    /// The VMCS field `GUEST_FS_AR_BYTES`.
    pub guest_fs_ar_bytes: u32,
    /// The VMCS field `GUEST_GS_AR_BYTES`.
    pub guest_gs_ar_bytes: u32,
    /// The VMCS field `GUEST_LDTR_AR_BYTES`.
    pub guest_ldtr_ar_bytes: u32,
    /// The VMCS field `GUEST_TR_AR_BYTES`.
    pub guest_tr_ar_bytes: u32,
    /// The VMCS field `GUEST_INTERRUPTIBILITY_INFO`.
    pub guest_interruptibility_info: u32,
    /// The VMCS field `GUEST_ACTIVITY_STATE`.
    pub guest_activity_state: u32,
    /// The VMCS field `GUEST_SYSENTER_CS`.
    pub guest_sysenter_cs: u32,
    /// The VMCS field `HOST_IA32_SYSENTER_CS`.
    pub host_ia32_sysenter_cs: u32,
    /// The VMCS field `VMX_PREEMPTION_TIMER_VALUE`.
    pub vmx_preemption_timer_value: u32,
    /// The VMCS field `PLE_GAP`, in what KVM's layout has left unused.
    pub ple_gap: u32,
    /// The VMCS field `PLE_WINDOW`, likewise.
    pub ple_window: u32,
    /// Not used.
    pub padding32: [u32; 5],
    /// The VMCS field `VIRTUAL_PROCESSOR_ID`.
    pub virtual_processor_id: u16,
    /// The VMCS field `POSTED_INTR_NV`.
    pub posted_intr_nv: u16,
    /// The VMCS field `GUEST_ES_SELECTOR`.
    pub guest_es_selector: u16,
    /// The VMCS field `GUEST_CS_SELECTOR`.
    pub guest_cs_selector: u16,
    /// The VMCS field `GUEST_SS_SELECTOR`.
    pub guest_ss_selector: u16,
    /// The VMCS field `GUEST_DS_SELECTOR`.
    pub guest_ds_selector: u16,
    /// The VMCS field `GUEST_FS_SELECTOR`.
    pub guest_fs_selector: u16,
    /// The VMCS field `GUEST_GS_SELECTOR`.
    pub guest_gs_selector: u16,
    /// The VMCS field `GUEST_LDTR_SELECTOR`.
    pub guest_ldtr_selector: u16,
    /// The VMCS field `GUEST_TR_SELECTOR`.
    pub guest_tr_selector: u16,
    /// The VMCS field `GUEST_INTR_STATUS`.
    pub guest_intr_status: u16,
    /// The VMCS field `HOST_ES_SELECTOR`.
    pub host_es_selector: u16,
    /// The VMCS field `HOST_CS_SELECTOR`.
    pub host_cs_selector: u16,
    /// The VMCS field `HOST_SS_SELECTOR`.
    pub host_ss_selector: u16,
    /// The VMCS field `HOST_DS_SELECTOR`.
    pub host_ds_selector: u16,
    /// The VMCS field `HOST_FS_SELECTOR`.
    pub host_fs_selector: u16,
    /// The VMCS field `HOST_GS_SELECTOR`.
    pub host_gs_selector: u16,
    /// The VMCS field `HOST_TR_SELECTOR`.
    pub host_tr_selector: u16,
    /// The VMCS field `GUEST_PML_INDEX`.
    pub guest_pml_index: u16,
}

const _: () = assert!(size_of::<Vmcs12>() == 1000);
