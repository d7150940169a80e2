// SPDX-License-Identifier: GPL-2.0

//! Which check of VM entry failed, and what L1 sees of it.

use super::{
    controls::{EntryControlCheck, EventInjectionCheck, ExecutionControlCheck, ExitControlCheck},
    guest_state::{
        ActivityCheck, EferCheck, LinkPointerCheck, NonRegisterCheck, PdpteCheck, RegisterCheck,
        RipRflagsCheck, SegmentCheck,
    },
    host_state::{HostStateCheck, ModeCheck},
};
use crate::vmx::{eptp::EptpCheck, instruction::InstructionError, ExitReason};
use core::ffi::CStr;

/// Which check on the controls failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCheck {
    /// One on the VM-execution controls.
    Execution(ExecutionControlCheck),
    /// One on the EPT pointer.
    EptPointer(EptpCheck),
    /// One on the VM-exit controls.
    Exit(ExitControlCheck),
    /// One on the VM-entry controls.
    Entry(EntryControlCheck),
    /// One on event injection.
    Event(EventInjectionCheck),
}

/// Which check on the guest-state area failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStateCheck {
    /// One on registers that are not listed below.
    Registers(RegisterCheck),
    /// One on EFER.
    Efer(EferCheck),
    /// One on segment registers.
    Segments(SegmentCheck),
    /// One on RIP, RFLAGS or SSP.
    RipRflags(RipRflagsCheck),
    /// One on the activity state.
    Activity(ActivityCheck),
    /// One on interruptibility and pending debug exceptions.
    NonRegister(NonRegisterCheck),
    /// One on the VMCS link pointer.
    LinkPointer(LinkPointerCheck),
    /// One on page-directory-pointer-table entries.
    Pdpte(PdpteCheck),
}

/// Why VM entry failed: its stage, and the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// In the checks on the controls.
    Controls(ControlCheck),
    /// In the check on the mode of L1.
    Mode(ModeCheck),
    /// In the checks on the host-state area.
    HostState(HostStateCheck),
    /// In the checks on the guest-state area.
    GuestState(GuestStateCheck),
}

/// What L1 sees of a VM entry that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// VMfailValid with this VM-instruction error.
    VmFailValid(InstructionError),
    /// A VM exit with this exit reason, in which bit 31 has to be set, and exit qualification.
    FailedEntry {
        /// The basic exit reason.
        reason: ExitReason,
        /// The exit qualification.
        qualification: u64,
    },
}

/// Exit qualifications of invalid guest state (SDM, "VM-Entry Failures During or After Loading
/// Guest State").
mod qualification {
    pub(super) const DEFAULT: u64 = 0;
    pub(super) const PDPTE: u64 = 2;
    pub(super) const NMI: u64 = 3;
    pub(super) const LINK_POINTER: u64 = 4;
}

impl GuestStateCheck {
    /// Returns the exit qualification.
    const fn qualification(self) -> u64 {
        match self {
            Self::Pdpte(_) => qualification::PDPTE,
            Self::NonRegister(NonRegisterCheck::NmiWhileBlockedBySti) => qualification::NMI,
            Self::LinkPointer(_) => qualification::LINK_POINTER,
            _ => qualification::DEFAULT,
        }
    }
}

impl Failure {
    /// Returns what L1 sees.
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Controls(_) => {
                Outcome::VmFailValid(InstructionError::ENTRY_INVALID_CONTROL_FIELD)
            }
            Self::Mode(_) | Self::HostState(_) => {
                Outcome::VmFailValid(InstructionError::ENTRY_INVALID_HOST_STATE_FIELD)
            }
            Self::GuestState(check) => Outcome::FailedEntry {
                reason: ExitReason::INVALID_STATE,
                qualification: check.qualification(),
            },
        }
    }

    /// Returns the name of the group of the check.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Controls(ControlCheck::Execution(_)) => "VM-execution controls",
            Self::Controls(ControlCheck::EptPointer(_)) => "EPT pointer",
            Self::Controls(ControlCheck::Exit(_)) => "VM-exit controls",
            Self::Controls(ControlCheck::Entry(_)) => "VM-entry controls",
            Self::Controls(ControlCheck::Event(_)) => "event injection",
            Self::Mode(_) | Self::HostState(_) => "host state",
            Self::GuestState(GuestStateCheck::Segments(check)) => check.register(),
            Self::GuestState(GuestStateCheck::LinkPointer(_)) => "VMCS link pointer",
            Self::GuestState(_) => "guest state",
        }
    }

    /// Returns the name of the check.
    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Controls(ControlCheck::Execution(check)) => check.name(),
            Self::Controls(ControlCheck::EptPointer(check)) => check.name(),
            Self::Controls(ControlCheck::Exit(check)) => check.name(),
            Self::Controls(ControlCheck::Entry(check)) => check.name(),
            Self::Controls(ControlCheck::Event(check)) => check.name(),
            Self::Mode(check) => check.name(),
            Self::HostState(check) => check.name(),
            Self::GuestState(GuestStateCheck::Registers(check)) => check.name(),
            Self::GuestState(GuestStateCheck::Efer(check)) => check.name(),
            Self::GuestState(GuestStateCheck::Segments(check)) => check.name(),
            Self::GuestState(GuestStateCheck::RipRflags(check)) => check.name(),
            Self::GuestState(GuestStateCheck::Activity(check)) => check.name(),
            Self::GuestState(GuestStateCheck::NonRegister(check)) => check.name(),
            Self::GuestState(GuestStateCheck::LinkPointer(check)) => check.name(),
            Self::GuestState(GuestStateCheck::Pdpte(check)) => check.name(),
        }
    }
}
