// SPDX-License-Identifier: GPL-2.0

//! Memory that changes below vmcb12 and vmcs12, and machines that end while L2 runs.
//!
//! What guests do is of no interest here: the kernel has to survive it.

mod disturb;
mod end;
mod guests;
mod init;

use std::process::ExitCode;

use argh::FromArgs;
use selftests::guest::{machine, signal, Vendor};
use selftests::tap;

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    rounds: u64,
    kills: u64,
    seed: u64,
}

/// Disturbs the memory of control structures, and ends machines that use them.
#[derive(FromArgs)]
struct Arguments {
    /// how often each disturbance begins anew
    #[argh(option, default = "20")]
    rounds: u64,
    /// how many machines are ended
    #[argh(option, default = "100")]
    kills: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() -> ExitCode {
    let kvm = match machine::open_any() {
        Ok((kvm, _)) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    if std::env::args()
        .nth(1)
        .is_some_and(|word| word == end::CHILD)
    {
        return end::child(&kvm);
    }
    let arguments: Arguments = argh::from_env();
    let fixture = Fixture {
        kvm,
        rounds: arguments.rounds,
        kills: arguments.kills,
        seed: arguments.seed,
    };
    let mut points = disturb::points();
    points.extend(end::points());
    if machine::offered(&fixture.kvm).ok() == Some(Vendor::Svm) {
        points.extend(init::points());
    }
    tap::run(&points, &fixture, |_| Ok(()))
}
