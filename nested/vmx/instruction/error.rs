// SPDX-License-Identifier: GPL-2.0

//! How instructions of VMX end.

use crate::address::Gpa;
use core::ffi::CStr;

open_enum! {
    /// A VM-instruction error (SDM, "VM Instruction Error Numbers").
    pub enum InstructionError: u32 {
        /// `VMXERR_VMCALL_IN_VMX_ROOT_OPERATION`.
        VMCALL_IN_VMX_ROOT_OPERATION = 1,
        /// `VMXERR_VMCLEAR_INVALID_ADDRESS`.
        VMCLEAR_INVALID_ADDRESS = 2,
        /// `VMXERR_VMCLEAR_VMXON_POINTER`.
        VMCLEAR_VMXON_POINTER = 3,
        /// `VMXERR_VMLAUNCH_NONCLEAR_VMCS`.
        VMLAUNCH_NONCLEAR_VMCS = 4,
        /// `VMXERR_VMRESUME_NONLAUNCHED_VMCS`.
        VMRESUME_NONLAUNCHED_VMCS = 5,
        /// `VMXERR_VMRESUME_AFTER_VMXOFF`.
        VMRESUME_AFTER_VMXOFF = 6,
        /// `VMXERR_ENTRY_INVALID_CONTROL_FIELD`.
        ENTRY_INVALID_CONTROL_FIELD = 7,
        /// `VMXERR_ENTRY_INVALID_HOST_STATE_FIELD`.
        ENTRY_INVALID_HOST_STATE_FIELD = 8,
        /// `VMXERR_VMPTRLD_INVALID_ADDRESS`.
        VMPTRLD_INVALID_ADDRESS = 9,
        /// `VMXERR_VMPTRLD_VMXON_POINTER`.
        VMPTRLD_VMXON_POINTER = 10,
        /// `VMXERR_VMPTRLD_INCORRECT_VMCS_REVISION_ID`.
        VMPTRLD_INCORRECT_VMCS_REVISION_ID = 11,
        /// `VMXERR_UNSUPPORTED_VMCS_COMPONENT`.
        UNSUPPORTED_VMCS_COMPONENT = 12,
        /// `VMXERR_VMWRITE_READ_ONLY_VMCS_COMPONENT`.
        VMWRITE_READ_ONLY_VMCS_COMPONENT = 13,
        /// `VMXERR_VMXON_IN_VMX_ROOT_OPERATION`.
        VMXON_IN_VMX_ROOT_OPERATION = 15,
        /// `VMXERR_ENTRY_INVALID_EXECUTIVE_VMCS_POINTER`.
        ENTRY_INVALID_EXECUTIVE_VMCS_POINTER = 16,
        /// `VMXERR_ENTRY_NONLAUNCHED_EXECUTIVE_VMCS`.
        ENTRY_NONLAUNCHED_EXECUTIVE_VMCS = 17,
        /// `VMXERR_ENTRY_EXECUTIVE_VMCS_POINTER_NOT_VMXON_POINTER`.
        ENTRY_EXECUTIVE_VMCS_POINTER_NOT_VMXON_POINTER = 18,
        /// `VMXERR_VMCALL_NONCLEAR_VMCS`.
        VMCALL_NONCLEAR_VMCS = 19,
        /// `VMXERR_VMCALL_INVALID_VM_EXIT_CONTROL_FIELDS`.
        VMCALL_INVALID_VM_EXIT_CONTROL_FIELDS = 20,
        /// `VMXERR_VMCALL_INCORRECT_MSEG_REVISION_ID`.
        VMCALL_INCORRECT_MSEG_REVISION_ID = 22,
        /// `VMXERR_VMXOFF_UNDER_DUAL_MONITOR_TREATMENT_OF_SMIS_AND_SMM`.
        VMXOFF_UNDER_DUAL_MONITOR_TREATMENT_OF_SMIS_AND_SMM = 23,
        /// `VMXERR_VMCALL_INVALID_SMM_MONITOR_FEATURES`.
        VMCALL_INVALID_SMM_MONITOR_FEATURES = 24,
        /// `VMXERR_ENTRY_INVALID_VM_EXECUTION_CONTROL_FIELDS_IN_EXECUTIVE_VMCS`.
        ENTRY_INVALID_VM_EXECUTION_CONTROL_FIELDS_IN_EXECUTIVE_VMCS = 25,
        /// `VMXERR_ENTRY_EVENTS_BLOCKED_BY_MOV_SS`.
        ENTRY_EVENTS_BLOCKED_BY_MOV_SS = 26,
        /// `VMXERR_INVALID_OPERAND_TO_INVEPT_INVVPID`.
        INVALID_OPERAND_TO_INVEPT_INVVPID = 28,
    }
}

/// The flags that tell how an instruction ended: bits of RFLAGS.
mod flags {
    /// Carry.
    pub(super) const CF: u64 = 1 << 0;
    /// Zero.
    pub(super) const ZF: u64 = 1 << 6;
    /// Those that every instruction of VMX changes: CF, PF, AF, ZF, SF and OF.
    pub(super) const STATUS: u64 = CF | 1 << 2 | 1 << 4 | ZF | 1 << 7 | 1 << 11;
}

/// How an instruction that has not faulted ends (SDM, "VMX Instructions", "Conventions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// VMsucceed.
    Succeed,
    /// VMfailInvalid: there is no current VMCS that could tell why.
    FailInvalid,
    /// VMfailValid: the current VMCS gets the number of the error.
    FailValid(InstructionError),
}

impl Outcome {
    /// VMfail: how an instruction fails depends on whether there is a current VMCS.
    pub const fn fail(error: InstructionError, current: Option<Gpa>) -> Self {
        match current {
            Some(_) => Self::FailValid(error),
            None => Self::FailInvalid,
        }
    }

    /// Returns RFLAGS as they are after the instruction.
    pub const fn rflags(self, before: u64) -> u64 {
        let result = match self {
            Self::Succeed => 0,
            Self::FailInvalid => flags::CF,
            Self::FailValid(_) => flags::ZF,
        };

        before & !flags::STATUS | result
    }
}

/// A fault, with an error code of 0 if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `#UD`.
    InvalidOpcode,
    /// `#GP(0)`.
    GeneralProtection,
    /// `#SS(0)`.
    Stack,
}

impl Fault {
    /// Returns the vector of the fault.
    pub const fn vector(self) -> u8 {
        match self {
            Self::InvalidOpcode => 6,
            Self::Stack => 12,
            Self::GeneralProtection => 13,
        }
    }
}

/// Why an instruction does not do what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Refusal {
    /// It faults, because of the named check.
    Fault(Fault, &'static CStr),
    /// It fails in a way that has no number.
    FailInvalid,
    /// It fails, with a number that is lost if there is no current VMCS.
    Fail(InstructionError),
}

impl Refusal {
    /// Returns how the instruction ends, or the fault by which it does not.
    pub const fn outcome(self, current: Option<Gpa>) -> Result<Outcome, Fault> {
        match self {
            Self::Fault(fault, _) => Err(fault),
            Self::FailInvalid => Ok(Outcome::FailInvalid),
            Self::Fail(error) => Ok(Outcome::fail(error, current)),
        }
    }

    /// Returns the name of the check, or the kind of the failure, for tracing.
    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Fault(_, check) => check,
            Self::FailInvalid => c"VMfailInvalid",
            Self::Fail(_) => c"VMfail",
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_error)
)]
mod tests {
    use super::*;

    const ERROR: InstructionError = InstructionError::VMCLEAR_INVALID_ADDRESS;
    const CURRENT: Option<Gpa> = Some(Gpa::from_raw(0x1000));

    #[test]
    fn an_outcome_replaces_the_status_flags_and_no_others() {
        let all = u64::MAX;
        let others = !0x8d5;

        assert_eq!(Outcome::Succeed.rflags(all), others);
        assert_eq!(Outcome::FailInvalid.rflags(all), others | 1);
        assert_eq!(Outcome::FailValid(ERROR).rflags(all), others | 0x40);
        assert_eq!(Outcome::Succeed.rflags(0), 0);
        assert_eq!(Outcome::FailInvalid.rflags(0x202), 0x203);
        assert_eq!(Outcome::FailValid(ERROR).rflags(0x202), 0x242);
    }

    #[test]
    fn a_number_needs_a_current_vmcs() {
        assert_eq!(Outcome::fail(ERROR, None), Outcome::FailInvalid);
        assert_eq!(Outcome::fail(ERROR, CURRENT), Outcome::FailValid(ERROR));
        assert_eq!(Refusal::Fail(ERROR).outcome(None), Ok(Outcome::FailInvalid));
        assert_eq!(
            Refusal::FailInvalid.outcome(CURRENT),
            Ok(Outcome::FailInvalid)
        );
        assert_eq!(
            Refusal::Fail(ERROR).outcome(CURRENT),
            Ok(Outcome::FailValid(ERROR))
        );
    }

    #[test]
    fn a_fault_has_no_outcome() {
        for (fault, vector) in [
            (Fault::InvalidOpcode, 6),
            (Fault::Stack, 12),
            (Fault::GeneralProtection, 13),
        ] {
            assert_eq!(Refusal::Fault(fault, c"check").outcome(CURRENT), Err(fault));
            assert_eq!(fault.vector(), vector);
        }
    }

    #[test]
    fn a_refusal_has_a_name() {
        assert_eq!(Refusal::Fault(Fault::Stack, c"Limit").name(), c"Limit");
        assert_eq!(Refusal::Fail(ERROR).name(), c"VMfail");
        assert_eq!(Refusal::FailInvalid.name(), c"VMfailInvalid");
    }

    #[test]
    fn the_numbers_that_the_manual_leaves_out_have_no_name() {
        for raw in 0..=64 {
            let named = matches!(raw, 1..=13 | 15..=20 | 22..=26 | 28);

            assert_eq!(InstructionError::from_raw(raw).name().is_some(), named);
        }
    }
}
