// SPDX-License-Identifier: GPL-2.0

//! What L1 and the test program see of a case.

use std::fmt;

use crate::guest::vmx::bits::reason;
use crate::guest::vmx::field;

/// Something that is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// How a step ended: 0, or that it failed, see [`crate::guest::vmx::code::outcome`].
    Outcome,
    /// What a step has read, or the number of its failure, or the vector of its exception.
    Value,
    /// The error code of an exception of a step.
    Error,
    /// A field of the VMCS, by its encoding.
    Field(u32),
    /// A word of memory, by its address.
    Memory(u64),
    /// A register of L1 or L2, whichever runs, by KVM's name.
    Register(&'static str),
    /// A word of the nested state that KVM saves.
    Nested(usize),
    /// Why KVM_RUN has returned, the hash of it; it is said in the note.
    Stop,
}

/// Something that is seen, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of the step, or of that which ended the round.
    pub step: usize,
    /// What is seen.
    pub what: What,
    /// What it is.
    pub value: u64,
    /// More about it for the reader.
    pub note: String,
}

impl Seen {
    /// Notes a number.
    pub fn number(step: usize, what: What, value: u64) -> Self {
        let note = String::new();
        Self {
            step,
            what,
            value,
            note,
        }
    }

    /// Notes why KVM_RUN has returned.
    pub fn stop(step: usize, note: String) -> Self {
        Self {
            step,
            what: What::Stop,
            value: 0,
            note,
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            step,
            what,
            value,
            note,
        } = self;
        match what {
            What::Field(field) => write!(f, "step {step}: field {field:#06x}: {value:#x}"),
            What::Memory(address) => write!(f, "step {step}: memory {address:#x}: {value:#x}"),
            What::Stop => write!(f, "step {step}: KVM_RUN: {note}"),
            _ => write!(f, "step {step}: {what:?}: {value:#x}"),
        }
    }
}

/// Something that two providers do not do in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the first one does.
    pub first: Option<Seen>,
    /// What the second one does.
    pub second: Option<Seen>,
    /// Why L2 has exited in that step with the first one, if that is a field.
    pub reason: Option<u64>,
    /// The same with the second one.
    pub other_reason: Option<u64>,
    /// The qualification of that exit with the first one.
    pub qualification: Option<u64>,
    /// Whether L2's state is what is wrong with an entry of the second one, there or behind.
    pub other_fails: bool,
}

impl Difference {
    /// Returns what differs.
    pub fn what(&self) -> Option<What> {
        let seen = self.first.as_ref().or(self.second.as_ref());
        seen.map(|seen| seen.what)
    }

    /// Returns whether the first provider has left KVM_RUN with this note, and the second one has
    /// not.
    pub fn only_first_stops(&self, note: &str) -> bool {
        stop(&self.first) == Some(note) && stop(&self.second) != Some(note)
    }

    /// Returns whether only the second provider has left KVM_RUN with this note.
    pub fn only_second_stops(&self, note: &str) -> bool {
        stop(&self.second) == Some(note) && stop(&self.first) != Some(note)
    }

    /// Returns whether both have written to a port, but not the same.
    pub fn is_of_output(&self) -> bool {
        let writes = |seen| stop(seen).is_some_and(|note| note.starts_with("Out("));
        writes(&self.first) && writes(&self.second)
    }

    /// Returns whether one of them was interrupted as it had not come to an end.
    pub fn is_of_time(&self) -> bool {
        let lost = |seen| stop(seen) == Some(LOST);
        lost(&self.first) || lost(&self.second)
    }

    /// Returns the values, if both have one of the same thing.
    pub fn values(&self) -> Option<(u64, u64)> {
        let (first, second) = (self.first.as_ref()?, self.second.as_ref()?);
        (first.what == second.what).then_some((first.value, second.value))
    }
}

/// Why KVM_RUN has returned where the guest did not come to an end, or to its own code.
pub const LOST: &str = "interrupted, or elsewhere";

/// Returns why KVM_RUN has returned, if that is what is seen.
fn stop(seen: &Option<Seen>) -> Option<&str> {
    let seen = seen.as_ref().filter(|seen| seen.what == What::Stop)?;
    Some(&seen.note)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |seen: &Option<Seen>| {
            seen.as_ref()
                .map_or_else(|| "nothing".to_owned(), Seen::to_string)
        };
        write!(f, "C: {}; ours: {}", text(&self.first), text(&self.second))?;
        match self.reason {
            Some(reason) => write!(f, "; exit {reason:#x}"),
            None => Ok(()),
        }
    }
}

/// Returns what differs; behind a place where not even the same things are seen, nothing is
/// compared.
pub fn differences(first: &[Seen], second: &[Seen]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let invalid = |seen: &Seen| {
        seen.what == What::Field(field::EXIT_REASON) && seen.value == reason::INVALID_STATE
    };
    for index in 0..first.len().max(second.len()) {
        let (one, other) = (first.get(index), second.get(index));
        if one == other {
            continue;
        }
        let difference = Difference {
            first: one.cloned(),
            second: other.cloned(),
            reason: one.and_then(|seen| value_of(first, seen.step, field::EXIT_REASON)),
            other_reason: other.and_then(|seen| value_of(second, seen.step, field::EXIT_REASON)),
            qualification: one.and_then(|seen| value_of(first, seen.step, field::QUALIFICATION)),
            other_fails: second.iter().skip(index).any(invalid),
        };
        let aligned = difference.values().is_some();
        differences.push(difference);
        if !aligned {
            break;
        }
    }
    differences
}

/// Returns what a field is after a step.
fn value_of(all: &[Seen], step: usize, field: u32) -> Option<u64> {
    let found = all
        .iter()
        .find(|seen| seen.step == step && seen.what == What::Field(field));
    found.map(|seen| seen.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_long_as_they_are_of_the_same_thing() {
        let seen = |what, value| Seen::number(0, what, value);
        let first = [
            seen(What::Outcome, 0),
            seen(What::Field(1), 1),
            seen(What::Field(2), 2),
        ];
        let mut second = first.to_vec();
        assert!(differences(&first, &second).is_empty());
        second[1].value = 5;
        let found = differences(&first, &second);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].values(), Some((1, 5)));
        second[0] = Seen::stop(0, "halt".into());
        assert_eq!(differences(&first, &second).len(), 1);
        assert_eq!(differences(&first, &second[..0]).len(), 1);
    }
}
