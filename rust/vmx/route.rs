// SPDX-License-Identifier: GPL-2.0

//! Who gets an exit of L2.

use crate::{
    exit,
    hyperv,
    vcpu::VmxVcpu,
    vmcs::host_field, //
};
use kernel::{
    ffi::c_int,
    str::CStrExt, //
};
use kvm::bindings;
use nested::vmx::{
    exit::{
        guest_state::Vmcs02,
        information::ReasonField,
        interruption::InterruptionInformation, //
    },
    exit_reason::ExitReason,
    field::Field,
    route::{
        Exit,
        ExitFacts,
        Route,
        Wish, //
    }, //
};

/// Routes an exit that the processor has reported; L1 has got it if it is L1's.
pub(crate) fn handle(vmx: &mut VmxVcpu) -> Route {
    let reason = ReasonField::from_raw(vmx.exit_reason());

    vmx.warn_on_run_pending();
    if vmx.fields().fail != 0 {
        trace_refusal(vmx);
        // L1 gets the error of its instruction, and no exit.
        let information = exit::information(vmx, reason);
        exit::reflect(vmx, &information);
        return Route::L1;
    }
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_trace_vmexit(vmx.as_ptr()) };

    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };
    let route = Exit {
        reason: reason.basic(),
        vmcs12: vmx.vmcs12(),
        facts: &Facts(vmx),
        memory,
    }
    .route();
    if route == Route::L1 {
        exit::reflect_hardware_exit(vmx, reason);
    }
    route
}

fn trace_refusal(vmx: &VmxVcpu) {
    let error = vmx.vmcs().read32(host_field::VM_INSTRUCTION_ERROR);

    let text = c"hardware VM-instruction error";

    vmx.stats().count_failed_check(text);
    // SAFETY: The tracepoint copies the text.
    unsafe { bindings::nested_helper_trace_vmenter_failed(text.as_char_ptr(), error) }
}

/// What is known of the exit.
struct Facts<'a>(&'a VmxVcpu);

impl ExitFacts for Facts<'_> {
    fn qualification(&self) -> u64 {
        self.0.exit_qualification()
    }

    fn interruption(&self) -> InterruptionInformation {
        InterruptionInformation::from_raw(self.0.exit_interruption())
    }

    fn instruction_information(&self) -> u32 {
        self.0.vmcs().read(Field::VMX_INSTRUCTION_INFO) as u32
    }

    fn register(&self, number: u8) -> u64 {
        self.0.register(c_int::from(number)) as u64
    }

    fn l0_wants(&self, wish: Wish) -> bool {
        const SINGLESTEP: u64 = 1 << 1;
        const USE_SW_BP: u64 = 1 << 16;
        const USE_HW_BP: u64 = 1 << 17;

        let vmx = self.0;
        // SAFETY: By the invariants of `VmxVcpu`.
        let debug = unsafe { (*vmx.as_ptr()).guest_debug } as u64;

        match wish {
            Wish::PageFault => {
                vmx.with_arch(|arch| arch.apf.host_apf_flags) != 0 || vmx.needs_page_faults()
            }
            Wish::DebugException => debug & (SINGLESTEP | USE_HW_BP) != 0,
            Wish::Breakpoint => debug & USE_SW_BP != 0,
            // SAFETY: By the invariants of `VmxVcpu`.
            Wish::AlignmentCheck => unsafe {
                !bindings::nested_helper_vmx_injects_alignment_check(vmx.as_ptr())
            },
            Wish::FlushHypercall => hyperv::is_direct_flush(vmx),
            Wish::Cpuid => !vmx.is_cpuid_allowed(),
            // SAFETY: By the invariants of `VmxVcpu`.
            Wish::Encls => unsafe { !bindings::nested_helper_vmx_guest_has_sgx(vmx.as_ptr()) },
        }
    }
}

/// Counts an exit of L2: returns its reason.
pub(crate) fn reason(vmx: &VmxVcpu) -> ExitReason {
    ExitReason::from_field(vmx.exit_reason())
}
