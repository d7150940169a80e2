// SPDX-License-Identifier: GPL-2.0

//! The state that L1 goes on with when L2 has exited.

use crate::{
    exit::{
        self,
        control_flow, //
    },
    mmu::{
        self,
        LoadFailure,
        Tables, //
    },
    msrs::{
        self,
        GuestMsrs, //
    },
    vcpu::VmxVcpu,
    vmcs::{
        config,
        Vmcs, //
    }, //
};
use kernel::pr_warn_once;
use kvm::bindings;
use nested::vmx::{
    controls::Entry,
    exit::{
        guest_state::ControlFlow,
        host_state::{
            ControlFlowState,
            HostState, //
        },
        msr_area::MsrArea,
        Abort, //
    },
    field::Field, //
};

/// Loads what vmcs12 says (SDM, "Loading Host State"). vmcs01 is current.
pub(crate) fn load(vmx: &mut VmxVcpu) {
    let efer = vmx.with_arch(|arch| arch.efer);
    let state = HostState::of(vmx.vmcs12(), efer);

    vmx.switch_efer(state.efer);
    // The VMCS of L2 is left as it is, until L2 is entered again.
    vmx.private().idle.efer = Some(efer);
    vmx.set_rsp(state.rsp as usize);
    vmx.set_rip(state.rip as usize);
    vmx.set_flags(state.rflags as usize);
    vmx.clear_interrupt_shadow();
    // Even where CR0 has the same value: what it means depends on EFER.
    take_over_control_registers(vmx, state.cr0, state.cr4);

    mmu::leave_ept(vmx);
    mmu::exchange_walks(vmx);
    match mmu::load_cr3(vmx, state.cr3, Tables::OwnLoaded) {
        Ok(()) => {}
        // CR3 was checked at entry, the pointers are in memory.
        Err(LoadFailure::Cr3 | LoadFailure::Pdptrs) => {
            exit::abort(vmx, Abort::LOAD_HOST_PDPTE_FAIL);
        }
    }
    mmu::flush_at_transition(vmx);

    load_rare(vmx, &state);
    load_segments(vmx, &state);
    vmx.set_debug_register(7, state.dr7 as usize);
    vmx.set_debugctl(state.debugctl);
    load_msrs(vmx);

    vmx.fields().vt.emulation_required = vmx.is_emulation_required();
}

/// Sets CR0 and CR4 of L1, and which of their bits L1 owns.
fn take_over_control_registers(vmx: &mut VmxVcpu, cr0: u64, cr4: u64) {
    // SAFETY: Computes a number.
    let cr0_owned = unsafe { bindings::nested_helper_vmx_l1_owned_cr0_bits() };
    vmx.with_arch(|arch| arch.cr0_guest_owned_bits = cr0_owned);
    vmx.set_cr0(cr0 as usize);

    let cr4_owned = !vmx.vmcs().read(Field::CR4_GUEST_HOST_MASK);
    vmx.with_arch(|arch| arch.cr4_guest_owned_bits = cr4_owned as usize);
    vmx.set_cr4(cr4 as usize);
}

/// Loads registers that are in vmcs01 alone.
fn load_rare(vmx: &mut VmxVcpu, state: &HostState) {
    let mut vmcs = vmx.vmcs();
    vmcs.write(Field::GUEST_SYSENTER_CS, u64::from(state.sysenter_cs));
    vmcs.write(Field::GUEST_SYSENTER_ESP, state.sysenter_esp);
    vmcs.write(Field::GUEST_SYSENTER_EIP, state.sysenter_eip);
    vmcs.write(Field::GUEST_IDTR_BASE, state.idtr.base);
    vmcs.write(Field::GUEST_IDTR_LIMIT, u64::from(state.idtr.limit));
    vmcs.write(Field::GUEST_GDTR_BASE, state.gdtr.base);
    vmcs.write(Field::GUEST_GDTR_LIMIT, u64::from(state.gdtr.limit));
    if let Some(bndcfgs) = state.bndcfgs {
        vmcs.write(Field::GUEST_BNDCFGS, bndcfgs);
    }
    write_control_flow(&mut vmcs, control_flow(vmx), &state.control_flow);

    if let Some(pat) = state.pat {
        vmcs.write(Field::GUEST_IA32_PAT, pat);
        vmx.with_arch(|arch| arch.pat = pat);
    }
    if let Some(value) = state.perf_global_ctrl {
        if msrs::load_perf_global_ctrl(vmx, value).is_err() {
            pr_warn_once!("IA32_PERF_GLOBAL_CTRL has passed its checks, and is refused\n");
        }
    }
}

/// Writes the control-flow enforcement state of a supervisor, as far as L1 knows it.
pub(crate) fn write_control_flow(
    vmcs: &mut Vmcs<'_>,
    available: ControlFlow,
    state: &ControlFlowState,
) {
    if available != ControlFlow::None {
        vmcs.write(Field::GUEST_S_CET, state.s_cet);
    }
    if available == ControlFlow::ShadowStacks {
        vmcs.write(Field::GUEST_SSP, state.ssp);
        vmcs.write(Field::GUEST_INTR_SSP_TABLE, state.ssp_table);
    }
}

/// Reads the control-flow enforcement state of a supervisor, as far as L1 knows it.
pub(crate) fn read_control_flow(vmcs: &Vmcs<'_>, available: ControlFlow) -> ControlFlowState {
    let read = |exists: bool, field| if exists { vmcs.read(field) } else { 0 };
    let any = available != ControlFlow::None;
    let stacks = available == ControlFlow::ShadowStacks;

    ControlFlowState {
        s_cet: read(any, Field::GUEST_S_CET),
        ssp: read(stacks, Field::GUEST_SSP),
        ssp_table: read(stacks, Field::GUEST_INTR_SSP_TABLE),
    }
}

/// Writes the segment registers. L1 is in protected mode: KVM has none of its own for them.
fn load_segments(vmx: &mut VmxVcpu, state: &HostState) {
    /// Writes the four fields of a register, whose encodings are known when this is compiled.
    macro_rules! write {
        ($vmcs:ident, $segment:expr, $selector:ident $limit:ident $access:ident $base:ident) => {
            let segment = &$segment;
            $vmcs.write(Field::$selector, u64::from(segment.selector));
            $vmcs.write(Field::$limit, u64::from(segment.limit));
            $vmcs.write(Field::$access, u64::from(segment.access_rights));
            $vmcs.write(Field::$base, segment.base);
        };
    }

    let mut vmcs = vmx.vmcs();
    write!(vmcs, state.cs, GUEST_CS_SELECTOR GUEST_CS_LIMIT GUEST_CS_AR_BYTES GUEST_CS_BASE);
    write!(vmcs, state.ds, GUEST_DS_SELECTOR GUEST_DS_LIMIT GUEST_DS_AR_BYTES GUEST_DS_BASE);
    write!(vmcs, state.es, GUEST_ES_SELECTOR GUEST_ES_LIMIT GUEST_ES_AR_BYTES GUEST_ES_BASE);
    write!(vmcs, state.ss, GUEST_SS_SELECTOR GUEST_SS_LIMIT GUEST_SS_AR_BYTES GUEST_SS_BASE);
    write!(vmcs, state.fs, GUEST_FS_SELECTOR GUEST_FS_LIMIT GUEST_FS_AR_BYTES GUEST_FS_BASE);
    write!(vmcs, state.gs, GUEST_GS_SELECTOR GUEST_GS_LIMIT GUEST_GS_AR_BYTES GUEST_GS_BASE);
    write!(vmcs, state.tr, GUEST_TR_SELECTOR GUEST_TR_LIMIT GUEST_TR_AR_BYTES GUEST_TR_BASE);
    write!(vmcs, state.ldtr,
        GUEST_LDTR_SELECTOR GUEST_LDTR_LIMIT GUEST_LDTR_AR_BYTES GUEST_LDTR_BASE);
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_forget_segments(vmx.raw()) };
}

fn load_msrs(vmx: &mut VmxVcpu) {
    let area = MsrArea::exit_load(vmx.vmcs12());
    let limits = msrs::limits(vmx);
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };

    if let Err(reason) = area.load_at_exit(memory, &mut GuestMsrs(vmx), limits) {
        exit::abort(vmx, reason);
    }
}

/// Restores the state from before an entry that the processor has refused: KVM has already taken
/// over a part of L2's. vmcs01, which has not changed, is current.
pub(crate) fn restore(vmx: &mut VmxVcpu) {
    let pat = vmx.vmcs().read(Field::GUEST_IA32_PAT);
    vmx.with_arch(|arch| arch.pat = pat);
    restore_debug_registers(vmx);

    let efer = efer_of_vmcs01(vmx);
    vmx.set_efer(efer);
    vmx.private().idle.efer = None;
    let (cr0, cr4) = {
        let vmcs = vmx.vmcs();
        (
            vmcs.read(Field::CR0_READ_SHADOW),
            vmcs.read(Field::CR4_READ_SHADOW),
        )
    };
    take_over_control_registers(vmx, cr0, cr4);

    mmu::leave_ept(vmx);
    let cr3 = vmx.nested().pre_vmenter_cr3;
    vmx.with_arch(|arch| arch.cr3 = cr3);
    vmx.mark_cr3_available();
    if vmx.is_pae_paging() {
        vmx.fetch_pdptrs();
    }
    vmx.reset_mmu();
    restore_msrs(vmx);
}

fn restore_debug_registers(vmx: &mut VmxVcpu) {
    const USE_HW_BP: u32 = 1 << 17;
    const DR7_FIXED: u64 = 0x400;

    if vmx.vmcs12().entry().load_debug_controls() {
        // The VMCS has the breakpoints of user space, if it has set some: those of L1 are lost.
        let dr7 = if vmx.fields().vcpu.guest_debug as u32 & USE_HW_BP != 0 {
            DR7_FIXED
        } else {
            vmx.vmcs().read(Field::GUEST_DR7)
        };
        vmx.set_debug_register(7, dr7 as usize);
    }
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_reload_debugctl(vmx.as_ptr()) };
}

/// Finds out the `IA32_EFER` that L1 had.
fn efer_of_vmcs01(vmx: &mut VmxVcpu) -> u64 {
    const EFER: u32 = 0xc000_0080;
    let load_efer = Entry::LOAD_IA32_EFER.into_raw();

    if vmx.vmcs().entry() & load_efer != 0 {
        return vmx.vmcs().read(Field::GUEST_IA32_EFER);
    }
    if config().vmentry_ctrl & load_efer != 0 {
        // SAFETY: Reads what KVM knows of the host.
        return unsafe { bindings::nested_helper_vmx_host_efer() };
    }
    let area = &vmx.fields().msr_autoload.guest;
    let loaded = area.val.iter().take(area.nr as usize);
    match loaded.clone().find(|entry| entry.index == EFER) {
        Some(entry) => entry.value,
        // SAFETY: By the invariants of `VmxVcpu`.
        None => unsafe { bindings::nested_helper_vmx_user_return_efer(vmx.raw()) },
    }
}

/// Undoes the loading of MSRs, as far as L1 says what it would have had after an exit.
fn restore_msrs(vmx: &mut VmxVcpu) {
    let entered = MsrArea::entry_load(vmx.vmcs12());
    let area = MsrArea::exit_load(vmx.vmcs12());
    let limits = msrs::limits(vmx);
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };

    if let Err(reason) = area.undo(entered, memory, &mut GuestMsrs(vmx), limits) {
        exit::abort(vmx, reason);
    }
}
