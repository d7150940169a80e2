// SPDX-License-Identifier: GPL-2.0

//! A vCPU, as an op of nested virtualization gets it.

use crate::{
    bindings,
    stats::{
        Reason,
        VmStats, //
    },
    vm::VmData, //
};
use kernel::{
    ffi::{
        c_int,
        CStr, //
    },
    str::CStrExt,
    types::Opaque, //
};
use nested::address::Gpa;

/// Whether a VM entry of L2 that L1 has asked for is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPending {
    /// L2 has run, or there is none.
    No,
    /// It is: no event may come between the instruction of L1 and the first of L2.
    Yes,
    /// It is, by a state that user space has restored.
    Restored,
}

/// A vCPU of a VM that can use nested virtualization.
///
/// # Invariants
///
/// The vCPU belongs to a VM with `nested_enabled`, it is loaded, and its mutex is held.
#[repr(transparent)]
pub struct Vcpu(Opaque<bindings::kvm_vcpu>);

/// Declares methods that call a function of KVM with nothing but the vCPU and plain values.
macro_rules! forward {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $target:ident;
    )*) => {
        $(
            $(#[$meta])*
            #[inline]
            pub fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: By the type invariants, the vCPU is valid and may be used by this thread.
                unsafe { bindings::$target(self.as_ptr(), $($arg),*) }
            }
        )*
    };
}

impl Vcpu {
    /// Makes a reference of the pointer that KVM passes to an op.
    ///
    /// # Safety
    ///
    /// `vcpu` must be the argument of an op that KVM calls for a vCPU which fulfils the invariants
    /// of the type, and the reference must not outlive the call.
    pub unsafe fn from_raw<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a Self {
        // SAFETY: By the requirements of this function the pointer is valid for `'a`, and the type
        // is transparent.
        unsafe { &*vcpu.cast() }
    }

    /// Returns the pointer that KVM knows the vCPU by.
    pub fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.0.get()
    }

    /// Returns the index of the vCPU in its VM.
    pub fn index(&self) -> usize {
        // SAFETY: By the type invariants, the vCPU is valid; `vcpu_idx` does not change.
        let index = unsafe { (*self.as_ptr()).vcpu_idx };

        usize::try_from(index).unwrap_or(0)
    }

    /// Returns the statistics of the VM that the vCPU belongs to.
    ///
    /// # Safety
    ///
    /// [`VmData::<R>::vm_init`](VmData::vm_init) must be the provider's op.
    pub unsafe fn vm_stats<R: Reason>(&self) -> &VmStats<R> {
        // SAFETY: By the type invariants, the vCPU and hence its VM are valid.
        let kvm = unsafe { (*self.as_ptr()).kvm };

        // SAFETY: By the type invariants the VM has `nested_enabled`, by the requirements of this
        // function it has got its statistics, and it lives longer than its vCPU.
        unsafe { VmData::stats(kvm) }
    }

    /// Returns the architectural state, which KVM keeps in a structure of its own.
    ///
    /// # Safety
    ///
    /// The reference must be dropped before KVM gets to use the vCPU again.
    #[inline]
    #[expect(clippy::mut_from_ref)]
    unsafe fn arch(&self) -> &mut bindings::kvm_vcpu_arch {
        // SAFETY: By the type invariants this thread has the vCPU for itself, as far as the fields
        // go that this type gives access to.
        unsafe { &mut (*self.as_ptr()).arch }
    }

    forward! {
        /// Returns whether L2 is active.
        fn is_guest_mode() -> bool = nested_helper_is_guest_mode;
        /// Makes L2 active.
        fn enter_guest_mode() = nested_helper_enter_guest_mode;
        /// Makes L1 active.
        fn leave_guest_mode() = nested_helper_leave_guest_mode;
        /// Asks the vCPU to shut down before it runs again, unless L1 intercepts that.
        fn request_triple_fault() = nested_helper_request_triple_fault;
        /// Takes that back.
        fn clear_triple_fault() = nested_helper_clear_triple_fault;
        /// Asks the vCPU to synchronize the shadow page tables before it runs again.
        fn request_mmu_sync() = nested_helper_request_mmu_sync;
        /// Asks the vCPU to look for events to inject before it runs again.
        fn request_event() = nested_helper_request_event;
        /// Asks the vCPU to load what memory of L1 holds and a restored state needs.
        fn request_state_pages() = nested_helper_request_get_nested_state_pages;
        /// Takes that back.
        fn clear_state_pages() = nested_helper_clear_get_nested_state_pages;
        /// Takes that back, and returns whether it was asked.
        fn take_state_pages() -> bool = nested_helper_take_get_nested_state_pages;
        /// Asks the vCPU to find out whether interrupts are virtualized by hardware.
        fn request_apicv_update() = nested_helper_request_apicv_update;
        /// Asks the vCPU to flush the translations of its current guest before it runs again.
        fn request_tlb_flush() = nested_helper_request_tlb_flush_current;
        /// Asks the vCPU to do what a flush by the guest does, before it runs again.
        fn request_guest_tlb_flush() = nested_helper_request_tlb_flush_guest;
        /// Does the flushes at once that the current guest has been asked for.
        fn flush_as_requested() = kvm_service_local_tlb_flush_requests;
        /// Returns whether CR0.PG is set.
        fn is_paging() -> bool = nested_helper_is_paging;
        /// Returns whether CR3 refers to a table of page-directory pointers.
        fn is_pae_paging() -> bool = nested_helper_is_pae_paging;
        /// Returns whether the vCPU is in system-management mode.
        fn is_smm() -> bool = nested_helper_is_smm;
        /// Returns CR0.
        fn cr0() -> usize = nested_helper_read_cr0;
        /// Returns CR3.
        fn cr3() -> usize = nested_helper_read_cr3;
        /// Returns RAX, or EAX outside 64-bit mode.
        fn rax() -> usize = nested_helper_read_rax;
        /// Returns RAX in any mode.
        fn raw_rax() -> usize = nested_helper_read_raw_rax;
        /// Sets RAX in any mode.
        fn set_raw_rax(value: usize) = nested_helper_write_raw_rax;
        /// Returns ECX.
        fn ecx() -> u32 = nested_helper_read_ecx;
        /// Returns RSP.
        fn rsp() -> usize = nested_helper_read_rsp;
        /// Returns CR4.
        fn cr4() -> usize = nested_helper_read_cr4;
        /// Returns EAX.
        fn eax() -> u32 = nested_helper_read_eax;
        /// Returns a general-purpose register, as wide as the mode of the guest has it.
        fn register(number: c_int) -> usize = nested_helper_read_register;
        /// Sets a general-purpose register, as wide as the mode of the guest has it.
        fn set_register(number: c_int, value: usize) = nested_helper_write_register;
        /// Makes the VMCS or VMCB get CR3 before the vCPU runs again.
        fn mark_cr3_dirty() = nested_helper_mark_cr3_dirty;
        /// Says that KVM knows CR3.
        fn mark_cr3_available() = nested_helper_mark_cr3_available;
        /// Sets RSP.
        fn set_rsp(value: usize) = nested_helper_write_rsp;
        /// Returns RIP.
        fn rip() -> usize = nested_helper_read_rip;
        /// Sets RIP.
        fn set_rip(value: usize) = nested_helper_write_rip;
        /// Returns RFLAGS, without what the host has set for debugging.
        fn rflags() -> usize = kvm_get_rflags;
        /// Sets RFLAGS.
        fn set_rflags(value: usize) = kvm_set_rflags;
        /// Makes the next use of the page-directory pointers load them from memory.
        fn reload_pdptrs() = nested_helper_reload_pdptrs;
        /// Loads the page-directory pointers at `cr3`; returns whether they are legal.
        fn load_pdptrs(cr3: usize) -> c_int = load_pdptrs;
        /// Computes what the debug registers make the processor watch.
        fn update_dr7() = kvm_update_dr7;
        /// Returns whether CR3 may have the value `cr3`.
        fn is_legal_cr3(cr3: usize) -> bool = nested_helper_is_legal_cr3;
        /// Returns whether CR4 may have the value `cr4`.
        fn is_legal_cr4(cr4: usize) -> bool = nested_helper_is_legal_cr4;
        /// Returns whether EFER may have the value `efer`.
        fn is_legal_efer(efer: u64) -> bool = kvm_valid_efer;
        /// Makes the vCPU run if it was halted.
        fn set_runnable() = nested_helper_set_runnable;
        /// Warns if L2 exits before it has run, which is a bug of this module.
        fn warn_on_run_pending() = nested_helper_warn_on_run_pending;
        /// Isolates the branch predictions of L1 from those of L2, if L1 relies on it.
        fn isolate_branch_prediction() = kvm_nested_vmexit_handle_ibrs;
        /// Drops all events that are being injected.
        fn clear_event_queues() = nested_helper_clear_event_queues;
        /// Returns whether the delivery of an event was interrupted.
        fn event_needs_reinjection() -> bool = nested_helper_event_needs_reinjection;
        /// Returns whether the vCPU has got an INIT.
        fn init_is_pending() -> bool = nested_helper_init_is_pending;
        /// Takes the INIT.
        fn take_init() = nested_helper_take_init;
        /// Returns whether the vCPU has got a startup IPI.
        fn sipi_is_pending() -> bool = nested_helper_sipi_is_pending;
        /// Takes the startup IPI, and returns its vector.
        fn take_sipi() -> u32 = nested_helper_take_sipi;
        /// Returns whether the vCPU has got an INIT or a startup IPI.
        fn init_or_sipi_is_pending() -> bool = nested_helper_init_or_sipi_is_pending;
        /// Returns the highest interrupt that the local APIC has, or a number below 0.
        fn apic_interrupt() -> c_int = kvm_apic_has_interrupt;
        /// Takes an interrupt that does not come from the local APIC; a number below 0 without one.
        fn take_external_interrupt() -> c_int = kvm_cpu_get_extint;
        /// Takes an interrupt of the local APIC: it is in service.
        fn acknowledge_interrupt(vector: c_int) = kvm_apic_ack_interrupt;
        /// Takes the request of an interrupt away from the local APIC.
        fn clear_interrupt_request(vector: c_int) = kvm_apic_clear_irr;
        /// Warns that an interrupt is lost, which is a bug unless the guest has caused it.
        fn warn_on_lost_interrupt() = nested_helper_warn_on_lost_irq;
        /// Returns whether there is an interrupt to inject, blocked or not.
        fn has_injectable_interrupt() -> bool = nested_helper_has_injectable_interrupt;
        /// Returns whether the guest is in 64-bit mode.
        fn is_64_bit_mode() -> bool = nested_helper_is_64_bit_mode;
        /// Returns whether CPUID does not fault.
        fn is_cpuid_allowed() -> bool = nested_helper_is_cpuid_allowed;
        /// Halts the vCPU; returns what an exit handler returns.
        fn halt() -> c_int = kvm_emulate_halt_noskip;
        /// Makes the vCPU wait for a startup IPI.
        fn wait_for_sipi() = nested_helper_wait_for_sipi;
        /// Counts a branch that was emulated.
        fn retire_branch() = kvm_pmu_branch_retired;
        /// Asks for the data cache to be flushed before the vCPU runs again, if the host needs it.
        fn hide_data_cache() = nested_helper_hide_data_cache;
        /// Sets a debug register; returns 0 if it may have the value.
        fn set_debug_register(number: c_int, value: usize) -> c_int = kvm_set_dr;
        /// Returns whether the virtual PMU has `IA32_PERF_GLOBAL_CTRL`.
        fn has_perf_global_ctrl() -> bool = nested_helper_has_perf_global_ctrl;
        /// Returns the reserved bits of `IA32_PERF_GLOBAL_CTRL`.
        fn perf_global_ctrl_reserved() -> u64 = nested_helper_perf_global_ctrl_reserved;
        /// Drops what is cached of the page tables of L1 and L2.
        fn reset_mmu() = kvm_mmu_reset_context;
        /// Returns whether the VM has the quirk `quirk`.
        fn has_quirk(quirk: u64) -> bool = nested_helper_has_quirk;
        /// Returns whether hardware virtualizes interrupts for this vCPU.
        fn apicv_is_active() -> bool = nested_helper_apicv_is_active;
        /// Returns whether hardware may virtualize interrupts in this VM.
        fn apicv_is_activated() -> bool = nested_helper_apicv_is_activated;
        /// Makes hardware virtualize interrupts if that is possible now.
        fn update_apicv() = __kvm_vcpu_update_apicv;
        /// Returns whether L1 uses Hyper-V's hypercalls.
        fn uses_hyperv() -> bool = nested_helper_hv_hypercall_enabled;
        /// Reads the page by which a hypervisor on Hyper-V's interface assists; 0 if there is none
        /// or it was read.
        fn verify_vp_assist() -> c_int = nested_helper_hv_verify_vp_assist;
        /// Handles requests to flush that came by Hyper-V's hypercalls.
        fn flush_for_hyperv() = nested_helper_hv_transition_tlb_flush;
        /// Builds the shadow page tables' description anew from the registers.
        fn init_mmu() = kvm_init_mmu;
        /// Takes the page tables at `cr3`.
        fn use_page_tables(cr3: u64) = kvm_mmu_new_pgd;
        /// Counts an instruction that was emulated.
        fn retire_instruction() = kvm_pmu_instruction_retired;
        /// Advances RIP beyond an instruction that was emulated; 0 if user space has to be asked.
        fn skip_instruction() -> c_int = kvm_skip_emulated_instruction;
        /// Makes user space handle that memory of L1 is not accessible; returns what an exit
        /// handler returns.
        fn report_inaccessible_memory() -> c_int = nested_helper_report_inaccessible;
        /// Flushes the translations of a linear address of L1.
        fn invalidate_page(address: usize) = kvm_mmu_invlpg;
    }

    /// Returns whether `gpa` is within the physical-address width.
    #[inline]
    pub fn is_legal_gpa(&self, gpa: Gpa) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_is_legal_gpa(self.as_ptr(), gpa.into_raw()) }
    }

    /// Raises the exception `#UD`.
    pub fn raise_undefined_opcode(&self) {
        const UD: u32 = 6;

        // SAFETY: By the type invariants.
        unsafe { bindings::kvm_queue_exception(self.as_ptr(), UD) }
    }

    /// Raises the exception `#SS(0)`.
    pub fn raise_stack_fault(&self) {
        const SS: u32 = 12;

        // SAFETY: By the type invariants.
        unsafe { bindings::kvm_queue_exception_e(self.as_ptr(), SS, 0) }
    }

    /// Raises the exception `#DB` of a single step.
    pub fn raise_single_step(&self) {
        const DB: u32 = 1;
        const DR6_BREAKPOINTS: usize = 0xf;
        const DR6_BS: usize = 1 << 14;

        self.with_arch(|arch| arch.dr6 = arch.dr6 & !DR6_BREAKPOINTS | DR6_BS);
        // SAFETY: By the type invariants.
        unsafe { bindings::kvm_queue_exception(self.as_ptr(), DB) }
    }

    /// Raises the exception `#GP(0)`.
    pub fn raise_general_protection(&self) {
        const GP: u32 = 13;

        // SAFETY: By the type invariants.
        unsafe { bindings::kvm_queue_exception_e(self.as_ptr(), GP, 0) }
    }

    /// Traces that the consistency check `name` has failed.
    pub fn trace_failed_check(&self, name: &'static CStr) {
        // SAFETY: The tracepoint copies the text.
        unsafe { bindings::nested_helper_trace_vmenter_failed(name.as_char_ptr(), 0) }
    }

    /// Returns whether a VM entry of L2 is to come.
    #[inline]
    pub fn run_pending(&self) -> RunPending {
        // SAFETY: The reference is dropped at once.
        match u32::from(unsafe { self.arch() }.nested_run_pending) {
            0 => RunPending::No,
            bindings::KVM_NESTED_RUN_PENDING => RunPending::Yes,
            _ => RunPending::Restored,
        }
    }

    /// Says whether a VM entry of L2 is to come.
    #[inline]
    pub fn set_run_pending(&self, pending: RunPending) {
        let value = match pending {
            RunPending::No => 0,
            RunPending::Yes => bindings::KVM_NESTED_RUN_PENDING,
            RunPending::Restored => bindings::KVM_NESTED_RUN_PENDING_UNTRUSTED,
        };
        // SAFETY: The reference is dropped at once.
        unsafe { self.arch() }.nested_run_pending = value as u8;
    }

    /// Calls `access` with the architectural state.
    ///
    /// The state must not be accessed by way of KVM meanwhile: `access` copies values.
    #[inline]
    pub fn with_arch<R>(&self, access: impl FnOnce(&mut bindings::kvm_vcpu_arch) -> R) -> R {
        // SAFETY: `access` gets the only reference, which ends with it.
        access(unsafe { self.arch() })
    }
}
