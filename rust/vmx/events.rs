// SPDX-License-Identifier: GPL-2.0

//! Events that come while L2 is active.

use crate::{
    exit,
    vcpu::VmxVcpu, //
};
use core::mem::offset_of;
use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*, //
};
use kvm::{
    bindings,
    RunPending, //
};
use nested::vmx::{
    exit::{
        information::{
            ExitInformation,
            ReasonField, //
        },
        interruption::{
            Event,
            InterruptionInformation, //
        },
    },
    exit_reason::ExitReason,
    field::Field,
    merge::{
        exceptions::Exceptions,
        time::PreemptionTimer, //
    }, //
};

const DB: u8 = 1;
const PF: u8 = 14;
const DR6_BD: u64 = 1 << 13;
const DR6_BT: u64 = 1 << 15;

/// Until when an event has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// It need not.
    No,
    /// Until L1's entry of L2 is complete.
    ByEntry,
    /// Until the instruction is complete at which the delivery of an event was interrupted.
    ByDelivery,
}

impl Blocked {
    /// Returns what blocks the events of L2 now.
    fn now(vmx: &VmxVcpu) -> Self {
        if vmx.run_pending() != RunPending::No {
            Self::ByEntry
        } else if vmx.event_needs_reinjection() {
            Self::ByDelivery
        } else {
            Self::No
        }
    }

    /// For an event that is recognized between instructions.
    fn event(self) -> Result {
        match self {
            Self::No => Ok(()),
            Self::ByEntry | Self::ByDelivery => Err(EBUSY),
        }
    }

    /// For an exception, which may have been raised by the delivery.
    fn exception(self) -> Result {
        match self {
            Self::No | Self::ByDelivery => Ok(()),
            Self::ByEntry => Err(EBUSY),
        }
    }
}

/// Exits to L1 if there is an event that L1 intercepts (SDM, "Priority Among Concurrent Events").
///
/// # Errors
///
/// `EBUSY` if the event has to wait, `ENXIO` if user space has to handle an error.
pub(crate) fn check(vmx: &mut VmxVcpu) -> Result {
    if exit_if_due(vmx)? {
        Ok(())
    } else {
        complete_posted_interrupts(vmx)
    }
}

/// Returns whether there was nothing but an exit to be done.
fn exit_if_due(vmx: &mut VmxVcpu) -> Result<bool> {
    let blocked = Blocked::now(vmx);

    let waits_for_sipi = waits_for_sipi(vmx);

    if vmx.init_is_pending() {
        blocked.event()?;
        save_pending_debug(vmx);
        vmx.take_init();
        if !waits_for_sipi {
            exit::reflect_reason(vmx, ExitReason::INIT_SIGNAL, 0);
        }
        vmx.nested().mtf_pending = false;
        return Ok(true);
    }
    if vmx.sipi_is_pending() {
        blocked.event()?;
        let vector = vmx.take_sipi();
        // It is ignored unless the vCPU waits for it.
        if waits_for_sipi {
            exit::reflect_reason(vmx, ExitReason::SIPI_SIGNAL, u64::from(vector));
            return Ok(true);
        }
    }
    // Nothing else ends that (SDM, "Activity State" and "VMX-Preemption Timer").
    if waits_for_sipi {
        return Ok(false);
    }

    // Faults come before the monitor trap, and traps after it.
    if let Some(done) = check_exceptions(vmx, blocked, |exception| !is_trap(exception))? {
        return Ok(done);
    }
    if vmx.nested().mtf_pending {
        blocked.event()?;
        save_pending_debug(vmx);
        exit::reflect_reason(vmx, ExitReason::MONITOR_TRAP_FLAG, 0);
        return Ok(true);
    }
    if let Some(done) = check_exceptions(vmx, blocked, |_| true)? {
        return Ok(done);
    }

    if timer_has_expired(vmx) {
        blocked.event()?;
        exit::reflect_reason(vmx, ExitReason::PREEMPTION_TIMER, 0);
        return Ok(true);
    }
    if vmx.with_arch(|arch| arch.smi_pending) && !vmx.is_smm() {
        blocked.event()?;
        return Ok(false);
    }
    if vmx.nmi_is_pending() {
        blocked.event()?;
        return Ok(check_nmi(vmx));
    }
    if vmx.interrupt_is_pending() {
        return check_interrupt(vmx, blocked);
    }
    Ok(false)
}

/// Returns whether L2 is in the activity state in which all but SIPI has to wait.
fn waits_for_sipi(vmx: &VmxVcpu) -> bool {
    vmx.with_arch(|arch| arch.mp_state) as u32 == bindings::KVM_MP_STATE_INIT_RECEIVED
}

/// Looks for exceptions for which `is_meant` is true: those that exit to L1, and those of L2.
///
/// Returns whether there was nothing but an exit to be done, if there was an exception.
fn check_exceptions(
    vmx: &mut VmxVcpu,
    blocked: Blocked,
    is_meant: impl Fn(&bindings::kvm_queued_exception) -> bool,
) -> Result<Option<bool>> {
    let (exits, stays) = vmx.with_arch(|arch| {
        let is_pending =
            |exception: &bindings::kvm_queued_exception| exception.pending && is_meant(exception);
        (
            is_pending(&arch.exception_vmexit),
            is_pending(&arch.exception),
        )
    });

    if exits {
        blocked.exception()?;
        reflect_exception(vmx);
        return Ok(Some(true));
    }
    if stays {
        blocked.exception()?;
        return Ok(Some(false));
    }
    Ok(None)
}

/// Returns the bits of DR6 of a debug exception that is a trap, as far as KVM can tell.
///
/// General detection is a fault. Instruction breakpoints are, too, but look like data breakpoints:
/// they are not pending after an instruction, as the emulator raises them before it.
fn debug_trap(exception: &bindings::kvm_queued_exception) -> u64 {
    if exception.pending && exception.vector == DB {
        exception.payload as u64 & !DR6_BD
    } else {
        0
    }
}

/// Returns whether an exception comes after a monitor trap. That of a task switch does not.
fn is_trap(exception: &bindings::kvm_queued_exception) -> bool {
    debug_trap(exception) & !DR6_BT != 0
}

/// Leaves a debug trap that has not been delivered to L1: the exit comes before it.
fn save_pending_debug(vmx: &mut VmxVcpu) {
    let pending = vmx.with_arch(|arch| debug_trap(&arch.exception));

    if pending != 0 {
        vmx.vmcs()
            .write(Field::GUEST_PENDING_DBG_EXCEPTIONS, pending);
    }
}

/// Exits to L1 with the exception that L1 intercepts.
fn reflect_exception(vmx: &mut VmxVcpu) {
    const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
    const IDT_VECTORING_VALID: u32 = 1 << 31;
    const CR0_PE: u64 = 1 << 0;
    const UNBLOCKS_NMIS: u32 = 1 << 12;

    let is_protected = vmx.cr0() as u64 & CR0_PE != 0;
    let (event, qualification) = vmx.with_arch(|arch| {
        let exception = &arch.exception_vmexit;
        let qualification = if exception.has_payload {
            exception.payload as u64
        } else {
            match exception.vector {
                PF => arch.cr2 as u64,
                DB => arch.dr6 as u64 & !DR6_BT ^ DR6_ACTIVE_LOW,
                _ => 0,
            }
        };
        // There are no error codes in real mode, and none of more than 16 bits.
        let error_code =
            (exception.has_error_code && is_protected).then_some(exception.error_code & 0xffff);

        (
            Event::exception(exception.vector, error_code, 0),
            qualification,
        )
    });

    let mut interruption = event.information();
    let was_delivering = vmx.vmcs12().idt_vectoring_info_field & IDT_VECTORING_VALID != 0;
    if !was_delivering && vmx.is_nmi_masked() {
        interruption = InterruptionInformation::from_raw(interruption.into_raw() | UNBLOCKS_NMIS);
    }
    let information = exit::information(vmx, ReasonField::new(ExitReason::EXCEPTION_NMI));
    exit::reflect(
        vmx,
        &ExitInformation {
            qualification,
            interruption,
            error_code: event.error_code().unwrap_or(0),
            ..information
        },
    );
}

/// Exits to L1 with an event that comes from outside.
fn reflect_event(vmx: &mut VmxVcpu, reason: ExitReason, event: Option<Event>) {
    let interruption = event.map_or(InterruptionInformation::NONE, Event::information);
    let information = exit::information(vmx, ReasonField::new(reason));

    exit::reflect(
        vmx,
        &ExitInformation {
            interruption,
            ..information
        },
    );
}

/// Exits to L1 for an NMI, if L1 wants that.
fn check_nmi(vmx: &mut VmxVcpu) -> bool {
    if !vmx.vmcs12().pin().nmi_exiting() {
        return false;
    }
    reflect_event(vmx, ExitReason::EXCEPTION_NMI, Some(Event::Nmi));
    // The exit is the delivery: L1 gets no other before its IRET.
    vmx.with_arch(|arch| arch.nmi_pending = 0);
    vmx.mask_nmi();
    true
}

/// Exits to L1 for an interrupt, if L1 wants that.
fn check_interrupt(vmx: &mut VmxVcpu, blocked: Blocked) -> Result<bool> {
    const REASON: ExitReason = ExitReason::EXTERNAL_INTERRUPT;
    let vmcs12 = vmx.vmcs12();
    let exits = vmcs12.pin().external_interrupt_exiting();
    let acknowledges = vmcs12.exit().acknowledge_interrupt();

    if !exits {
        blocked.event()?;
        return Ok(false);
    }
    if !acknowledges {
        blocked.event()?;
        reflect_event(vmx, REASON, None);
        return Ok(true);
    }

    if let Ok(vector) = u8::try_from(vmx.take_external_interrupt()) {
        blocked.event()?;
        reflect_event(vmx, REASON, Some(Event::ExternalInterrupt { vector }));
        return Ok(true);
    }
    let number = vmx.apic_interrupt();
    let Ok(vector) = u8::try_from(number) else {
        vmx.warn_on_lost_interrupt();
        return Ok(false);
    };
    // That which notifies of interrupts for L2 is no interrupt of L1. It needs no injection, and
    // hence does not wait for an entry.
    if vmx.nested().posted_intr_nv == u16::from(vector) {
        if vmx.event_needs_reinjection() {
            return Err(EBUSY);
        }
        vmx.nested().pi_pending = true;
        vmx.clear_interrupt_request(number);
        return Ok(false);
    }
    blocked.event()?;
    reflect_event(vmx, REASON, Some(Event::ExternalInterrupt { vector }));
    // It is in service in L1's state, not in L2's.
    vmx.acknowledge_interrupt(number);
    Ok(true)
}

/// Moves the interrupts that have been posted for L2 to its virtual APIC.
///
/// # Errors
///
/// `ENXIO` if they cannot be accessed, which has been reported to user space.
fn complete_posted_interrupts(vmx: &mut VmxVcpu) -> Result {
    if !vmx.nested().pi_pending {
        return Ok(());
    }
    let descriptor = vmx.nested().pi_desc;
    if descriptor.is_null() {
        vmx.report_inaccessible_memory();
        return Err(ENXIO);
    }
    vmx.nested().pi_pending = false;
    // SAFETY: The descriptor is mapped as long as L2 is active.
    if !unsafe { bindings::nested_helper_vmx_posted_test_and_clear(descriptor) } {
        return Ok(());
    }
    // SAFETY: As above.
    let mut highest = unsafe { bindings::nested_helper_vmx_posted_highest(descriptor) };
    if highest > 0 {
        let apic: *mut c_void = vmx.nested().virtual_apic_map.hva;
        if apic.is_null() {
            vmx.report_inaccessible_memory();
            return Err(ENXIO);
        }
        // SAFETY: Both are mapped as long as L2 is active.
        unsafe {
            bindings::nested_helper_vmx_posted_deliver(descriptor, apic, &raw mut highest);
        }
        raise_requested_interrupt(vmx, highest as u8);
    }
    // SAFETY: By the invariants of `VmxVcpu`; the maps are parts of the vCPU.
    unsafe { bindings::nested_helper_vmx_mark_apic_dirty(vmx.raw()) };
    Ok(())
}

/// Makes `vector` the requesting virtual interrupt, unless a higher one is.
fn raise_requested_interrupt(vmx: &mut VmxVcpu, vector: u8) {
    let mut vmcs = vmx.vmcs();
    let status = vmcs.read(Field::GUEST_INTR_STATUS);
    let [requested, ..] = status.to_le_bytes();

    if vector > requested {
        vmcs.write(Field::GUEST_INTR_STATUS, status & !0xff | u64::from(vector));
    }
}

/// Why KVM asks for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It would inject them.
    Injection,
    /// They would wake the vCPU up.
    Wakeup,
}

/// Returns whether there is an event for L1 or L2 that KVM has to do something about.
pub(crate) fn has_events(vmx: &mut VmxVcpu, purpose: Purpose) -> bool {
    if waits_for_sipi(vmx) {
        return false;
    }
    if timer_has_expired(vmx) || vmx.nested().mtf_pending {
        return true;
    }
    // Virtual interrupts are delivered by the processor.
    if purpose == Purpose::Injection
        || !vmx.vmcs12().secondary().virtual_interrupt_delivery()
        || vmx.l2_blocks_interrupts()
    {
        return false;
    }
    has_virtual_interrupt(vmx)
}

/// Returns whether a virtual interrupt would be delivered to L2.
fn has_virtual_interrupt(vmx: &mut VmxVcpu) -> bool {
    const PROCESSOR_PRIORITY: usize = 0xa0;

    let apic: *const u8 = vmx.nested().virtual_apic_map.hva.cast();
    if apic.is_null() {
        return false;
    }
    // SAFETY: The page is mapped as long as L2 is active; L1 writes to it meanwhile.
    let priority = unsafe { apic.add(PROCESSOR_PRIORITY).cast::<u32>().read_volatile() } & 0xf0;
    let [requested, ..] = vmx.vmcs().read(Field::GUEST_INTR_STATUS).to_le_bytes();
    if u32::from(requested) & 0xf0 > priority {
        return true;
    }

    let nested = vmx.nested();
    let descriptor = nested.pi_desc;
    if !nested.pi_pending || descriptor.is_null() {
        return false;
    }
    // SAFETY: The descriptor is mapped as long as L2 is active.
    let (is_notified, highest) = unsafe {
        (
            bindings::nested_helper_vmx_posted_test(descriptor),
            bindings::nested_helper_vmx_posted_highest(descriptor),
        )
    };
    is_notified && highest > 0 && highest as u32 & 0xf0 > priority
}

/// Returns whether L1 intercepts an exception.
pub(crate) fn intercepts_exception(vmx: &VmxVcpu, vector: u8, error_code: u32) -> bool {
    Exceptions::of(vmx.vmcs12()).select(vector, error_code)
}

/// Exits to L1 instead of shutting the VM down.
pub(crate) fn triple_fault(vmx: &mut VmxVcpu) {
    vmx.clear_triple_fault();
    exit::reflect_reason(vmx, ExitReason::TRIPLE_FAULT, 0);
}

/// Returns whether L1's timer for L2 has expired.
fn timer_has_expired(vmx: &mut VmxVcpu) -> bool {
    vmx.nested().preemption_timer_expired && vmx.vmcs12().pin().preemption_timer()
}

/// Sets up L1's timer for L2, which does not run yet.
pub(crate) fn set_up_timer(vmx: &mut VmxVcpu) {
    let timer = &raw mut vmx.nested().preemption_timer;

    // SAFETY: The timer is a part of the vCPU, and does not run.
    unsafe { bindings::nested_helper_vmx_setup_timer(timer, Some(timer_expires)) };
}

/// Starts L1's timer for L2, if L1 wants one.
pub(crate) fn start_timer(vmx: &mut VmxVcpu) {
    let l1_tsc = vmx.l1_tsc();
    let Some(started) = PreemptionTimer::start(vmx.vmcs12(), l1_tsc) else {
        vmx.nested().preemption_timer_expired = false;
        return;
    };

    let nested = vmx.nested();
    nested.preemption_timer_expired = false;
    // A timer that was running when the state was saved goes on.
    let timer = if nested.has_preemption_timer_deadline {
        PreemptionTimer::from_deadline(nested.preemption_timer_deadline)
    } else {
        started
    };
    nested.preemption_timer_deadline = timer.deadline();
    nested.has_preemption_timer_deadline = true;

    let khz = vmx.with_arch(|arch| arch.virtual_tsc_khz);
    match timer.remaining(l1_tsc) {
        // L2 must not execute an instruction.
        0 => {
            vmx.nested().preemption_timer_expired = true;
            vmx.request_event();
        }
        counts => {
            if let Some(nanoseconds) = PreemptionTimer::nanoseconds(counts, khz) {
                let timer = &raw mut vmx.nested().preemption_timer;
                // SAFETY: The timer has been set up.
                unsafe { bindings::nested_helper_vmx_start_timer(timer, nanoseconds) };
            }
        }
    }
}

/// Stops L1's timer for L2; when this returns, it does not expire any more.
pub(crate) fn cancel_timer(vmx: &mut VmxVcpu) {
    let timer = &raw mut vmx.nested().preemption_timer;

    // SAFETY: The timer has been set up.
    unsafe { bindings::hrtimer_cancel(timer) };
}

/// Returns what is left of L1's timer for L2, as L1 counts.
pub(crate) fn timer_value(vmx: &mut VmxVcpu) -> u32 {
    let timer = &raw mut vmx.nested().preemption_timer;
    // SAFETY: The timer has been set up.
    let remaining = unsafe { bindings::nested_helper_vmx_timer_remaining(timer) };
    let khz = vmx.with_arch(|arch| arch.virtual_tsc_khz);

    PreemptionTimer::value(u64::try_from(remaining).unwrap_or(0), khz)
}

/// Called when L1's timer for L2 expires.
///
/// # Safety
///
/// `timer` is that of a vCPU of a VMX.
unsafe extern "C" fn timer_expires(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
    const OFFSET: usize =
        offset_of!(bindings::vcpu_vmx, nested) + offset_of!(bindings::nested_vmx, preemption_timer);
    let vmx: *mut bindings::vcpu_vmx = timer.wrapping_byte_sub(OFFSET).cast();

    // SAFETY: By the requirements of this function; the vCPU lives as long as its timer runs. It may
    // run itself: the flag is its only member that is accessed here, and is not read at that time
    // but after the request.
    unsafe {
        (&raw mut (*vmx).nested.preemption_timer_expired).write_volatile(true);
        bindings::nested_helper_request_event(vmx.cast());
        bindings::nested_helper_vmx_kick(vmx.cast());
    }
    bindings::hrtimer_restart::HRTIMER_NORESTART
}

/// Converts the result of [`check()`] for KVM.
pub(crate) fn result_of(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}
