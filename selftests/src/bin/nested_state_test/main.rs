// SPDX-License-Identifier: GPL-2.0

//! Saving and restoring a vCPU while L2 runs, and nested states that nobody has saved.

mod changed;
mod garbage;
mod moving;
mod providers;
mod vmx;

use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;
use selftests::guest::{machine, signal, Vendor};
use selftests::tap;

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    moves: u64,
    rounds: u64,
    seed: u64,
    module: Option<PathBuf>,
}

/// Moves a machine with L2 to new ones.
#[derive(FromArgs)]
struct Arguments {
    /// how often a machine is replaced
    #[argh(option, default = "1000")]
    moves: u64,
    /// how often what user space restores is changed
    #[argh(option, default = "2000")]
    rounds: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
    /// our module, to change the provider on the way
    #[argh(option)]
    module: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let (kvm, vendor) = match machine::open_any() {
        Ok(opened) => opened,
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
        module: arguments.module,
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
