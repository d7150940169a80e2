// SPDX-License-Identifier: GPL-2.0

//! Entry of L2: VMLAUNCH and VMRESUME, and what resumes L2 otherwise.

use crate::{
    events,
    exit,
    host_state::{
        self,
        read_control_flow, //
    },
    hyperv::{
        self,
        Vmptrld, //
    },
    instruction::{
        permitted,
        refuse,
        RESUME, //
    },
    mmu::{
        self,
        LoadFailure, //
    },
    msrs::{
        self,
        GuestMsrs, //
    },
    pages::{
        self,
        Missing,
        Pages, //
    },
    processor::Reserved,
    shadow,
    vcpu::{
        VmxVcpu,
        Which, //
    },
    vmcs02, //
};
use kernel::{
    ffi::c_int,
    prelude::*, //
};
use kvm::{
    bindings,
    RunPending, //
};
use nested::{
    checked::Checked,
    memory::GuestMemory,
    vmx::{
        check::{
            check_restored,
            check_vm_entry,
            Failure,
            Outcome,
            PendingEntry, //
        },
        controls::Primary,
        exit::{
            information::ReasonField,
            msr_area::{
                FailedEntry,
                MsrArea, //
            }, //
        },
        exit_reason::ExitReason,
        field::Field,
        instruction::{
            access::link_pointer,
            launch::{
                check_launch,
                Blocking,
                Launch, //
            },
            Fault,
            InstructionError,
            Refusal, //
        },
        vmcs12::{
            REVISION,
            SHADOW_INDICATOR, //
        },
        Vmcs12, //
    }, //
};

/// What makes L2 active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An instruction of L1.
    Instruction,
    /// A state that user space has restored, or that RSM returns to.
    State,
}

/// Why L2 is not entered.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The state of L2 is not valid: L1 has an exit.
    FailedEntry {
        /// Its reason.
        reason: ExitReason,
        /// Its qualification.
        qualification: u64,
    },
    /// KVM cannot emulate what L1 asks for.
    Internal,
}

impl Refused {
    const DEFAULT: u64 = 0;
    const PDPTE: u64 = 2;

    fn invalid_state(qualification: u64) -> Self {
        Self::FailedEntry {
            reason: ExitReason::INVALID_STATE,
            qualification,
        }
    }

    /// L2's state is not valid in a way that has no qualification.
    pub(crate) fn state() -> Self {
        Self::invalid_state(Self::DEFAULT)
    }
}

impl From<LoadFailure> for Refused {
    fn from(failure: LoadFailure) -> Self {
        match failure {
            LoadFailure::Cr3 => Self::state(),
            LoadFailure::Pdptrs => Self::invalid_state(Self::PDPTE),
        }
    }
}

impl From<Missing> for Refused {
    fn from(_: Missing) -> Self {
        Self::Internal
    }
}

impl From<FailedEntry> for Refused {
    fn from(FailedEntry(entry): FailedEntry) -> Self {
        Self::FailedEntry {
            reason: ExitReason::MSR_LOAD_FAIL,
            qualification: u64::from(entry),
        }
    }
}

/// Executes VMLAUNCH or VMRESUME; returns what an exit handler returns.
pub(crate) fn handle(vmx: &mut VmxVcpu, launch: Launch) -> c_int {
    match run(vmx, launch) {
        Ok(result) => result,
        Err(refusal) => {
            if !matches!(refusal, Refusal::Fault(..)) {
                vmx.trace_failed_check(refusal.name());
            }
            refuse(vmx, refusal)
        }
    }
}

fn run(vmx: &mut VmxVcpu, launch: Launch) -> Result<c_int, Refusal> {
    let blocking = blocking(vmx);
    permitted(vmx)?;
    let loaded = hyperv::vmptrld(vmx, launch);
    if loaded == Vmptrld::Inaccessible {
        return Err(Refusal::Fault(Fault::InvalidOpcode, c"EvmcsInaccessible"));
    }
    vmx.retire_branch();
    if loaded == Vmptrld::Refused {
        return Err(Refusal::FailInvalid);
    }

    let current = vmx.current_vmptr();
    let there_is_one = loaded == Vmptrld::Loaded || current.is_some();
    match loaded {
        Vmptrld::Loaded => hyperv::copy_to_vmcs12(vmx, launch),
        _ => shadow::copy_to_vmcs12(vmx),
    }
    check_launch(there_is_one.then_some(vmx.vmcs12()), launch, blocking)?;
    if !hyperv::controls_are_valid(vmx) {
        return Err(Refusal::Fail(InstructionError::ENTRY_INVALID_CONTROL_FIELD));
    }

    match check(vmx) {
        Ok(checked) => Ok(enter_from_l1(vmx, checked)),
        Err(failure) => {
            vmx.trace_failed_check(failure.name());
            match failure.outcome() {
                Outcome::VmFailValid(error) => Ok(refuse(vmx, Refusal::Fail(error))),
                Outcome::FailedEntry {
                    reason,
                    qualification,
                } => {
                    fail(vmx, reason, qualification);
                    Ok(RESUME)
                }
            }
        }
    }
}

/// Returns whether events are blocked by the instruction before.
fn blocking(vmx: &VmxVcpu) -> Blocking {
    const SHADOW_INT_MOV_SS: u32 = 1;

    if vmx.interrupt_shadow() & SHADOW_INT_MOV_SS != 0 {
        Blocking::MovSs
    } else {
        Blocking::Other
    }
}

/// Makes the checks of VM entry, but those that need no repetition.
fn check<'a>(vmx: &mut VmxVcpu) -> Result<Checked<'a, Vmcs12>, Failure> {
    let current = vmx.current_vmptr();
    let reserved = match vmx.private().reserved {
        Some(reserved) => reserved,
        None => {
            let reserved = Reserved::of(vmx);
            *vmx.private().reserved.insert(reserved)
        }
    };
    let mut passed = vmx.private().passed;
    if !passed.covers_segments(vmx.vmcs12()) {
        exit::fetch_rare_state(vmx);
    }
    // SAFETY: Memory of L1 is not a part of the vCPU; the snapshot does not change any more before
    // L2 is active.
    let (memory, vmcs12) = unsafe { (vmx.memory(), vmx.snapshot()) };

    let result = check_vm_entry(
        vmcs12,
        current,
        &vmx.processor(&reserved),
        memory,
        &mut passed,
    );
    vmx.private().passed = passed;
    result
}

/// Makes the checks of a state that user space has restored, or that RSM returns to.
///
/// # Errors
///
/// `EINVAL` if L2 cannot have been active with it.
pub(crate) fn check_state<'a>(vmx: &mut VmxVcpu) -> Result<Checked<'a, Vmcs12>> {
    // SAFETY: The snapshot does not change before L2 is active; the callers enter it, or give up.
    let vmcs12 = unsafe { vmx.snapshot() };
    let current = vmx.current_vmptr();
    let pending = match vmx.run_pending() {
        RunPending::No => PendingEntry::Completed,
        RunPending::Yes | RunPending::Restored => PendingEntry::Pending,
    };
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };

    if vmcs12.secondary().vmcs_shadowing() && link_pointer(vmcs12).is_some() {
        check_shadow_vmcs12(vmx)?;
    }
    if !hyperv::controls_are_valid(vmx) {
        return Err(EINVAL);
    }
    let reserved = Reserved::of(vmx);
    check_restored(vmcs12, current, &vmx.processor(&reserved), memory, pending).map_err(|failure| {
        vmx.trace_failed_check(failure.name());
        EINVAL
    })
}

fn check_shadow_vmcs12(vmx: &mut VmxVcpu) -> Result {
    if vmx.shadow_vmcs12_mut().revision == REVISION | SHADOW_INDICATOR {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// Enters L2, or makes the entry fail; returns what an exit handler returns.
fn enter_from_l1(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> c_int {
    vmx.set_run_pending(RunPending::Yes);
    vmx.nested().has_preemption_timer_deadline = false;

    match enter(vmx, vmcs12, Origin::Instruction) {
        Ok(()) => {
            kvm::mmu::anticipate(vmx);
            vmx.stats().count_entry(vmx.index());
        }
        Err(Refused::FailedEntry {
            reason,
            qualification,
        }) => {
            vmx.set_run_pending(RunPending::No);
            fail(vmx, reason, qualification);
            return RESUME;
        }
        Err(Refused::Internal) => {
            vmx.set_run_pending(RunPending::No);
            // SAFETY: By the invariants of `VmxVcpu`.
            return unsafe { bindings::nested_helper_vmx_report_internal_error(vmx.as_ptr()) };
        }
    }

    vmx.hide_data_cache();
    cache_shadow_vmcs12(vmx);
    start(vmx)
}

/// Reads the shadow VMCS that L1 gives to L2.
fn cache_shadow_vmcs12(vmx: &mut VmxVcpu) {
    if !vmx.vmcs12().secondary().vmcs_shadowing() {
        return;
    }
    if let Some(pointer) = link_pointer(vmx.vmcs12()) {
        // SAFETY: Memory of L1 is not a part of the vCPU.
        let memory = unsafe { vmx.memory() };
        // It was accessible when it was checked; if it is not any more, L2 sees an older one.
        let _ = memory.read(pointer, vmx.shadow_vmcs12_region());
    }
}

/// Brings L2 into its activity state; returns what an exit handler returns.
fn start(vmx: &mut VmxVcpu) -> c_int {
    const HLT: u32 = 1;
    const WAIT_FOR_SIPI: u32 = 3;
    const VALID: u32 = 1 << 31;
    const RFLAGS_IF: u64 = 1 << 9;

    let vmcs12 = vmx.vmcs12();
    match vmcs12.guest_activity_state {
        HLT => {
            let interrupt_window =
                vmcs12.primary().interrupt_window_exiting() && vmcs12.guest_rflags & RFLAGS_IF != 0;
            let wakes = vmcs12.vm_entry_intr_info_field & VALID != 0
                || vmcs12.primary().nmi_window_exiting()
                || interrupt_window;

            if !wakes {
                vmx.set_run_pending(RunPending::No);
                return vmx.halt();
            }
        }
        WAIT_FOR_SIPI => {
            vmx.set_run_pending(RunPending::No);
            vmx.wait_for_sipi();
        }
        _ => {}
    }
    RESUME
}

/// Exits to L1 because L2 could not be entered (SDM, "VM-Entry Failures During or After Loading
/// Guest State"). vmcs01 is current.
fn fail(vmx: &mut VmxVcpu, reason: ExitReason, qualification: u64) {
    let reason = ReasonField::new(reason).of_failed_entry();
    let vmcs12 = vmx.vmcs12_mut();

    vmcs12.vm_exit_reason = reason.into_raw();
    vmcs12.exit_qualification = qualification;
    pages::unmap(vmx);
    // How much of L2's state was loaded is not known.
    vmx.private().idle.efer = None;
    host_state::load(vmx);
    vmx.private().idle.efer = None;
    vmx.request_shadow_sync();
}

impl VmxVcpu {
    /// Has vmcs12 copied to where L1 reads it without exits, before L1 runs.
    pub(crate) fn request_shadow_sync(&mut self) {
        if shadow::is_enabled() || hyperv::evmptr(self).is_some() {
            self.nested().need_vmcs12_to_shadow_sync = true;
        }
    }
}

/// Makes L2 active that ran before.
pub(crate) fn resume(vmx: &mut VmxVcpu) -> Result<(), Refused> {
    let vmcs12 = check_state(vmx).map_err(|_| Refused::state())?;

    enter(vmx, vmcs12, Origin::State)
}

/// Makes L2 active. If that fails, L1 is, with vmcs01.
fn enter(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, origin: Origin) -> Result<(), Refused> {
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_trace_vmenter(vmx.as_ptr()) };
    vmx.flush_as_requested();
    save_l1_state(vmx, vmcs12);

    vmx.switch_vmcs(Which::Vmcs02);
    if let Err(refused) = write_controls(vmx, vmcs12, origin) {
        pages::unmap(vmx);
        vmx.switch_vmcs(Which::Vmcs01);
        return Err(refused);
    }
    vmx.enter_guest_mode();
    if let Err(refused) = load(vmx, vmcs12, origin) {
        give_up(vmx, origin);
        return Err(refused);
    }

    // What L1 has not got yet, L2 may have to exit for.
    let windows = Primary::INTR_WINDOW_EXITING.with(Primary::NMI_WINDOW_EXITING);
    let controls01 = vmx.loaded_vmcs01().controls();
    if controls01.primary & windows.into_raw() != 0
        || vmx.init_or_sipi_is_pending()
        || vmx.apic_interrupt() >= 0
    {
        vmx.request_event();
    }
    // Only an exit stops the timer: it starts when there is no other way.
    events::start_timer(vmx);
    Ok(())
}

/// Keeps the state of L1, or of an L2 that user space has restored, that L2 goes on with where
/// vmcs12 does not say another.
fn save_l1_state(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    let is_entry = vmx.run_pending() != RunPending::No;
    let loads = |control: bool| is_entry && control;
    let controls = vmcs12.entry();
    let cr3 = vmx.cr3();
    // SAFETY: Reads the VMCS of the vCPU.
    let debugctl = unsafe { bindings::nested_helper_vmx_debugctl() };
    let available = exit::control_flow(vmx);

    let bndcfgs = vmcs02::has_bounds().then(|| vmx.vmcs().read(Field::GUEST_BNDCFGS));
    let control_flow = read_control_flow(&vmx.vmcs(), available);
    let nested = vmx.nested();
    // If the processor refuses vmcs02, this is the only place that has it.
    nested.pre_vmenter_cr3 = cr3;
    if !loads(controls.load_debug_controls()) {
        nested.pre_vmenter_debugctl = debugctl;
    }
    if let Some(bndcfgs) = bndcfgs.filter(|_| !loads(controls.load_bndcfgs())) {
        nested.pre_vmenter_bndcfgs = bndcfgs;
    }
    if !loads(controls.load_cet_state()) {
        nested.pre_vmenter_s_cet = control_flow.s_cet;
        nested.pre_vmenter_ssp = control_flow.ssp;
        nested.pre_vmenter_ssp_tbl = control_flow.ssp_table;
    }
}

/// Writes what of vmcs02 does not depend on which guest is active.
fn write_controls(
    vmx: &mut VmxVcpu,
    vmcs12: Checked<'_, Vmcs12>,
    origin: Origin,
) -> Result<(), Refused> {
    vmcs02::write_identity(vmx, vmcs12);
    let pages = match origin {
        Origin::Instruction => pages::map_all(vmx, vmcs12)?,
        Origin::State => Pages::NOT_YET,
    };
    vmcs02::write_controls(vmx, vmcs12, &pages);
    vmcs02::write_event(vmx, vmcs12);
    Ok(())
}

/// Loads the state of L2, which is active.
fn load(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, origin: Origin) -> Result<(), Refused> {
    vmcs02::load_state(vmx, vmcs12, origin)?;
    match origin {
        Origin::Instruction => load_msrs(vmx),
        // What is in memory of L1 may not be restored yet, and KVM's MMU is not set up.
        Origin::State => {
            vmx.request_state_pages();
            Ok(())
        }
    }
}

fn load_msrs(vmx: &mut VmxVcpu) -> Result<(), Refused> {
    let area = MsrArea::entry_load(vmx.vmcs12());
    let limits = msrs::limits(vmx);
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };

    Ok(area.load(memory, &mut GuestMsrs(vmx), limits)?)
}

/// Makes L1 active again.
fn give_up(vmx: &mut VmxVcpu, origin: Origin) {
    vmx.with_arch(|arch| {
        arch.tsc_offset = arch.l1_tsc_offset;
        arch.tsc_scaling_ratio = arch.l1_tsc_scaling_ratio;
    });
    vmx.flush_as_requested();
    vmx.leave_guest_mode();
    vmx.switch_vmcs(Which::Vmcs01);
    if origin == Origin::State {
        mmu::leave_ept(vmx);
    }
}

/// Maps the pages of L1 that a restored state refers to; returns whether that succeeded.
///
/// L2 does not run before it has: what vmcs02 refers to meanwhile is not L1's any more.
pub(crate) fn load_state_pages(vmx: &mut VmxVcpu) -> bool {
    let is_ready =
        hyperv::map_restored(vmx).is_ok() && (!vmx.is_guest_mode() || load_pages(vmx).is_ok());

    if !is_ready {
        vmx.request_state_pages();
    }
    is_ready
}

fn load_pages(vmx: &mut VmxVcpu) -> Result {
    let vmcs12 = check_state(vmx)?;

    // User space may have restored CR3 before it has restored that L2 is active.
    let restored = vmx.with_arch(|arch| arch.pdptrs_from_userspace);
    if !restored && !vmcs12.secondary().ept() && vmx.is_pae_paging() {
        let cr3 = vmx.with_arch(|arch| arch.cr3 as u64);
        mmu::load_pdptrs(vmx, cr3).map_err(|_| EINVAL)?;
    }
    let pages = pages::map_all(vmx, vmcs12).map_err(|Missing| EINVAL)?;
    vmcs02::write_controls(vmx, vmcs12, &pages);
    Ok(())
}
