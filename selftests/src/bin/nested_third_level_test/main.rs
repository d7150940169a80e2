// SPDX-License-Identifier: GPL-2.0

//! An L2 that is a hypervisor itself: L1 does for it what KVM does for its guests, and runs L3.
//!
//! L1 keeps the VMCB or VMCS of L2, and makes
//! another one for L3 of what L2 wants and of what it wants itself, with another page table than for
//! L2. L3 computes, and calls L2; L2 checks what L3 has computed, and how it stopped. Now and then L3
//! halts, which concerns L1 only.

mod rounds;
mod svm;
mod vmx;
mod vmx_l2;
mod world;

use std::process::ExitCode;

use argh::FromArgs;
use selftests::guest::{machine, signal, Vendor};
use selftests::tap;

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    rounds: u64,
    moves: u64,
    seed: u64,
}

/// Runs an L2 that runs an L3.
#[derive(FromArgs)]
struct Arguments {
    /// how often L2 runs L3
    #[argh(option, default = "400")]
    rounds: u64,
    /// how often the machine is replaced meanwhile
    #[argh(option, default = "200")]
    moves: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
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
        rounds: arguments.rounds,
        moves: arguments.moves,
        seed: arguments.seed,
    };
    let mut points = rounds::points();
    if vendor == Vendor::Vmx {
        points.extend(rounds::points_with_shadow());
    }
    tap::run(&points, &fixture, |_| Ok(()))
}
