// SPDX-License-Identifier: GPL-2.0

//! The harness tests itself: a planted fault must turn a run red, for the right reason.

use std::time::Duration;

use anyhow::Result;

use crate::image::rootfs::Rootfs;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::step;
use crate::tap::Verdict;

use super::{Bench, vendor_name};

/// A fault to plant, and how it must come out.
pub struct Plant {
    /// Name for tables and logs.
    pub name: &'static str,
    commands: &'static str,
    /// Seconds without a line after which the run is given up.
    silence: u64,
    /// What the reason must contain.
    reason: &'static str,
}

/// A kernel panic.
pub const PANIC: Plant = Plant {
    name: "planted-panic",
    commands: "echo c >/proc/sysrq-trigger\n",
    silence: 60,
    reason: "L0: kernel panic",
};

/// A machine that goes on and says nothing.
pub const HANG: Plant = Plant {
    name: "planted-hang",
    commands: "sleep 1000000\n",
    silence: 10,
    reason: "hang: nothing on the console for 10 s",
};

/// A test that fails, in a run whose commands end well.
pub const FAILURE: Plant = Plant {
    name: "planted-failure",
    commands: "say 'test: planted begin'\n\
        say 'TAP version 13'\n\
        say '1..2'\n\
        say 'ok 1 first'\n\
        say 'not ok 2 second'\n\
        say 'test: planted end status=1'\n\
        exit 1\n",
    silence: 60,
    reason: "the commands of L0 ended with status 1",
};

/// All planted faults.
pub const PLANTS: [&Plant; 3] = [&PANIC, &HANG, &FAILURE];

/// Runs a kernel whose work is the planted fault.
pub fn run(plant: &Plant, bench: &Bench, target: &Target) -> Result<Outcome> {
    let run = Run {
        name: format!("{}-{}", plant.name, vendor_name(target.vendor)),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files: Rootfs::default(),
        modules: Vec::new(),
        commands: plant.commands.to_owned(),
        limits: Limits {
            total: Duration::from_secs(180),
            silence: Duration::from_secs(plant.silence),
        },
        target: Target {
            memory: 512,
            ..*target
        },
    };
    let name = format!(
        "{} ({}, {})",
        plant.name,
        vendor_name(target.vendor),
        target.engine
    );
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// Returns what is wrong with the outcome of a planted fault, or nothing if it came out right.
pub fn objection(plant: &Plant, outcome: &Outcome) -> Option<String> {
    let Status::Failed { reason, excerpt } = &outcome.status else {
        return Some(format!("{}: the run passed", plant.name));
    };
    if !reason.contains(plant.reason) {
        return Some(format!("{}: the reason is {reason:?}", plant.name));
    }
    if excerpt.trim().is_empty() {
        return Some(format!("{}: no part of the console is shown", plant.name));
    }
    if plant.name == FAILURE.name {
        let verdicts: Vec<Verdict> = outcome.tap.iter().map(|test| test.verdict).collect();
        if verdicts != [Verdict::Failed] {
            return Some(format!("{}: TAP gives {:?}", plant.name, outcome.tap));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: Status) -> Outcome {
        Outcome {
            status,
            log: "log".into(),
            tap: Vec::new(),
            facts: Default::default(),
            counters: Vec::new(),
            steps: Vec::new(),
            lines: Vec::new(),
        }
    }

    #[test]
    fn a_run_that_passes_in_spite_of_the_plant_is_objected_to() {
        assert!(objection(&PANIC, &outcome(Status::Passed)).is_some());
    }

    #[test]
    fn the_wrong_reason_is_objected_to() {
        let failed = |reason: &str| {
            outcome(Status::Failed {
                reason: reason.into(),
                excerpt: "line".into(),
            })
        };
        assert!(objection(&PANIC, &failed("hang: nothing")).is_some());
        assert!(objection(&PANIC, &failed("L0: kernel panic: x")).is_none());
    }
}
