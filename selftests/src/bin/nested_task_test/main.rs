// SPDX-License-Identifier: GPL-2.0

//! Switches of tasks, which an L2 in protected mode makes by the processor's own means.

/// Calls a macro with the ways of a switch, and their names.
macro_rules! with_ways {
    ($points:ident) => {
        $points! {
            Jump "JMP";
            JumpToGate "JMP through a gate";
            Call "CALL";
            CallOfGate "CALL through a gate";
            Return "IRET";
            Interrupt "INT";
            Undefined "an exception";
            Protection "an exception with an error code";
            Injected "an exception that L1 injects";
        }
    };
}

mod svm;
mod vmx;
mod world;

use std::process::ExitCode;

use selftests::guest::{machine, signal, Vendor};
use selftests::tap;

fn main() -> ExitCode {
    let (kvm, vendor) = match machine::open_any() {
        Ok(opened) => opened,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let points = match vendor {
        Vendor::Svm => svm::points(),
        Vendor::Vmx => vmx::points(),
    };
    tap::run(&points, &kvm, |_| Ok(()))
}
