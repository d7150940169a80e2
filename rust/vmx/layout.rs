// SPDX-License-Identifier: GPL-2.0

//! That our types have the layouts of KVM's.

use crate::vcpu::same_layout;
use core::mem::{
    align_of,
    offset_of,
    size_of, //
};
use kvm::bindings;
use nested::vmx::{
    vmcs12::REGION_SIZE,
    Vmcs12, //
};

same_layout! {
    Vmcs12, bindings::vmcs12:
    revision = hdr, abort, launch_state,
    io_bitmap_a, io_bitmap_b, msr_bitmap, vm_exit_msr_store_addr, vm_exit_msr_load_addr,
    vm_entry_msr_load_addr, tsc_offset, virtual_apic_page_addr, apic_access_addr,
    posted_intr_desc_addr, ept_pointer, eoi_exit_bitmap0, eoi_exit_bitmap1, eoi_exit_bitmap2,
    eoi_exit_bitmap3, xss_exit_bitmap, guest_physical_address, vmcs_link_pointer,
    guest_ia32_debugctl, guest_ia32_pat, guest_ia32_efer, guest_ia32_perf_global_ctrl,
    guest_pdptr0, guest_pdptr1, guest_pdptr2, guest_pdptr3, guest_bndcfgs, host_ia32_pat,
    host_ia32_efer, host_ia32_perf_global_ctrl, vmread_bitmap, vmwrite_bitmap, vm_function_control,
    eptp_list_address, pml_address, encls_exiting_bitmap, tsc_multiplier, cr0_guest_host_mask,
    cr4_guest_host_mask, cr0_read_shadow, cr4_read_shadow, exit_qualification,
    guest_linear_address, guest_cr0, guest_cr3, guest_cr4, guest_es_base, guest_cs_base,
    guest_ss_base, guest_ds_base, guest_fs_base, guest_gs_base, guest_ldtr_base, guest_tr_base,
    guest_gdtr_base, guest_idtr_base, guest_dr7, guest_rsp, guest_rip, guest_rflags,
    guest_pending_dbg_exceptions, guest_sysenter_esp, guest_sysenter_eip, host_cr0, host_cr3,
    host_cr4, host_fs_base, host_gs_base, host_tr_base, host_gdtr_base, host_idtr_base,
    host_ia32_sysenter_esp, host_ia32_sysenter_eip, host_rsp, host_rip, host_s_cet, host_ssp,
    host_ssp_tbl, guest_s_cet, guest_ssp, guest_ssp_tbl, pin_based_vm_exec_control,
    cpu_based_vm_exec_control, exception_bitmap, page_fault_error_code_mask,
    page_fault_error_code_match, cr3_target_count, vm_exit_controls, vm_exit_msr_store_count,
    vm_exit_msr_load_count, vm_entry_controls, vm_entry_msr_load_count, vm_entry_intr_info_field,
    vm_entry_exception_error_code, vm_entry_instruction_len, tpr_threshold,
    secondary_vm_exec_control, vm_instruction_error, vm_exit_reason, vm_exit_intr_info,
    vm_exit_intr_error_code, idt_vectoring_info_field, idt_vectoring_error_code,
    vm_exit_instruction_len, vmx_instruction_info, guest_es_limit, guest_cs_limit, guest_ss_limit,
    guest_ds_limit, guest_fs_limit, guest_gs_limit, guest_ldtr_limit, guest_tr_limit,
    guest_gdtr_limit, guest_idtr_limit, guest_es_ar_bytes, guest_cs_ar_bytes, guest_ss_ar_bytes,
    guest_ds_ar_bytes, guest_fs_ar_bytes, guest_gs_ar_bytes, guest_ldtr_ar_bytes,
    guest_tr_ar_bytes, guest_interruptibility_info, guest_activity_state, guest_sysenter_cs,
    host_ia32_sysenter_cs, vmx_preemption_timer_value, virtual_processor_id, posted_intr_nv,
    guest_es_selector, guest_cs_selector, guest_ss_selector, guest_ds_selector, guest_fs_selector,
    guest_gs_selector, guest_ldtr_selector, guest_tr_selector, guest_intr_status, host_es_selector,
    host_cs_selector, host_ss_selector, host_ds_selector, host_fs_selector, host_gs_selector,
    host_tr_selector, guest_pml_index,
    // In what C leaves for the future: it copies, saves and restores it without looking at it.
    ple_gap = padding32,
}

// What is allocated for a vmcs12 is a region, of which the type is the beginning. C packs it.
const _: () = {
    assert!(size_of::<Vmcs12>() == size_of::<bindings::vmcs12>().next_multiple_of(8));
    assert!(size_of::<Vmcs12>() <= REGION_SIZE);
    assert!(offset_of!(Vmcs12, virtual_processor_id) - offset_of!(Vmcs12, ple_gap) == 7 * 4);
};
