// SPDX-License-Identifier: GPL-2.0

//! Cases from a seed and a number.

use oorandom::Rand64;

use super::code::{self, address, MOST, ROWS};
use super::vocabulary::{self, Place, Verb, Vocabulary};
use super::{Action, Case};
use crate::guest::layout::VIRTUAL_APIC;
use crate::guest::vmx::near_valid::{Change, PAGE, WIDE};
use crate::guest::Vendor;

/// An address that is too wide on any processor.
const TOO_WIDE: u64 = 1 << 52;

/// The most entries of L2 in a case.
const ROUNDS: u64 = 4;

/// What makes a case.
struct Generator<'a> {
    random: Rand64,
    vendor: Vendor,
    vocabulary: Vocabulary,
    initial: &'a dyn Fn(u64) -> u64,
    /// Whether about all that L2 does exits.
    exits: bool,
    steps: Vec<Action>,
}

/// Returns the case with a number: the same one for the same seed, whatever was run before.
///
/// `initial` is what the fields of a VMCS or VMCB are at the beginning.
pub fn case(vendor: Vendor, seed: u64, number: u64, initial: &dyn Fn(u64) -> u64) -> Case {
    let mut generator = Generator {
        random: Rand64::new(u128::from(seed) << 64 | u128::from(number)),
        vendor,
        vocabulary: vocabulary::of(vendor),
        initial,
        exits: number % 4 == 3,
        steps: Vec::new(),
    };
    let code = generator.code();
    generator.first_round(code.len());
    for _ in 0..generator.below(ROUNDS) {
        generator.next_round(code.len());
    }
    Case {
        vendor,
        code,
        steps: generator.steps,
    }
}

impl Generator<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.random.rand_range(0..limit)
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> Option<T> {
        let index = self.below(values.len().max(1) as u64);
        values.get(index as usize).copied()
    }

    fn code(&mut self) -> Vec<Action> {
        let count = 1 + self.below(MOST as u64);
        let fits = |row: &&code::Row| row.vendor.is_none() || row.vendor == Some(self.vendor);
        let rows: Vec<&code::Row> = ROWS.iter().filter(fits).collect();
        (0..count)
            .filter_map(|_| {
                let row = self.one_of(&rows)?;
                Some(code::action(row, |values| self.one_of(values).unwrap_or(0)))
            })
            .collect()
    }

    fn first_round(&mut self, length: usize) {
        if self.below(6) == 0 {
            let mode = self.one_of(self.vocabulary.modes);
            for (at, bits, value) in mode.unwrap_or_default() {
                self.set(*at, *bits, *value);
            }
        }
        if self.exits {
            for (at, bits, more) in self.vocabulary.exits {
                self.set(*at, *bits, (self.initial)(*at) | more);
            }
        }
        for _ in 0..self.below(5) {
            self.change(length);
        }
        for _ in 0..self.below(3) {
            self.verb();
        }
        let (verb, operand) = self.vocabulary.enter;
        self.enter(verb, operand);
    }

    fn next_round(&mut self, length: usize) {
        if self.below(4) != 0 {
            let slot = self.below(length as u64 + 1) as usize;
            self.set(self.vocabulary.rip, 64, address(slot));
        }
        for _ in 0..self.below(3) {
            self.change(length);
        }
        for _ in 0..self.below(2) {
            self.verb();
        }
        let (verb, operand) = self.vocabulary.again;
        self.enter(verb, operand);
    }

    fn enter(&mut self, verb: &'static str, operand: u64) {
        self.steps.push(Action::new(verb, &[operand]));
    }

    fn set(&mut self, at: u64, bits: u32, value: u64) {
        let action = (self.vocabulary.set)(at, bits, value);
        self.steps.push(action);
    }

    /// Changes a part of the state of L2.
    fn change(&mut self, length: usize) {
        let index = self.below(self.vocabulary.places.len() as u64) as usize;
        let Some(Place { at, bits, change }) = self.vocabulary.places.get(index).copied() else {
            return;
        };
        let value = match change {
            Change::Flip(mask) => {
                let left = self.below(mask.count_ones().into());
                let bit = (0..left).fold(mask, |bits, _| bits & (bits - 1));
                (self.initial)(at) ^ (bit & bit.wrapping_neg())
            }
            Change::Set(values) => match self.one_of(values).unwrap_or(0) {
                WIDE => TOO_WIDE,
                value if (PAGE..=PAGE + 0x800).contains(&value) => VIRTUAL_APIC + (value - PAGE),
                value => value,
            },
        };
        if at == self.vocabulary.rip && self.below(2) == 0 {
            let slot = self.below(length as u64 + 1) as usize;
            return self.set(at, bits, address(slot));
        }
        self.set(at, bits, value);
    }

    /// Lets L1 execute an instruction.
    fn verb(&mut self) {
        let verbs = self.vocabulary.verbs;
        let sum = verbs.iter().map(|verb| verb.weight).sum();
        let mut left = self.below(sum);
        let chosen = verbs.iter().find(|verb| {
            let found = left < verb.weight;
            left = left.wrapping_sub(verb.weight);
            found
        });
        let Some(Verb { name, operands, .. }) = chosen else {
            return;
        };
        let mut values = [0; 3];
        for (value, choices) in values.iter_mut().zip(*operands) {
            *value = self.one_of(choices).unwrap_or(0);
        }
        self.steps.push(Action::new(name, &values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_depends_on_its_seed_and_number_only() {
        for vendor in [Vendor::Svm, Vendor::Vmx] {
            let case = |seed, number| super::case(vendor, seed, number, &|_| 0);
            assert_eq!(case(7, 9), case(7, 9));
            assert_ne!(case(7, 9), case(7, 10));
            assert_ne!(case(7, 9), case(8, 9));
        }
    }

    #[test]
    fn all_instructions_and_verbs_are_used() {
        for vendor in [Vendor::Svm, Vendor::Vmx] {
            let cases: Vec<Case> = (0..4000).map(|n| case(vendor, 1, n, &|_| 0)).collect();
            let in_code = |verb| {
                let mut all = cases.iter().flat_map(|case| &case.code);
                all.any(|action| action.verb == verb)
            };
            let wanted = ROWS
                .iter()
                .filter(|row| row.vendor.is_none() || row.vendor == Some(vendor));
            for row in wanted {
                assert!(in_code(row.verb), "{}", row.verb);
            }
            for verb in vocabulary::of(vendor).verbs {
                let mut all = cases.iter().flat_map(|case| &case.steps);
                assert!(all.any(|action| action.verb == verb.name), "{}", verb.name);
            }
        }
    }
}
