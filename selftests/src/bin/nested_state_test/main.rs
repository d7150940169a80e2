// SPDX-License-Identifier: GPL-2.0

//! Saving and restoring a vCPU while L2 runs, and nested states that nobody has saved.
//!
//! `nested_state_test [MOVES [ROUNDS [SEED [MODULE]]]]`: how often the machine moves, how many
//! random states are tried, where the random numbers begin, and the file of our module.

mod changed;
mod garbage;
mod moving;
mod providers;
mod vmx;

use std::path::PathBuf;
use std::process::ExitCode;

use selftests::guest::{machine, signal, Vendor};
use selftests::{tap, vm};

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    moves: u64,
    rounds: u64,
    seed: u64,
    module: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Result<Vec<u64>, _> = words.iter().take(3).map(|word| word.parse()).collect();
    let Ok(numbers) = numbers else {
        eprintln!("usage: nested_state_test [MOVES [ROUNDS [SEED [MODULE]]]]");
        return ExitCode::FAILURE;
    };
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let opened = vm::open().and_then(|kvm| Ok((machine::offered(&kvm)?, kvm)));
    let (vendor, kvm) = match opened {
        Ok(opened) => opened,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let fixture = Fixture {
        kvm,
        moves: number(0, 1000),
        rounds: number(1, 2000),
        seed: number(2, 1),
        module: words.get(3).map(PathBuf::from),
    };
    tap::note(format_args!("seed {}", fixture.seed));
    let mut points = moving::points();
    match vendor {
        Vendor::Svm => points.extend(garbage::points()),
        Vendor::Vmx => {
            points.extend(vmx::points());
            points.extend(changed::points());
        }
    }
    if fixture.module.is_some() {
        points.extend(providers::points());
    }
    tap::run(&points, &fixture, |_| Ok(()))
}
