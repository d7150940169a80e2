// SPDX-License-Identifier: GPL-2.0

//! The entry points from KVM and kvm-intel.

use crate::{
    access,
    capability,
    entry::{
        self,
        Refused, //
    },
    events::{
        self,
        Purpose, //
    },
    exit,
    hyperv,
    instruction::{
        self,
        finish, //
    },
    invalidate,
    mmu,
    nested_state,
    route,
    shadow,
    state,
    vcpu::VmxVcpu, //
};
use kernel::{
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_ulong, //
    },
    prelude::*,
    uaccess::UserPtr, //
};
use kvm::{
    bindings,
    VmData, //
};
use nested::{
    exits::Taker,
    vmx::{
        capability::{
            Msr,
            Msrs, //
        },
        exit::{
            information::{
                ExitInformation,
                ReasonField, //
            },
            interruption::InterruptionInformation, //
        },
        instruction::launch::Launch,
        merge::io_bitmap::{
            io_exits_to_l1,
            IoAccess, //
        },
        route::Route,
        ExitReason, //
    }, //
};

/// Builds the ops of `module`.
pub(crate) fn build(module: &ThisModule) -> bindings::vmx_nested_ops {
    bindings::vmx_nested_ops {
        x86: hyperv::complete_ops(kvm::mmu::add_ops(bindings::kvm_x86_nested_ops {
            owner: module.as_ptr().cast(),
            vm_init: Some(VmData::<ExitReason>::vm_init),
            vm_destroy: Some(VmData::<ExitReason>::vm_destroy),
            leave_nested: Some(leave_nested),
            translate_nested_gpa: Some(mmu::translate_nested_gpa),
            is_exception_vmexit: Some(is_exception_vmexit),
            check_events: Some(check_events),
            has_events: Some(has_events),
            triple_fault: Some(triple_fault),
            get_state: Some(get_state),
            set_state: Some(set_state),
            get_nested_state_pages: Some(get_nested_state_pages),
            mmu_load: Some(mmu_load),
            mmu_unload: Some(mmu_unload),
            mmu_fault: Some(mmu_fault),
            ..Default::default()
        })),
        setup_ctls_msrs: Some(setup_ctls_msrs),
        get_vmx_msr: Some(get_vmx_msr),
        set_vmx_msr: Some(set_vmx_msr),
        set_vmcs_shadowing_bitmap: Some(set_vmcs_shadowing_bitmap),
        free_vcpu: Some(free_vcpu),
        sync_vmcs12_to_shadow: Some(sync_vmcs12_to_shadow),
        check_restored_vmcs12: Some(check_restored_vmcs12),
        enter_non_root_mode: Some(enter_non_root_mode),
        reflect_vmexit: Some(reflect_vmexit),
        vmexit: Some(vmexit),
        check_io_bitmaps: Some(check_io_bitmaps),
        handle_vmclear: Some(handle_vmclear),
        handle_vmlaunch: Some(handle_vmlaunch),
        handle_vmptrld: Some(handle_vmptrld),
        handle_vmptrst: Some(handle_vmptrst),
        handle_vmread: Some(handle_vmread),
        handle_vmresume: Some(handle_vmresume),
        handle_vmwrite: Some(handle_vmwrite),
        handle_vmxoff: Some(handle_vmxoff),
        handle_vmxon: Some(handle_vmxon),
        handle_invept: Some(handle_invept),
        handle_invvpid: Some(handle_invvpid),
        handle_vmfunc: Some(handle_vmfunc),
    }
}

/// Declares ops that have nothing but the vCPU as their argument.
///
/// # Safety
///
/// As all ops: kvm-intel calls them for a vCPU of a VM with `nested_enabled`, whose mutex the caller
/// holds and which is loaded, with memory slots protected by SRCU where guest memory is accessed.
macro_rules! ops {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($vmx:ident) $(-> $ret:ty)? $body:block
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            ///
            /// As all ops.
            unsafe extern "C" fn $name(vcpu: *mut bindings::kvm_vcpu) $(-> $ret)? {
                // SAFETY: By the requirements of this function.
                let $vmx = unsafe { VmxVcpu::from_raw(vcpu) };
                $body
            }
        )*
    };
}

ops! {
    /// Loads the root that L2 is to run with.
    fn mmu_load(vmx) -> c_int {
        kvm::mmu::load_root(vmx)
    }

    /// Gives it up.
    fn mmu_unload(vmx) {
        kvm::mmu::release_root(vmx);
    }

    /// Leaves L2 without an exit, and VMX operation.
    fn leave_nested(vmx) {
        state::leave(vmx);
    }

    /// Exits to L1 if an event is there that L1 intercepts.
    fn check_events(vmx) -> c_int {
        events::result_of(events::check(vmx))
    }

    /// Exits to L1 instead of shutting the VM down.
    fn triple_fault(vmx) {
        events::triple_fault(vmx);
    }

    /// Maps what a restored state refers to in L1's memory.
    fn get_nested_state_pages(vmx) -> bool {
        entry::load_state_pages(vmx)
    }

    /// Copies vmcs12 to where L1 reads it without exits.
    fn sync_vmcs12_to_shadow(vmx) {
        hyperv::sync_to_l1(vmx);
    }

    /// Returns 0 if L2 can be active with vmcs12.
    fn check_restored_vmcs12(vmx) -> c_int {
        from_result(|| entry::check_state(vmx).map(|_| 0))
    }

    /// Called after each VM exit of L2: returns whether L1 gets it, in which case it has been
    /// reflected.
    fn reflect_vmexit(vmx) -> bool {
        // To be read before L1's exit takes its place.
        let reason = route::reason(vmx);
        let route = route::handle(vmx);

        let taker = Taker::from(route);
        vmx.stats().exits().count(vmx.index(), reason, taker);
        route == Route::L1
    }

    /// L1 has executed VMCLEAR.
    fn handle_vmclear(vmx) -> c_int {
        let result = instruction::vmclear(vmx);
        finish(vmx, result)
    }

    /// L1 has executed VMLAUNCH.
    fn handle_vmlaunch(vmx) -> c_int {
        entry::handle(vmx, Launch::Launch)
    }

    /// L1 has executed VMPTRLD.
    fn handle_vmptrld(vmx) -> c_int {
        let result = instruction::vmptrld(vmx);
        finish(vmx, result)
    }

    /// L1 has executed VMPTRST.
    fn handle_vmptrst(vmx) -> c_int {
        let result = instruction::vmptrst(vmx);
        finish(vmx, result)
    }

    /// L1, or L2 with its consent, has executed VMREAD.
    fn handle_vmread(vmx) -> c_int {
        let result = access::vmread(vmx);
        finish(vmx, result)
    }

    /// L1 has executed VMRESUME.
    fn handle_vmresume(vmx) -> c_int {
        entry::handle(vmx, Launch::Resume)
    }

    /// L1, or L2 with its consent, has executed VMWRITE.
    fn handle_vmwrite(vmx) -> c_int {
        let result = access::vmwrite(vmx);
        finish(vmx, result)
    }

    /// L1 has executed VMXOFF.
    fn handle_vmxoff(vmx) -> c_int {
        let result = instruction::vmxoff(vmx);
        finish(vmx, result)
    }

    /// L1 has executed VMXON.
    fn handle_vmxon(vmx) -> c_int {
        let result = instruction::vmxon(vmx);
        finish(vmx, result)
    }

    /// L1 has executed INVEPT.
    fn handle_invept(vmx) -> c_int {
        let result = invalidate::invept(vmx);
        finish(vmx, result)
    }

    /// L1 has executed INVVPID.
    fn handle_invvpid(vmx) -> c_int {
        let result = invalidate::invvpid(vmx);
        finish(vmx, result)
    }

    /// L2 has executed VMFUNC.
    fn handle_vmfunc(vmx) -> c_int {
        invalidate::vmfunc(vmx)
    }
}

/// Frees what a vCPU has that is destroyed.
///
/// # Safety
///
/// As all ops, but the vCPU is not loaded.
unsafe extern "C" fn free_vcpu(vcpu: *mut bindings::kvm_vcpu) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::vcpu_load(vcpu) };
    {
        // SAFETY: By the requirements of this function; the vCPU is loaded now.
        let vmx = unsafe { VmxVcpu::from_raw(vcpu) };
        kvm::mmu::leave_shrinker(vmx);
        state::leave(vmx);
    }
    // SAFETY: It was loaded above.
    unsafe { bindings::vcpu_put(vcpu) };
}

/// The processor has refused an access of L2 to `address`: returns 0 if it is to be emulated, 1 if
/// the guest goes on, or an error.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn mmu_fault(
    vcpu: *mut bindings::kvm_vcpu,
    address: bindings::gpa_t,
    error_code: u64,
) -> c_int {
    // SAFETY: By the requirements of this function.
    kvm::mmu::handle_fault(unsafe { VmxVcpu::from_raw(vcpu) }, address, error_code)
}

/// Returns whether L1 intercepts an exception of L2.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn is_exception_vmexit(
    vcpu: *mut bindings::kvm_vcpu,
    vector: u8,
    error_code: u32,
) -> bool {
    // SAFETY: By the requirements of this function.
    events::intercepts_exception(unsafe { VmxVcpu::from_raw(vcpu) }, vector, error_code)
}

/// Returns whether there is an event that KVM has to do something about.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn has_events(vcpu: *mut bindings::kvm_vcpu, for_injection: bool) -> bool {
    let purpose = if for_injection {
        Purpose::Injection
    } else {
        Purpose::Wakeup
    };

    // SAFETY: By the requirements of this function.
    events::has_events(unsafe { VmxVcpu::from_raw(vcpu) }, purpose)
}

/// Copies the nested state to user space; returns its size, or the largest one without a vCPU.
///
/// # Safety
///
/// As all ops, but `vcpu` may be null. `state` is an address of user space.
unsafe extern "C" fn get_state(
    vcpu: *mut bindings::kvm_vcpu,
    state: *mut bindings::kvm_nested_state,
    room: u32,
) -> c_int {
    if vcpu.is_null() {
        return nested_state::largest_size();
    }
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    from_result(|| nested_state::get(vmx, UserPtr::from_ptr(state.cast()), room))
}

/// Restores the nested state that user space gives; returns 0 or an error.
///
/// # Safety
///
/// As all ops. `user` is an address of user space, `header` a copy of what is there.
unsafe extern "C" fn set_state(
    vcpu: *mut bindings::kvm_vcpu,
    user: *mut bindings::kvm_nested_state,
    header: *mut bindings::kvm_nested_state,
) -> c_int {
    // SAFETY: By the requirements of this function.
    let (vmx, header) = unsafe { (VmxVcpu::from_raw(vcpu), &*header) };

    from_result(|| nested_state::set(vmx, UserPtr::from_ptr(user.cast()), header).map(|()| 0))
}

/// Computes what the VMX capability MSRs offer to L1, and logs it.
///
/// # Safety
///
/// `config` points to what kvm-intel has found on the processor, which no one else changes.
unsafe extern "C" fn setup_ctls_msrs(config: *mut bindings::vmcs_config, ept: u32) {
    // SAFETY: By the requirements of this function.
    let config = unsafe { &mut *config };
    let offered = capability::offer(config, ept);
    let nested = &raw mut config.nested;

    // SAFETY: The types have the same layout.
    unsafe { nested.cast::<Msrs>().write(offered) };
    capability::report(&offered);
}

/// Reads a VMX capability MSR; returns 1 if there is no such MSR.
///
/// # Safety
///
/// `msrs` points to what L1, or a new VM, has; `value` is valid for a write.
unsafe extern "C" fn get_vmx_msr(
    msrs: *mut bindings::nested_vmx_msrs,
    msr: u32,
    value: *mut u64,
) -> c_int {
    // SAFETY: By the requirements of this function; the types have the same layout.
    let msrs: &Msrs = unsafe { &*msrs.cast() };

    match msrs.read(Msr::from_raw(msr)) {
        Some(read) => {
            // SAFETY: By the requirements of this function.
            unsafe { value.write(read) };
            0
        }
        None => 1,
    }
}

/// Writes a VMX capability MSR for user space; returns 0 or an error.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn set_vmx_msr(vcpu: *mut bindings::kvm_vcpu, msr: u32, value: u64) -> c_int {
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    from_result(|| capability::restrict(vmx, msr, value).map(|()| 0))
}

/// Tells a new vmcs01, which is current, which accesses of L1 to its VMCS need no exit.
///
/// # Safety
///
/// A VMCS of a vCPU is current on this processor.
unsafe extern "C" fn set_vmcs_shadowing_bitmap() {
    // SAFETY: By the requirements of this function.
    unsafe { shadow::set_bitmaps() }
}

/// Enters L2 by RSM. There is no other reason for which kvm-intel calls this.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn enter_non_root_mode(
    vcpu: *mut bindings::kvm_vcpu,
    _from_vmentry: bool,
) -> bindings::nvmx_vmentry_status {
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    match entry::resume(vmx) {
        Ok(()) => bindings::nvmx_vmentry_status_NVMX_VMENTRY_SUCCESS,
        Err(Refused::FailedEntry { .. }) => bindings::nvmx_vmentry_status_NVMX_VMENTRY_VMEXIT,
        Err(Refused::Internal) => bindings::nvmx_vmentry_status_NVMX_VMENTRY_KVM_INTERNAL_ERROR,
    }
}

/// Exits to L1, or leaves L2 without an exit if all bits of the reason are 1.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn vmexit(
    vcpu: *mut bindings::kvm_vcpu,
    reason: u32,
    interruption: u32,
    qualification: c_ulong,
    instruction_length: u32,
) {
    const NO_EXIT: u32 = u32::MAX;

    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };
    if reason == NO_EXIT {
        exit::leave(vmx);
        return;
    }
    let information = exit::information(vmx, ReasonField::from_raw(reason));
    exit::reflect(
        vmx,
        &ExitInformation {
            qualification: qualification as u64,
            interruption: InterruptionInformation::from_raw(interruption),
            instruction_length,
            ..information
        },
    );
}

/// Returns whether an access of L2 to I/O ports exits to L1.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn check_io_bitmaps(
    vcpu: *mut bindings::kvm_vcpu,
    port: c_uint,
    size: c_int,
) -> bool {
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    match (u16::try_from(port), u8::try_from(size)) {
        (Ok(port), Ok(size)) => {
            // SAFETY: Memory of L1 is not a part of the vCPU.
            let memory = unsafe { vmx.memory() };
            io_exits_to_l1(vmx.vmcs12(), memory, IoAccess { port, size })
        }
        // There are no such ports: it is for L1 to know.
        _ => true,
    }
}
