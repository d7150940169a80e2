// SPDX-License-Identifier: GPL-2.0

//! VMLAUNCH and VMRESUME, up to the checks of VM entry.

use super::{InstructionError, Refusal};
use crate::vmx::{vmcs12::SHADOW_INDICATOR, Vmcs12};

/// By which instruction L1 enters L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// VMLAUNCH, for a VMCS that is clear.
    Launch,
    /// VMRESUME, for a VMCS that has been launched.
    Resume,
}

/// Whether events are blocked by the instruction before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// They are not, or by STI, which does not matter.
    Other,
    /// They are by MOV SS or POP SS.
    MovSs,
}

/// Checks whether L1 may enter L2 with its current VMCS (SDM, "Basic VM-Entry Checks").
pub fn check_launch(
    current: Option<&Vmcs12>,
    launch: Launch,
    blocking: Blocking,
) -> Result<&Vmcs12, Refusal> {
    // A shadow VMCS counts as none, though it could take the number of an error.
    let vmcs12 = current
        .filter(|vmcs12| vmcs12.revision & SHADOW_INDICATOR == 0)
        .ok_or(Refusal::FailInvalid)?;

    match (blocking, launch, vmcs12.launch_state) {
        (Blocking::MovSs, _, _) => Err(Refusal::Fail(
            InstructionError::ENTRY_EVENTS_BLOCKED_BY_MOV_SS,
        )),
        (Blocking::Other, Launch::Launch, 0) => Ok(vmcs12),
        (Blocking::Other, Launch::Launch, _) => {
            Err(Refusal::Fail(InstructionError::VMLAUNCH_NONCLEAR_VMCS))
        }
        (Blocking::Other, Launch::Resume, 0) => {
            Err(Refusal::Fail(InstructionError::VMRESUME_NONLAUNCHED_VMCS))
        }
        (Blocking::Other, Launch::Resume, _) => Ok(vmcs12),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_launch)
)]
mod tests {
    use super::*;
    use crate::vmx::field::CLEAR;

    fn check(vmcs12: &Vmcs12, launch: Launch, blocking: Blocking) -> Result<(), Refusal> {
        check_launch(Some(vmcs12), launch, blocking).map(|_| ())
    }

    #[test]
    fn without_a_vmcs_there_is_nothing_to_enter() {
        for launch in [Launch::Launch, Launch::Resume] {
            for blocking in [Blocking::Other, Blocking::MovSs] {
                let result = check_launch(None, launch, blocking);

                assert!(result == Err(Refusal::FailInvalid));
            }
        }
    }

    #[test]
    fn a_shadow_vmcs_is_not_entered() {
        let mut shadow = CLEAR;
        shadow.revision |= 1 << 31;

        for blocking in [Blocking::Other, Blocking::MovSs] {
            let result = check(&shadow, Launch::Launch, blocking);

            assert_eq!(result, Err(Refusal::FailInvalid));
        }
    }

    #[test]
    fn blocking_by_mov_ss_comes_before_the_launch_state() {
        let blocked = Refusal::Fail(InstructionError::ENTRY_EVENTS_BLOCKED_BY_MOV_SS);

        for launch in [Launch::Launch, Launch::Resume] {
            assert_eq!(check(&CLEAR, launch, Blocking::MovSs), Err(blocked));
        }
    }

    #[test]
    fn a_vmcs_is_launched_once_and_resumed_after_that() {
        let mut vmcs12 = CLEAR;
        let nonclear = Refusal::Fail(InstructionError::VMLAUNCH_NONCLEAR_VMCS);
        let nonlaunched = Refusal::Fail(InstructionError::VMRESUME_NONLAUNCHED_VMCS);

        assert_eq!(check(&vmcs12, Launch::Launch, Blocking::Other), Ok(()));
        assert_eq!(
            check(&vmcs12, Launch::Resume, Blocking::Other),
            Err(nonlaunched)
        );

        // L1 can write any number there.
        for launch_state in [1, 2, u32::MAX] {
            vmcs12.launch_state = launch_state;
            assert_eq!(
                check(&vmcs12, Launch::Launch, Blocking::Other),
                Err(nonclear)
            );
            assert_eq!(check(&vmcs12, Launch::Resume, Blocking::Other), Ok(()));
        }
    }
}
