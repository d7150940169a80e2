// SPDX-License-Identifier: GPL-2.0

//! Enlightened VMCSes, by which a hypervisor on Hyper-V's interface tells L0 of L2 (TLFS, "Nested
//! Virtualization").
//!
//! An enlightened VMCS is a page of L1 that L1 accesses like any memory. It is copied to vmcs12
//! when L1 enters L2, except for groups of fields that L1 marks as clean, and back after an exit.

use crate::{
    shadow,
    vcpu::{
        VmxVcpu,
        INVALID_GPA, //
    }, //
};
use core::ptr::NonNull;
use kernel::prelude::*;
use kvm::bindings::{
    self,
    hv_enlightened_vmcs as Evmcs, //
};
use nested::{
    address::Gpa,
    memory::Inaccessible,
    vmx::{
        field::CLEAR,
        instruction::{
            launch::Launch,
            InstructionError,
            Refusal, //
        },
        vmcs12::REVISION, //
    }, //
};

/// What stands for "there is none".
const EVMPTR_INVALID: u64 = u64::MAX;
/// What stands for "there is one, which a restored state has not mapped yet".
const EVMPTR_MAP_PENDING: u64 = u64::MAX - 1;
/// The version of the layout.
const VERSION: u32 = 1;

/// A group of fields that L1 marks as clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Clean {
    /// The I/O bitmaps.
    IoBitmap = 1 << 0,
    /// The MSR bitmap.
    MsrBitmap = 1 << 1,
    /// Controls that belong to no other group.
    ControlGroup2 = 1 << 2,
    /// Pin-based, secondary and VM-exit controls.
    ControlGroup1 = 1 << 3,
    /// Primary processor-based controls.
    ControlProcessor = 1 << 4,
    /// The injected event.
    ControlEvent = 1 << 5,
    /// VM-entry controls.
    ControlEntry = 1 << 6,
    /// The exception bitmap.
    ControlException = 1 << 7,
    /// Control registers and DR7.
    ControlRegisters = 1 << 8,
    /// EPT pointer and VPID.
    ControlTranslation = 1 << 9,
    /// RSP, RFLAGS and interruptibility.
    GuestBasic = 1 << 10,
    /// Guest state that belongs to no other group.
    GuestGroup1 = 1 << 11,
    /// Segments and descriptor tables.
    GuestGroup2 = 1 << 12,
    /// Bases and RSP of the host.
    HostPointer = 1 << 13,
    /// The rest of the host state.
    HostGroup1 = 1 << 14,
    /// What L1 lets L0 do for L2.
    Enlightenments = 1 << 15,
}

const ALL_CLEAN: u32 = 0xffff;

/// Returns whether user space has offered enlightened VMCSes to L1.
fn has_evmcs(vmx: &VmxVcpu) -> bool {
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_has_evmcs(vmx.as_ptr()) }
}

/// Returns whether L2 asks for a flush by a hypercall that L0 handles for L1.
pub(crate) fn is_direct_flush(vmx: &VmxVcpu) -> bool {
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_hv_is_direct_flush(vmx.as_ptr()) }
}

/// Adds what concerns enlightened VMCSes to the ops.
pub(crate) fn complete_ops(ops: bindings::kvm_x86_nested_ops) -> bindings::kvm_x86_nested_ops {
    bindings::kvm_x86_nested_ops {
        enable_evmcs: Some(bindings::nested_helper_vmx_enable_evmcs),
        get_evmcs_version: Some(bindings::nested_helper_vmx_evmcs_version),
        hv_inject_synthetic_vmexit_post_tlb_flush: Some(
            bindings::nested_helper_vmx_hv_exit_after_flush,
        ),
        ..ops
    }
}

/// Returns the enlightened VMCS, if L1 uses one.
fn evmcs(vmx: &mut VmxVcpu) -> Option<NonNull<Evmcs>> {
    NonNull::new(vmx.nested().hv_evmcs)
}

/// Reads a field of an enlightened VMCS.
macro_rules! get {
    ($evmcs:ident . $($field:ident).+) => {
        // SAFETY: The page is mapped as long as `hv_evmcs` points to it. L1 writes to it meanwhile:
        // any value is valid.
        unsafe { (&raw const (*$evmcs.as_ptr()).$($field).+).read_unaligned() }
    };
}

/// Writes a field of an enlightened VMCS.
macro_rules! set {
    ($evmcs:ident . $field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: As above.
        unsafe { (&raw mut (*$evmcs.as_ptr()).$field).write_unaligned(value) }
    }};
}

/// Returns where the enlightened VMCS of L1 is, if it uses one.
pub(crate) fn evmptr(vmx: &mut VmxVcpu) -> Option<Gpa> {
    match vmx.nested().hv_evmcs_vmptr {
        EVMPTR_INVALID | EVMPTR_MAP_PENDING => None,
        pointer => Some(Gpa::from_raw(pointer)),
    }
}

/// Returns whether L1 uses an enlightened VMCS, mapped or not.
pub(crate) fn is_evmptr_set(vmx: &mut VmxVcpu) -> bool {
    vmx.nested().hv_evmcs_vmptr != EVMPTR_INVALID
}

/// Returns the enlightened VMCS that L1 wants to use now, as its assist page says.
fn wanted(vmx: &VmxVcpu) -> Option<Gpa> {
    // SAFETY: By the invariants of `VmxVcpu`.
    match unsafe { bindings::nested_helper_vmx_evmptr(vmx.as_ptr()) } {
        EVMPTR_INVALID | EVMPTR_MAP_PENDING => None,
        pointer => Some(Gpa::from_raw(pointer)),
    }
}

/// Stops using an enlightened VMCS.
pub(crate) fn release(vmx: &mut VmxVcpu) {
    let vcpu = vmx.as_ptr();
    let nested = vmx.nested();

    nested.hv_evmcs = core::ptr::null_mut();
    nested.hv_evmcs_vmptr = EVMPTR_INVALID;
    let map = &raw mut nested.hv_evmcs_map;
    // SAFETY: By the invariants of `VmxVcpu`; a map that is unused is left alone.
    unsafe {
        bindings::kvm_vcpu_unmap(vcpu, map);
        bindings::nested_helper_vmx_hv_set_ids(vcpu, u64::MAX, 0, 0);
    }
}

/// Handles VMCLEAR of what may be an enlightened VMCS; returns whether it was one.
///
/// There is no telling one that is not in use from a VMCS: nothing is written to it.
pub(crate) fn clear(vmx: &mut VmxVcpu, pointer: Gpa) -> bool {
    if !has_evmcs(vmx) || wanted(vmx).is_none() {
        return false;
    }
    if evmptr(vmx) == Some(pointer) {
        release(vmx);
    }
    true
}

/// What has become of loading the enlightened VMCS that L1 wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vmptrld {
    /// It does not want to use one.
    Disabled,
    /// It is loaded.
    Loaded,
    /// It has another version.
    Refused,
    /// There is no memory.
    Inaccessible,
}

/// Loads the enlightened VMCS that L1 wants to use, if it does.
pub(crate) fn vmptrld(vmx: &mut VmxVcpu, launch: Launch) -> Vmptrld {
    if !has_evmcs(vmx) {
        return Vmptrld::Disabled;
    }
    let Some(pointer) = wanted(vmx) else {
        release(vmx);
        return Vmptrld::Disabled;
    };

    let is_another = evmptr(vmx) != Some(pointer);
    if is_another {
        match map(vmx, pointer) {
            Vmptrld::Loaded => {}
            failure => return failure,
        }
        // What an enlightened VMCS does not have must not be left from another one.
        if launch == Launch::Launch {
            vmx.vmcs12_mut().clone_from(&CLEAR);
        }
    }
    if is_another || launch == Launch::Launch {
        // L1 marks what it has changed since this one was used; vmcs12 is what was used last.
        if let Some(evmcs) = evmcs(vmx) {
            set!(
                evmcs.hv_clean_fields,
                get!(evmcs.hv_clean_fields) & !ALL_CLEAN
            );
        }
        vmx.nested().force_msr_bitmap_recalc = true;
    }
    Vmptrld::Loaded
}

fn map(vmx: &mut VmxVcpu, pointer: Gpa) -> Vmptrld {
    vmx.nested().current_vmptr = INVALID_GPA;
    release(vmx);

    let map = &raw mut vmx.nested().hv_evmcs_map;
    let page = pointer.into_raw() >> 12;
    // SAFETY: By the invariants of `VmxVcpu`; the map is unused.
    if unsafe { bindings::__kvm_vcpu_map(vmx.as_ptr(), page, map, true) } != 0 {
        return Vmptrld::Inaccessible;
    }
    let nested = vmx.nested();
    nested.hv_evmcs = nested.hv_evmcs_map.hva.cast();
    nested.hv_evmcs_vmptr = pointer.into_raw();

    // Hyper-V itself writes the revision of a VMCS where the version should be.
    match evmcs(vmx).map(|evmcs| get!(evmcs.revision_id)) {
        Some(VERSION | REVISION) => Vmptrld::Loaded,
        _ => {
            release(vmx);
            Vmptrld::Refused
        }
    }
}

/// Maps the enlightened VMCS that a restored state refers to, if it does.
pub(crate) fn map_restored(vmx: &mut VmxVcpu) -> Result<(), Inaccessible> {
    if !has_evmcs(vmx) || vmx.nested().hv_evmcs_vmptr != EVMPTR_MAP_PENDING {
        return Ok(());
    }
    match vmptrld(vmx, Launch::Resume) {
        Vmptrld::Refused | Vmptrld::Inaccessible => Err(Inaccessible),
        Vmptrld::Disabled | Vmptrld::Loaded => {
            // What was saved is more recent than what is in memory.
            vmx.nested().need_vmcs12_to_shadow_sync = true;
            Ok(())
        }
    }
}

/// Says that a restored state has an enlightened VMCS that is to be mapped.
pub(crate) fn set_map_pending(vmx: &mut VmxVcpu) {
    vmx.nested().hv_evmcs_vmptr = EVMPTR_MAP_PENDING;
    vmx.request_state_pages();
}

/// Reads a field for VMREAD, which the interface does not provide for, but some hypervisors use.
pub(crate) fn read_field(vmx: &mut VmxVcpu, encoding: u64) -> Result<u64, Refusal> {
    let field = encoding as usize;

    // SAFETY: Looks at a table of kvm-intel.
    let offset = unsafe { bindings::nested_helper_vmx_evmcs_field_offset(field) };
    let (Ok(offset), Some(evmcs)) = (u16::try_from(offset), evmcs(vmx)) else {
        return Err(Refusal::Fail(InstructionError::UNSUPPORTED_VMCS_COMPONENT));
    };
    // SAFETY: The page is mapped, and the offset is that of the field.
    Ok(unsafe { bindings::nested_helper_vmx_read_evmcs(evmcs.as_ptr(), field, offset) })
}

/// Returns whether vmcs12 has no controls that an enlightened VMCS does not have.
pub(crate) fn controls_are_valid(vmx: &mut VmxVcpu) -> bool {
    let vmcs12 = vmx.nested().cached_vmcs12;

    // SAFETY: The snapshot is there in VMX operation.
    !has_evmcs(vmx) || unsafe { bindings::nested_helper_vmx_evmcs_controls_are_valid(vmcs12) }
}

/// Returns whether L1 says that fields of its enlightened VMCS have not changed.
pub(crate) fn is_clean(vmx: &mut VmxVcpu, group: Clean) -> bool {
    evmcs(vmx).is_some_and(|evmcs| get!(evmcs.hv_clean_fields) & group as u32 != 0)
}

/// Marks all fields as clean: some hypervisors only clear the marks.
pub(crate) fn mark_clean(vmx: &mut VmxVcpu) {
    if let Some(evmcs) = evmcs(vmx) {
        set!(
            evmcs.hv_clean_fields,
            get!(evmcs.hv_clean_fields) | ALL_CLEAN
        );
    }
}

/// Returns whether L1 has the interface to say so, and says that its MSR bitmap has not changed.
pub(crate) fn msr_bitmap_is_unchanged(vmx: &mut VmxVcpu) -> bool {
    evmcs(vmx).is_some_and(|evmcs| {
        get!(evmcs.hv_enlightenments_control).msr_bitmap() != 0
            && get!(evmcs.hv_clean_fields) & Clean::MsrBitmap as u32 != 0
    })
}

/// Declares in which groups fields are copied to vmcs12.
macro_rules! copy_groups {
    ($evmcs:ident, $vmcs12:ident, $clean:ident: $( $group:ident: $($field:ident),+; )*) => {
        $(
            if $clean & Clean::$group as u32 == 0 {
                $( $vmcs12.$field = get!($evmcs.$field); )+
            }
        )*
    };
}

/// Copies an enlightened VMCS to vmcs12, before L1 enters L2.
pub(crate) fn copy_to_vmcs12(vmx: &mut VmxVcpu, launch: Launch) {
    let clean = evmcs(vmx).map_or(0, |evmcs| get!(evmcs.hv_clean_fields));

    copy_groups_to_vmcs12(vmx, clean);
    // It does not have a launch state.
    vmx.vmcs12_mut().launch_state = match launch {
        Launch::Launch => 0,
        Launch::Resume => 1,
    };
}

/// Copies an enlightened VMCS to vmcs12, whatever is marked as clean.
pub(crate) fn copy_all_to_vmcs12(vmx: &mut VmxVcpu) {
    copy_groups_to_vmcs12(vmx, 0);
}

fn copy_groups_to_vmcs12(vmx: &mut VmxVcpu, clean: u32) {
    const RUNTIME: u32 =
        Clean::ControlGroup1 as u32 | Clean::ControlGroup2 as u32 | Clean::ControlProcessor as u32;

    let Some(evmcs) = evmcs(vmx) else {
        return;
    };
    if clean & RUNTIME != RUNTIME {
        vmx.nested().force_msr_bitmap_recalc = true;
    }
    if clean & Clean::Enlightenments as u32 == 0 {
        let page = get!(evmcs.partition_assist_page);
        let (vm, vp) = (get!(evmcs.hv_vm_id), get!(evmcs.hv_vp_id));
        // SAFETY: By the invariants of `VmxVcpu`.
        unsafe { bindings::nested_helper_vmx_hv_set_ids(vmx.as_ptr(), page, vm, vp) };
    }
    // L1 writes it without an exit.
    vmx.private().forget();
    let vmcs12 = vmx.vmcs12_mut();

    vmcs12.tpr_threshold = get!(evmcs.tpr_threshold);
    vmcs12.guest_rip = get!(evmcs.guest_rip);
    copy_groups! {
        evmcs, vmcs12, clean:
        GuestBasic: guest_rsp, guest_rflags, guest_interruptibility_info;
        ControlProcessor: cpu_based_vm_exec_control;
        ControlException: exception_bitmap;
        ControlEntry: vm_entry_controls;
        ControlEvent: vm_entry_intr_info_field, vm_entry_exception_error_code,
            vm_entry_instruction_len;
        HostGroup1: host_ia32_pat, host_ia32_efer, host_cr0, host_cr3, host_cr4,
            host_ia32_sysenter_esp, host_ia32_sysenter_eip, host_rip, host_ia32_sysenter_cs,
            host_es_selector, host_cs_selector, host_ss_selector, host_ds_selector,
            host_fs_selector, host_gs_selector, host_tr_selector, host_ia32_perf_global_ctrl;
        ControlGroup1: pin_based_vm_exec_control, vm_exit_controls, secondary_vm_exec_control;
        IoBitmap: io_bitmap_a, io_bitmap_b;
        MsrBitmap: msr_bitmap;
        GuestGroup2: guest_es_base, guest_cs_base, guest_ss_base, guest_ds_base, guest_fs_base,
            guest_gs_base, guest_ldtr_base, guest_tr_base, guest_gdtr_base, guest_idtr_base,
            guest_es_limit, guest_cs_limit, guest_ss_limit, guest_ds_limit, guest_fs_limit,
            guest_gs_limit, guest_ldtr_limit, guest_tr_limit, guest_gdtr_limit, guest_idtr_limit,
            guest_es_ar_bytes, guest_cs_ar_bytes, guest_ss_ar_bytes, guest_ds_ar_bytes,
            guest_fs_ar_bytes, guest_gs_ar_bytes, guest_ldtr_ar_bytes, guest_tr_ar_bytes,
            guest_es_selector, guest_cs_selector, guest_ss_selector, guest_ds_selector,
            guest_fs_selector, guest_gs_selector, guest_ldtr_selector, guest_tr_selector;
        ControlGroup2: tsc_offset, virtual_apic_page_addr, xss_exit_bitmap, encls_exiting_bitmap,
            tsc_multiplier;
        ControlRegisters: cr0_guest_host_mask, cr4_guest_host_mask, cr0_read_shadow,
            cr4_read_shadow, guest_cr0, guest_cr3, guest_cr4, guest_dr7;
        HostPointer: host_fs_base, host_gs_base, host_tr_base, host_gdtr_base, host_idtr_base,
            host_rsp;
        ControlTranslation: ept_pointer, virtual_processor_id;
        GuestGroup1: vmcs_link_pointer, guest_ia32_debugctl, guest_ia32_pat, guest_ia32_efer,
            guest_pdptr0, guest_pdptr1, guest_pdptr2, guest_pdptr3, guest_pending_dbg_exceptions,
            guest_sysenter_esp, guest_sysenter_eip, guest_bndcfgs, guest_activity_state,
            guest_sysenter_cs, guest_ia32_perf_global_ctrl;
    }
}

/// Declares which fields an exit copies.
macro_rules! copy_back {
    ($vmcs12:ident, $evmcs:ident: $($field:ident),+ $(,)?) => {
        $( set!($evmcs.$field, $vmcs12.$field); )+
    };
}

/// Copies what an exit has changed of vmcs12 to the enlightened VMCS, before L1 runs.
fn copy_from_vmcs12(vmx: &mut VmxVcpu) {
    let Some(evmcs) = evmcs(vmx) else {
        return;
    };
    let vmcs12 = vmx.vmcs12();

    copy_back! {
        vmcs12, evmcs:
        guest_es_selector, guest_cs_selector, guest_ss_selector, guest_ds_selector,
        guest_fs_selector, guest_gs_selector, guest_ldtr_selector, guest_tr_selector,
        guest_es_limit, guest_cs_limit, guest_ss_limit, guest_ds_limit, guest_fs_limit,
        guest_gs_limit, guest_ldtr_limit, guest_tr_limit, guest_gdtr_limit, guest_idtr_limit,
        guest_es_ar_bytes, guest_cs_ar_bytes, guest_ss_ar_bytes, guest_ds_ar_bytes,
        guest_fs_ar_bytes, guest_gs_ar_bytes, guest_ldtr_ar_bytes, guest_tr_ar_bytes,
        guest_es_base, guest_cs_base, guest_ss_base, guest_ds_base, guest_fs_base, guest_gs_base,
        guest_ldtr_base, guest_tr_base, guest_gdtr_base, guest_idtr_base, guest_ia32_pat,
        guest_ia32_efer, guest_pdptr0, guest_pdptr1, guest_pdptr2, guest_pdptr3,
        guest_pending_dbg_exceptions, guest_sysenter_esp, guest_sysenter_eip,
        guest_activity_state, guest_sysenter_cs, guest_cr0, guest_cr3, guest_cr4, guest_dr7,
        guest_physical_address, vm_instruction_error, vm_exit_reason, vm_exit_intr_info,
        vm_exit_intr_error_code, idt_vectoring_info_field, idt_vectoring_error_code,
        vm_exit_instruction_len, vmx_instruction_info, exit_qualification, guest_linear_address,
        guest_rsp, guest_rflags, guest_interruptibility_info, cpu_based_vm_exec_control,
        vm_entry_controls, vm_entry_intr_info_field, vm_entry_exception_error_code,
        vm_entry_instruction_len, guest_rip, guest_bndcfgs,
    }
}

/// Copies vmcs12 to where L1 reads it without exits.
pub(crate) fn sync_to_l1(vmx: &mut VmxVcpu) {
    if evmptr(vmx).is_some() {
        copy_from_vmcs12(vmx);
    } else {
        shadow::copy_from_vmcs12(vmx);
    }
    vmx.nested().need_vmcs12_to_shadow_sync = false;
}
