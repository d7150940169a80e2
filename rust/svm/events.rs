// SPDX-License-Identifier: GPL-2.0

//! Events for L1 that end L2.

use crate::{
    exit::{
        reflect,
        reflect_simple, //
    },
    vcpu::SvmVcpu, //
};
use kernel::{
    ffi::c_int,
    prelude::*, //
};
use kvm::{
    bindings,
    RunPending, //
};
use nested::svm::{
    intercept::{
        Intercept,
        Intercepts, //
    },
    ExitCode, //
};

/// Exits to L1 if an event is there that L1 intercepts.
///
/// # Errors
///
/// `EBUSY` if there is an event that has to wait until L2 has executed an instruction.
pub(crate) fn check(svm: &mut SvmVcpu) -> Result {
    // An exception that is raised while another event is delivered is handled at once. Other events
    // come between instructions, and thus wait for a delivery that was interrupted.
    let exceptions_wait = svm.run_pending() != RunPending::No;
    let events_wait = exceptions_wait || svm.event_needs_reinjection();
    let wait_if = |wait: bool| if wait { Err(EBUSY) } else { Ok(()) };

    if svm.init_is_pending() {
        wait_if(events_wait)?;
        exit_if(svm, Intercept::INIT, ExitCode::INIT);
        return Ok(());
    }

    let (for_l1, for_l2) = svm.with_arch(|arch| {
        (
            arch.exception_vmexit.pending,
            arch.exception.pending, //
        )
    });
    if for_l1 {
        wait_if(exceptions_wait)?;
        reflect_exception(svm);
        return Ok(());
    }
    if for_l2 {
        return wait_if(exceptions_wait);
    }

    // SAFETY: By the invariants of `SvmVcpu`; each only looks at the state of the vCPU.
    if unsafe { bindings::nested_helper_svm_smi_is_pending(svm.as_ptr()) } {
        wait_if(events_wait)?;
        exit_if(svm, Intercept::SMI, ExitCode::SMI);
        return Ok(());
    }
    // SAFETY: As above.
    if unsafe { bindings::nested_helper_svm_nmi_is_pending(svm.as_ptr()) } {
        wait_if(events_wait)?;
        exit_if(svm, Intercept::NMI, ExitCode::NMI);
        return Ok(());
    }
    // SAFETY: As above.
    if unsafe { bindings::nested_helper_svm_interrupt_is_pending(svm.as_ptr()) } {
        wait_if(events_wait)?;
        if svm.control12().intercepts.contains(Intercept::INTR) {
            // SAFETY: As above.
            unsafe { bindings::nested_helper_svm_trace_interrupt(svm.raw()) };
        }
        exit_if(svm, Intercept::INTR, ExitCode::INTR);
    }
    Ok(())
}

/// Exits to L1 if it intercepts an event; if not, KVM delivers it to L2.
fn exit_if(svm: &mut SvmVcpu, intercept: Intercept, code: ExitCode) {
    if svm.control12().intercepts.contains(intercept) {
        reflect_simple(svm, code);
    }
}

/// Exits to L1 because of an exception that L2 has raised.
fn reflect_exception(svm: &mut SvmVcpu) {
    const DB: u8 = 1;
    const PF: u8 = 14;
    const DR7_GD: usize = 1 << 13;

    let (vector, error_code, address) = svm.with_arch(|arch| {
        let exception = &arch.exception_vmexit;
        let address = if exception.has_payload {
            exception.payload as u64
        } else {
            arch.cr2 as u64
        };
        let error_code = exception.has_error_code.then_some(exception.error_code);

        (exception.vector, error_code, address)
    });
    let control = &mut svm.current_vmcb().control;

    control.exit_code = ExitCode::of_exception(vector).into_raw();
    if let Some(error_code) = error_code {
        control.exit_info_1 = u64::from(error_code);
    }
    // For other exceptions it is not defined.
    if vector == PF {
        control.exit_info_2 = address;
    }
    if vector == DB {
        let exception = svm.with_arch(|arch| &raw mut arch.exception_vmexit);
        // SAFETY: By the invariants of `SvmVcpu`; the exception is part of the vCPU.
        unsafe { bindings::kvm_deliver_exception_payload(svm.as_ptr(), exception) };
        if svm.with_arch(|arch| {
            let detected = arch.dr7 & DR7_GD != 0;
            arch.dr7 &= !DR7_GD;
            detected
        }) {
            svm.update_dr7();
        }
    }
    reflect(svm);
}

/// Returns whether L1 intercepts the exception with `vector`.
pub(crate) fn intercepts_exception(svm: &mut SvmVcpu, vector: u8) -> bool {
    let intercepts: Intercepts = svm.control12().intercepts;

    intercepts.contains_exception(vector)
}

/// Exits to L1 instead of shutting the VM down, if L1 intercepts that.
pub(crate) fn triple_fault(svm: &mut SvmVcpu) {
    if svm.control12().intercepts.contains(Intercept::SHUTDOWN) {
        svm.clear_triple_fault();
        reflect_simple(svm, ExitCode::SHUTDOWN);
    }
}

/// Converts the result of [`check()`] for KVM.
pub(crate) fn result_of(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Exits to L1 after a flush that L0 has done for L2 (TLFS, "Direct Virtual Flush").
pub(crate) fn reflect_direct_flush(svm: &mut SvmVcpu) {
    const TRAP_AFTER_FLUSH: u64 = 1;
    let control = &mut svm.current_vmcb().control;

    control.exit_code = ExitCode::ENLIGHTENMENT.into_raw();
    control.exit_info_1 = TRAP_AFTER_FLUSH;
    control.exit_info_2 = 0;
    reflect(svm);
}
