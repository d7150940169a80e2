// SPDX-License-Identifier: GPL-2.0

//! Checks on the activity, the interruptibility and the pending debug exceptions of L2.

use super::segments::AccessRights;
use crate::vmx::{
    capability::msrs::misc,
    check::{controls::Event, Processor, RFLAGS_IF, RFLAGS_TF},
    Vmcs12,
};

/// Activity states (SDM, "Guest Non-Register State").
mod activity {
    pub(super) const ACTIVE: u32 = 0;
    pub(super) const HLT: u32 = 1;
    pub(super) const SHUTDOWN: u32 = 2;
    pub(super) const WAIT_SIPI: u32 = 3;
}

/// Bits of the interruptibility state.
mod blocking {
    pub(super) const STI: u32 = 1 << 0;
    pub(super) const MOV_SS: u32 = 1 << 1;
    pub(super) const SMI: u32 = 1 << 2;
    pub(super) const NMI: u32 = 1 << 3;
    pub(super) const ENCLAVE_INTERRUPTION: u32 = 1 << 4;
}

/// Bits of the pending debug exceptions.
mod pending {
    pub(super) const ENABLED_BREAKPOINT: u64 = 1 << 12;
    pub(super) const SINGLE_STEP: u64 = 1 << 14;
    pub(super) const RTM: u64 = 1 << 16;
}

/// IA32_DEBUGCTL.BTF: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// The vector of the debug exception.
const DB: u32 = 1;
/// The vector of the machine check.
const MC: u32 = 18;

consistency_checks! {
    /// Makes the check on the activity state itself.
    pub fn check_activity(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), ActivityCheck> {
        /// The state is one that is supported.
        Unsupported: match vmcs12.guest_activity_state {
            activity::ACTIVE => false,
            activity::HLT => processor.msrs.misc_low & misc::ACTIVITY_HLT == 0,
            activity::SHUTDOWN => processor.msrs.misc_low & misc::ACTIVITY_SHUTDOWN == 0,
            activity::WAIT_SIPI => processor.msrs.misc_low & misc::ACTIVITY_WAIT_SIPI == 0,
            _ => true,
        },
    }
}

/// Returns whether an event can be injected in a state of activity.
#[inline]
const fn can_be_injected(event: Event, activity: u32) -> bool {
    match activity {
        activity::ACTIVE => true,
        activity::HLT => {
            event.is(Event::EXTERNAL_INTERRUPT)
                || event.is(Event::NMI)
                || event.is(Event::HARDWARE_EXCEPTION) && matches!(event.vector(), DB | MC)
                || event.is(Event::OTHER)
        }
        activity::SHUTDOWN => {
            event.is(Event::NMI) || event.is(Event::HARDWARE_EXCEPTION) && event.vector() == MC
        }
        _ => false,
    }
}

/// Returns whether some of the `reasons` block events.
#[inline]
const fn blocks(vmcs12: &Vmcs12, reasons: u32) -> bool {
    vmcs12.guest_interruptibility_info & reasons != 0
}

/// Returns whether an instruction boundary is behind L2 at which a single step was due.
#[inline]
const fn is_between_instructions(vmcs12: &Vmcs12) -> bool {
    blocks(vmcs12, blocking::STI | blocking::MOV_SS) || vmcs12.guest_activity_state == activity::HLT
}

/// Returns whether L2 traps after each instruction.
#[inline]
const fn single_steps(vmcs12: &Vmcs12) -> bool {
    vmcs12.guest_rflags & RFLAGS_TF != 0 && vmcs12.guest_ia32_debugctl & DEBUGCTL_BTF == 0
}

/// Returns whether a debug exception in a transaction is pending.
#[inline]
const fn has_rtm(vmcs12: &Vmcs12) -> bool {
    vmcs12.guest_pending_dbg_exceptions & pending::RTM != 0
}

consistency_checks! {
    /// Makes the checks on what is not a register, but for the VMCS link pointer (SDM, "Checks on
    /// Guest Non-Register State").
    pub fn check_non_register_state(
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), NonRegisterCheck> {
        /// HLT is possible at privilege level 0 only.
        HltDpl: vmcs12.guest_activity_state == activity::HLT
            && AccessRights::of_ss(vmcs12).dpl() != 0,
        /// Only an active processor is behind STI or MOV to SS.
        InactiveWithBlocking: vmcs12.guest_activity_state != activity::ACTIVE
            && blocks(vmcs12, blocking::STI | blocking::MOV_SS),
        /// The event is one that ends the inactivity.
        InactiveWithEvent: Event::of(vmcs12).is_valid()
            && !can_be_injected(Event::of(vmcs12), vmcs12.guest_activity_state),

        /// Reserved bits of the interruptibility are 0.
        InterruptibilityReserved: blocks(vmcs12, processor.interruptibility_reserved),
        /// The last instruction was STI or MOV to SS.
        StiAndMovSs: blocks(vmcs12, blocking::STI) && blocks(vmcs12, blocking::MOV_SS),
        /// STI enabled interrupts.
        StiWithoutIf: blocks(vmcs12, blocking::STI) && vmcs12.guest_rflags & RFLAGS_IF == 0,
        /// External interrupts are not injected while they are blocked.
        InterruptWhileBlocked: Event::of(vmcs12).is(Event::EXTERNAL_INTERRUPT)
            && blocks(vmcs12, blocking::STI | blocking::MOV_SS),
        /// NMIs are not injected while MOV to SS blocks them.
        NmiWhileBlockedByMovSs: Event::of(vmcs12).is(Event::NMI)
            && blocks(vmcs12, blocking::MOV_SS),
        /// NMIs are not injected while STI blocks them.
        NmiWhileBlockedBySti: Event::of(vmcs12).is(Event::NMI) && blocks(vmcs12, blocking::STI),
        /// SMIs are blocked in SMM only.
        SmiOutsideSmm: blocks(vmcs12, blocking::SMI),
        /// Virtual NMIs are not injected while a virtual NMI blocks them.
        NmiWhileBlockedByNmi: Event::of(vmcs12).is(Event::NMI)
            && vmcs12.pin().virtual_nmis()
            && blocks(vmcs12, blocking::NMI),
        /// An enclave that is interrupted has not just loaded SS.
        EnclaveAndMovSs: blocks(vmcs12, blocking::ENCLAVE_INTERRUPTION)
            && blocks(vmcs12, blocking::MOV_SS),

        /// Reserved bits of the pending debug exceptions are 0.
        PendingDebugReserved: vmcs12.guest_pending_dbg_exceptions
            & processor.pending_debug_reserved
            != 0,
        /// A single step that is due is pending.
        SingleStepMissing: is_between_instructions(vmcs12)
            && single_steps(vmcs12)
            && vmcs12.guest_pending_dbg_exceptions & pending::SINGLE_STEP == 0,
        /// A single step is pending only if it is due.
        SingleStepUnexpected: is_between_instructions(vmcs12)
            && !single_steps(vmcs12)
            && vmcs12.guest_pending_dbg_exceptions & pending::SINGLE_STEP != 0,
        /// A debug exception in a transaction stands alone, with an enabled breakpoint.
        RtmWithOthers: has_rtm(vmcs12)
            && vmcs12.guest_pending_dbg_exceptions != pending::RTM | pending::ENABLED_BREAKPOINT,
        /// A transaction does not load SS.
        RtmAndMovSs: has_rtm(vmcs12) && blocks(vmcs12, blocking::MOV_SS),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_check_non_register)
)]
mod tests {
    use super::*;
    use crate::vmx::check::{valid::Case, Failure, GuestStateCheck};

    fn failure(check: NonRegisterCheck) -> Option<Failure> {
        Some(Failure::GuestState(GuestStateCheck::NonRegister(check)))
    }

    /// Makes the smallest change that violates `check`.
    fn violate(check: NonRegisterCheck, case: &mut Case) {
        use NonRegisterCheck as Check;

        match check {
            Check::InactiveWithEvent => case.inject(Event::HARDWARE_EXCEPTION, 6),
            Check::InterruptWhileBlocked => case.inject(Event::EXTERNAL_INTERRUPT, 0x20),
            Check::NmiWhileBlockedByMovSs
            | Check::NmiWhileBlockedBySti
            | Check::NmiWhileBlockedByNmi => case.inject(Event::NMI, 2),
            _ => {}
        }
        let vmcs12 = &mut case.vmcs12;
        let interruptibility = &mut vmcs12.guest_interruptibility_info;
        let pending_debug = &mut vmcs12.guest_pending_dbg_exceptions;

        match check {
            Check::HltDpl => {
                vmcs12.guest_activity_state = activity::HLT;
                vmcs12.guest_cs_ar_bytes |= 3 << 5;
                vmcs12.guest_ss_ar_bytes |= 3 << 5;
            }
            Check::InactiveWithBlocking => {
                vmcs12.guest_activity_state = activity::WAIT_SIPI;
                *interruptibility |= blocking::STI;
            }
            Check::InactiveWithEvent => vmcs12.guest_activity_state = activity::HLT,
            Check::InterruptibilityReserved => *interruptibility |= 1 << 5,
            Check::StiAndMovSs => *interruptibility |= blocking::STI | blocking::MOV_SS,
            Check::StiWithoutIf => {
                *interruptibility |= blocking::STI;
                vmcs12.guest_rflags &= !RFLAGS_IF;
            }
            Check::InterruptWhileBlocked => *interruptibility |= blocking::MOV_SS,
            Check::NmiWhileBlockedByMovSs => *interruptibility |= blocking::MOV_SS,
            Check::NmiWhileBlockedBySti => *interruptibility |= blocking::STI,
            Check::SmiOutsideSmm => *interruptibility |= blocking::SMI,
            Check::NmiWhileBlockedByNmi => *interruptibility |= blocking::NMI,
            Check::EnclaveAndMovSs => {
                *interruptibility |= blocking::ENCLAVE_INTERRUPTION | blocking::MOV_SS;
            }
            Check::PendingDebugReserved => *pending_debug |= 1 << 4,
            Check::SingleStepMissing => {
                *interruptibility |= blocking::STI;
                vmcs12.guest_rflags |= RFLAGS_TF;
            }
            Check::SingleStepUnexpected => {
                *interruptibility |= blocking::STI;
                *pending_debug |= pending::SINGLE_STEP;
            }
            Check::RtmWithOthers => *pending_debug |= pending::RTM,
            Check::RtmAndMovSs => {
                *pending_debug |= pending::RTM | pending::ENABLED_BREAKPOINT;
                *interruptibility |= blocking::MOV_SS;
            }
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in NonRegisterCheck::ALL {
            let mut case = Case::new();

            violate(check, &mut case);
            assert_eq!(case.failure(), failure(check));
        }
    }

    #[test]
    fn activity_states_are_those_of_the_capability_msr() {
        let unsupported = Some(Failure::GuestState(GuestStateCheck::Activity(
            ActivityCheck::Unsupported,
        )));
        let mut case = Case::new();

        for state in 0..=u16::MAX {
            case.vmcs12.guest_activity_state = u32::from(state);

            let supported = matches!(
                u32::from(state),
                activity::ACTIVE | activity::HLT | activity::WAIT_SIPI
            );
            assert_eq!(case.failure(), if supported { None } else { unsupported });
        }

        case.msrs.misc_low |= misc::ACTIVITY_SHUTDOWN;
        case.vmcs12.guest_activity_state = activity::SHUTDOWN;
        assert_eq!(case.failure(), None);

        case.msrs.misc_low &= !misc::ACTIVITY_HLT;
        case.vmcs12.guest_activity_state = activity::HLT;
        assert_eq!(case.failure(), unsupported);
    }

    #[test]
    fn events_end_an_inactivity() {
        let mut case = Case::new();
        case.msrs.misc_low |= misc::ACTIVITY_SHUTDOWN;
        case.vmcs12.vm_entry_instruction_len = 1;

        for (state, kind, vector, valid) in [
            (activity::HLT, Event::EXTERNAL_INTERRUPT, 0x20, true),
            (activity::HLT, Event::NMI, 2, true),
            (activity::HLT, Event::HARDWARE_EXCEPTION, DB, true),
            (activity::HLT, Event::HARDWARE_EXCEPTION, MC, true),
            (activity::HLT, Event::OTHER, 0, true),
            (activity::HLT, Event::SOFTWARE_INTERRUPT, 0x80, false),
            (activity::SHUTDOWN, Event::NMI, 2, true),
            (activity::SHUTDOWN, Event::HARDWARE_EXCEPTION, MC, true),
            (activity::SHUTDOWN, Event::HARDWARE_EXCEPTION, DB, false),
            (activity::SHUTDOWN, Event::EXTERNAL_INTERRUPT, 0x20, false),
            (activity::WAIT_SIPI, Event::NMI, 2, false),
            (activity::WAIT_SIPI, Event::EXTERNAL_INTERRUPT, 0x20, false),
        ] {
            case.vmcs12.guest_activity_state = state;
            case.inject(kind, vector);
            assert_eq!(
                case.failure(),
                if valid {
                    None
                } else {
                    failure(NonRegisterCheck::InactiveWithEvent)
                }
            );
        }
    }

    #[test]
    fn a_single_step_is_pending_where_it_is_due() {
        let mut case = Case::new();

        case.vmcs12.guest_interruptibility_info = blocking::STI;
        case.vmcs12.guest_rflags |= RFLAGS_TF;
        case.vmcs12.guest_pending_dbg_exceptions = pending::SINGLE_STEP;
        assert_eq!(case.failure(), None);

        // Single-stepping on branches is not due after STI.
        case.vmcs12.guest_ia32_debugctl = DEBUGCTL_BTF;
        assert_eq!(
            case.failure(),
            failure(NonRegisterCheck::SingleStepUnexpected)
        );
        case.vmcs12.guest_pending_dbg_exceptions = 0;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn an_nmi_may_be_injected_while_nmis_are_blocked_but_not_virtual() {
        let mut case = Case::new();

        case.vmcs12.pin_based_vm_exec_control &= !(1 << 5);
        case.vmcs12.cpu_based_vm_exec_control &= !(1 << 22);
        case.vmcs12.guest_interruptibility_info = blocking::NMI;
        case.inject(Event::NMI, 2);
        assert_eq!(case.failure(), None);
    }
}
