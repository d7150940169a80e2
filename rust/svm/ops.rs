// SPDX-License-Identifier: GPL-2.0

//! The entry points from kvm-amd.
//!
//! What is not here yet is left to the code that is built into kvm-amd: the ops of the module are
//! that code's, with ours in their places.

use kernel::{
    ffi::c_int,
    prelude::*, //
};
use kvm::{
    bindings,
    Vcpu,
    VmStats, //
};
use nested::{
    exits::Taker,
    svm::ExitCode, //
};

const EXIT_DONE: c_int = bindings::NESTED_EXIT_DONE as c_int;
const EXIT_CONTINUE: c_int = bindings::NESTED_EXIT_CONTINUE as c_int;

/// Builds the ops of `module` on those that are built into kvm-amd.
pub(crate) fn build(
    module: &ThisModule,
    builtin: &bindings::svm_nested_ops,
) -> bindings::svm_nested_ops {
    bindings::svm_nested_ops {
        x86: bindings::kvm_x86_nested_ops {
            owner: module.as_ptr().cast(),
            vm_init: Some(VmStats::<ExitCode>::vm_init),
            vm_destroy: Some(VmStats::<ExitCode>::vm_destroy),
            ..builtin.x86
        },
        exit_special: Some(exit_special),
        ..*builtin
    }
}

/// Called after each exit of L2, with the code in vmcb02: returns who gets it, as `NESTED_EXIT_*`.
///
/// kvm-amd asks `exit_handled()` next if this cannot tell. As that op has other callers, too, the
/// question is put to it here: what this returns is final, and each exit is counted once.
///
/// # Safety
///
/// `svm` is loaded and in guest mode, and the caller holds its mutex.
unsafe extern "C" fn exit_special(svm: *mut bindings::vcpu_svm) -> c_int {
    // SAFETY: By the requirements of this function. The vCPU is the first member.
    let vcpu = unsafe { Vcpu::from_raw(svm.cast()) };
    // SAFETY: By the requirements of this function, `vmcb` is vmcb02. To be read before L1's exit
    // takes its place.
    let code = unsafe { (*(*svm).vmcb).control.exit_code };

    // SAFETY: By the requirements of this function.
    let mut exit = unsafe { bindings::nested_helper_svm_exit_special(svm) };
    if exit == EXIT_CONTINUE {
        // SAFETY: As above.
        exit = unsafe { bindings::nested_helper_svm_exit_handled(svm) };
    }

    // SAFETY: `build()` has put in `vm_init()` of these.
    let stats = unsafe { vcpu.vm_stats::<ExitCode>() };
    let taker = if exit == EXIT_DONE {
        Taker::L1
    } else {
        Taker::L0
    };
    stats
        .exits()
        .count(vcpu.index(), ExitCode::from_raw(code), taker);

    exit
}
