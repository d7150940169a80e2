// SPDX-License-Identifier: GPL-2.0

//! Exits of L2 to L1.

use crate::{
    events,
    host_state,
    hyperv,
    instruction::conclude,
    msrs::{
        self,
        GuestMsrs, //
    },
    pages,
    vcpu::{
        VmxVcpu,
        Which, //
    },
    vmcs::{
        host_field,
        Vmcs, //
    }, //
};
use core::mem::offset_of;
use kernel::pr_warn_once;
use kvm::{
    bindings,
    RunPending, //
};
use nested::{
    memory::GuestMemory,
    vmx::{
        check::Group,
        exit::{
            guest_state::{
                save_always,
                save_rare,
                Activity,
                ControlFlow,
                Paging,
                SoftwareState,
                Vmcs02, //
            },
            information::{
                ExitInformation,
                MsrStore,
                ReasonField, //
            },
            interruption::{
                Event,
                InterruptionInformation, //
            },
            msr_area::MsrArea,
            Abort, //
        },
        exit_reason::ExitReason,
        field::Field,
        instruction::{
            access::link_pointer,
            InstructionError,
            Outcome, //
        },
        Vmcs12, //
    }, //
};

/// Returns an exit for `reason`, with what the last exit of the processor says of an instruction.
pub(crate) fn information(vmx: &mut VmxVcpu, reason: ReasonField) -> ExitInformation {
    let failed = vmx.fields().fail != 0 || reason.is_failed_entry();
    let vmcs = vmx.vmcs();

    ExitInformation {
        instruction_length: if failed {
            0
        } else {
            vmcs.read(Field::VM_EXIT_INSTRUCTION_LEN) as u32
        },
        instruction_information: vmcs.read(Field::VMX_INSTRUCTION_INFO) as u32,
        ..ExitInformation::new(reason)
    }
}

/// Exits to L1 with a reason and a qualification.
pub(crate) fn reflect_reason(vmx: &mut VmxVcpu, reason: ExitReason, qualification: u64) {
    let information = information(vmx, ReasonField::new(reason));

    reflect(
        vmx,
        &ExitInformation {
            qualification,
            ..information
        },
    );
}

/// Exits to L1 with what the processor says of the last exit, but its reason.
pub(crate) fn reflect_hardware_exit(vmx: &mut VmxVcpu, reason: ReasonField) {
    let interruption = InterruptionInformation::from_raw(vmx.exit_interruption());
    let error_code = if interruption.delivers_error_code() {
        vmx.vmcs().read(Field::VM_EXIT_INTR_ERROR_CODE) as u32
    } else {
        0
    };
    let information = information(vmx, reason);

    reflect(
        vmx,
        &ExitInformation {
            qualification: vmx.exit_qualification(),
            interruption,
            error_code,
            ..information
        },
    );
}

/// Exits to L1.
pub(crate) fn reflect(vmx: &mut VmxVcpu, information: &ExitInformation) {
    switch_to_l1(vmx, Some(information));
}

/// Makes L1 active without an exit that it would see.
pub(crate) fn leave(vmx: &mut VmxVcpu) {
    switch_to_l1(vmx, None);
}

fn switch_to_l1(vmx: &mut VmxVcpu, information: Option<&ExitInformation>) {
    vmx.nested().mtf_pending = false;
    vmx.warn_on_run_pending();
    if vmx.take_state_pages() {
        // The enlightened VMCS of a restored state is needed even if L2 has not run yet.
        let _ = hyperv::map_restored(vmx);
    }
    vmx.flush_as_requested();
    // KVM has one place for the page-directory pointers of L1 and L2.
    if vmx.is_pae_paging() {
        vmx.flush_pdptrs();
    }
    vmx.leave_guest_mode();
    restore_time(vmx);

    let entered = vmx.fields().fail == 0;
    if entered {
        save_to_vmcs12(vmx, information);
    } else {
        check_failure(vmx);
    }
    // What was to be delivered to L2 is in vmcs12.
    vmx.clear_event_queues();

    vmx.switch_vmcs(Which::Vmcs01);
    vmx.isolate_branch_prediction();
    msrs::write_counts(vmx);
    write_tsc(vmx);
    pages::leave(vmx);
    if information.is_some() {
        vmx.request_shadow_sync();
    }
    // L2 may have been halted.
    vmx.set_runnable();

    if !entered {
        fail_entry(vmx);
        return;
    }
    if information.is_some() {
        let vmcs12 = vmx.nested().cached_vmcs12;
        // SAFETY: The snapshot is there in VMX operation.
        unsafe { bindings::nested_helper_vmx_trace_reflected_vmexit(vmcs12) };
    }
    host_state::load(vmx);
    // What has come while L2 was active is injected, or a window for it requested.
    if vmx.has_injectable_interrupt() || vmx.with_arch(|arch| arch.nmi_pending) != 0 {
        vmx.request_event();
    }
}

/// Stops L1's timer for L2, and lets L1's own time go on.
fn restore_time(vmx: &mut VmxVcpu) {
    let (timer, offset, scaling) = {
        let vmcs12 = vmx.vmcs12();
        (
            vmcs12.pin().preemption_timer(),
            vmcs12.primary().tsc_offsetting(),
            vmcs12.secondary().tsc_scaling(),
        )
    };

    if timer {
        events::cancel_timer(vmx);
    }
    if offset {
        vmx.with_arch(|arch| {
            arch.tsc_offset = arch.l1_tsc_offset;
            if scaling {
                arch.tsc_scaling_ratio = arch.l1_tsc_scaling_ratio;
            }
        });
    }
}

/// Writes offset and ratio of the time-stamp counter to the VMCS.
pub(crate) fn write_tsc(vmx: &mut VmxVcpu) {
    let (offset, ratio) = vmx.with_arch(|arch| (arch.tsc_offset, arch.tsc_scaling_ratio));
    let mut vmcs = vmx.vmcs();

    vmcs.write(Field::TSC_OFFSET, offset);
    // SAFETY: Reads a capability of KVM.
    if unsafe { bindings::nested_helper_vmx_has_tsc_control() } {
        vmcs.write(Field::TSC_MULTIPLIER, ratio);
    }
}

/// Writes the state of L2, and what is told of the exit, to vmcs12.
fn save_to_vmcs12(vmx: &mut VmxVcpu, information: Option<&ExitInformation>) {
    save_state(vmx);
    if let Some(information) = information {
        let undelivered = undelivered_event(vmx);
        if information.has_linear_address() {
            vmx.vmcs12_mut().guest_linear_address = vmx.vmcs().read(Field::GUEST_LINEAR_ADDRESS);
        }
        let information = ExitInformation {
            reason: if vmx.exit_reason() & ENCLAVE_MODE != 0 {
                information.reason.in_enclave_mode()
            } else {
                information.reason
            },
            ..*information
        };
        if information.save(vmx.vmcs12_mut(), undelivered) == MsrStore::Due {
            store_msrs(vmx);
        }
    }
    flush_shadow_vmcs12(vmx);
}

const ENCLAVE_MODE: u32 = 1 << 27;

/// Saves what L1 reads at nearly each exit, and marks the rest as to be fetched.
pub(crate) fn save_state(vmx: &mut VmxVcpu) {
    let enlightened = hyperv::evmptr(vmx).is_some();
    let state = software_state(vmx);
    // SAFETY: The VMCS is vmcs02, which is not a part of the snapshot of vmcs12.
    let vmcs02 = unsafe { Vmcs::current(vmx.fields().loaded_vmcs) };
    let vmcs12 = vmx.vmcs12_mut();

    save_always(vmcs12, &vmcs02, &state);
    if enlightened {
        save_rare_state(vmx);
    }
    vmx.nested().need_sync_vmcs02_to_vmcs12_rare = !enlightened;
    // L2 may have changed what the checks look at. The segment registers need not even be in vmcs12,
    // but the processor had them.
    let mut passed = vmx.private().passed;
    passed.forget(Group::Registers);
    passed.trust_segments(vmx.vmcs12());
    vmx.private().passed = passed;
}

/// Saves what L1 rarely reads. vmcs02 is current.
pub(crate) fn save_rare_state(vmx: &mut VmxVcpu) {
    // SAFETY: As in `save_state()`.
    let vmcs02 = unsafe { Vmcs::current(vmx.fields().loaded_vmcs) };
    // SAFETY: Reads a capability of the host.
    let has_bounds = unsafe { bindings::nested_helper_vmx_mpx_supported() };
    let vmcs12 = vmx.vmcs12_mut();

    save_rare(vmcs12, &vmcs02);
    if has_bounds {
        let field = u32::from(Field::GUEST_BNDCFGS.encoding());
        vmcs12.guest_bndcfgs = vmcs02.read64(field);
    }
    vmx.nested().need_sync_vmcs02_to_vmcs12_rare = false;
}

/// Fetches from vmcs02 what L1 rarely reads, unless it has been since the last exit.
pub(crate) fn fetch_rare_state(vmx: &mut VmxVcpu) {
    if vmx.nested().need_sync_vmcs02_to_vmcs12_rare {
        vmx.with_vmcs02(save_rare_state);
    }
}

fn software_state(vmx: &mut VmxVcpu) -> SoftwareState {
    let vmcs12 = vmx.vmcs12();
    let saves_timer = vmcs12.pin().preemption_timer() && vmcs12.exit().save_preemption_timer();
    let preemption_timer =
        (saves_timer && vmx.run_pending() == RunPending::No).then(|| events::timer_value(vmx));
    let paging = if vmx.is_pae_paging() {
        Paging::Pae
    } else {
        Paging::Other
    };
    let (rsp, rip, control_flow) = (vmx.rsp() as u64, vmx.rip() as u64, control_flow(vmx));
    let entry_controls = vmx.vmcs().entry();

    vmx.with_arch(|arch| SoftwareState {
        rsp,
        rip,
        dr7: arch.dr7 as u64,
        efer: arch.efer,
        cr0_guest_host_mask: !arch.cr0_guest_owned_bits as u64,
        cr4_guest_host_mask: !arch.cr4_guest_owned_bits as u64,
        entry_controls,
        activity: match arch.mp_state as u32 {
            bindings::KVM_MP_STATE_HALTED => Activity::Hlt,
            bindings::KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
            _ => Activity::Active,
        },
        paging,
        control_flow,
        preemption_timer,
    })
}

/// Returns what L1 can use of control-flow enforcement.
pub(crate) fn control_flow(vmx: &VmxVcpu) -> ControlFlow {
    let vcpu = vmx.as_ptr();

    // SAFETY: By the invariants of `VmxVcpu`; each reads the capabilities of the vCPU.
    unsafe {
        if bindings::nested_helper_vmx_guest_has_shadow_stack(vcpu) {
            ControlFlow::ShadowStacks
        } else if bindings::nested_helper_vmx_guest_has_ibt(vcpu) {
            ControlFlow::IndirectBranchTracking
        } else {
            ControlFlow::None
        }
    }
}

/// Returns the event that was to be delivered to L2.
fn undelivered_event(vmx: &VmxVcpu) -> Option<Event> {
    vmx.with_arch(|arch| {
        let length = u32::from(arch.event_exit_inst_len);

        if arch.exception.injected {
            let error_code = arch
                .exception
                .has_error_code
                .then_some(arch.exception.error_code);
            Some(Event::exception(arch.exception.vector, error_code, length))
        } else if arch.nmi_injected {
            Some(Event::Nmi)
        } else if arch.interrupt.injected && arch.interrupt.soft {
            Some(Event::SoftwareInterrupt {
                vector: arch.interrupt.nr,
                instruction_length: length,
            })
        } else if arch.interrupt.injected {
            Some(Event::ExternalInterrupt {
                vector: arch.interrupt.nr,
            })
        } else {
            None
        }
    })
}

fn store_msrs(vmx: &mut VmxVcpu) {
    let area = MsrArea::exit_store(vmx.vmcs12());
    let limits = msrs::limits(vmx);
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };

    if let Err(reason) = area.store(memory, &mut GuestMsrs(vmx), limits) {
        abort(vmx, reason);
    }
}

/// Shuts L1 down: what has failed cannot be told otherwise than by the indicator in its VMCS.
pub(crate) fn abort(vmx: &mut VmxVcpu, reason: Abort) {
    const INDICATOR: u64 = offset_of!(Vmcs12, abort) as u64;

    reason.save(vmx.vmcs12_mut());
    // The VMCS itself is written when L1 is done with it, which it will not be.
    let indicator = vmx
        .current_vmptr()
        .and_then(|vmcs| vmcs.checked_add(INDICATOR));
    if let Some(indicator) = indicator {
        // SAFETY: Memory of L1 is not a part of the vCPU.
        let memory = unsafe { vmx.memory() };
        // L1 may have taken the memory away meanwhile.
        let _ = memory.write(indicator, &reason.into_raw().to_le_bytes());
    }
    vmx.request_triple_fault();
}

/// Writes the shadow VMCS that L2 has used to where L1 has it.
fn flush_shadow_vmcs12(vmx: &mut VmxVcpu) {
    let vmcs12 = vmx.vmcs12();
    if !vmcs12.secondary().vmcs_shadowing() {
        return;
    }
    if let Some(pointer) = link_pointer(vmcs12) {
        // SAFETY: Memory of L1 is not a part of the vCPU.
        let memory = unsafe { vmx.memory() };
        // L1 may have taken the memory away meanwhile.
        let _ = memory.write(pointer, vmx.shadow_vmcs12_region());
    }
}

/// Warns if the processor has refused vmcs02 for a reason that is not in vmcs12.
fn check_failure(vmx: &VmxVcpu) {
    let error = vmx.vmcs().read32(host_field::VM_INSTRUCTION_ERROR);

    if InstructionError::from_raw(error) != InstructionError::ENTRY_INVALID_CONTROL_FIELD {
        pr_warn_once!("the processor refuses vmcs02 with VM-instruction error {error}\n");
    }
}

/// Makes the instruction of L1 fail that has entered L2, which the processor has refused.
fn fail_entry(vmx: &mut VmxVcpu) {
    let outcome = Outcome::FailValid(InstructionError::ENTRY_INVALID_CONTROL_FIELD);

    conclude(vmx, outcome);
    host_state::restore(vmx);
    vmx.fields().fail = 0;
}
