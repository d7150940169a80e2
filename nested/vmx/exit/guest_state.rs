// SPDX-License-Identifier: GPL-2.0

//! The guest-state area of vmcs12 after an exit.
//!
//! L1 reads a few registers of L2 at nearly each exit, and the rest hardly ever. The former are
//! saved at the exit; the latter stay in vmcs02 until L1 reads one of them, or vmcs02 is needed for
//! another vmcs12.

pub mod fields;

use self::fields::{save_pdptes, save_shadow_stack, save_verbatim};
use crate::vmx::{
    controls::Entry,
    merge::control_registers::{Exited, Masked},
    Vmcs12,
};

pub use fields::{is_rare, save_rare, Vmcs02};

const GUEST_INTR_STATUS: u32 = 0x0810;
const CR0_READ_SHADOW: u32 = 0x6004;
const CR4_READ_SHADOW: u32 = 0x6006;
const GUEST_CR0: u32 = 0x6800;
const GUEST_CR4: u32 = 0x6804;
const GUEST_S_CET: u32 = 0x6828;

/// The activity state of a processor (SDM, "Guest Non-Register State").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activity {
    /// It executes instructions.
    Active = 0,
    /// It has executed HLT.
    Hlt = 1,
    /// It waits for a startup IPI.
    WaitForSipi = 3,
}

/// How L2 pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// With PAE paging: there are PDPTEs.
    Pae,
    /// In another way, or not at all.
    Other,
}

/// What L1 can use of control-flow enforcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFlow {
    /// Nothing.
    None,
    /// Indirect-branch tracking.
    IndirectBranchTracking,
    /// Shadow stacks, and perhaps indirect-branch tracking.
    ShadowStacks,
}

/// The state of L2 that is not in vmcs02, or is known without reading it.
#[derive(Clone, Copy, Debug)]
pub struct SoftwareState {
    /// RSP.
    pub rsp: u64,
    /// RIP.
    pub rip: u64,
    /// DR7.
    pub dr7: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// The guest/host mask of CR0 in vmcs02.
    pub cr0_guest_host_mask: u64,
    /// The guest/host mask of CR4 in vmcs02.
    pub cr4_guest_host_mask: u64,
    /// The VM-entry controls of vmcs02.
    pub entry_controls: u32,
    /// The activity state.
    pub activity: Activity,
    /// How L2 pages.
    pub paging: Paging,
    /// What L1 can use of control-flow enforcement.
    pub control_flow: ControlFlow,
    /// What is left of the VMX-preemption timer, if it has been started.
    pub preemption_timer: Option<u32>,
}

/// Saves what L1 reads at nearly each exit, and what only the exit itself can save.
pub fn save_always(vmcs12: &mut Vmcs12, vmcs02: &impl Vmcs02, state: &SoftwareState) {
    save_verbatim(vmcs12, vmcs02);
    save_control_registers(vmcs12, vmcs02, state);

    vmcs12.guest_rsp = state.rsp;
    vmcs12.guest_rip = state.rip;
    vmcs12.guest_activity_state = state.activity as u32;

    if vmcs12.secondary().ept() && state.paging == Paging::Pae {
        save_pdptes(vmcs12, vmcs02);
    }
    if vmcs12.secondary().virtual_interrupt_delivery() {
        vmcs12.guest_intr_status = vmcs02.read16(GUEST_INTR_STATUS);
    }

    match state.control_flow {
        ControlFlow::None => (),
        ControlFlow::IndirectBranchTracking => {
            vmcs12.guest_s_cet = vmcs02.read_natural(GUEST_S_CET);
        }
        ControlFlow::ShadowStacks => {
            vmcs12.guest_s_cet = vmcs02.read_natural(GUEST_S_CET);
            save_shadow_stack(vmcs12, vmcs02);
        }
    }

    save_by_controls(vmcs12, state);
}

fn save_control_registers(vmcs12: &mut Vmcs12, vmcs02: &impl Vmcs02, state: &SoftwareState) {
    let cr0 = Exited {
        guest: vmcs02.read_natural(GUEST_CR0),
        masked: Masked {
            guest_host_mask: state.cr0_guest_host_mask,
            read_shadow: vmcs02.read_natural(CR0_READ_SHADOW),
        },
    };
    let cr4 = Exited {
        guest: vmcs02.read_natural(GUEST_CR4),
        masked: Masked {
            guest_host_mask: state.cr4_guest_host_mask,
            read_shadow: vmcs02.read_natural(CR4_READ_SHADOW),
        },
    };

    vmcs12.guest_cr0 = cr0.save(vmcs12.guest_cr0, vmcs12.cr0_guest_host_mask);
    vmcs12.guest_cr4 = cr4.save(vmcs12.guest_cr4, vmcs12.cr4_guest_host_mask);
}

/// Saves what the VM-exit controls say.
///
/// `IA32_DEBUGCTL` is not among it: what L2 writes there goes to vmcs12 at once, since vmcs02 does
/// not hold all of it.
fn save_by_controls(vmcs12: &mut Vmcs12, state: &SoftwareState) {
    // A VM-entry control that says a part of the guest's state: an exit updates it.
    vmcs12.vm_entry_controls = (vmcs12.vm_entry_controls & !Entry::IA32E_MODE.into_raw())
        | (state.entry_controls & Entry::IA32E_MODE.into_raw());

    if vmcs12.exit().save_debug_controls() {
        vmcs12.guest_dr7 = state.dr7;
    }
    if vmcs12.exit().save_efer() {
        vmcs12.guest_ia32_efer = state.efer;
    }
    if let Some(value) = state.preemption_timer {
        if vmcs12.pin().preemption_timer() && vmcs12.exit().save_preemption_timer() {
            vmcs12.vmx_preemption_timer_value = value;
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_guest_state))]
mod tests {
    use super::{fields::fake::Encodings, *};
    use crate::vmx::controls::{Exit, Pin, Primary, Secondary};

    const STATE: SoftwareState = SoftwareState {
        rsp: 1,
        rip: 2,
        dr7: 3,
        efer: 4,
        cr0_guest_host_mask: 0,
        cr4_guest_host_mask: u64::MAX,
        entry_controls: 0,
        activity: Activity::Active,
        paging: Paging::Other,
        control_flow: ControlFlow::None,
        preemption_timer: None,
    };

    fn saved(mut vmcs12: Vmcs12, state: &SoftwareState) -> Vmcs12 {
        save_always(&mut vmcs12, &Encodings::new(), state);
        vmcs12
    }

    #[test]
    fn what_is_always_saved_takes_nine_reads() {
        let vmcs02 = Encodings::new();
        let mut vmcs12 = Vmcs12::default();

        save_always(&mut vmcs12, &vmcs02, &STATE);
        assert_eq!(vmcs02.reads(), 9);
        assert_eq!(
            vmcs12,
            Vmcs12 {
                guest_rsp: 1,
                guest_rip: 2,
                guest_rflags: 0x6820,
                guest_cs_ar_bytes: 0x4816,
                guest_ss_ar_bytes: 0x4818,
                guest_interruptibility_info: 0x4824,
                guest_cr3: 0x6802,
                // L2 owns CR0, so the register counts; it owns nothing of CR4, so the shadow does.
                guest_cr0: 0x6800,
                guest_cr4: 0x6006,
                ..Vmcs12::default()
            }
        );
    }

    #[test]
    fn pdptes_are_saved_with_ept_and_pae_paging() {
        for (secondary, paging, expected) in [
            (Secondary::ENABLE_EPT.into_raw(), Paging::Pae, 0x2810),
            (Secondary::ENABLE_EPT.into_raw(), Paging::Other, 0),
            (0, Paging::Pae, 0),
        ] {
            let vmcs12 = Vmcs12 {
                cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
                secondary_vm_exec_control: secondary,
                ..Vmcs12::default()
            };

            assert_eq!(
                saved(vmcs12, &SoftwareState { paging, ..STATE }).guest_pdptr3,
                expected
            );
        }
    }

    #[test]
    fn virtual_interrupt_delivery_has_a_status() {
        let mut vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            ..Vmcs12::default()
        };
        assert_eq!(saved(vmcs12.clone(), &STATE).guest_intr_status, 0);

        vmcs12.secondary_vm_exec_control = Secondary::VIRTUAL_INTR_DELIVERY.into_raw();
        assert_eq!(saved(vmcs12, &STATE).guest_intr_status, 0x0810);
    }

    #[test]
    fn activity_has_the_numbers_of_the_manual() {
        for (activity, number) in [
            (Activity::Active, 0),
            (Activity::Hlt, 1),
            (Activity::WaitForSipi, 3),
        ] {
            let state = SoftwareState { activity, ..STATE };

            assert_eq!(
                saved(Vmcs12::default(), &state).guest_activity_state,
                number
            );
        }
    }

    #[test]
    fn control_flow_state_is_read_as_far_as_l1_has_it() {
        for (control_flow, s_cet, ssp) in [
            (ControlFlow::None, 0, 0),
            (ControlFlow::IndirectBranchTracking, 0x6828, 0),
            (ControlFlow::ShadowStacks, 0x6828, 0x682a),
        ] {
            let state = SoftwareState {
                control_flow,
                ..STATE
            };
            let vmcs12 = saved(Vmcs12::default(), &state);

            assert_eq!(vmcs12.guest_s_cet, s_cet);
            assert_eq!(vmcs12.guest_ssp, ssp);
        }
    }

    #[test]
    fn exit_controls_say_what_else_is_saved() {
        let state = SoftwareState {
            preemption_timer: Some(5),
            ..STATE
        };

        for (controls, dr7, efer, timer) in [
            (0, 0, 0, 0),
            (Exit::SAVE_DEBUG_CONTROLS.into_raw(), 3, 0, 0),
            (Exit::SAVE_IA32_EFER.into_raw(), 0, 4, 0),
            (Exit::SAVE_VMX_PREEMPTION_TIMER.into_raw(), 0, 0, 5),
        ] {
            let vmcs12 = Vmcs12 {
                pin_based_vm_exec_control: Pin::VMX_PREEMPTION_TIMER.into_raw(),
                vm_exit_controls: controls,
                ..Vmcs12::default()
            };
            let vmcs12 = saved(vmcs12, &state);

            assert_eq!(vmcs12.guest_dr7, dr7);
            assert_eq!(vmcs12.guest_ia32_efer, efer);
            assert_eq!(vmcs12.vmx_preemption_timer_value, timer);
        }
    }

    #[test]
    fn a_timer_that_is_off_or_not_started_is_not_saved() {
        let vmcs12 = |pin| Vmcs12 {
            pin_based_vm_exec_control: pin,
            vm_exit_controls: Exit::SAVE_VMX_PREEMPTION_TIMER.into_raw(),
            vmx_preemption_timer_value: 9,
            ..Vmcs12::default()
        };
        let running = SoftwareState {
            preemption_timer: Some(5),
            ..STATE
        };

        assert_eq!(saved(vmcs12(0), &running).vmx_preemption_timer_value, 9);
        assert_eq!(
            saved(vmcs12(Pin::VMX_PREEMPTION_TIMER.into_raw()), &STATE).vmx_preemption_timer_value,
            9
        );
    }

    #[test]
    fn long_mode_is_the_entry_control_that_an_exit_updates() {
        for before in [0, u32::MAX] {
            for entry_controls in [0, u32::MAX] {
                let vmcs12 = Vmcs12 {
                    vm_entry_controls: before,
                    ..Vmcs12::default()
                };
                let state = SoftwareState {
                    entry_controls,
                    ..STATE
                };
                let after = saved(vmcs12, &state).vm_entry_controls;

                assert_eq!(
                    after & Entry::IA32E_MODE.into_raw(),
                    entry_controls & Entry::IA32E_MODE.into_raw()
                );
                assert_eq!(
                    after | Entry::IA32E_MODE.into_raw(),
                    before | Entry::IA32E_MODE.into_raw()
                );
            }
        }
    }
}
