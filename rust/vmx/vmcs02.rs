// SPDX-License-Identifier: GPL-2.0

//! What is written to vmcs02, which is current here.

use crate::{
    entry::{
        Origin,
        Refused, //
    },
    exit::{
        self,
        control_flow, //
    },
    host_state::write_control_flow,
    hyperv,
    mmu::{
        self,
        Tables, //
    },
    msrs,
    pages::Pages,
    state::NO_VECTOR,
    vcpu::VmxVcpu,
    vmcs::{
        config,
        host_field,
        Known,
        Vmcs, //
    }, //
};
use kvm::{
    bindings,
    RunPending, //
};
use nested::{
    checked::Checked,
    vmx::{
        controls::{
            Entry,
            Pin,
            Primary,
            Secondary, //
        },
        exit::host_state::ControlFlowState,
        field::Field,
        merge::{
            apic::{
                eoi_exit_bitmap,
                guest_interrupt_status,
                notification_vector,
                tpr_threshold, //
            },
            conditions::{
                Circumstances,
                EferSwitch,
                Umip, //
            },
            control_registers::{
                effective_cr0,
                effective_cr4,
                entry_efer,
                entry_pat,
                Load, //
            },
            controls::{
                merge_controls,
                pause_loop,
                xss_exiting_bitmap,
                PauseLoop, //
            },
            exceptions::Exceptions,
            guest_state::{
                load_pdptes,
                load_rare,
                load_segments,
                Vmcs02, //
            },
            time::Tsc, //
        },
        Vmcs12, //
    }, //
};

impl Vmcs02 for Vmcs<'_> {
    #[inline]
    fn write(&mut self, field: Field, value: u64) {
        Vmcs::write(self, field, value);
    }
}

/// Returns whether there are bound registers.
pub(crate) fn has_bounds() -> bool {
    // SAFETY: Reads a capability of the host.
    unsafe { bindings::nested_helper_vmx_mpx_supported() }
}

/// Returns how L2's state comes to be loaded: an entry of L1 counts until L2 has run, also if it
/// was saved and restored meanwhile.
fn load_kind(vmx: &VmxVcpu) -> Load {
    match vmx.run_pending() {
        RunPending::No => Load::Resumption,
        RunPending::Yes | RunPending::Restored => Load::Entry,
    }
}

/// Returns whether vmcs12 differs from what vmcs02 was written with in fields that are rarely
/// written.
fn is_dirty(vmx: &mut VmxVcpu) -> bool {
    vmx.nested().dirty_vmcs12 || hyperv::evmptr(vmx).is_some()
}

/// Writes what vmcs02 is: whose it is, and what of it is L0's.
pub(crate) fn write_identity(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    let vpid = mmu::select_vpid(vmx, vmcs12);

    if is_dirty(vmx) {
        write_constants(vmx);
        vmx.vmcs().write(Field::VMCS_LINK_POINTER, u64::MAX);
    }
    if vmx.private().written_vpid != vpid {
        vmx.private().written_vpid = vpid;
        vmx.vmcs()
            .write(Field::VIRTUAL_PROCESSOR_ID, u64::from(vpid));
    }
}

/// Returns the address of what the processor accesses in memory of the host.
fn physical_address<T>(address: *const T) -> u64 {
    // SAFETY: The callers pass memory that the kernel has allocated.
    unsafe { bindings::nested_helper_vmx_physical_address(address.cast()) }
}

/// Writes what is the same for each L2, unless that has been done.
fn write_constants(vmx: &mut VmxVcpu) {
    const NESTED_VECTOR: u64 = bindings::POSTED_INTR_NESTED_VECTOR as u64;

    if core::mem::replace(&mut vmx.nested().vmcs02_initialized, true) {
        return;
    }
    let config = config();
    let pin = Pin::from_raw(config.pin_based_exec_ctrl);
    let primary = Primary::from_raw(config.cpu_based_exec_ctrl);
    let secondary = Secondary::from_raw(config.cpu_based_2nd_exec_ctrl);
    let msr_bitmap = physical_address(vmx.nested().vmcs02.msr_bitmap);
    let fields = vmx.fields();
    // SAFETY: By the invariants of `VmxVcpu`, the VM is valid.
    let kvm = unsafe { &(*fields.vcpu.kvm).arch };
    let notify_window =
        (u64::from(kvm.notify_vmexit_flags) & NOTIFY_ENABLED != 0).then_some(kvm.notify_window);
    let ve_info = fields.ve_info;
    let store = physical_address(&raw const fields.msr_autostore.val);
    let load = physical_address(&raw const fields.msr_autoload.host.val);
    let entry_load = physical_address(&raw const fields.msr_autoload.guest.val);
    let mut vmcs = vmx.vmcs();

    if !ve_info.is_null() {
        vmcs.write64(
            host_field::VE_INFORMATION_ADDRESS,
            physical_address(ve_info),
        );
    }
    // All VM functions are emulated.
    if secondary.vmfunc() {
        vmcs.write(Field::VM_FUNCTION_CONTROL, 0);
    }
    if pin.posted_interrupts() {
        vmcs.write(Field::POSTED_INTR_NV, NESTED_VECTOR);
    }
    if primary.msr_bitmaps() {
        vmcs.write(Field::MSR_BITMAP, msr_bitmap);
    }
    // L0 has no log of addresses of L2, and keeps that of L1 itself.
    // SAFETY: Reads a parameter of kvm-intel.
    if unsafe { bindings::nested_helper_vmx_enable_pml() } {
        vmcs.write(Field::PML_ADDRESS, 0);
        vmcs.write(Field::GUEST_PML_INDEX, u64::MAX);
    }
    if secondary.encls_exiting() {
        vmcs.write(Field::ENCLS_EXITING_BITMAP, u64::MAX);
    }
    if let Some(window) = notify_window {
        vmcs.write32(host_field::NOTIFY_WINDOW, window);
    }
    // What is in the areas can change, where they are cannot.
    vmcs.write(Field::VM_EXIT_MSR_STORE_ADDR, store);
    vmcs.write(Field::VM_EXIT_MSR_LOAD_ADDR, load);
    vmcs.write(Field::VM_ENTRY_MSR_LOAD_ADDR, entry_load);
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_set_constant_host_state(vmx.raw()) };
}

const NOTIFY_ENABLED: u64 = 1 << 0;

/// Writes the control words, and what they are about.
pub(crate) fn write_controls(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, pages: &Pages) {
    let guest_efer = entry_efer(vmcs12, load_kind(vmx), vmx.with_arch(|arch| arch.efer));
    // SAFETY: Both read what KVM knows of the host.
    let (host_efer, umip_emulated) = unsafe {
        (
            bindings::nested_helper_vmx_host_efer(),
            bindings::nested_helper_vmx_umip_emulated(),
        )
    };
    let circumstances = Circumstances {
        virtual_apic_page: pages.virtual_apic,
        descriptor: pages.descriptor,
        msr_bitmap: pages.msr_bitmap,
        umip: if umip_emulated {
            Umip::Emulated
        } else {
            Umip::Native
        },
        efer_switch: if config().vmentry_ctrl & Entry::LOAD_IA32_EFER.into_raw() != 0 {
            EferSwitch::Vmcs
        } else {
            EferSwitch::Other
        },
        guest_efer,
        host_efer,
    };
    let controls01 = vmx.loaded_vmcs01().controls();
    let mut vmcs = vmx.vmcs();
    vmcs.set_controls(&merge_controls(vmcs12, &controls01, &circumstances));

    if let Some(threshold) = tpr_threshold(vmcs12) {
        vmcs.write(Field::TPR_THRESHOLD, u64::from(threshold));
    }
    if let Some(status) = guest_interrupt_status(vmcs12) {
        vmcs.write(Field::GUEST_INTR_STATUS, u64::from(status));
    }
    if Secondary::from_raw(vmcs.secondary()).pause_loop_exiting() {
        write_pause_loop(vmx, vmcs12);
    }
    let vmcs = vmx.vmcs();
    if Secondary::from_raw(vmcs.secondary()).encls_exiting() {
        let vmcs12 = vmx.nested().cached_vmcs12;
        // SAFETY: By the invariants of `VmxVcpu`; the snapshot is there.
        unsafe { bindings::nested_helper_vmx_write_encls_bitmap(vmx.as_ptr(), vmcs12) };
    }
    let nested = vmx.nested();
    nested.pi_pending = false;
    nested.posted_intr_nv = notification_vector(&vmcs12).unwrap_or(NO_VECTOR);
}

/// Returns what a loop of PAUSEs is for L1, whose VMCS is current.
pub(crate) fn pause_loop01(vmx: &VmxVcpu) -> PauseLoop {
    let vmcs = vmx.vmcs();

    if Secondary::from_raw(vmcs.secondary()).pause_loop_exiting() {
        PauseLoop {
            gap: vmcs.read(Field::PLE_GAP) as u32,
            window: vmcs.read(Field::PLE_WINDOW) as u32,
        }
    } else {
        PauseLoop::default()
    }
}

/// Writes what a loop of PAUSEs is, if it is another than the last time.
fn write_pause_loop(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    let l0 = PauseLoop {
        // KVM adapts it to what L1 does.
        window: vmx.fields().ple_window,
        ..vmx.private().pause_loop01
    };
    let wanted = pause_loop(vmcs12, l0);

    if core::mem::replace(&mut vmx.private().pause_loop02, wanted) != wanted {
        let mut vmcs = vmx.vmcs();
        vmcs.write(Field::PLE_GAP, u64::from(wanted.gap));
        vmcs.write(Field::PLE_WINDOW, u64::from(wanted.window));
    }
}

/// Writes the event that L1 injects, unless it has been.
pub(crate) fn write_event(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    const BLOCKED_BY_NMI: u32 = 1 << 3;

    let mut vmcs = vmx.vmcs();
    if load_kind(vmx) == Load::Resumption {
        vmcs.write(Field::VM_ENTRY_INTR_INFO_FIELD, 0);
        return;
    }
    for field in [
        Field::VM_ENTRY_INTR_INFO_FIELD,
        Field::VM_ENTRY_EXCEPTION_ERROR_CODE,
        Field::VM_ENTRY_INSTRUCTION_LEN,
        Field::GUEST_INTERRUPTIBILITY_INFO,
    ] {
        vmcs.write(field, field.read(&vmcs12));
    }
    let unmasked = vmcs12.guest_interruptibility_info & BLOCKED_BY_NMI == 0;
    vmcs.set_nmi_known_unmasked(if unmasked { Known::Yes } else { Known::No });
}

/// Loads the state of L2, which is active.
pub(crate) fn load_state(
    vmx: &mut VmxVcpu,
    vmcs12: Checked<'_, Vmcs12>,
    origin: Origin,
) -> Result<(), Refused> {
    let kind = load_kind(vmx);
    let loads_pdptes = is_dirty(vmx) && !hyperv::is_clean(vmx, hyperv::Clean::GuestGroup1);
    if is_dirty(vmx) {
        load_rarely(vmx, vmcs12);
        vmx.nested().dirty_vmcs12 = false;
    }
    load_debug_controls(vmx, vmcs12, kind);
    load_kept_state(vmx, vmcs12, kind);
    vmx.set_flags(vmcs12.guest_rflags as usize);
    write_intercepts(vmx, vmcs12);
    load_pat(vmx, vmcs12, kind);
    load_time(vmx, vmcs12);
    mmu::flush_at_transition(vmx);
    if vmcs12.secondary().ept() {
        mmu::enter_ept(vmx);
    }
    load_control_registers(vmx, vmcs12, kind, origin);

    // What KVM would have to emulate instruction by instruction, the processor would refuse. A state
    // that is being restored need not be complete.
    if origin == Origin::Instruction && !vmx.is_guest_state_valid() {
        vmx.trace_failed_check(c"GuestState");
        return Err(Refused::state());
    }
    if origin == Origin::Instruction {
        mmu::exchange_walks(vmx);
    }
    mmu::load_cr3(vmx, vmcs12.guest_cr3, Tables::of_l2(&vmcs12, origin))?;
    // KVM writes it when L2 runs, which it need not do before it exits.
    vmx.vmcs().write(Field::GUEST_CR3, vmcs12.guest_cr3);
    if loads_pdptes && vmcs12.secondary().ept() && vmx.is_pae_paging() {
        load_pdptes(&vmcs12, &mut vmx.vmcs());
    }
    if vmcs12.entry().load_perf_global_ctrl() {
        msrs::load_perf_global_ctrl(vmx, vmcs12.guest_ia32_perf_global_ctrl)
            .map_err(|_| Refused::state())?;
    }
    vmx.set_rsp(vmcs12.guest_rsp as usize);
    vmx.set_rip(vmcs12.guest_rip as usize);
    hyperv::mark_clean(vmx);
    Ok(())
}

/// Loads what L1 rarely writes: otherwise vmcs02 has it still.
fn load_rarely(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    let (clean_group_1, clean_group_2) = (
        hyperv::is_clean(vmx, hyperv::Clean::GuestGroup1),
        hyperv::is_clean(vmx, hyperv::Clean::GuestGroup2),
    );
    let mut vmcs = vmx.vmcs();

    if !clean_group_2 {
        load_segments(&vmcs12, &mut vmcs);
        // SAFETY: By the invariants of `VmxVcpu`.
        unsafe { bindings::nested_helper_vmx_forget_segments(vmx.raw()) };
    }
    if !clean_group_1 {
        load_rare(&vmcs12, &mut vmcs);
        if has_bounds() && load_kind(vmx) == Load::Entry && vmcs12.entry().load_bndcfgs() {
            vmcs.write(Field::GUEST_BNDCFGS, vmcs12.guest_bndcfgs);
        }
    }
    if vmcs12.secondary().xsaves() {
        vmcs.write(Field::XSS_EXIT_BITMAP, xss_exiting_bitmap(vmcs12));
    }

    // All page faults exit if L0 wants some: the bitmap is written with each entry.
    let l0_bitmap = if vmx.needs_page_faults() { 1 << 14 } else { 0 };
    let exceptions = Exceptions::merge(vmcs12, l0_bitmap);
    let (mask, matched) = (exceptions.page_fault_mask, exceptions.page_fault_match);
    vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MASK, u64::from(mask));
    vmcs.write(Field::PAGE_FAULT_ERROR_CODE_MATCH, u64::from(matched));

    // SAFETY: Reads a capability of the processor.
    if unsafe { bindings::nested_helper_vmx_has_apicv() } {
        for (field, bits) in [
            Field::EOI_EXIT_BITMAP0,
            Field::EOI_EXIT_BITMAP1,
            Field::EOI_EXIT_BITMAP2,
            Field::EOI_EXIT_BITMAP3,
        ]
        .into_iter()
        .zip(eoi_exit_bitmap(vmcs12))
        {
            vmcs.write(field, bits);
        }
    }
    if vmcs12.entry().load_cet_state() {
        let state = ControlFlowState {
            s_cet: vmcs12.guest_s_cet,
            ssp: vmcs12.guest_ssp,
            ssp_table: vmcs12.guest_ssp_tbl,
        };
        write_control_flow(&mut vmcs, control_flow(vmx), &state);
    }
    msrs::write_counts_of_vmcs02(vmx);
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_set_cr4_mask(vmx.raw()) };
}

fn load_debug_controls(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, kind: Load) {
    let (dr7, debugctl) = if kind == Load::Entry && vmcs12.entry().load_debug_controls() {
        let debugctl = vmcs12.guest_ia32_debugctl & vmx.supported_debugctl();
        (vmcs12.guest_dr7 as usize, debugctl)
    } else {
        let debugctl = vmx.nested().pre_vmenter_debugctl;
        (vmx.with_arch(|arch| arch.dr7), debugctl)
    };

    vmx.set_debug_register(7, dr7);
    vmx.set_debugctl(debugctl);
}

/// Gives L2 what L1 had, of the registers that vmcs12 says nothing about.
fn load_kept_state(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, kind: Load) {
    let loads = |control: bool| kind == Load::Entry && control;
    let nested = vmx.nested();
    let bndcfgs = nested.pre_vmenter_bndcfgs;
    let state = ControlFlowState {
        s_cet: nested.pre_vmenter_s_cet,
        ssp: nested.pre_vmenter_ssp,
        ssp_table: nested.pre_vmenter_ssp_tbl,
    };
    let mut vmcs = vmx.vmcs();

    if !loads(vmcs12.entry().load_cet_state()) {
        write_control_flow(&mut vmcs, control_flow(vmx), &state);
    }
    if has_bounds() && !loads(vmcs12.entry().load_bndcfgs()) {
        vmcs.write(Field::GUEST_BNDCFGS, bndcfgs);
    }
}

/// Writes which exceptions exit, and which bits of CR0 L2 owns.
fn write_intercepts(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    vmx.update_exception_bitmap();
    let owned = vmx.with_arch(|arch| {
        arch.cr0_guest_owned_bits &= !vmcs12.cr0_guest_host_mask as usize;
        arch.cr0_guest_owned_bits
    });
    vmx.vmcs().write(Field::CR0_GUEST_HOST_MASK, !owned as u64);
}

fn load_pat(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>, kind: Load) {
    let pat = vmx.with_arch(|arch| {
        arch.pat = entry_pat(vmcs12, kind, arch.pat);
        arch.pat
    });

    if config().vmentry_ctrl & Entry::LOAD_IA32_PAT.into_raw() != 0 {
        vmx.vmcs().write(Field::GUEST_IA32_PAT, pat);
    }
}

fn load_time(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) {
    vmx.with_arch(|arch| {
        let l1 = Tsc {
            offset: arch.l1_tsc_offset,
            multiplier: arch.l1_tsc_scaling_ratio,
        };
        let l2 = l1.compose(Tsc::of(&vmcs12));
        arch.tsc_offset = l2.offset;
        arch.tsc_scaling_ratio = l2.multiplier;
    });
    exit::write_tsc(vmx);
}

/// Sets CR0, CR4 and EFER. What L2 reads of the former depends on the masks of L1, which KVM does
/// not know of: the shadows come last.
fn load_control_registers(
    vmx: &mut VmxVcpu,
    vmcs12: Checked<'_, Vmcs12>,
    kind: Load,
    origin: Origin,
) {
    let efer01 = vmx.with_arch(|arch| arch.efer);

    vmx.set_cr0(vmcs12.guest_cr0 as usize);
    vmx.vmcs()
        .write(Field::CR0_READ_SHADOW, effective_cr0(&vmcs12));
    vmx.set_cr4(vmcs12.guest_cr4 as usize);
    vmx.vmcs()
        .write(Field::CR4_READ_SHADOW, effective_cr4(&vmcs12));

    let efer = entry_efer(vmcs12, kind, vmx.with_arch(|arch| arch.efer));
    vmx.switch_efer(efer);
    // A state that is restored says nothing about L1.
    vmx.private().idle.efer = (origin == Origin::Instruction).then_some(efer01);
}

impl VmxVcpu {
    /// Sets `IA32_EFER` of the guest whose VMCS has just become the current one.
    ///
    /// KVM has nothing to do if both guests have the same value, and this one had it before.
    pub(crate) fn switch_efer(&mut self, efer: u64) {
        let is_in_vmcs = config().vmentry_ctrl & Entry::LOAD_IA32_EFER.into_raw() != 0;
        let of_vmcs = self.private().idle.efer.take();
        let of_other = self.with_arch(|arch| core::mem::replace(&mut arch.efer, efer));

        if !is_in_vmcs || of_vmcs != Some(efer) || of_other != efer {
            self.set_efer(efer);
        }
    }
}
