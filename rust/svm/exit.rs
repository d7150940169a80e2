// SPDX-License-Identifier: GPL-2.0

//! Exits of L2: who gets them, and how L1 gets one.

use crate::{
    address_space,
    entry::share_state,
    mmu::{
        self,
        IllegalCr3,
        Pdptrs, //
    },
    vcpu::{
        host,
        Gif,
        SvmVcpu,
        When, //
    }, //
};
use kvm::{
    bindings,
    RunPending,
    Vcpu, //
};
use nested::{
    address::Gpa,
    memory::Inaccessible,
    svm::{
        bits::{
            erap,
            interrupt,
            register::{
                CR0_PE,
                DR7_FIXED,
                RFLAGS_TF, //
            }, //
        },
        event::{
            Event,
            Kind, //
        },
        exit::{
            save_to_vmcb12,
            Pending,
            Registers, //
        },
        intercept::{
            Intercept,
            Intercepts, //
        },
        merge::{
            copy_last_branch,
            merge_intercepts, //
        },
        route::{
            route,
            route_by_l1,
            Exit,
            Route,
            Wanted, //
        },
        vmcb::Group,
        ExitCode,
        Feature,
        VirtualCpu, //
    }, //
};

/// What stands for "there is none" where KVM keeps an address.
const INVALID_GPA: u64 = u64::MAX;

/// Routes an exit that the processor has reported; L1 has got it if it is L1's.
pub(crate) fn handle(svm: &mut SvmVcpu) -> Route {
    let (exit, vcpu) = current(svm);
    let intercepts = Intercepts::from_words(svm.vmcb01().0.control.intercepts);
    let wanted = WantedByKvm { intercepts, vcpu };
    let routed = route(exit, svm.control12(), &wanted, vcpu);

    if routed == Route::L1 {
        reflect(svm);
    }
    routed
}

/// Routes what L0 emulates for L2; L1 has got it as an exit if it is L1's.
pub(crate) fn handle_emulated(svm: &mut SvmVcpu) -> Route {
    let (exit, vcpu) = current(svm);
    let routed = route_by_l1(exit, svm.control12(), vcpu);

    if routed == Route::L1 {
        reflect(svm);
    }
    routed
}

/// Returns the exit that is in vmcb02.
fn current<'a>(svm: &mut SvmVcpu) -> (Exit, &'a Vcpu) {
    let ecx = svm.ecx();
    let control = &svm.current_vmcb().control;
    let exit = Exit {
        code: ExitCode::from_raw(control.exit_code),
        info_1: control.exit_info_1,
        ecx,
    };

    // SAFETY: `svm` is a vCPU that fulfils the invariants, as long as the op takes. What is done with
    // the reference, reading guest memory, uses none of the parts of `svm`.
    (exit, unsafe { Vcpu::from_raw(svm.as_ptr()) })
}

/// What KVM wants of the exits of any guest.
struct WantedByKvm<'a> {
    /// The intercepts of vmcb01.
    intercepts: Intercepts,
    vcpu: &'a Vcpu,
}

impl Wanted for WantedByKvm<'_> {
    fn exception(&self, vector: u8) -> bool {
        self.intercepts.contains_exception(vector)
    }

    fn asynchronous_page_fault(&self) -> bool {
        self.vcpu.with_arch(|arch| arch.apf.host_apf_flags != 0)
    }

    fn direct_hypercall(&self) -> bool {
        // SAFETY: By the invariants of `Vcpu`.
        unsafe { bindings::nested_helper_svm_hv_is_direct_flush(self.vcpu.as_ptr()) }
    }
}

/// Exits to L1 with `code` and no further information.
pub(crate) fn reflect_simple(svm: &mut SvmVcpu, code: ExitCode) {
    let control = &mut svm.current_vmcb().control;

    control.exit_code = code.into_raw();
    control.exit_info_1 = 0;
    control.exit_info_2 = 0;
    reflect(svm);
}

/// Exits to L1 with the reason that is in vmcb02.
pub(crate) fn reflect(svm: &mut SvmVcpu) {
    if save_state(svm).is_err() {
        // There is no place any more for the state of L2: the processor would shut down.
        svm.request_triple_fault();
    }

    svm.leave_guest_mode();
    svm.switch_performance_counters(When::Now);
    svm.fields().nested.vmcb12_gpa = 0;
    svm.warn_on_run_pending();
    svm.clear_state_pages();
    // L2 may have been halted.
    svm.set_runnable();
    forget_bus_lock(svm);

    let parts = svm.parts();
    share_state(
        &mut parts.vmcb01.0.save.spec_ctrl,
        parts.vmcb02.0.save.spec_ctrl,
    );
    if parts.cpu.has(Feature::Eraps) {
        parts.vmcb01.0.control.erap_ctl |= erap::CLEAR_RAP;
    }
    svm.isolate_branch_prediction();
    address_space::leave(svm);
    svm.switch_to_vmcb01();

    if !svm.control12().intercepts.contains(Intercept::INTR) {
        // vmcb02 was used to wait for an interrupt window of L1: wait in vmcb01.
        svm.request_event();
    }
    share_last_branch(svm);
    hand_over_nmis(svm);

    // No event can come before L1 sets the flag.
    svm.set_gif(Gif::Clear);
    svm.vmcb01().0.control.exit_int_info = 0;
    restore_tsc(svm);
    svm.control12_mut().nested_cr3 = Gpa::default();
    restore_l1(svm);

    // Events that were to be delivered to L2 are in vmcb12, and not for L1.
    let fields = svm.fields();
    fields.nmi_l1_to_l2 = false;
    fields.soft_int_injected = false;
    svm.clear_event_queues();

    // The trap of a VMRUN that is single-stepped comes before the next instruction of L1.
    if svm.vmcb01().0.save.rflags & RFLAGS_TF != 0 {
        svm.raise_single_step();
    }
    // Other vCPUs can profit at once.
    if svm.apicv_is_activated() {
        svm.update_apicv();
    }
}

/// Writes the state of L2 to vmcb12.
fn save_state(svm: &mut SvmVcpu) -> Result<(), Inaccessible> {
    let vmcb12 = Gpa::from_raw(svm.fields().nested.vmcb12_gpa);
    let registers = registers(svm);
    let pending = pending_event(svm);
    let pat = svm.pat(svm.control12());
    // SAFETY: It is dropped when this function returns.
    let mut map = unsafe { svm.map_page(vmcb12)? };
    let parts = svm.parts();

    let reported = save_to_vmcb12(
        &mut map.page(),
        parts.vmcb02,
        parts.control12,
        &registers,
        pending,
        pat,
        parts.cpu,
    );
    // SAFETY: The VMCB is there; the layout of the type is that of the C one.
    unsafe {
        bindings::nested_helper_svm_trace_vmexit(
            core::ptr::from_ref(parts.vmcb02).cast(),
            reported.event,
            reported.error_code,
        );
    }
    Ok(())
}

/// Returns L2's registers.
fn registers(svm: &mut SvmVcpu) -> Registers {
    let (efer, cr2, cr4, dr6) = svm.with_arch(|arch| (arch.efer, arch.cr2, arch.cr4, arch.dr6));

    Registers {
        efer,
        cr0: svm.cr0() as u64,
        cr2: cr2 as u64,
        cr3: svm.cr3() as u64,
        cr4: cr4 as u64,
        dr6: dr6 as u64,
        rflags: svm.rflags() as u64,
        rip: svm.rip() as u64,
        rsp: svm.rsp() as u64,
        rax: svm.raw_rax() as u64,
    }
}

/// Returns the event that was being delivered to L2.
fn pending_event(svm: &mut SvmVcpu) -> Pending {
    svm.with_arch(|arch| {
        let event = if arch.exception.injected {
            let event = Event::new(Kind::Exception, arch.exception.vector);
            if arch.exception.has_error_code {
                return Pending {
                    event: event.with_error_code(),
                    error_code: Some(arch.exception.error_code),
                };
            }
            event
        } else if arch.nmi_injected {
            Event::new(Kind::Nmi, 0)
        } else if arch.interrupt.injected {
            let kind = if arch.interrupt.soft {
                Kind::Software
            } else {
                Kind::Interrupt
            };
            Event::new(kind, arch.interrupt.nr)
        } else {
            Event::default()
        };

        Pending {
            event,
            error_code: None,
        }
    })
}

/// Forgets the bus lock that L2 has taken, unless it still has to get past the instruction.
fn forget_bus_lock(svm: &mut SvmVcpu) {
    if svm.parts().vmcb02.0.control.bus_lock_counter == 0 {
        svm.fields().nested.last_bus_lock_rip = INVALID_GPA;
    }
}

/// Takes over the last-branch records of L2 where it has none of its own.
fn share_last_branch(svm: &mut SvmVcpu) {
    let parts = svm.parts();

    if !parts.control12.last_branch_virtualization(parts.cpu) {
        copy_last_branch(&mut parts.vmcb01.0.save, &parts.vmcb02.0.save);
        parts.vmcb01.0.control.mark_dirty(Group::LastBranch);
    }
    svm.update_last_branch();
}

/// Takes over from vmcb02 which NMIs of L1 are pending and masked.
fn hand_over_nmis(svm: &mut SvmVcpu) {
    if !host().virtual_nmi {
        return;
    }
    let blocked = svm.parts().vmcb02.0.control.int_ctl & interrupt::V_NMI_BLOCKING;
    let pending = svm.with_arch(|arch| {
        let pending = arch.nmi_pending != 0;
        arch.nmi_pending = arch.nmi_pending.saturating_sub(1);
        pending
    });
    let int_ctl = &mut svm.vmcb01().0.control.int_ctl;

    *int_ctl &= !(interrupt::V_NMI_BLOCKING | interrupt::V_NMI_PENDING);
    *int_ctl |= blocked;
    if pending {
        *int_ctl |= interrupt::V_NMI_PENDING;
    }
}

/// Puts L1's time-stamp counter in place of L2's.
fn restore_tsc(svm: &mut SvmVcpu) {
    let offset = svm.with_arch(|arch| {
        arch.tsc_offset = arch.l1_tsc_offset;
        arch.tsc_offset
    });
    let control01 = &mut svm.vmcb01().0.control;
    if control01.tsc_offset != offset {
        control01.tsc_offset = offset;
        control01.mark_dirty(Group::Intercepts);
    }

    // SAFETY: Reads a parameter of KVM.
    let scales = unsafe { bindings::nested_helper_svm_has_tsc_control() };
    let changed = svm.with_arch(|arch| {
        let changed = arch.tsc_scaling_ratio != arch.l1_tsc_scaling_ratio;
        arch.tsc_scaling_ratio = arch.l1_tsc_scaling_ratio;
        changed
    });
    if scales && changed {
        // SAFETY: By the invariants of `SvmVcpu`.
        unsafe { bindings::nested_helper_svm_write_tsc_multiplier(svm.as_ptr()) }
    }
}

/// Loads the registers that L1 had at `VMRUN`.
fn restore_l1(svm: &mut SvmVcpu) {
    let save01 = &svm.vmcb01().0.save;
    let (efer, cr0, cr3, cr4) = (save01.efer, save01.cr0, save01.cr3, save01.cr4);
    let (rflags, rax, rsp, rip) = (save01.rflags, save01.rax, save01.rsp, save01.rip);

    svm.set_rflags(rflags as usize);
    svm.set_control_registers(efer, cr0 | CR0_PE, cr4);
    svm.set_raw_rax(rax as usize);
    svm.set_rsp(rsp as usize);
    svm.set_rip(rip as usize);
    svm.with_arch(|arch| arch.dr7 = DR7_FIXED as usize);
    svm.update_dr7();

    mmu::leave_nested_paging(svm);
    if let Err(IllegalCr3) = mmu::load_cr3(svm, cr3, Pdptrs::Load) {
        // L1 has destroyed its own page tables: the processor would shut down.
        svm.request_triple_fault();
    }
}

/// Leaves L2 without an exit: what the vCPU was doing is given up.
pub(crate) fn leave(svm: &mut SvmVcpu) {
    if svm.is_guest_mode() {
        svm.set_run_pending(RunPending::No);
        svm.fields().nested.vmcb12_gpa = INVALID_GPA;
        svm.leave_guest_mode();
        // The vCPU may not be loaded: its counters follow when it runs.
        svm.switch_performance_counters(When::Later);
        address_space::forget(svm);
        svm.switch_to_vmcb01();
        mmu::leave_nested_paging(svm);
        svm.current_vmcb().control.clean = 0;
        svm.set_gif(Gif::Set);
        if svm.apicv_is_activated() {
            svm.request_apicv_update();
        }
    }
    svm.clear_state_pages();
}

/// Merges the intercepts again, as those of L0 have changed.
pub(crate) fn recalculate_intercepts(svm: &mut SvmVcpu) {
    let host = host();
    let parts = svm.parts();
    let merged = merge_intercepts(parts.vmcb01, parts.control12, host, parts.cpu);

    parts.vmcb02.0.control.intercepts = merged.words();
    parts.vmcb02.0.control.mark_dirty(Group::Intercepts);
}
