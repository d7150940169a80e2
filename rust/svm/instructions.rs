// SPDX-License-Identifier: GPL-2.0

//! SVM instructions of L1, other than `VMRUN`.

use crate::{
    address_space,
    vcpu::{
        Gif,
        SvmVcpu, //
    }, //
};
use kernel::ffi::c_int;
use kvm::bindings;
use nested::{
    address::Gpa,
    svm::{
        bits::register::EFER_SVME,
        vmload, //
    }, //
};

/// The exit was handled: the guest goes on.
const RESUME: c_int = 1;

/// L1 gets a fault in place of the instruction.
pub(crate) struct Faulted;

/// Raises the fault of an SVM instruction that L1 may not execute now.
pub(crate) fn check_permissions(svm: &mut SvmVcpu) -> Result<(), Faulted> {
    let enabled = svm.with_arch(|arch| arch.efer & EFER_SVME != 0);

    if !enabled || !svm.is_paging() {
        svm.raise_undefined_opcode();
        return Err(Faulted);
    }
    if svm.current_vmcb().save.cpl != 0 {
        svm.raise_general_protection();
        return Err(Faulted);
    }
    Ok(())
}

/// Which of the two instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// VMLOAD.
    Load,
    /// VMSAVE.
    Save,
}

/// Executes VMLOAD or VMSAVE.
pub(crate) fn transfer(svm: &mut SvmVcpu, transfer: Transfer) -> c_int {
    if check_permissions(svm).is_err() {
        return RESUME;
    }
    let vmcb = Gpa::from_raw(svm.rax() as u64);
    if !vmcb.is_page_aligned() || !svm.is_legal_gpa(vmcb) {
        svm.raise_general_protection();
        return RESUME;
    }
    // SAFETY: It is dropped below.
    let Ok(mut map) = (unsafe { svm.map_page(vmcb) }) else {
        return svm.report_inaccessible_memory();
    };

    // KVM runs either guest with the state that is in vmcb01.
    match transfer {
        Transfer::Load => {
            vmload::load(&mut svm.vmcb01().0.save, &map.page());
            // The upper halves that KVM keeps for guests of another vendor are void.
            let fields = svm.fields();
            fields.sysenter_eip_hi = 0;
            fields.sysenter_esp_hi = 0;
        }
        Transfer::Save => vmload::save(&svm.vmcb01().0.save, &mut map.page()),
    }
    drop(map);
    svm.skip_instruction()
}

/// Executes STGI or CLGI.
pub(crate) fn set_gif(svm: &mut SvmVcpu, gif: Gif) -> c_int {
    if check_permissions(svm).is_err() {
        return RESUME;
    }
    let result = svm.skip_instruction();
    svm.set_gif(gif);
    result
}

/// Executes INVLPGA.
pub(crate) fn invlpga(svm: &mut SvmVcpu) -> c_int {
    if check_permissions(svm).is_err() {
        return RESUME;
    }
    let (address, asid) = (svm.rax(), svm.ecx());

    // SAFETY: By the invariants of `SvmVcpu`.
    unsafe { bindings::nested_helper_svm_trace_invlpga(svm.raw(), asid, address as u64) };
    address_space::invalidate_page(svm, asid, address);
    svm.skip_instruction()
}

/// Executes SKINIT, which no virtual processor has.
pub(crate) fn skinit(svm: &mut SvmVcpu) -> c_int {
    let slb = svm.rax() as u32;

    // SAFETY: By the invariants of `SvmVcpu`.
    unsafe { bindings::nested_helper_svm_trace_skinit(svm.raw(), slb) };
    svm.raise_undefined_opcode();
    RESUME
}
