// SPDX-License-Identifier: GPL-2.0

//! The life cycle of our modules: `selftests/` on each kind of kernel.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::image::rootfs::Rootfs;
use crate::machine::accel::Engine;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::options::checkout;
use crate::tap::Verdict;
use crate::{command, host, step};

use super::selftests::Test;
use super::{Bench, vendor_name};

/// The test program.
const PROGRAM: &str = "module_lifecycle_test";

/// What the program is linked for: see `selftests/.cargo/config.toml`.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Seconds that the program may take under an emulator.
const TIME_LIMIT: u32 = 900;

/// Where the modules are in the guest.
const DIRECTORY: &str = "/lab/lifecycle";

/// Builds the test program.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    build_program(cache, PROGRAM)
}

/// Builds a program of `selftests/`, statically linked.
pub fn build_program(cache: &Cache, program: &str) -> Result<PathBuf> {
    let checkout = checkout()?;
    let source = checkout.join("selftests");
    // Not in the cache: cargo takes the library of another checkout for this one's.
    let output = checkout.join("build/selftests");
    let _lock = cache.lock("module-selftests")?;
    step::run(&format!("build {program}"), |step| {
        let mut cargo = host::clean("cargo");
        cargo
            .args(["build", "--release", "--locked", "--bin", program])
            // Cargo reads the configuration of the directory that it runs in.
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &output);
        command::logged(&mut cargo, &cache.log("module-selftests")?, |line| {
            step.progress(line)
        })
    })?;
    Ok(output.join(TARGET).join("release").join(program))
}

/// Returns the script that runs the program; the modules and their parameters are its arguments.
fn commands(vendor: &str, kernel: &str, parameters: &str) -> String {
    let test = Test {
        name: PROGRAM.into(),
        program: PROGRAM.into(),
        arguments: format!("{vendor} {kernel} {DIRECTORY} {parameters}"),
    };
    test.script(TIME_LIMIT, 1)
}

/// Returns the least number of CPUs for what threads do at the same time: VMs are created on one
/// while modules come and go on the other.
///
/// Bochs executes its CPUs in turns, the idle ones too: a second one would take half of the time,
/// and threads alternate on a single one as well.
pub fn processors(engine: Engine) -> u32 {
    match engine {
        Engine::Bochs => 1,
        Engine::Tcg | Engine::Icount | Engine::Kvm => 2,
    }
}

/// Runs the program on the kernel of a bench, which must have our modules.
///
/// They are not inserted before: the program does that. On a kernel without the series they are
/// those of the kernel with it.
pub fn run(bench: &Bench, target: &Target, program: &std::path::Path) -> Result<Outcome> {
    let ours = bench.ours.as_ref().context("the life cycle of no module")?;
    let mut files = Rootfs::default();
    files.file(&format!("/lab/selftests/{PROGRAM}"), program);
    for module in bench.kernel.modules.iter().chain([&ours.vmx, &ours.svm]) {
        let name = module.file_name().and_then(|name| name.to_str());
        let name = name.context("a module without a name")?;
        files.file(&format!("{DIRECTORY}/{name}"), module);
    }
    // What the engine needs for KVM's module of the vendor; the others have no parameters.
    let parameters: Vec<String> = bench
        .modules(target)?
        .into_iter()
        .map(|module| module.parameters)
        .collect();
    let (vendor, kernel) = (vendor_name(target.vendor), bench.kernel.variant.name());
    let run = Run {
        name: format!("lifecycle-{vendor}-{kernel}"),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: Vec::new(),
        commands: commands(vendor, kernel, parameters.join(" ").trim()),
        limits: Limits {
            total: Duration::from_secs(u64::from(TIME_LIMIT) + 120),
            ..Limits::default()
        },
        target: Target {
            smp: processors(target.engine).max(target.smp),
            ..*target
        },
    };
    let name = format!("life cycle ({vendor}, {}, {kernel} kernel)", target.engine);
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// Returns the results of the program's points with what they say, and of the run if it is none of
/// these that failed.
pub fn verdicts(outcome: &Outcome) -> Vec<(Verdict, String)> {
    verdicts_of(PROGRAM, outcome)
}

/// Does the same for another program.
pub fn verdicts_of(program: &str, outcome: &Outcome) -> Vec<(Verdict, String)> {
    let report = outcome.tap.iter().find(|report| report.name == program);
    let points = report.map_or(&[][..], |report| report.points.as_slice());
    let mut verdicts: Vec<(Verdict, String)> = points
        .iter()
        .map(|(name, verdict)| (*verdict, format!("{name}{}", remarks(&outcome.lines, name))))
        .collect();
    let failed = |verdicts: &[(Verdict, String)]| {
        verdicts
            .iter()
            .any(|(verdict, _)| *verdict == Verdict::Failed)
    };
    match (&outcome.status, report) {
        (Status::Failed { reason, excerpt }, _) => {
            verdicts.push((Verdict::Failed, format!("{reason}\n{excerpt}")));
        }
        (Status::Passed, None) => {
            verdicts.push((Verdict::Failed, "the program did not run".into()));
        }
        (Status::Passed, Some(report)) => {
            if report.verdict == Verdict::Failed && !failed(&verdicts) || points.is_empty() {
                verdicts.push((report.verdict, report.reason.clone()));
            }
        }
    }
    verdicts
}

/// Returns the lines that the program printed about a point that did not pass.
pub fn remarks(lines: &[(u8, String)], point: &str) -> String {
    let lines: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
    let end = lines
        .iter()
        .position(|line| line.starts_with("not ok ") && line.ends_with(point))
        .unwrap_or(0);
    let start = lines[..end]
        .iter()
        .rposition(|line| !line.starts_with("# "));
    let start = start.map_or(end, |before| before + 1);
    lines[start..end]
        .iter()
        .map(|line| format!("\n    {line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap;

    fn outcome(lines: &[&str]) -> Outcome {
        Outcome {
            status: Status::Passed,
            log: "log".into(),
            tap: tap::reports(lines),
            facts: Default::default(),
            counters: Vec::new(),
            steps: Vec::new(),
            lines: lines.iter().map(|line| (0, (*line).to_owned())).collect(),
        }
    }

    #[test]
    fn each_point_counts_and_a_failed_one_has_its_reason() {
        let seen = verdicts(&outcome(&[
            "test: module_lifecycle_test begin",
            "TAP version 13",
            "1..3",
            "# chatter",
            "ok 1 one",
            "# expected 1, saw 2",
            "not ok 2 two",
            "ok 3 three # SKIP no CPU",
            "test: module_lifecycle_test end status=1",
        ]));
        let expected = [
            (Verdict::Passed, "one".to_owned()),
            (Verdict::Failed, "two\n    # expected 1, saw 2".to_owned()),
            (Verdict::Skipped, "three".to_owned()),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_program_that_stops_early_or_never_starts_is_a_failure() {
        let early = verdicts(&outcome(&[
            "test: module_lifecycle_test begin",
            "TAP version 13",
            "1..2",
            "ok 1 one",
            "test: module_lifecycle_test end status=0",
        ]));
        assert!(early.iter().any(|(verdict, _)| *verdict == Verdict::Failed));
        assert_eq!(verdicts(&outcome(&[]))[0].0, Verdict::Failed);
    }

    #[test]
    fn the_engines_parameters_reach_the_program() {
        let script = commands("intel", "stock", "enable_apicv=0");
        assert!(script.contains("intel stock /lab/lifecycle enable_apicv=0 "));
    }
}
