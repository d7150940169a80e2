// SPDX-License-Identifier: GPL-2.0

//! The harness tests itself: a planted fault must turn a run red, for the right reason.

use std::time::Duration;

use anyhow::Result;

use crate::image::level::{self, Nest, Work};
use crate::image::rootfs::Rootfs;
use crate::machine::{self, CMDLINE, Limits, Outcome, Run, Status, Target};
use crate::step;
use crate::tap::{TapReport, Verdict};

use super::{Bench, vendor_name};

/// A fault to plant, and how it must come out.
pub struct Plant {
    /// Name for tables and logs.
    pub name: &'static str,
    commands: &'static str,
    /// What the guest at level 1 does, if there is one.
    guest: Option<&'static str>,
    /// Seconds without a line after which the run is given up.
    silence: u64,
    /// What the reason must contain.
    reason: &'static str,
    /// What the part of the console that is shown must contain.
    evidence: &'static str,
}

/// A kernel panic.
pub const PANIC: Plant = Plant {
    name: "planted-panic",
    commands: "echo c >/proc/sysrq-trigger\n",
    guest: None,
    silence: 60,
    reason: "L0: kernel panic",
    evidence: "sysrq triggered crash",
};

/// A machine that goes on and says nothing.
pub const HANG: Plant = Plant {
    name: "planted-hang",
    commands: "sleep 1000000\n",
    guest: None,
    silence: 10,
    reason: "hang: nothing on the console for 10 s",
    evidence: "=== lab: up level=0",
};

/// A warning of the kernel, in a run whose commands end well.
///
/// Nothing in user space can cause one on our kernels: its line is written as the kernel would.
pub const WARNING: Plant = Plant {
    name: "planted-warning",
    commands: "echo '<4>WARNING: planted.c:1 at planted+0x1/0x2, CPU#0: sh/1' >/dev/kmsg\n",
    guest: None,
    silence: 60,
    reason: "L0: WARNING: WARNING: planted.c:1",
    evidence: "planted+0x1/0x2",
};

/// A triple fault of a guest: with `reboot=t` that is how its kernel resets the machine.
pub const TRIPLE_FAULT: Plant = Plant {
    name: "planted-triple-fault",
    commands: "nest\n",
    guest: Some("reboot -f\n"),
    silence: 120,
    reason: "L1 stopped before its end marker: triple fault or reset",
    evidence: "reboot: Restarting system",
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
    guest: None,
    silence: 60,
    reason: "the commands of L0 ended with status 1",
    evidence: "not ok 2 second",
};

/// All planted faults.
pub const PLANTS: [&Plant; 5] = [&PANIC, &HANG, &WARNING, &TRIPLE_FAULT, &FAILURE];

/// Runs a kernel whose work is the planted fault.
pub fn run(plant: &Plant, bench: &Bench, target: &Target) -> Result<Outcome> {
    let mut files = Rootfs::default();
    let mut modules = Vec::new();
    if let Some(script) = plant.guest {
        let nest = Nest {
            last: 1,
            kernel: bench.kernel.bzimage.clone(),
            work: Work::Script(script),
            modules: Vec::new(),
            nested: Vec::new(),
            cmdline: format!("{CMDLINE} reboot=t"),
            seed: 0,
            smp: 1,
            engine: target.engine,
            files: Rootfs::default(),
            middle: None,
        };
        level::add_nest(&mut files, &bench.programs.tools, &nest)?;
        modules = bench.modules(target)?;
    }
    let run = Run {
        name: format!("{}-{}", plant.name, vendor_name(target.vendor)),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules,
        commands: plant.commands.to_owned(),
        limits: Limits {
            total: Duration::from_secs(240),
            silence: Duration::from_secs(plant.silence),
        },
        target: Target {
            memory: level::memory(0, 1),
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

/// Plants a fault and returns the result as that of a test.
pub fn result(plant: &Plant, bench: &Bench, target: &Target) -> Result<TapReport> {
    let objection = objection(plant, &run(plant, bench, target)?);
    let verdict = match objection {
        None => Verdict::Passed,
        Some(_) => Verdict::Failed,
    };
    Ok(TapReport::new(
        plant.name,
        verdict,
        objection.unwrap_or_default(),
    ))
}

/// Returns what is wrong with the outcome of a planted fault, or nothing if it came out right.
pub fn objection(plant: &Plant, outcome: &Outcome) -> Option<String> {
    let Status::Failed { reason, excerpt } = &outcome.status else {
        return Some(format!("{}: the run passed", plant.name));
    };
    if !reason.contains(plant.reason) {
        return Some(format!("{}: the reason is {reason:?}", plant.name));
    }
    if !excerpt.contains(plant.evidence) {
        return Some(format!("{}: this does not show it:\n{excerpt}", plant.name));
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
                excerpt: "sysrq: sysrq triggered crash".into(),
            })
        };
        assert!(objection(&PANIC, &failed("hang: nothing")).is_some());
        assert!(objection(&PANIC, &failed("L0: kernel panic: x")).is_none());
    }

    #[test]
    fn an_excerpt_that_does_not_show_the_fault_is_objected_to() {
        let outcome = outcome(Status::Failed {
            reason: TRIPLE_FAULT.reason.into(),
            excerpt: "[ 1.0] | === lab: start level=1".into(),
        });
        let objection = objection(&TRIPLE_FAULT, &outcome).unwrap();
        assert!(objection.contains("start level=1"), "{objection}");
    }

    #[test]
    fn the_planted_warning_is_a_line_of_the_kernel() {
        let now = std::time::Instant::now();
        let mut watcher = crate::machine::watch::Watcher::new(now);
        let line = WARNING.commands.split(['<', '>', '\'']).nth(3).unwrap();
        watcher.see(&format!("[    1.5] {line}"), now);
        let outcome = watcher.outcome("log".into(), "");
        assert_eq!(objection(&WARNING, &outcome), None);
    }
}
