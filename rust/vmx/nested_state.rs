// SPDX-License-Identifier: GPL-2.0

//! How user space saves and restores the nested state.

use crate::{
    entry,
    exit,
    hyperv,
    shadow,
    state,
    vcpu::{
        VmxVcpu,
        INVALID_GPA, //
    }, //
};
use core::mem::{
    offset_of,
    size_of, //
};
use kernel::{
    ffi::c_int,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use kvm::{
    bindings,
    RunPending, //
};
use nested::{
    address::Gpa,
    vmx::{
        instruction::access::link_pointer,
        vmcs12::{
            REGION_SIZE,
            REVISION,
            SHADOW_INDICATOR, //
        },
        Vmcs12, //
    }, //
};

const HEADER_SIZE: usize = size_of::<bindings::kvm_nested_state>();
/// How much of a VMCS user space has to give.
const VMCS12_SIZE: usize = size_of::<bindings::vmcs12>();
const FORMAT: u16 = bindings::KVM_STATE_NESTED_FORMAT_VMX as u16;
const GUEST_MODE: u16 = bindings::KVM_STATE_NESTED_GUEST_MODE as u16;
const RUN_PENDING: u16 = bindings::KVM_STATE_NESTED_RUN_PENDING as u16;
const EVMCS: u16 = bindings::KVM_STATE_NESTED_EVMCS as u16;
const MTF_PENDING: u16 = bindings::KVM_STATE_NESTED_MTF_PENDING as u16;
const SMM_GUEST_MODE: u16 = bindings::KVM_STATE_NESTED_SMM_GUEST_MODE as u16;
const SMM_VMXON: u16 = bindings::KVM_STATE_NESTED_SMM_VMXON as u16;
const TIMER_DEADLINE: u32 = bindings::KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE;

// What follows the header: vmcs12, and the shadow VMCS that L1 gives to L2.
const _: () = {
    assert!(offset_of!(bindings::kvm_vmx_nested_state_data, vmcs12) == 0);
    assert!(offset_of!(bindings::kvm_vmx_nested_state_data, shadow_vmcs12) == REGION_SIZE);
    assert!(size_of::<bindings::kvm_vmx_nested_state_data>() == 2 * REGION_SIZE);
};

/// Returns how large a state can be.
pub(crate) const fn largest_size() -> c_int {
    (HEADER_SIZE + 2 * REGION_SIZE) as c_int
}

/// How much of the state there is after the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// Nothing: no VMCS is current.
    Header,
    /// vmcs12.
    Vmcs12,
    /// vmcs12, and the shadow VMCS of L2.
    ShadowVmcs12,
}

impl Extent {
    const fn size(self) -> usize {
        match self {
            Self::Header => HEADER_SIZE,
            Self::Vmcs12 => HEADER_SIZE + REGION_SIZE,
            Self::ShadowVmcs12 => HEADER_SIZE + 2 * REGION_SIZE,
        }
    }
}

/// Returns whether L2 has a shadow VMCS.
fn has_shadow_vmcs(vmcs12: &Vmcs12) -> bool {
    vmcs12.secondary().vmcs_shadowing() && link_pointer(vmcs12).is_some()
}

/// Copies the state to user space; returns its size, even where it does not fit.
pub(crate) fn get(vmx: &mut VmxVcpu, user: UserPtr, room: u32) -> Result<c_int> {
    let (header, extent) = describe(vmx);
    let size = extent.size();
    if (room as usize) < size {
        return Ok(size as c_int);
    }
    if extent > Extent::Header {
        collect(vmx);
    }

    let mut writer = UserSlice::new(user, size).writer();
    // SAFETY: The header was made of zeroes, of which only members without padding were changed.
    let bytes: &[u8; HEADER_SIZE] = unsafe { &*(&raw const header).cast() };
    writer.write_slice(bytes)?;
    if extent >= Extent::Vmcs12 {
        writer.write_slice(vmx.vmcs12_region())?;
    }
    if extent == Extent::ShadowVmcs12 {
        writer.write_slice(vmx.shadow_vmcs12_region())?;
    }
    Ok(size as c_int)
}

/// Returns the header, and how much comes after it.
fn describe(vmx: &mut VmxVcpu) -> (bindings::kvm_nested_state, Extent) {
    let mut header = bindings::kvm_nested_state::default();
    let mut vmx_header = bindings::kvm_vmx_nested_state_hdr::default();
    let mut extent = Extent::Header;

    header.format = FORMAT;
    vmx_header.vmxon_pa = INVALID_GPA;
    vmx_header.vmcs12_pa = INVALID_GPA;
    // SAFETY: By the invariants of `VmxVcpu`; reads the capabilities of the vCPU.
    let has_vmx = unsafe { bindings::nested_helper_vmx_guest_has_vmx(vmx.as_ptr()) };
    let nested = vmx.nested();
    let (vmxon, smm_vmxon, smm_guest_mode) =
        (nested.vmxon, nested.smm.vmxon, nested.smm.guest_mode);

    if has_vmx && (vmxon || smm_vmxon) {
        vmx_header.vmxon_pa = nested.vmxon_ptr;
        vmx_header.vmcs12_pa = nested.current_vmptr;
        if smm_vmxon {
            vmx_header.smm.flags |= SMM_VMXON;
        }
        if smm_guest_mode {
            vmx_header.smm.flags |= SMM_GUEST_MODE;
        }
        let enlightened = hyperv::is_evmptr_set(vmx);
        let active = vmx.is_guest_mode();
        if enlightened || vmx.current_vmptr().is_some() {
            extent = if active && has_shadow_vmcs(vmx.vmcs12()) {
                Extent::ShadowVmcs12
            } else {
                Extent::Vmcs12
            };
            if enlightened {
                header.flags |= EVMCS;
            }
        }
        if active {
            describe_l2(vmx, &mut header, &mut vmx_header);
        }
    }
    header.size = extent.size() as u32;
    header.hdr.vmx = vmx_header;
    (header, extent)
}

/// Adds what there is of an active L2.
fn describe_l2(
    vmx: &mut VmxVcpu,
    header: &mut bindings::kvm_nested_state,
    vmx_header: &mut bindings::kvm_vmx_nested_state_hdr,
) {
    header.flags |= GUEST_MODE;
    if vmx.run_pending() != RunPending::No {
        header.flags |= RUN_PENDING;
    }
    if vmx.nested().mtf_pending {
        header.flags |= MTF_PENDING;
    }
    if vmx.vmcs12().pin().preemption_timer() && vmx.nested().has_preemption_timer_deadline {
        vmx_header.flags |= TIMER_DEADLINE;
        vmx_header.preemption_timer_deadline = vmx.nested().preemption_timer_deadline;
    }
}

/// Brings vmcs12 up to date. Of what L2 or L1 has changed, it is in vmcs02, or where L1 writes it
/// without exits.
fn collect(vmx: &mut VmxVcpu) {
    if vmx.is_guest_mode() {
        exit::save_state(vmx);
        exit::save_rare_state(vmx);
        return;
    }
    exit::fetch_rare_state(vmx);
    // What has not been copied there is in vmcs12 already.
    if !vmx.nested().need_vmcs12_to_shadow_sync {
        if hyperv::evmptr(vmx).is_some() {
            // What L1 marks as clean is so when it enters L2, and not before.
            hyperv::copy_all_to_vmcs12(vmx);
        } else {
            shadow::copy_to_vmcs12(vmx);
        }
    }
}

/// Restores a state, of which KVM has copied the header.
///
/// # Errors
///
/// `EINVAL` if the vCPU cannot have had that state, `EFAULT` if it is not readable.
pub(crate) fn set(vmx: &mut VmxVcpu, user: UserPtr, header: &bindings::kvm_nested_state) -> Result {
    if header.format != FORMAT {
        return Err(EINVAL);
    }
    // SAFETY: The format says which member of the union it is.
    let vmx_header = unsafe { header.hdr.vmx };
    check(vmx, header.flags, &vmx_header)?;

    state::leave(vmx);
    if vmx_header.vmxon_pa == INVALID_GPA {
        return Ok(());
    }
    vmx.nested().vmxon_ptr = vmx_header.vmxon_pa;
    state::enter_vmx_operation(vmx)?;

    // In SMM, VMX operation goes on with RSM.
    if vmx_header.smm.flags & SMM_VMXON != 0 {
        let nested = vmx.nested();
        nested.smm.vmxon = true;
        nested.vmxon = false;
    }

    let has_vmcs12 = header.size as usize >= HEADER_SIZE + VMCS12_SIZE;
    if !has_vmcs12 {
        let needs_it =
            header.flags & (GUEST_MODE | EVMCS) != 0 || vmx_header.vmcs12_pa != INVALID_GPA;
        return if needs_it { Err(EINVAL) } else { Ok(()) };
    }
    set_current(vmx, header.flags, &vmx_header)?;
    vmx.nested().smm.guest_mode = vmx_header.smm.flags & SMM_GUEST_MODE != 0;

    let region = vmx.vmcs12_region();
    read(user, HEADER_SIZE, region)?;
    // L1 can have a shadow VMCS as its current one, too.
    if vmx.vmcs12().revision & !SHADOW_INDICATOR != REVISION {
        return Err(EINVAL);
    }
    if header.flags & GUEST_MODE == 0 {
        return Ok(());
    }
    let result = resume(vmx, user, header, &vmx_header);
    if result.is_err() {
        vmx.set_run_pending(RunPending::No);
    }
    result
}

/// Reads the part of the state at `offset` that a VMCS has.
fn read(user: UserPtr, offset: usize, region: &mut [u8]) -> Result {
    let bytes = region.get_mut(..VMCS12_SIZE).ok_or(EINVAL)?;

    UserSlice::new(user.wrapping_byte_add(offset), bytes.len())
        .reader()
        .read_slice(bytes)
}

/// Checks the header.
fn check(vmx: &mut VmxVcpu, flags: u16, header: &bindings::kvm_vmx_nested_state_hdr) -> Result {
    let smm = header.smm.flags;
    let width = vmx.physical_address_width();
    // SAFETY: By the invariants of `VmxVcpu`; reads the capabilities of the vCPU.
    let has_vmx = unsafe { bindings::nested_helper_vmx_guest_has_vmx(vmx.as_ptr()) };

    let legal_vmxon = if header.vmxon_pa == INVALID_GPA {
        // The flag for enlightened VMCSes was once set to enable them.
        smm == 0 && header.vmcs12_pa == INVALID_GPA && flags & !EVMCS == 0
    } else {
        has_vmx && Gpa::from_raw(header.vmxon_pa).is_legal_page(width)
    };
    // In SMM there is no VMX operation, and outside none that was interrupted by it.
    let legal_mode = if vmx.is_smm() {
        flags & (GUEST_MODE | RUN_PENDING) == 0
    } else {
        smm == 0
    };
    let legal_smm = smm & !(SMM_GUEST_MODE | SMM_VMXON) == 0
        && (smm & SMM_GUEST_MODE == 0 || smm & SMM_VMXON != 0 && flags & GUEST_MODE == 0);
    let legal_evmcs = flags & EVMCS == 0 || has_vmx && vmx.nested().enlightened_vmcs_enabled;

    if legal_vmxon && legal_mode && legal_smm && legal_evmcs && header.flags & !TIMER_DEADLINE == 0
    {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// Makes a VMCS the current one of L1.
fn set_current(
    vmx: &mut VmxVcpu,
    flags: u16,
    header: &bindings::kvm_vmx_nested_state_hdr,
) -> Result {
    let pointer = Gpa::from_raw(header.vmcs12_pa);

    if header.vmcs12_pa != INVALID_GPA {
        let is_legal = header.vmcs12_pa != header.vmxon_pa
            && pointer.is_legal_page(vmx.physical_address_width());
        if !is_legal {
            return Err(EINVAL);
        }
        shadow::set_current_vmptr(vmx, pointer);
        Ok(())
    } else if flags & EVMCS != 0 {
        // The page that says where it is may not be restored yet.
        hyperv::set_map_pending(vmx);
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// Makes L2 active.
fn resume(
    vmx: &mut VmxVcpu,
    user: UserPtr,
    header: &bindings::kvm_nested_state,
    vmx_header: &bindings::kvm_vmx_nested_state_hdr,
) -> Result {
    vmx.set_run_pending(if header.flags & RUN_PENDING == 0 {
        RunPending::No
    } else {
        RunPending::Restored
    });
    vmx.nested().mtf_pending = header.flags & MTF_PENDING != 0;

    if has_shadow_vmcs(vmx.vmcs12()) {
        let size = HEADER_SIZE + REGION_SIZE + VMCS12_SIZE;
        if (header.size as usize) < size {
            return Err(EINVAL);
        }
        read(user, HEADER_SIZE + REGION_SIZE, vmx.shadow_vmcs12_region())?;
    }
    let nested = vmx.nested();
    nested.has_preemption_timer_deadline = vmx_header.flags & TIMER_DEADLINE != 0;
    if nested.has_preemption_timer_deadline {
        nested.preemption_timer_deadline = vmx_header.preemption_timer_deadline;
    }
    nested.dirty_vmcs12 = true;
    nested.force_msr_bitmap_recalc = true;

    entry::resume(vmx).map_err(|_| EINVAL)?;
    if vmx.nested().mtf_pending {
        vmx.request_event();
    }
    Ok(())
}
