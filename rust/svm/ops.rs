// SPDX-License-Identifier: GPL-2.0

//! The entry points from KVM and kvm-amd.

use crate::{
    address_space,
    entry,
    events,
    exit,
    instructions::{
        self,
        Transfer, //
    },
    mmu,
    state,
    vcpu::{
        Gif,
        SvmVcpu, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_result,
    ffi::c_int,
    prelude::*,
    uaccess::UserPtr, //
};
use kvm::{
    bindings,
    SharedPage,
    VmData, //
};
use nested::{
    address::Gpa,
    exits::Taker,
    svm::{
        exit::sync_control,
        route::Route,
        ExitCode, //
    }, //
};

const EXIT_HOST: c_int = bindings::NESTED_EXIT_HOST as c_int;
const EXIT_DONE: c_int = bindings::NESTED_EXIT_DONE as c_int;

/// Builds the ops of `module`.
pub(crate) fn build(module: &ThisModule) -> bindings::svm_nested_ops {
    bindings::svm_nested_ops {
        x86: kvm::mmu::add_ops(bindings::kvm_x86_nested_ops {
            owner: module.as_ptr().cast(),
            vm_init: Some(VmData::<ExitCode>::vm_init),
            vm_destroy: Some(VmData::<ExitCode>::vm_destroy),
            leave_nested: Some(leave_nested),
            translate_nested_gpa: Some(mmu::translate_nested_gpa),
            is_exception_vmexit: Some(is_exception_vmexit),
            check_events: Some(check_events),
            triple_fault: Some(triple_fault),
            get_nested_state_pages: Some(get_nested_state_pages),
            get_state: Some(get_state),
            set_state: Some(set_state),
            hv_inject_synthetic_vmexit_post_tlb_flush: Some(reflect_direct_flush),
            mmu_load: Some(mmu_load),
            mmu_unload: Some(mmu_unload),
            mmu_fault: Some(mmu_fault),
            ..Default::default()
        }),
        allocate: Some(allocate),
        free: Some(free),
        check_permissions: Some(check_permissions),
        recalc_intercepts: Some(recalc_intercepts),
        sync_control: Some(sync),
        exit_special: Some(exit_special),
        exit_handled: Some(exit_handled),
        vmexit: Some(vmexit),
        update_tsc_ratio_msr: Some(update_tsc_ratio_msr),
        flush_tlb: Some(flush_tlb),
        leave_smm: Some(leave_smm),
        handle_vmrun: Some(handle_vmrun),
        handle_vmload: Some(handle_vmload),
        handle_vmsave: Some(handle_vmsave),
        handle_stgi: Some(handle_stgi),
        handle_clgi: Some(handle_clgi),
        handle_invlpga: Some(handle_invlpga),
        handle_skinit: Some(handle_skinit),
    }
}

/// Declares ops that have nothing but the vCPU as their argument.
///
/// # Safety
///
/// As all ops: kvm-amd calls them for a vCPU of a VM with `nested_enabled`, whose mutex the caller
/// holds, with memory slots protected by SRCU where guest memory is accessed.
macro_rules! ops {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($svm:ident: $from:ident($raw:ty)) $(-> $ret:ty)? $body:block
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            ///
            /// As all ops.
            unsafe extern "C" fn $name($svm: *mut $raw) $(-> $ret)? {
                // SAFETY: By the requirements of this function.
                let $svm = unsafe { SvmVcpu::$from($svm) };
                $body
            }
        )*
    };
}

ops! {
    /// Leaves L2 without an exit.
    fn leave_nested(svm: from_vcpu(bindings::kvm_vcpu)) {
        exit::leave(svm);
    }

    /// Exits to L1 if an event is there that L1 intercepts.
    fn check_events(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        events::result_of(events::check(svm))
    }

    /// Exits to L1 instead of shutting the VM down.
    fn triple_fault(svm: from_vcpu(bindings::kvm_vcpu)) {
        events::triple_fault(svm);
    }

    /// Loads what a restored state refers to in L1's memory.
    fn get_nested_state_pages(svm: from_vcpu(bindings::kvm_vcpu)) -> bool {
        entry::load_state_pages(svm)
    }

    /// Exits to L1 after a direct flush.
    fn reflect_direct_flush(svm: from_vcpu(bindings::kvm_vcpu)) {
        events::reflect_direct_flush(svm);
    }

    /// Loads the root that L2 is to run with.
    fn mmu_load(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        kvm::mmu::load_root(svm)
    }

    /// Gives it up.
    fn mmu_unload(svm: from_vcpu(bindings::kvm_vcpu)) {
        kvm::mmu::release_root(svm);
    }

    /// L1 has set EFER.SVME.
    fn allocate(svm: from_raw(bindings::vcpu_svm)) -> c_int {
        from_result(|| state::allocate(svm).map(|()| 0))
    }

    /// L1 has cleared EFER.SVME, or the vCPU is destroyed.
    fn free(svm: from_raw(bindings::vcpu_svm)) {
        kvm::mmu::leave_shrinker(svm);
        state::free(svm);
    }

    /// Returns 1 if L1 gets a fault for an SVM instruction.
    fn check_permissions(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        c_int::from(instructions::check_permissions(svm).is_err())
    }

    /// The intercepts of vmcb01 have changed while L2 is active.
    fn recalc_intercepts(svm: from_raw(bindings::vcpu_svm)) {
        exit::recalculate_intercepts(svm);
    }

    /// L2 has exited: takes over what the processor has written to vmcb02.
    fn sync(svm: from_raw(bindings::vcpu_svm)) {
        let mut control12 = *svm.control12();
        let parts = svm.parts();

        sync_control(&mut control12, parts.vmcb02, parts.cpu);
        *svm.control12_mut() = control12;
        svm.address_spaces().note_run();
    }

    /// Called after each exit of L2 that the processor has reported: returns who gets it.
    ///
    /// kvm-amd asks `exit_handled()` next if this cannot tell; it always can.
    fn exit_special(svm: from_raw(bindings::vcpu_svm)) -> c_int {
        // To be read before L1's exit takes its place.
        let code = ExitCode::from_raw(svm.current_vmcb().control.exit_code);
        let route = exit::handle(svm);
        let (taker, result) = match route {
            Route::L0 => (Taker::L0, EXIT_HOST),
            Route::L1 => (Taker::L1, EXIT_DONE),
        };

        svm.stats().exits().count(svm.index(), code, taker);
        result
    }

    /// Called for what L0 emulates for L2: returns who gets it as an exit.
    fn exit_handled(svm: from_raw(bindings::vcpu_svm)) -> c_int {
        match exit::handle_emulated(svm) {
            Route::L0 => EXIT_HOST,
            Route::L1 => EXIT_DONE,
        }
    }

    /// Exits to L1 with what is in the exit fields of vmcb02.
    fn vmexit(svm: from_raw(bindings::vcpu_svm)) {
        exit::reflect(svm);
    }

    /// L1 has written its TSC ratio while L2 is active.
    fn update_tsc_ratio_msr(svm: from_vcpu(bindings::kvm_vcpu)) {
        entry::update_tsc_ratio(svm);
    }

    /// KVM flushes the ASID of the current VMCB: flushes the others.
    fn flush_tlb(svm: from_raw(bindings::vcpu_svm)) {
        address_space::flush_others(svm);
    }

    /// L1 has executed `VMRUN`.
    fn handle_vmrun(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        match instructions::check_permissions(svm) {
            Ok(()) => entry::handle_vmrun(svm),
            Err(instructions::Faulted) => 1,
        }
    }

    /// L1, or L2 with its consent, has executed VMLOAD.
    fn handle_vmload(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::transfer(svm, Transfer::Load)
    }

    /// L1, or L2 with its consent, has executed VMSAVE.
    fn handle_vmsave(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::transfer(svm, Transfer::Save)
    }

    /// L1, or L2 with its consent, has executed STGI.
    fn handle_stgi(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::set_gif(svm, Gif::Set)
    }

    /// L1, or L2 with its consent, has executed CLGI.
    fn handle_clgi(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::set_gif(svm, Gif::Clear)
    }

    /// L1, or L2 with its consent, has executed INVLPGA.
    fn handle_invlpga(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::invlpga(svm)
    }

    /// L1 has executed SKINIT.
    fn handle_skinit(svm: from_vcpu(bindings::kvm_vcpu)) -> c_int {
        instructions::skinit(svm)
    }
}

/// Returns whether L1 intercepts an exception of L2.
///
/// # Safety
///
/// As all ops.
unsafe extern "C" fn is_exception_vmexit(
    vcpu: *mut bindings::kvm_vcpu,
    vector: u8,
    _error_code: u32,
) -> bool {
    // SAFETY: By the requirements of this function.
    events::intercepts_exception(unsafe { SvmVcpu::from_vcpu(vcpu) }, vector)
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
    kvm::mmu::handle_fault(unsafe { SvmVcpu::from_vcpu(vcpu) }, address, error_code)
}

/// Enters L2 by RSM: returns 0, or 1 on failure.
///
/// # Safety
///
/// As all ops; `page` is a page of L1's memory that is mapped during the call.
unsafe extern "C" fn leave_smm(
    vcpu: *mut bindings::kvm_vcpu,
    vmcb12: u64,
    page: *mut bindings::vmcb,
) -> c_int {
    let Some(page) = NonNull::new(page) else {
        return 1;
    };
    // SAFETY: By the requirements of this function.
    let (svm, page) = unsafe { (SvmVcpu::from_vcpu(vcpu), SharedPage::from_raw(page.cast())) };

    entry::leave_smm(svm, Gpa::from_raw(vmcb12), &page)
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
        return state::largest_size();
    }
    // SAFETY: By the requirements of this function.
    let svm = unsafe { SvmVcpu::from_vcpu(vcpu) };

    from_result(|| state::get(svm, UserPtr::from_ptr(state.cast()), room))
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
    let (svm, header) = unsafe { (SvmVcpu::from_vcpu(vcpu), &*header) };

    from_result(|| state::set(svm, UserPtr::from_ptr(user.cast()), header).map(|()| 0))
}
