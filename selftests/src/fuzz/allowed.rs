// SPDX-License-Identifier: GPL-2.0

//! What KVM's own code and our module may do differently, each with the reason.

use super::code::TIMED;
use super::observe::{Difference, What, LOST};
use super::{Action, Case};
use crate::guest::layout::{OTHER_VMCS, REGISTERS, VMCS, VMX_REGISTERS};
use crate::guest::vmcb;
use crate::guest::vmx::bits::reason;
use crate::guest::vmx::field;

/// What is behind an allowed difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It must be the same.
    Same,
    /// It follows from the difference.
    Follows,
}

/// A difference that is allowed.
pub struct Allowed {
    /// Why.
    pub reason: &'static str,
    applies: fn(&Case, &Difference) -> bool,
    rest: Rest,
}

/// The differences that are allowed; `Documentation/errata.rst` has them, too.
pub const ALLOWED: &[Allowed] = &[
    Allowed {
        reason: "the time, or a random number, is another one each time",
        applies: is_timed,
        rest: Rest::Same,
    },
    Allowed {
        reason:
            "of several things that are wrong with L2's state, which one is found first is not \
                 said (SDM, \"Checks on the Guest State Area\")",
        applies: |_, difference| {
            let kinds = [0, 2, 3, 4];
            of_qualification(difference, &[reason::INVALID_STATE])
                && difference.values().is_some_and(|(first, second)| {
                    kinds.contains(&first) && kinds.contains(&second)
                })
        },
        rest: Rest::Same,
    },
    Allowed {
        reason:
            "the qualification of VMREAD, VMWRITE and accesses to LDTR and TR with a register is \
                 undefined (SDM, \"Basic VM-Exit Information\"), and another one each time on Bochs",
        applies: |_, difference| of_qualification(difference, &[VMREAD, VMWRITE, reason::LDTR_TR]),
        rest: Rest::Same,
    },
    Allowed {
        reason:
            "the guest-linear address is undefined after most exits (SDM, \"Basic VM-Exit \
                 Information\"); ours leaves it then as it is, and KVM's own code shows what is left \
                 of an exit that L0 has handled",
        applies: |_, difference| {
            difference.what() == Some(What::Field(field::GUEST_LINEAR))
                && !has_linear_address(difference)
        },
        rest: Rest::Same,
    },
    Allowed {
        reason: "our module offers PAUSE-loop exiting to L1, and KVM's own code does not",
        applies: |case, difference| {
            let mut all = case.steps.iter().chain(&case.code);
            let reads = all.any(|action| {
                action.verb == "rdmsr" && action.operands[0] == SECONDARY_CAPABILITIES
            });
            // In the whole MSR, or in its upper half.
            let bits = [1 << 42, 1 << 10];
            reads
                && difference
                    .values()
                    .is_some_and(|(first, second)| bits.contains(&(first ^ second)))
        },
        rest: Rest::Same,
    },
    Allowed {
        reason:
            "KVM's own code stores EFER of L2 when an entry fails; L2's state must stay as it is \
                 (SDM, \"VM-Entry Failures During or After Loading Guest State\")",
        applies: |_, difference| {
            difference.what() == Some(What::Field(field::GUEST_EFER))
                && difference.reason == Some(reason::INVALID_STATE)
                && difference.other_reason == difference.reason
        },
        rest: Rest::Same,
    },
    Allowed {
        reason: "KVM's own code changes the VM-entry instruction length when INT, INT1 or INT3 of L2 is \
                 interrupted by an exit; it is a control (SDM, \"Recording VM-Exit Information and \
                 Updating VM-entry Control Fields\")",
        applies: |case, difference| {
            let is_int = |action: &Action| ["int", "int1", "int3"].contains(&action.verb);
            difference.what() == Some(What::Field(field::ENTRY_LENGTH))
                && case.code.iter().any(is_int)
                && difference.values().is_some_and(|(first, _)| matches!(first, 1 | 2))
        },
        rest: Rest::Same,
    },
    Allowed {
        reason: "KVM's own code loads MSRs before the processor checks L2's state, which comes first \
                 (SDM, \"VM Entries\")",
        applies: |_, difference| {
            difference.what() == Some(What::Field(field::EXIT_REASON))
                && difference.reason == Some(reason::MSR_LOAD)
                && difference.other_reason == Some(reason::INVALID_STATE)
        },
        rest: Rest::Follows,
    },
    Allowed {
        reason:
            "KVM's own code enters with the current VMCS as the link pointer, which must not be \
                 (SDM, \"Checks on Guest Non-Register State\")",
        applies: |case, difference| {
            let link = u64::from(field::LINK_POINTER);
            let wrong = [VMCS, OTHER_VMCS].map(|vmcs| Action::new("vmwrite", &[link, vmcs]));
            wrong.iter().any(|action| case.steps.contains(action)) && only_ours_fails(difference)
        },
        rest: Rest::Follows,
    },
    Allowed {
        reason:
            "KVM's own code and Bochs enter with a RIP that has not the width of linear addresses \
                 (SDM, \"Checks on Guest RIP, RFLAGS, and SSP\")",
        applies: |case, difference| {
            let is_wrong = |action: &Action| {
                let [of, value, _] = action.operands;
                let canonical = (value << 16) as i64 >> 16;
                action.verb == "vmwrite"
                    && of == u64::from(field::GUEST_RIP)
                    && canonical as u64 != value
            };
            case.steps.iter().any(is_wrong) && only_ours_fails(difference)
        },
        rest: Rest::Follows,
    },
    Allowed {
        reason:
            "KVM's own code leaves most checks of L2's state to the processor, which it does not \
                 enter for an L2 that halts or waits for SIPI",
        applies: |case, difference| {
            let waits = [(1, "Halt"), (3, LOST)];
            waits.iter().any(|&(state, stop)| {
                let wait = Action::new("vmwrite", &[field::ACTIVITY.into(), state]);
                case.steps.contains(&wait) && difference.only_first_stops(stop)
            }) && difference.other_fails
        },
        rest: Rest::Follows,
    },
    Allowed {
        reason:
            "with KVM's own code an interrupt ends an L2 that waits for SIPI; nothing else than SIPI \
                 must (SDM, \"Activity State\")",
        applies: |case, difference| {
            let wait = Action::new("vmwrite", &[field::ACTIVITY.into(), 3]);
            case.steps.contains(&wait) && difference.only_second_stops(LOST)
        },
        rest: Rest::Follows,
    },
];

/// Returns whether an entry fails with our module for L2's state, and not with KVM's own code.
fn only_ours_fails(difference: &Difference) -> bool {
    difference.other_fails && difference.reason != Some(reason::INVALID_STATE)
}

/// Returns whether the exit has a guest-linear address: by LMSW from memory, a string, or the access
/// of an instruction that EPT does not allow.
fn has_linear_address(difference: &Difference) -> bool {
    let qualification = difference.qualification.unwrap_or_default();
    match difference.reason {
        Some(reason::CONTROL_REGISTER) => qualification & 0x70 == 0x70,
        Some(reason::IO) => qualification & 1 << 4 != 0,
        Some(reason::EPT_VIOLATION) => qualification & 1 << 7 != 0,
        _ => false,
    }
}

/// IA32_VMX_PROCBASED_CTLS2.
const SECONDARY_CAPABILITIES: u64 = 0x48b;

/// The reason of exits by VMREAD.
const VMREAD: u64 = 23;

/// The reason of exits by VMWRITE.
const VMWRITE: u64 = 25;

/// Returns whether the qualifications of exits for one of the reasons differ.
fn of_qualification(difference: &Difference, reasons: &[u64]) -> bool {
    let reason = difference.reason.unwrap_or(u64::MAX);
    difference.what() == Some(What::Field(field::QUALIFICATION)) && reasons.contains(&reason)
}

/// The fields that exist with KVM's own code only.
///
/// A field exists only if the processor has its control (SDM, "Field Encoding in VMCS"): without
/// virtual-interrupt delivery and posted interrupts, as on these machines, neither do these. KVM's
/// own code has them whatever the controls are.
pub const FIELDS_OF_C: &[u32] = &[field::POSTED_VECTOR, field::POSTED_DESCRIPTOR];

/// The fields that exist with our module only: PLE_Gap and PLE_Window.
///
/// It offers PAUSE-loop exiting to L1, and KVM's own code does not.
pub const FIELDS_OF_OURS: &[u32] = &[0x4020, 0x4022];

fn is_timed(case: &Case, difference: &Difference) -> bool {
    let in_register = match difference.what() {
        Some(What::Register(name)) => matches!(name, "rax" | "rcx" | "rdx"),
        Some(What::Memory(at)) => {
            at == vmcb::RAX
                || (REGISTERS..REGISTERS + 0x80).contains(&at)
                || (VMX_REGISTERS..VMX_REGISTERS + 0x80).contains(&at)
        }
        _ => false,
    };
    let timed = case.code.iter().any(|action| TIMED.contains(&action.verb));
    timed && (in_register && difference.values().is_some() || difference.is_of_output())
}

/// Returns the first difference that is not allowed, and counts the others by their index.
pub fn first_not_allowed<'a>(
    case: &Case,
    differences: &'a [Difference],
    counts: &mut [u64],
) -> Option<&'a Difference> {
    for difference in differences {
        let index = ALLOWED
            .iter()
            .position(|allowed| (allowed.applies)(case, difference));
        let Some(index) = index else {
            return Some(difference);
        };
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
        let rest = ALLOWED.get(index).map(|allowed| allowed.rest);
        if rest == Some(Rest::Follows) {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::observe::{differences, Seen};
    use super::*;
    use crate::guest::Vendor;

    /// Returns what is not allowed of a field of two exits for a reason.
    fn not_allowed(of: u32, reason: u64, first: u64, second: u64) -> Option<Difference> {
        let case = Case {
            vendor: Vendor::Vmx,
            code: Vec::new(),
            steps: Vec::new(),
        };
        let seen = |value| {
            [
                Seen::number(0, What::Field(field::EXIT_REASON), reason),
                Seen::number(0, What::Field(of), value),
            ]
        };
        let all = differences(&seen(first), &seen(second));
        first_not_allowed(&case, &all, &mut []).cloned()
    }

    #[test]
    fn a_length_may_be_that_of_int_and_no_other() {
        let is_allowed = |verb, c, ours| {
            let case = Case {
                vendor: Vendor::Vmx,
                code: vec![Action::new(verb, &[0x20])],
                steps: Vec::new(),
            };
            let seen = |value| [Seen::number(0, What::Field(field::ENTRY_LENGTH), value)];
            first_not_allowed(&case, &differences(&seen(c), &seen(ours)), &mut []).is_none()
        };
        assert!(is_allowed("int", 2, 0));
        assert!(!is_allowed("int", 0, 2));
        assert!(!is_allowed("nop", 2, 0));
    }

    #[test]
    fn the_state_is_checked_before_msrs_are_loaded() {
        let seen = |value| [Seen::number(0, What::Field(field::EXIT_REASON), value)];
        let is_allowed = |c, ours| {
            let case = Case {
                vendor: Vendor::Vmx,
                code: Vec::new(),
                steps: Vec::new(),
            };
            first_not_allowed(&case, &differences(&seen(c), &seen(ours)), &mut []).is_none()
        };
        assert!(is_allowed(reason::MSR_LOAD, reason::INVALID_STATE));
        assert!(!is_allowed(reason::INVALID_STATE, reason::MSR_LOAD));
        assert!(!is_allowed(reason::VMCALL, reason::INVALID_STATE));
    }

    #[test]
    fn an_entry_may_fail_with_ours_alone_for_what_c_does_not_check() {
        let is_allowed = |(of, value): (u32, u64), c: Seen, ours| {
            let case = Case {
                vendor: Vendor::Vmx,
                code: Vec::new(),
                steps: vec![Action::new("vmwrite", &[of.into(), value])],
            };
            let ours = Seen::number(0, What::Field(field::EXIT_REASON), ours);
            first_not_allowed(&case, &differences(&[c], &[ours]), &mut []).is_none()
        };
        let calls = || Seen::number(0, What::Field(field::EXIT_REASON), reason::VMCALL);
        let stops = |note: &str| Seen::stop(0, note.to_owned());
        let rip = (field::GUEST_RIP, 1 << 62);
        let link = (field::LINK_POINTER, VMCS);
        for wrong in [rip, link] {
            assert!(is_allowed(wrong, calls(), reason::INVALID_STATE));
            assert!(is_allowed(
                wrong,
                stops("Out(1, [0])"),
                reason::INVALID_STATE
            ));
            assert!(!is_allowed(wrong, calls(), reason::MSR_LOAD));
            assert!(!is_allowed(wrong, stops(LOST), reason::VMCALL));
        }
        for right in [
            (field::GUEST_RIP, 1 << 46),
            (field::GUEST_RIP, u64::MAX << 47),
        ] {
            assert!(!is_allowed(right, calls(), reason::INVALID_STATE));
        }
        for (state, note, other) in [(1, "Halt", LOST), (3, LOST, "Halt")] {
            let wait = (field::ACTIVITY, state);
            assert!(is_allowed(wait, stops(note), reason::INVALID_STATE));
            assert!(!is_allowed(wait, stops(note), reason::VMCALL));
            assert!(!is_allowed(wait, stops(other), reason::INVALID_STATE));
            assert!(!is_allowed(wait, calls(), reason::INVALID_STATE));
        }
    }

    #[test]
    fn a_linear_address_counts_where_there_is_one() {
        let counts = |reason, qualification| {
            has_linear_address(&Difference {
                first: None,
                second: None,
                reason: Some(reason),
                other_reason: None,
                qualification: Some(qualification),
                other_fails: false,
            })
        };
        assert!(counts(reason::EPT_VIOLATION, 0x81));
        assert!(!counts(reason::EPT_VIOLATION, 1));
        assert!(counts(reason::IO, 1 << 4));
        assert!(!counts(reason::IO, 0));
        assert!(!counts(reason::VMCALL, 0x81));
    }

    #[test]
    fn what_the_manual_leaves_open_may_differ_and_nothing_else() {
        assert!(not_allowed(field::QUALIFICATION, reason::INVALID_STATE, 4, 0).is_none());
        assert!(not_allowed(field::QUALIFICATION, reason::INVALID_STATE, 4, 1).is_some());
        assert!(not_allowed(field::QUALIFICATION, reason::MSR_LOAD, 4, 0).is_some());
        assert!(not_allowed(field::QUALIFICATION, VMREAD, 0x38, 0x18b8).is_none());
        assert!(not_allowed(field::QUALIFICATION, reason::VMCALL, 0x38, 0x18b8).is_some());
        assert!(not_allowed(field::GUEST_LINEAR, reason::VMCALL, 0, 0x5040).is_none());
    }
}
