// SPDX-License-Identifier: GPL-2.0

//! Entry of L2: `VMRUN`, and what resumes L2 otherwise.

use crate::{
    address_space,
    exit,
    mmu::{
        self,
        IllegalCr3,
        Pdptrs, //
    },
    vcpu::{
        host,
        Gif,
        GuestCpu,
        SvmVcpu,
        When, //
    }, //
};
use kernel::{
    ffi::c_int,
    prelude::*, //
};
use kvm::{
    bindings,
    RunPending,
    SharedPage,
    Window, //
};
use nested::{
    address::Gpa,
    checked::Checked,
    memory::Inaccessible,
    svm::{
        bits::register::{
            DR6_ACTIVE_LOW,
            EFER_LMA,
            EFER_LME,
            RFLAGS_FIXED,
            RFLAGS_TF, //
        },
        check::{
            check_vmcb12,
            vouch_control,
            Invalid,
            Pat, //
        },
        merge::{
            self,
            Previous,
            Start, //
        },
        permission_map::merge_msr_map,
        vmcb::Group,
        Control12,
        ExitCode,
        Feature,
        Save12,
        VirtualCpu, //
    }, //
};

/// Why L1 does not get to the instruction after `VMRUN`, nor L2 to run.
enum Refusal {
    /// `#UD`.
    UndefinedOpcode,
    /// `#GP(0)`.
    GeneralProtection,
    /// There is no memory at the address of vmcb12.
    Inaccessible,
    /// User space has to handle an error.
    Error(Error),
}

/// Executes `VMRUN` for L1; returns what an exit handler returns.
pub(crate) fn handle_vmrun(svm: &mut SvmVcpu) -> c_int {
    match vmrun(svm) {
        Ok(result) => result,
        Err(Refusal::UndefinedOpcode) => {
            svm.raise_undefined_opcode();
            1
        }
        Err(Refusal::GeneralProtection) => {
            svm.raise_general_protection();
            1
        }
        Err(Refusal::Inaccessible) => svm.report_inaccessible_memory(),
        Err(Refusal::Error(error)) => error.to_errno(),
    }
}

fn vmrun(svm: &mut SvmVcpu) -> Result<c_int, Refusal> {
    if svm.fields().nested.hsave_msr == 0 {
        return Err(Refusal::GeneralProtection);
    }
    if svm.is_smm() {
        return Err(Refusal::UndefinedOpcode);
    }
    // Only a hypervisor that has enabled the page and then made it inaccessible gets to this.
    let result = svm.verify_vp_assist();
    if result != 0 {
        svm.raise_general_protection();
        return Err(Refusal::Error(Error::from_errno(result)));
    }
    if !svm.fields().nested.initialized {
        return Err(Refusal::Error(EINVAL));
    }
    let vmcb12 = Gpa::from_raw(svm.rax() as u64);
    if !vmcb12.is_page_aligned() || !svm.is_legal_gpa(vmcb12) {
        return Err(Refusal::GeneralProtection);
    }

    let checked = load_vmcb12(svm, vmcb12).map_err(|Inaccessible| Refusal::Inaccessible)?;

    // From here on the instruction does not fault.
    if svm.skip_vmrun() == 0 {
        return Ok(0);
    }
    match checked {
        Ok(checked) => enter_from_l1(svm, vmcb12, checked),
        Err(invalid) => {
            svm.trace_failed_check(invalid.name());
            if svm.rflags() as u64 & RFLAGS_TF != 0 {
                // As after any other exit.
                svm.raise_single_step();
            }
        }
    }
    // It counts as executed in L2, if L2 was entered.
    svm.retire_instruction();
    Ok(1)
}

/// A snapshot of vmcb12 that has passed its checks.
type Checked12<'a> = (Checked<'a, Control12>, Checked<'a, Save12>);

/// Reads vmcb12 and checks it; writes the exit to it if the checks fail.
fn load_vmcb12<'a>(
    svm: &mut SvmVcpu,
    vmcb12: Gpa,
) -> Result<Result<Checked12<'a>, Invalid>, Inaccessible> {
    // SAFETY: It is dropped below.
    let mut map = unsafe { svm.map_page(vmcb12)? };
    let mut page = map.page();
    let checked = take_snapshot(svm, &page);

    if checked.is_err() {
        nested::svm::exit::refuse(&mut page);
    }
    drop(map);
    if checked.is_err() {
        svm.set_gif(Gif::Clear);
    }
    Ok(checked)
}

/// Takes the snapshot of vmcb12, and checks it.
fn take_snapshot<'a>(svm: &mut SvmVcpu, page: &SharedPage<'_>) -> Result<Checked12<'a>, Invalid> {
    // SAFETY: `svm` is a vCPU that fulfils the invariants; what is asked is not in the snapshot.
    let cpu = unsafe { GuestCpu::of(svm) };
    svm.control12_mut().load(page, cpu);
    svm.save12_mut().load(page);

    // SAFETY: The callers enter L2 next, or give up.
    let (control12, save12) = unsafe { svm.snapshot() };
    check_vmcb12(control12, save12, svm.pat(control12), cpu)
}

/// Enters L2, or makes `VMRUN` fail.
fn enter_from_l1(svm: &mut SvmVcpu, vmcb12: Gpa, checked: Checked12<'_>) {
    // While L2 runs, vmcb01 holds the state that L1 is to have after the exit.
    let (efer, cr4) = svm.with_arch(|arch| (arch.efer, arch.cr4 as u64));
    let (cr0, rflags, rip) = (svm.cr0() as u64, svm.rflags() as u64, svm.rip() as u64);
    let save01 = &mut svm.vmcb01().0.save;
    save01.efer = efer;
    save01.cr0 = cr0;
    save01.cr4 = cr4;
    save01.rflags = rflags;
    save01.rip = rip;

    svm.set_run_pending(RunPending::Yes);
    let entered =
        enter(svm, vmcb12, checked, Pdptrs::Load).is_ok() && merge_permission_maps(svm).is_ok();
    if entered {
        kvm::mmu::anticipate(svm);
        svm.stats().count_entry(svm.index());
    } else {
        svm.set_run_pending(RunPending::No);
        exit::reflect_simple(svm, ExitCode::INVALID);
    }
}

/// Makes L2 active, with what is in the snapshot.
fn enter(
    svm: &mut SvmVcpu,
    vmcb12: Gpa,
    (control12, save12): Checked12<'_>,
    pdptrs: Pdptrs,
) -> Result<(), IllegalCr3> {
    // SAFETY: By the invariants of `SvmVcpu`.
    unsafe { bindings::nested_helper_svm_trace_vmenter(svm.raw(), vmcb12.into_raw()) };

    svm.fields().nested.vmcb12_gpa = vmcb12.into_raw();
    let parts = svm.parts();
    share_state(
        &mut parts.vmcb02.0.save.spec_ctrl,
        parts.vmcb01.0.save.spec_ctrl,
    );
    svm.switch_to_vmcb02();

    load_control(svm, control12);
    load_save(svm, control12, save12);
    mmu::load_cr3(svm, save12.cr3, pdptrs)?;

    if pdptrs == Pdptrs::Keep {
        svm.request_state_pages();
    }
    svm.set_gif(Gif::Set);
    if svm.apicv_is_active() {
        svm.request_apicv_update();
    }
    // SAFETY: By the invariants of `SvmVcpu`.
    unsafe { bindings::nested_helper_svm_hv_update_ids(svm.as_ptr()) };
    Ok(())
}

/// Copies what L1 and L2 have in common, and each VMCB has a place for.
///
/// What VMLOAD and VMSAVE are for is in vmcb01 only: KVM executes them with that.
pub(crate) fn share_state(to: &mut u64, from: u64) {
    *to = from;
}

/// Makes L2 active, and loads what the control area of vmcb12 says.
fn load_control(svm: &mut SvmVcpu, control12: Checked<'_, Control12>) {
    let start = match svm.run_pending() {
        RunPending::No => Start::Resumed,
        RunPending::Yes | RunPending::Restored => Start::Vmrun,
    };

    address_space::enter(svm, &control12);
    svm.enter_guest_mode();
    svm.switch_performance_counters(When::Now);

    let host = host();
    let parts = svm.parts();
    merge::load_control(
        parts.vmcb02,
        parts.vmcb01,
        control12,
        start,
        host,
        parts.cpu,
    );
    let knows_next_rip = merge::next_rip_is_meant(start, parts.cpu);
    let nmi_is_pending = host.virtual_nmi
        && parts.vmcb01.0.control.int_ctl & nested::svm::bits::interrupt::V_NMI_PENDING != 0;

    keep_bus_lock(svm);
    if nmi_is_pending {
        // An NMI of L1 is L1's, not the first that L2 gets.
        svm.with_arch(|arch| arch.nmi_pending += 1);
        svm.request_event();
    }
    if control12.nested_paging() {
        mmu::enter_nested_paging(svm);
    }
    load_tsc(svm, control12.tsc_offset);

    // Where a soft event returns to is completed by KVM right before L2 runs.
    let event = merge::injected(&control12);
    let fields = svm.fields();
    fields.nmi_l1_to_l2 = event.is_nmi();
    if event.is_soft() {
        fields.soft_int_injected = true;
        if knows_next_rip {
            fields.soft_int_next_rip = control12.next_rip as usize;
        }
    }
}

/// Lets one bus lock pass if L2 has to repeat the instruction that took it.
fn keep_bus_lock(svm: &mut SvmVcpu) {
    let last = svm.fields().nested.last_bus_lock_rip;
    let vmcb02 = svm.parts().vmcb02;
    let rip = vmcb02.0.save.rip;

    vmcb02.0.control.bus_lock_counter = u16::from(rip != 0 && rip == last);
}

/// Loads the offset and the ratio of L2's time-stamp counter.
fn load_tsc(svm: &mut SvmVcpu, offset: u64) {
    let scales = svm.cpu().has(Feature::TscRatio);
    let ratio = svm.fields().tsc_ratio_msr;
    let l1_offset = svm.with_arch(|arch| arch.l1_tsc_offset);
    // SAFETY: Computes a number.
    let offset = unsafe { bindings::kvm_calc_nested_tsc_offset(l1_offset, offset, ratio) };

    svm.with_arch(|arch| arch.tsc_offset = offset);
    svm.parts().vmcb02.0.control.tsc_offset = offset;
    // SAFETY: Reads a parameter of KVM.
    if scales && ratio != unsafe { bindings::nested_helper_svm_default_tsc_ratio() } {
        update_tsc_ratio(svm);
    }
}

/// Computes the ratio of L2's time-stamp counter from those of L0 and L1.
pub(crate) fn update_tsc_ratio(svm: &mut SvmVcpu) {
    let ratio = svm.fields().tsc_ratio_msr;
    let l1_ratio = svm.with_arch(|arch| arch.l1_tsc_scaling_ratio);
    // SAFETY: Computes a number.
    let merged = unsafe { bindings::kvm_calc_nested_tsc_multiplier(l1_ratio, ratio) };

    svm.with_arch(|arch| arch.tsc_scaling_ratio = merged);
    // SAFETY: By the invariants of `SvmVcpu`.
    unsafe { bindings::nested_helper_svm_write_tsc_multiplier(svm.as_ptr()) }
}

/// Loads L2's registers.
fn load_save(svm: &mut SvmVcpu, control12: Checked<'_, Control12>, save12: Checked<'_, Save12>) {
    let nested = &mut svm.fields().nested;
    let previous = if nested.vmcb12_gpa == nested.last_vmcb12_gpa {
        Previous::Same
    } else {
        nested.last_vmcb12_gpa = nested.vmcb12_gpa;
        nested.force_msr_bitmap_recalc = true;
        Previous::Other
    };
    let parts = svm.parts();
    merge::load_save(
        parts.vmcb02,
        parts.vmcb01,
        (control12, save12),
        previous,
        parts.cpu,
    );

    load_pat(svm, &control12, &save12, previous);
    svm.set_rflags((save12.rflags | RFLAGS_FIXED) as usize);
    // The processor ignores EFER.LMA where EFER.LME is clear.
    let efer = if save12.efer & EFER_LME == 0 {
        save12.efer & !EFER_LMA
    } else {
        save12.efer
    };
    svm.set_control_registers(efer, save12.cr0, save12.cr4);
    svm.set_raw_rax(save12.rax as usize);
    svm.set_rsp(save12.rsp as usize);
    svm.set_rip(save12.rip as usize);
    svm.with_arch(|arch| {
        arch.cr2 = save12.cr2 as usize;
        if merge::loads_debug_registers(&control12, previous) {
            arch.dr6 = (save12.dr6 | DR6_ACTIVE_LOW) as usize;
        }
    });
    svm.update_last_branch();
}

/// Loads L2's page-attribute table.
fn load_pat(svm: &mut SvmVcpu, control12: &Control12, save12: &Save12, previous: Previous) {
    let value = match svm.pat(control12) {
        Pat::Separate if previous == Previous::Same && !control12.is_dirty(Group::NestedPaging) => {
            return;
        }
        Pat::Separate => save12.g_pat,
        Pat::Shared => svm.with_arch(|arch| arch.pat),
    };
    let vmcb02 = svm.parts().vmcb02;

    vmcb02.0.save.g_pat = value;
    vmcb02.0.control.mark_dirty(Group::NestedPaging);
}

/// Makes the MSR permission map that L2 runs with.
///
/// Without an intercept of MSRs by L1, it is that of L1 itself.
pub(crate) fn merge_permission_maps(svm: &mut SvmVcpu) -> Result<(), Inaccessible> {
    let control12 = svm.control12();
    let unchanged = control12.msr_map_is_unchanged(svm.cpu()) && !svm.recalculates_msr_map();

    if !unchanged {
        if !control12
            .intercepts
            .contains(nested::svm::intercept::Intercept::MSR)
        {
            return Ok(());
        }
        let base = control12.msrpm_base_pa;
        // SAFETY: `svm` is a vCPU that fulfils the invariants; the maps are not part of it. The
        // window is dropped below.
        let memory = unsafe { Window::new(kvm::Vcpu::from_raw(svm.as_ptr())) };
        let (map02, map01) = svm.msr_maps();
        merge_msr_map(map02, map01, base, &memory)?;
        svm.fields().nested.force_msr_bitmap_recalc = false;
    }
    let address = svm.msr_map_address();
    svm.current_vmcb().control.msrpm_base_pa = address;
    Ok(())
}

/// Enters L2 when L1 leaves system-management mode; returns 0, or 1 if that fails.
pub(crate) fn leave_smm(svm: &mut SvmVcpu, vmcb12: Gpa, page: &SharedPage<'_>) -> c_int {
    let checked = match take_snapshot(svm, page) {
        Ok(checked) => checked,
        Err(invalid) => {
            svm.trace_failed_check(invalid.name());
            return 1;
        }
    };

    match enter(svm, vmcb12, checked, Pdptrs::Keep) {
        Ok(()) => 0,
        Err(IllegalCr3) => 1,
    }
}

/// Makes L2 active whose registers the vCPU holds already, as user space has restored them.
///
/// The control area of vmcb12 is in the snapshot, and L1's state in vmcb01.
pub(crate) fn resume(svm: &mut SvmVcpu, pat: Option<u64>) -> Result {
    svm.switch_to_vmcb02();
    if let Some(pat) = pat {
        svm.current_vmcb().save.g_pat = pat;
    }
    // SAFETY: The snapshot is not changed before this function returns.
    let (control12, _) = unsafe { svm.snapshot() };
    load_control(
        svm,
        vouch_control(control12, svm.cpu()).map_err(|_| EINVAL)?,
    );
    // What user space has set before was noted in vmcb01.
    svm.current_vmcb().control.clean = 0;

    let cr3 = svm.with_arch(|arch| arch.cr3 as u64);
    mmu::load_cr3(svm, cr3, Pdptrs::Keep).map_err(|IllegalCr3| EINVAL)?;

    svm.fields().nested.force_msr_bitmap_recalc = true;
    if svm.apicv_is_active() {
        svm.request_apicv_update();
    }
    svm.request_state_pages();
    Ok(())
}

/// Loads what a restored state refers to in L1's memory; returns whether that succeeded.
pub(crate) fn load_state_pages(svm: &mut SvmVcpu) -> bool {
    if svm.is_pae_paging() {
        if svm.control12().nested_paging() {
            // They may have been read as if CR3 were an address of L1.
            svm.reload_pdptrs();
        } else if !svm.with_arch(|arch| arch.pdptrs_from_userspace) {
            let cr3 = svm.with_arch(|arch| arch.cr3 as u64);
            if mmu::load_pdptrs(svm, cr3).is_err() {
                return false;
            }
        }
    }
    merge_permission_maps(svm).is_ok() && svm.verify_vp_assist() == 0
}
