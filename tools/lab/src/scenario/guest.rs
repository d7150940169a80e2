// SPDX-License-Identifier: GPL-2.0

//! Guest tests: the programs in `selftests/` that are the host of an L1 and an L2 of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::cache::Cache;
use crate::image::rootfs::Rootfs;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::options::checkout;
use crate::tap::{TapReport, Verdict};
use crate::{command, host, step};

use super::lifecycle::{TARGET, remarks};
use super::selftests::{Test, going_on};
use super::{Bench, vendor_name};

/// The programs, and their arguments.
const PROGRAMS: &[(&str, &str)] = &[
    ("svm_vmrun_check_test", ""),
    ("svm_intercept_test", ""),
    ("svm_memory_test", "10 100"),
    ("svm_nested_state_test", "1000 2000"),
];

/// Seconds of the guest that a program may take.
const TIME_LIMIT: u32 = 300;

/// Time without a line on the console after which a program is given up with its machine.
const SILENCE: Duration = Duration::from_secs(240);

/// Builds the programs, statically linked, and returns their directory.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let source = checkout()?.join("selftests");
    let output = cache.root().join("module-selftests");
    let _lock = cache.lock("module-selftests")?;
    step::run("build the guest tests", |step| {
        let mut cargo = host::clean("cargo");
        cargo
            .args(["build", "--release", "--locked"])
            .args(PROGRAMS.iter().flat_map(|(name, _)| ["--bin", name]))
            // Cargo reads the configuration of the directory that it runs in.
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &output);
        command::logged(&mut cargo, &cache.log("guest-tests")?, |line| {
            step.progress(line)
        })
    })?;
    Ok(output.join(TARGET).join("release"))
}

/// Returns the programs as tests.
fn list() -> Vec<Test> {
    let test = |(name, arguments): &(&str, &str)| Test {
        name: (*name).into(),
        program: (*name).into(),
        arguments: (*arguments).into(),
    };
    PROGRAMS.iter().map(test).collect()
}

/// Returns the script that runs the programs one after the other.
fn commands(tests: &[Test]) -> String {
    let mut script = String::new();
    for Test {
        name,
        program,
        arguments,
    } in tests
    {
        script.push_str(&format!(
            "say 'test: {name} begin'\n\
             {{ timeout -k 5 {TIME_LIMIT} /lab/selftests/{program} {arguments} </dev/null; \
             echo $? >/tmp/status.test; }} 2>&1 | relay\n\
             say \"test: {name} end status=$(cat /tmp/status.test)\"\n"
        ));
    }
    script.push_str("true\n");
    script
}

/// Runs the programs in one boot of level 0, or more if they stop the machine.
pub fn run(bench: &Bench, target: &Target, programs: &Path, label: &str) -> Result<Outcome> {
    going_on(&list(), label, |tests, label| {
        boot(bench, target, programs, tests, label)
    })
}

/// Runs programs in one boot of level 0.
fn boot(
    bench: &Bench,
    target: &Target,
    programs: &Path,
    tests: &[Test],
    label: &str,
) -> Result<Outcome> {
    let mut files = Rootfs::default();
    for test in tests {
        let program = &test.program;
        files.file(
            &format!("/lab/selftests/{program}"),
            &programs.join(program),
        );
    }
    let vendor = vendor_name(target.vendor);
    let run = Run {
        name: format!("guest-tests-{vendor}-{label}"),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules(target)?,
        commands: commands(tests),
        limits: Limits {
            total: Duration::from_secs(u64::from(TIME_LIMIT) * tests.len() as u64 + 120),
            silence: SILENCE,
        },
        // Two processors of L1 at once, and a host that disturbs them.
        target: Target {
            smp: target.smp.max(2),
            ..*target
        },
    };
    let name = format!("guest tests ({vendor}, {}, {label})", target.engine);
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// Returns the results of `ours`, point by point: what passes in `base` must pass there.
pub fn compare(base: &Outcome, ours: &Outcome) -> Vec<(Verdict, String)> {
    let mut verdicts = Vec::new();
    for Test { name, .. } in list() {
        let find = |outcome: &Outcome| -> Option<TapReport> {
            let report = outcome.tap.iter().find(|report| report.name == name);
            report.cloned()
        };
        let (left, right) = (find(base), find(ours));
        let Some(right) = right else {
            verdicts.push((Verdict::Failed, format!("{name}: it did not run")));
            continue;
        };
        let left = left.map(|report| report.points).unwrap_or_default();
        let mut all_known = true;
        for (point, verdict) in &right.points {
            let by_c = left.iter().find(|(other, _)| other == point);
            let by_c = by_c.map(|(_, verdict)| *verdict);
            let text = format!("{name}: {point}{}", remarks(ours, point));
            verdicts.push(match (by_c, verdict) {
                (_, Verdict::Passed) => (Verdict::Passed, text),
                (Some(Verdict::Failed), _) => {
                    let remarks = remarks(base, point);
                    let text = format!("{text}\n  fails with the C provider as well:{remarks}");
                    (Verdict::Skipped, text)
                }
                (Some(Verdict::Skipped) | None, Verdict::Skipped) => (Verdict::Skipped, text),
                _ => {
                    all_known = false;
                    (Verdict::Failed, text)
                }
            });
        }
        let missing = left.iter().filter(|(point, verdict)| {
            let ran = right.points.iter().any(|(other, _)| other == point);
            *verdict == Verdict::Passed && !ran
        });
        for (point, _) in missing {
            all_known = false;
            let text = format!("{name}: {point}: it did not get to this: {}", right.reason);
            verdicts.push((Verdict::Failed, text));
        }
        let nothing = right.points.is_empty() && right.verdict != Verdict::Passed;
        if nothing && all_known {
            verdicts.push((right.verdict, format!("{name}: {}", right.reason)));
        }
    }
    if let Status::Failed { reason, excerpt } = &ours.status {
        verdicts.push((Verdict::Failed, format!("{reason}\n{excerpt}")));
    }
    verdicts
}
