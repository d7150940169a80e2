// SPDX-License-Identifier: GPL-2.0

//! Memory that changes below vmcb12 and vmcs12, and machines that end while L2 runs.
//!
//! `nested_memory_test [ROUNDS [KILLS [SEED]]]`: how often each disturbance is tried, how often a
//! machine is ended, and where the random numbers begin. What guests do is of no interest here:
//! the kernel has to survive it.

mod disturb;
mod end;
mod guests;
mod init;

use std::process::ExitCode;

use selftests::guest::{machine, signal, Vendor};
use selftests::{tap, vm};

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    rounds: u64,
    kills: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let kvm = match vm::open().and_then(|kvm| machine::offered(&kvm).map(|_| kvm)) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    if words.first().is_some_and(|word| word == end::CHILD) {
        return end::child(&kvm);
    }
    let numbers: Result<Vec<u64>, _> = words.iter().map(|word| word.parse()).collect();
    let Ok(numbers) = numbers else {
        eprintln!("usage: nested_memory_test [ROUNDS [KILLS [SEED]]]");
        return ExitCode::FAILURE;
    };
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let fixture = Fixture {
        kvm,
        rounds: number(0, 20),
        kills: number(1, 100),
        seed: number(2, 1),
    };
    let mut points = disturb::points();
    points.extend(end::points());
    if machine::offered(&fixture.kvm).ok() == Some(Vendor::Svm) {
        points.extend(init::points());
    }
    tap::run(&points, &fixture, |_| Ok(()))
}
