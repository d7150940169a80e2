// SPDX-License-Identifier: GPL-2.0

//! The time of L2: the offset and the ratio of its TSC on top of those of L1, who may write the TSC,
//! and timers of L1 that end L2.

mod offsets;
mod scaling;
mod timers;
mod world;
mod writes;

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
    let mut points = offsets::points();
    points.extend(writes::points());
    points.extend(scaling::points());
    points.extend(timers::points());
    if vendor == Vendor::Vmx {
        points.extend(offsets::points_of_vmx());
        points.extend(timers::points_of_vmx());
    }
    tap::run(&points, &kvm, |_| Ok(()))
}
