// SPDX-License-Identifier: GPL-2.0

//! The guest tests in the kernel's kselftest harness: installed by `lib.mk`, and run at level 0 by the
//! script that the kernel has for that.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use crate::host::clean;
use crate::image::rootfs::Rootfs;
use crate::kernel::Kernel;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::options::{Vendor, checkout};
use crate::process::Scratch;
use crate::tap::{self, TapReport, Verdict};
use crate::{command, step};

use super::kept::Results;
use super::lifecycle::{processors, remarks};
use super::{Bench, guest, vendor_name};

/// The script that runs what is installed beside it.
const RUNNER: &str = "run_kselftest.sh";

/// What the script needs, and has from the source as well.
const PARTS: [&str; 3] = [RUNNER, "kselftest/runner.sh", "kselftest/ktap_helpers.sh"];

/// What the harness calls the programs together, and their directory.
const COLLECTION: &str = "nested";

/// Where the harness is at level 0.
const DIRECTORY: &str = "/lab/kselftest";

/// Arguments that make a program short. How it does for longer is for the suite of the guest tests.
const SHORT: [(&str, &str); 6] = [
    ("nested_memory_test", "--rounds 2 --kills 10"),
    ("nested_processor_test", "--rounds 1 --moves 200"),
    ("nested_state_test", "--rounds 50"),
    ("nested_tables_test", "--rounds 12"),
    ("nested_third_level_test", "--rounds 200 --moves 20"),
    ("svm_address_space_test", "--runs 500"),
];

/// Returns a command for the makefile of the programs.
fn make(kernel: &Kernel, target: &str) -> Result<Command> {
    let mut make = clean("make");
    make.arg("-s")
        .arg("-C")
        .arg(checkout()?.join("selftests"))
        .arg(target)
        .arg(format!("KSRC={}", kernel.srctree.display()));
    Ok(make)
}

/// Installs the programs and the harness; returns those that the harness runs.
fn install(kernel: &Kernel, dir: &Path) -> Result<Vec<String>> {
    let programs = dir.join(COLLECTION);
    let mut install = make(kernel, "install")?;
    install.arg(format!("INSTALL_PATH={}", programs.display()));
    command::output(&mut install)?;
    for program in fs::read_dir(checkout()?.join("selftests/src/bin"))? {
        let name = program?.file_name();
        let name = name.to_string_lossy();
        ensure!(programs.join(&*name).is_file(), "{name} is not installed");
    }

    let mut emit = make(kernel, "emit_tests")?;
    emit.arg(format!("COLLECTION={COLLECTION}"));
    let list = command::output(&mut emit)?;
    fs::write(dir.join("kselftest-list.txt"), &list)?;
    fs::create_dir(dir.join("kselftest"))?;
    for part in PARTS {
        let source = kernel.srctree.join("tools/testing/selftests").join(part);
        fs::copy(&source, dir.join(part)).with_context(|| source.display().to_string())?;
    }
    let names = list.lines().filter_map(|line| line.split_once(':'));
    Ok(names.map(|(_, name)| name.trim().to_owned()).collect())
}

/// Returns the script that runs the harness.
fn commands() -> String {
    let mut script = String::new();
    for (program, arguments) in SHORT {
        let name = program.to_uppercase();
        script.push_str(&format!("export KSELFTEST_{name}_ARGS='{arguments}'\n"));
    }
    // Which of the programs fail is for us to judge.
    script.push_str(&format!("{DIRECTORY}/{RUNNER} -f -c {COLLECTION}\n"));
    script
}

/// Runs the programs, and judges each by what it does with the C provider.
pub fn run(bench: &Bench, target: &Target, base: &Results) -> Result<Vec<(Verdict, String)>> {
    let installed = Scratch::new_in(&bench.logs)?;
    let names = install(&bench.kernel, installed.path())?;
    let mut files = Rootfs::default();
    for entry in WalkDir::new(installed.path()) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let below = entry.path().strip_prefix(installed.path())?;
            files.file(&format!("{DIRECTORY}/{}", below.display()), entry.path());
        }
    }
    let vendor = vendor_name(target.vendor);
    let run = Run {
        name: format!("kselftest-{vendor}"),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules(target)?,
        commands: commands(),
        limits: Limits {
            total: Duration::from_secs(900),
            // What a program prints, the harness prints when the program has ended.
            silence: Duration::from_secs(400),
        },
        target: Target {
            smp: target.smp.max(processors(target.engine)),
            ..*target
        },
    };
    let name = format!("kselftest ({vendor}, {})", target.engine);
    let outcome = step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })?;
    Ok(verdicts(target.vendor, &names, base, &outcome))
}

/// Returns the output of the programs as if they had run without the harness: between markers, with
/// the exit status that the harness has seen.
fn programs(lines: &[(u8, String)]) -> Vec<(u8, String)> {
    let name_in = |line: &str| -> Option<String> {
        let (_, rest) = line.split_once(&format!("selftests: {COLLECTION}: "))?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let line_of = |line: &str| -> Option<String> {
        if let Some(said) = line.strip_prefix("# ") {
            return Some(match name_in(said) {
                Some(name) if said.starts_with("selftests: ") => format!("test: {name} begin"),
                _ => said.to_owned(),
            });
        }
        let status = match line {
            _ if line.starts_with("not ok ") => 1,
            _ if line.starts_with("ok ") && line.contains("# SKIP") => 4,
            _ if line.starts_with("ok ") => 0,
            _ => return None,
        };
        Some(format!("test: {} end status={status}", name_in(line)?))
    };
    lines
        .iter()
        .filter_map(|(level, line)| Some((*level, line_of(line)?)))
        .collect()
}

/// Judges each program that the harness was to run.
fn verdicts(
    vendor: Vendor,
    names: &[String],
    base: &Results,
    outcome: &Outcome,
) -> Vec<(Verdict, String)> {
    let lines = programs(&outcome.lines);
    let texts: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
    let reports = tap::reports(&texts);
    let mut verdicts: Vec<_> = names
        .iter()
        .map(|name| {
            let Some(report) = reports.iter().find(|report| report.name == *name) else {
                return (Verdict::Failed, format!("{name}: it did not run"));
            };
            let by_c = base.tap.iter().find(|report| report.name == *name);
            let remarks = |point: &str| (remarks(&base.lines, point), remarks(&lines, point));
            judge(guest::has(vendor, name), by_c, report, remarks)
        })
        .collect();
    if names.is_empty() {
        verdicts.push((Verdict::Failed, "the harness has no program".into()));
    }
    if let Status::Failed { reason, excerpt } = &outcome.status {
        verdicts.push((Verdict::Failed, format!("{reason}\n{excerpt}")));
    }
    verdicts
}

/// Judges one program, which is for the vendor of the machine or not.
fn judge(
    is_for_vendor: bool,
    by_c: Option<&TapReport>,
    report: &TapReport,
    remarks: impl Fn(&str) -> (String, String),
) -> (Verdict, String) {
    let name = &report.name;
    match (is_for_vendor, report.verdict) {
        (false, Verdict::Skipped) => (Verdict::Passed, String::new()),
        (false, _) => (
            Verdict::Failed,
            format!("{name}: it does not skip on the other vendor"),
        ),
        (true, Verdict::Skipped) => (
            Verdict::Failed,
            format!("{name}: it skips: {}", report.reason),
        ),
        (true, verdict) => {
            let points = by_c.map_or(&[][..], |report| report.points.as_slice());
            let rows = guest::compare_program(points, report, remarks);
            let failed = |(row, text): (Verdict, String)| (row == Verdict::Failed).then_some(text);
            let failed: Vec<String> = rows.into_iter().filter_map(failed).collect();
            match (failed.is_empty(), verdict) {
                (false, _) => (Verdict::Failed, failed.join("\n")),
                (true, Verdict::Failed) => (
                    Verdict::Skipped,
                    format!("{name}: fails with the C provider as well"),
                ),
                (true, _) => (Verdict::Passed, String::new()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Vec<(u8, String)> {
        lines.iter().map(|line| (0, (*line).to_owned())).collect()
    }

    fn report(lines: &[&str]) -> Vec<TapReport> {
        let lines = programs(&self::lines(lines));
        let texts: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
        tap::reports(&texts)
    }

    #[test]
    fn a_program_in_the_harness_says_what_it_says_alone() {
        let seen = report(&[
            "TAP version 13",
            "1..2",
            "# timeout set to 45",
            "# selftests: nested: a_test",
            "# TAP version 13",
            "# 1..2",
            "# # a remark",
            "# ok 1 one",
            "# not ok 2 two",
            "not ok 1 selftests: nested: a_test # exit=1",
            "# timeout set to 45",
            "# selftests: nested: b_test",
            "# 1..0 # SKIP no VMX",
            "ok 2 selftests: nested: b_test # SKIP",
        ]);
        let points = vec![
            ("one".to_owned(), Verdict::Passed),
            ("two".to_owned(), Verdict::Failed),
        ];
        assert_eq!(
            (seen[0].verdict, &seen[0].points),
            (Verdict::Failed, &points)
        );
        assert_eq!(seen[1].verdict, Verdict::Skipped);
    }

    #[test]
    fn a_program_of_the_other_vendor_must_skip_and_none_else() {
        let judged = |is_for_vendor, report: &TapReport| {
            judge(is_for_vendor, Some(report), report, |_| Default::default()).0
        };
        let of = |verdict| TapReport::new("a_test", verdict, String::new());
        assert_eq!(judged(false, &of(Verdict::Skipped)), Verdict::Passed);
        assert_eq!(judged(false, &of(Verdict::Passed)), Verdict::Failed);
        assert_eq!(judged(true, &of(Verdict::Skipped)), Verdict::Failed);
        assert_eq!(judged(true, &of(Verdict::Passed)), Verdict::Passed);
    }

    #[test]
    fn a_program_may_fail_where_it_fails_with_c() {
        let with = |point| {
            let report = TapReport::new("a_test", Verdict::Failed, String::new());
            TapReport {
                points: vec![("one".to_owned(), point)],
                ..report
            }
        };
        let ours = with(Verdict::Failed);
        let judged =
            |by_c: Option<TapReport>| judge(true, by_c.as_ref(), &ours, |_| Default::default()).0;
        assert_eq!(judged(Some(with(Verdict::Failed))), Verdict::Skipped);
        assert_eq!(judged(Some(with(Verdict::Passed))), Verdict::Failed);
        assert_eq!(judged(None), Verdict::Failed);
    }

    #[test]
    fn arguments_are_named_as_the_harness_looks_for_them() {
        let script = commands();
        assert!(script.contains("export KSELFTEST_NESTED_STATE_TEST_ARGS='--rounds 50'\n"));
        assert!(script.ends_with("/lab/kselftest/run_kselftest.sh -f -c nested\n"));
    }
}
