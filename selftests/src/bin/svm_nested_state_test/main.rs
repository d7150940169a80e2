// SPDX-License-Identifier: GPL-2.0

//! Saving and restoring a vCPU while L2 runs, and nested states that nobody has saved.
//!
//! `svm_nested_state_test [MOVES [ROUNDS [SEED]]]`: how often the machine moves, how many random
//! states are tried, and where the random numbers begin.

mod garbage;
mod moving;

use std::process::ExitCode;

use selftests::guest::{machine, signal};
use selftests::{tap, vm};

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    moves: u64,
    rounds: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|word| word.parse()).collect();
    let Ok(numbers) = numbers else {
        eprintln!("usage: svm_nested_state_test [MOVES [ROUNDS [SEED]]]");
        return ExitCode::FAILURE;
    };
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let kvm = match vm::open() {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if !machine::usable(&kvm).unwrap_or(false) {
        return tap::skip_all("KVM offers no SVM");
    }
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let fixture = Fixture {
        kvm,
        moves: number(0, 1000),
        rounds: number(1, 2000),
        seed: number(2, 1),
    };
    tap::note(format_args!("seed {}", fixture.seed));
    let mut points = moving::points();
    points.extend(garbage::points());
    tap::run(&points, &fixture, |_| Ok(()))
}
