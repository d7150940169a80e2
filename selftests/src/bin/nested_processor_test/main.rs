// SPDX-License-Identifier: GPL-2.0

//! Processors of L1 that change the processor of level 0, and that share a VMCS or a VMCB.

mod guests;
mod moved;
mod sharing;

use std::process::ExitCode;

use argh::FromArgs;
use selftests::guest::{machine, signal};
use selftests::tap;

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    moves: u64,
    rounds: u64,
    seed: u64,
}

/// Moves processors of L1, and lets two share L2's control structure.
#[derive(FromArgs)]
struct Arguments {
    /// how often threads move
    #[argh(option, default = "1000")]
    moves: u64,
    /// how many machines have processors that share
    #[argh(option, default = "10")]
    rounds: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let kvm = match machine::open_any() {
        Ok((kvm, _)) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let fixture = Fixture {
        kvm,
        moves: arguments.moves,
        rounds: arguments.rounds,
        seed: arguments.seed,
    };
    tap::note(format_args!("seed {}", fixture.seed));
    let mut points = moved::points();
    points.extend(sharing::points());
    tap::run(&points, &fixture, |_| Ok(()))
}
