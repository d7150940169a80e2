// SPDX-License-Identifier: GPL-2.0

//! What stands for [`hyperv`](self) in a kernel without Hyper-V's interface: L1 has no enlightened
//! VMCSes.

use crate::{
    shadow,
    vcpu::VmxVcpu, //
};
use kvm::bindings;
use nested::{
    address::Gpa,
    memory::Inaccessible,
    vmx::instruction::{
        launch::Launch,
        InstructionError,
        Refusal, //
    }, //
};

/// A group of fields that L1 marks as clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clean {
    /// Guest state that belongs to no other group.
    GuestGroup1,
    /// Segments and descriptor tables.
    GuestGroup2,
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

/// Returns the ops: none is missing.
pub(crate) fn complete_ops(ops: bindings::kvm_x86_nested_ops) -> bindings::kvm_x86_nested_ops {
    ops
}

/// Returns where the enlightened VMCS of L1 is, if it uses one.
pub(crate) fn evmptr(_vmx: &mut VmxVcpu) -> Option<Gpa> {
    None
}

/// Returns whether L1 uses an enlightened VMCS, mapped or not.
pub(crate) fn is_evmptr_set(_vmx: &mut VmxVcpu) -> bool {
    false
}

/// Returns whether L2 asks for a flush by a hypercall that L0 handles for L1.
pub(crate) fn is_direct_flush(_vmx: &VmxVcpu) -> bool {
    false
}

/// Stops using an enlightened VMCS.
pub(crate) fn release(_vmx: &mut VmxVcpu) {}

/// Handles VMCLEAR of what may be an enlightened VMCS; returns whether it was one.
pub(crate) fn clear(_vmx: &mut VmxVcpu, _pointer: Gpa) -> bool {
    false
}

/// Loads the enlightened VMCS that L1 wants to use, if it does.
pub(crate) fn vmptrld(_vmx: &mut VmxVcpu, _launch: Launch) -> Vmptrld {
    Vmptrld::Disabled
}

/// Maps the enlightened VMCS that a restored state refers to, if it does.
pub(crate) fn map_restored(_vmx: &mut VmxVcpu) -> Result<(), Inaccessible> {
    Ok(())
}

/// Says that a restored state has an enlightened VMCS that is to be mapped.
pub(crate) fn set_map_pending(_vmx: &mut VmxVcpu) {}

/// Reads a field of an enlightened VMCS.
pub(crate) fn read_field(_vmx: &mut VmxVcpu, _encoding: u64) -> Result<u64, Refusal> {
    Err(Refusal::Fail(InstructionError::UNSUPPORTED_VMCS_COMPONENT))
}

/// Returns whether vmcs12 has no controls that an enlightened VMCS does not have.
pub(crate) fn controls_are_valid(_vmx: &mut VmxVcpu) -> bool {
    true
}

/// Returns whether L1 says that fields of its enlightened VMCS have not changed.
pub(crate) fn is_clean(_vmx: &mut VmxVcpu, _group: Clean) -> bool {
    false
}

/// Marks all fields as clean.
pub(crate) fn mark_clean(_vmx: &mut VmxVcpu) {}

/// Returns whether L1 says that its MSR bitmap has not changed.
pub(crate) fn msr_bitmap_is_unchanged(_vmx: &mut VmxVcpu) -> bool {
    false
}

/// Copies an enlightened VMCS to vmcs12, before L1 enters L2.
pub(crate) fn copy_to_vmcs12(_vmx: &mut VmxVcpu, _launch: Launch) {}

/// Copies an enlightened VMCS to vmcs12, whatever is marked as clean.
pub(crate) fn copy_all_to_vmcs12(_vmx: &mut VmxVcpu) {}

/// Copies vmcs12 to where L1 reads it without exits.
pub(crate) fn sync_to_l1(vmx: &mut VmxVcpu) {
    shadow::copy_from_vmcs12(vmx);
    vmx.nested().need_vmcs12_to_shadow_sync = false;
}
