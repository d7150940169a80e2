// SPDX-License-Identifier: GPL-2.0

//! What L2 runs with: vmcb02, made of what L1 asks for in vmcb12 and what L0 needs as in vmcb01.
//!
//! Nothing reaches vmcb02 that no line here names.

use super::{
    bits::{
        erap, interrupt, misc, misc2,
        register::{DEBUGCTL_LBR, DR7_FIXED, RFLAGS_IF},
    },
    event::Event,
    intercept::{Intercept, Intercepts},
    vmcb::{Group, SaveArea},
    vmcb12::{Control12, Save12},
    Feature, VirtualCpu, Vmcb01, Vmcb02,
};
use crate::checked::Checked;

/// What L0 does on this host, whatever the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// KVM intercepts SMIs.
    pub intercepts_smi: bool,
    /// KVM injects NMIs by way of the VMCB.
    pub virtual_nmi: bool,
}

/// What brings L2 to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// L1 has executed `VMRUN`, and L2 has not executed an instruction since.
    Vmrun,
    /// L2 was running before its state was saved.
    Resumed,
}

/// Whether vmcb02 holds state of the same vmcb12 from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// It does: what L1 vouches for has not changed.
    Same,
    /// It does not.
    Other,
}

/// Returns the intercepts of vmcb02.
pub fn merge_intercepts(
    vmcb01: &Vmcb01,
    control: &Control12,
    host: Host,
    cpu: &impl VirtualCpu,
) -> Intercepts {
    let mut l0 = Intercepts::from_words(vmcb01.0.control.intercepts);

    if control.virtual_interrupt_masking() {
        // L2's CR8 is virtual, and has no say in which interrupts L1 gets.
        l0.remove(Intercept::CR8_WRITE);
        // So is its RFLAGS.IF: an interrupt window for L1 cannot open while L2 runs.
        if vmcb01.0.save.rflags & RFLAGS_IF == 0 {
            l0.remove(Intercept::VINTR);
        }
    }

    let mut merged = l0.union(control.intercepts);

    if !host.intercepts_smi {
        merged.remove(Intercept::SMI);
    }
    // L0 intercepts PAUSE to yield to another vCPU of L1; of those of L2 it knows nothing.
    if !control.intercepts.contains(Intercept::PAUSE) {
        merged.remove(Intercept::PAUSE);
    }
    // Their address is one of L1's: without virtualization by hardware, L0 has to translate it.
    if !control.virtual_vmload_vmsave(cpu) {
        merged.insert(Intercept::VMLOAD);
        merged.insert(Intercept::VMSAVE);
    }
    merged
}

/// Returns `int_ctl` of vmcb02.
pub fn merge_interrupt_control(
    vmcb01: &Vmcb01,
    control: &Control12,
    host: Host,
    cpu: &impl VirtualCpu,
) -> u32 {
    const GIF: u32 = interrupt::V_GIF | interrupt::V_GIF_ENABLE;
    const NMI: u32 = interrupt::V_NMI_PENDING | interrupt::V_NMI_BLOCKING | interrupt::V_NMI_ENABLE;

    let mut from_l1 =
        interrupt::V_TPR | interrupt::V_IRQ | interrupt::V_INTR_PRIO | interrupt::V_IGN_TPR;
    let mut from_l0 = interrupt::V_INTR_MASKING;

    if control.virtual_gif(cpu) {
        from_l1 |= GIF;
    } else {
        from_l0 |= GIF;
    }
    if host.virtual_nmi && control.virtual_nmi(cpu) {
        from_l1 |= NMI;
    }

    (control.int_ctl & from_l1) | (vmcb01.0.control.int_ctl & from_l0)
}

/// Loads the control area of vmcb02, except for what KVM decides: permission maps of L2, nested
/// page tables, TSC offset, ASID.
pub fn load_control(
    vmcb02: &mut Vmcb02,
    vmcb01: &Vmcb01,
    control: Checked<'_, Control12>,
    start: Start,
    host: Host,
    cpu: &impl VirtualCpu,
) {
    let to = &mut vmcb02.0.control;
    let l0 = &vmcb01.0.control;

    // L2 runs on nested page tables of L0 in any case: those of L1, or the shadow of L1's tables.
    to.misc_ctl = l0.misc_ctl & misc::NESTED_PAGING
        | if control.nested_paging() {
            control.misc_ctl & misc::GMET
        } else {
            l0.misc_ctl & misc::GMET
        };

    to.iopm_base_pa = l0.iopm_base_pa;
    to.msrpm_base_pa = l0.msrpm_base_pa;
    to.mark_dirty(Group::PermissionMaps);

    to.int_ctl = merge_interrupt_control(vmcb01, &control, host, cpu);
    to.int_vector = control.int_vector;
    to.int_state = control.int_state;
    to.event_inj = control.event_inj;
    to.event_inj_err = control.event_inj_err;

    // Without the feature L1 does not write it: at first it is the address at which L2 starts,
    // which KVM puts there; from then on it is what L0 has saved.
    if next_rip_is_meant(start, cpu) {
        to.next_rip = control.next_rip;
    }

    // The virtualization of last-branch records is up to KVM, which uses it for L1 as well.
    to.misc_ctl2 &= misc2::LAST_BRANCH;
    if control.virtual_vmload_vmsave(cpu) {
        to.misc_ctl2 |= misc2::VMLOAD_VMSAVE;
    }

    to.pause_filter_count = if cpu.has(Feature::PauseFilter) {
        control.pause_filter_count
    } else {
        0
    };
    to.pause_filter_thresh = if cpu.has(Feature::PauseFilterThreshold) {
        control.pause_filter_thresh
    } else {
        0
    };

    // The processor clears the predictor when it changes between host and guest; between L1 and
    // L2 it is up to L0.
    if cpu.has(Feature::Eraps) {
        to.erap_ctl = control.erap_ctl & erap::ALLOW_LARGER_RAP | erap::CLEAR_RAP;
    }

    to.intercepts = merge_intercepts(vmcb01, &control, host, cpu).words();
    to.mark_dirty(Group::Intercepts);
}

/// Returns whether `next_rip` of vmcb12 says where L2 goes on after an event.
pub fn next_rip_is_meant(start: Start, cpu: &impl VirtualCpu) -> bool {
    start == Start::Resumed || cpu.has(Feature::Nrips)
}

/// Returns the event that `VMRUN` injects.
pub const fn injected(control: &Control12) -> Event {
    Event::from_raw(control.event_inj)
}

/// Loads the state-save area of vmcb02, except for the registers that KVM keeps elsewhere.
pub fn load_save(
    vmcb02: &mut Vmcb02,
    vmcb01: &Vmcb01,
    (control, save): (Checked<'_, Control12>, Checked<'_, Save12>),
    previous: Previous,
    cpu: &impl VirtualCpu,
) {
    let changed = |group| previous == Previous::Other || control.is_dirty(group);
    let area = &mut vmcb02.0.save;
    let mut dirty = Group::LastBranch.bit();

    if changed(Group::Segments) {
        area.es = save.es;
        area.cs = save.cs;
        area.ss = save.ss;
        area.ds = save.ds;
        area.cpl = save.cpl;
        dirty |= Group::Segments.bit();
    }
    if changed(Group::DescriptorTables) {
        area.gdtr = save.gdtr;
        area.idtr = save.idtr;
        dirty |= Group::DescriptorTables.bit();
    }
    if cpu.has(Feature::ShadowStack) && changed(Group::Cet) {
        area.s_cet = save.s_cet;
        area.isst_addr = save.isst_addr;
        area.ssp = save.ssp;
        dirty |= Group::Cet.bit();
    }
    if changed(Group::DebugRegisters) {
        area.dr7 = save.dr7 | DR7_FIXED;
        dirty |= Group::DebugRegisters.bit();
    }

    // KVM writes these before L2 runs; until then other code looks at them here.
    area.rax = save.rax;
    area.rsp = save.rsp;
    area.rip = save.rip;

    if control.last_branch_virtualization(cpu) {
        area.dbgctl = save.dbgctl & DEBUGCTL_LBR;
        area.br_from = save.br_from;
        area.br_to = save.br_to;
        area.last_excp_from = save.last_excp_from;
        area.last_excp_to = save.last_excp_to;
    } else {
        copy_last_branch(area, &vmcb01.0.save);
    }
    vmcb02.0.control.clean &= !dirty;
}

/// Returns whether DR6 and DR7 are loaded from vmcb12.
pub fn loads_debug_registers(control: &Control12, previous: Previous) -> bool {
    previous == Previous::Other || control.is_dirty(Group::DebugRegisters)
}

/// Copies the last-branch records, which L1 and L2 share unless L2 has its own.
pub fn copy_last_branch(to: &mut SaveArea, from: &SaveArea) {
    to.dbgctl = from.dbgctl;
    to.br_from = from.br_from;
    to.br_to = from.br_to;
    to.last_excp_from = from.last_excp_from;
    to.last_excp_to = from.last_excp_to;
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
