// SPDX-License-Identifier: GPL-2.0

//! The upstream KVM selftests that concern nesting, with two providers, compared test by test.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::command;
use crate::image::rootfs::Rootfs;
use crate::machine::accel::Engine;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::options::Vendor;
use crate::selftests::Selftests;
use crate::step;
use crate::tap::{TapReport, Verdict};

use super::kept::{Purpose, Question, Results};
use super::{Bench, vendor_name};

/// Beginnings of the names of programs in `x86/` that concern nesting.
const FAMILIES: [&str; 5] = ["nested_", "vmx_", "svm_", "hyperv_", "evmcs_"];

/// Further programs in `x86/`.
const SINGLE: [&str; 3] = ["state_test", "smm_test", "triple_fault_event_test"];

/// Dirty logging and what else changes the page tables below a guest, in a form that is short under an
/// emulator: program, arguments, name.
const MEMORY: [(&str, &str, &str); 6] = [
    ("dirty_log_test", "-M dirty-log -i 3", "dirty_log_test"),
    (
        "dirty_log_perf_test",
        "-n -i 2 -b 4M -v 1",
        "dirty_log_perf_test-n",
    ),
    (
        "access_tracking_perf_test",
        "-v 1 -b 4M",
        "access_tracking_perf_test",
    ),
    ("demand_paging_test", "-v 1 -b 4M", "demand_paging_test"),
    (
        "memslot_modification_stress_test",
        "-v 1 -b 4M -i 20",
        "memslot_modification_stress_test",
    ),
    ("mmu_stress_test", "-c 2 -m 1 -s 1", "mmu_stress_test"),
];

/// Seconds of the guest that a test may take.
fn time_limit(engine: Engine) -> u32 {
    match engine {
        Engine::Tcg | Engine::Icount | Engine::Kvm => 60,
        // A second there is 200 million instructions, four seconds of the host or more.
        Engine::Bochs => 20,
    }
}

/// Tests that an engine is not suited for: what they wait for takes too long there, or they measure
/// time.
///
/// Under Bochs each tick is an instruction, of which it executes some 50 million in a second.
const UNSUITED: [(Engine, Option<Vendor>, &str, &str); 6] = [
    (
        Engine::Bochs,
        None,
        "mmu_stress_test",
        "writes to each page of a GiB again and again, minutes under Bochs",
    ),
    (
        Engine::Tcg,
        None,
        "mmu_stress_test",
        "writes to each page of a GiB again and again, more than a minute under TCG",
    ),
    (
        Engine::Bochs,
        None,
        "vmx_preemption_timer_test",
        "waits for 3.2 thousand million TSC ticks, minutes under Bochs",
    ),
    (
        Engine::Bochs,
        None,
        "hyperv_ipi",
        "waits by loops of 100 million pauses, minutes under Bochs",
    ),
    (
        Engine::Bochs,
        None,
        "nested_tsc_scaling_test",
        "measures the TSC by the clock, but instructions drive both under Bochs",
    ),
    (
        Engine::Bochs,
        Some(Vendor::Amd),
        "hyperv_tlb_flush",
        "prints nothing for minutes with any provider on the AMD model of Bochs",
    ),
];

/// Tests that now and then fail with the C provider, too (`Documentation/errata.rst`): a run of one
/// that fails is repeated.
const UNSTABLE: [(Engine, Vendor, &str); 2] = [
    (Engine::Bochs, Vendor::Amd, "svm_int_ctl_test"),
    (Engine::Tcg, Vendor::Amd, "hyperv_clock"),
];

/// How often such a test is run at most.
const ATTEMPTS: usize = 3;

/// Time without a line on the console after which a test is given up with its machine.
const SILENCE: Duration = Duration::from_secs(150);

/// A test program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Name in the table.
    pub name: String,
    /// Path below the directory of the selftests.
    pub program: String,
    /// Arguments.
    pub arguments: String,
}

impl Test {
    /// Names what is no program.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            program: String::new(),
            arguments: String::new(),
        }
    }

    /// Returns the part of a script that runs it, for `time_limit` seconds of the guest at most, and
    /// again if it fails, up to so many `attempts`.
    pub fn script(&self, time_limit: u32, attempts: usize) -> String {
        let Self {
            name,
            program,
            arguments,
        } = self;
        let attempts = ["x"].repeat(attempts).join(" ");
        // The marker goes past the pipe: it is on the console before the test can stop the
        // machine. The pipe is empty when the shell goes on.
        format!(
            "say 'test: {name} begin'\n\
             {{ for attempt in {attempts}; do \
             timeout -k 5 {time_limit} /lab/selftests/{program} {arguments} </dev/null && break; \
             done; echo $? >/tmp/status.test; }} 2>&1 | relay\n\
             say \"test: {name} end status=$(cat /tmp/status.test)\"\n"
        )
    }
}

/// Returns the tests of a build, by name.
pub fn list(dir: &Path) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    let x86 = dir.join("x86");
    for entry in fs::read_dir(&x86).with_context(|| format!("reading {}", x86.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let chosen = FAMILIES.iter().any(|family| name.starts_with(family))
            || SINGLE.contains(&name.as_str());
        if chosen && entry.file_type()?.is_file() && !name.contains('.') {
            tests.push(Test {
                program: format!("x86/{name}"),
                name,
                arguments: String::new(),
            });
        }
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    for (program, arguments, name) in MEMORY {
        if dir.join(program).is_file() {
            let [name, program, arguments] = [name, program, arguments].map(str::to_owned);
            tests.push(Test {
                name,
                program,
                arguments,
            });
        }
    }
    ensure!(
        !tests.is_empty(),
        "no selftest in {} concerns nesting",
        dir.display()
    );
    Ok(tests)
}

/// Returns the script that runs the tests one after the other, for so many times the usual time at
/// most.
fn commands(tests: &[Test], engine: Engine, vendor: Vendor, slowdown: u32) -> String {
    let time_limit = time_limit(engine) * slowdown;
    let mut script = String::from("mkdir -p /tmp/test\ncd /tmp/test\n");
    for test in tests {
        let name = &test.name;
        let unsuited = UNSUITED.iter().find(|(on, of, unsuited, _)| {
            *on == engine && of.is_none_or(|of| of == vendor) && unsuited == name
        });
        if let Some((_, _, _, why)) = unsuited {
            let why = command::quote(&format!("SKIP: {why}"));
            let _ = writeln!(
                script,
                "say 'test: {name} begin'\nsay {why}\nsay 'test: {name} end status=4'"
            );
            continue;
        }
        let attempts = if UNSTABLE.contains(&(engine, vendor, name)) {
            ATTEMPTS
        } else {
            1
        };
        script.push_str(&test.script(time_limit, attempts));
    }
    script.push_str("true\n");
    script
}

/// Returns the results of tests; those without our modules may be kept from an earlier run.
pub fn results(
    cache: &Cache,
    bench: &Bench,
    target: &Target,
    selftests: &Selftests,
    tests: &[Test],
    label: &str,
) -> Result<Results> {
    let run = |tests: &[Test]| run(bench, target, selftests, tests, label);
    if bench.ours.is_some() {
        return run(tests).map(Results::from);
    }
    let question = Question {
        what: &format!("KVM selftests, {label}"),
        bench,
        target,
        programs: selftests.key.to_string(),
        commands: commands(tests, target.engine, target.vendor, bench.kernel.slowdown()),
        tests,
        purpose: Purpose::Comparison,
    };
    question.results(cache, |tests| run(tests).map(Results::from))
}

/// Runs the tests, all in one boot of level 0 unless one of them stops the machine.
///
/// Such a test has failed, and another boot goes on with the tests behind it. The outcome is that
/// of the boots together; it failed if a boot did not get to any test.
pub fn run(
    bench: &Bench,
    target: &Target,
    selftests: &Selftests,
    tests: &[Test],
    label: &str,
) -> Result<Outcome> {
    going_on(tests, label, |tests, label| {
        boot(bench, target, selftests, tests, label)
    })
}

/// Runs tests by `boot`, and by another one the tests behind the one that stopped the machine.
pub fn going_on(
    tests: &[Test],
    label: &str,
    boot: impl Fn(&[Test], &str) -> Result<Outcome>,
) -> Result<Outcome> {
    let mut all = boot(tests, label)?;
    while let Status::Failed { reason, excerpt } = &all.status {
        let done = all.tap.len();
        let Some(culprit) = all.tap.last_mut() else {
            break;
        };
        // The runner ends with status 0 whatever the tests do: the machine stopped.
        culprit.verdict = Verdict::Failed;
        culprit.reason = format!("{reason}\n{excerpt}");
        let rest = tests.get(done..).unwrap_or_default();
        if rest.is_empty() {
            all.status = Status::Passed;
            break;
        }
        let label = format!("{label}-{}", rest[0].name);
        let next = boot(rest, &label)?;
        let progress = !next.tap.is_empty();
        all.tap.extend(next.tap);
        all.counters.extend(next.counters);
        all.steps.extend(next.steps);
        all.lines.extend(next.lines);
        all.status = next.status;
        all.log = next.log;
        if !progress {
            break;
        }
    }
    Ok(all)
}

/// Runs tests in one boot of level 0.
fn boot(
    bench: &Bench,
    target: &Target,
    selftests: &Selftests,
    tests: &[Test],
    label: &str,
) -> Result<Outcome> {
    let mut files = Rootfs::default();
    for test in tests {
        let host = selftests.dir.join(&test.program);
        files.file(&format!("/lab/selftests/{}", test.program), &host);
    }
    let vendor = vendor_name(target.vendor);
    let slowdown = bench.kernel.slowdown();
    let run = Run {
        name: format!("selftests-{vendor}-{}-{label}", target.engine.name()),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules(target)?,
        commands: commands(tests, target.engine, target.vendor, slowdown),
        limits: Limits {
            total: slowdown * Duration::from_secs(900),
            silence: slowdown * SILENCE,
        },
        target: *target,
    };
    let name = format!("KVM selftests ({vendor}, {}, {label})", target.engine);
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// One test with two providers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the test.
    pub name: String,
    /// Result with the provider to compare with, unless it did not get that far.
    pub base: Option<Verdict>,
    /// Result with the provider under test.
    pub ours: Option<Verdict>,
    /// What the comparison gives.
    pub verdict: Verdict,
    /// Why, if it did not pass.
    pub reason: String,
}

/// Compares two runs of the same tests: what passes in `base` must pass in `ours`.
pub fn compare(tests: &[Test], base: &[TapReport], ours: &[TapReport]) -> Vec<Row> {
    tests
        .iter()
        .map(|test| {
            let find = |reports: &'_ [TapReport]| -> Option<TapReport> {
                let report = reports.iter().find(|report| report.name == test.name);
                report.cloned()
            };
            let (left, right) = (find(base), find(ours));
            let (verdict, reason) = judge(left.as_ref(), right.as_ref());
            Row {
                name: test.name.clone(),
                base: left.map(|report| report.verdict),
                ours: right.map(|report| report.verdict),
                verdict,
                reason,
            }
        })
        .collect()
}

/// Judges a test by its results with both providers.
fn judge(base: Option<&TapReport>, ours: Option<&TapReport>) -> (Verdict, String) {
    let Some(base) = base else {
        return (
            Verdict::Failed,
            "the run to compare with did not get to it".into(),
        );
    };
    let Some(ours) = ours else {
        return (
            Verdict::Failed,
            "the machine stopped in a test before it".into(),
        );
    };
    match (base.verdict, ours.verdict) {
        (_, Verdict::Passed) => {
            // A point that was skipped although it ran before has lost a feature.
            let lost = ours.points.iter().find(|(name, verdict)| {
                *verdict != Verdict::Passed
                    && base.points.contains(&(name.clone(), Verdict::Passed))
            });
            match lost {
                Some((name, _)) => (Verdict::Failed, format!("{name} no longer runs")),
                None => (Verdict::Passed, String::new()),
            }
        }
        (Verdict::Passed, _) => (Verdict::Failed, ours.reason.clone()),
        (Verdict::Skipped, Verdict::Skipped) => (Verdict::Skipped, ours.reason.clone()),
        (Verdict::Skipped, Verdict::Failed) => (Verdict::Failed, ours.reason.clone()),
        // The emulator's gap, or a bug of the kernel: not ours, and not hidden either.
        (Verdict::Failed, _) => (
            Verdict::Skipped,
            format!("fails with the C provider as well: {}", base.reason),
        ),
    }
}

/// Returns why a run as a whole is useless, for example because the machine stopped.
pub fn stopped(results: &Results) -> Option<String> {
    match &results.status {
        Status::Passed => None,
        Status::Failed { reason, .. } => {
            let last = results
                .tap
                .last()
                .map_or("before the first test", |test| test.name.as_str());
            Some(format!("{reason} (in {last})"))
        }
    }
}

/// Formats the comparison as a table; what is skipped on both sides is in the list of reasons.
pub fn table(rows: &[Row]) -> String {
    let word = |verdict: Option<Verdict>| verdict.map_or("-", Verdict::word);
    let mut text = format!("  {:<42}{:<6}{:<6}{}\n", "test", "base", "this", "verdict");
    let ran = |row: &&Row| row.base != Some(Verdict::Skipped) || row.verdict == Verdict::Failed;
    for row in rows.iter().filter(ran) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<42}{:<6}{:<6}{} {}",
            row.name,
            word(row.base),
            word(row.ours),
            row.verdict.word(),
            row.reason
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdict: Verdict) -> TapReport {
        TapReport {
            name: "a".into(),
            verdict,
            reason: "why".into(),
            points: Vec::new(),
            same: Default::default(),
        }
    }

    #[test]
    fn ours_may_fail_nothing_that_the_base_passes() {
        use Verdict::{Failed, Passed, Skipped};
        let cases = [
            (Passed, Passed, Passed),
            (Passed, Failed, Failed),
            (Passed, Skipped, Failed),
            (Failed, Failed, Skipped),
            (Failed, Passed, Passed),
            (Skipped, Skipped, Skipped),
            (Skipped, Failed, Failed),
        ];
        for (base, ours, expected) in cases {
            let (verdict, _) = judge(Some(&report(base)), Some(&report(ours)));
            assert_eq!(verdict, expected, "{base:?} {ours:?}");
        }
        assert_eq!(judge(None, Some(&report(Passed))).0, Failed);
        assert_eq!(judge(Some(&report(Passed)), None).0, Failed);
    }

    #[test]
    fn a_test_point_that_is_lost_is_a_failure() {
        let point = |verdict| vec![("p".to_owned(), verdict)];
        let base = TapReport {
            points: point(Verdict::Passed),
            ..report(Verdict::Passed)
        };
        let ours = TapReport {
            points: point(Verdict::Skipped),
            ..report(Verdict::Passed)
        };
        assert_eq!(judge(Some(&base), Some(&ours)).0, Verdict::Failed);
    }

    #[test]
    fn only_programs_that_concern_nesting_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x86")).unwrap();
        for name in [
            "x86/nested_a",
            "x86/cpuid_test",
            "x86/smm_test",
            "x86/vmx_x.sh",
            "dirty_log_test",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|test| test.name)
            .collect();
        assert_eq!(names, ["nested_a", "smm_test", "dirty_log_test"]);
    }

    #[test]
    fn a_test_that_is_unsuited_for_an_engine_is_skipped_with_a_reason() {
        let test = Test {
            name: "hyperv_ipi".into(),
            program: "x86/hyperv_ipi".into(),
            arguments: String::new(),
        };
        let tests = [test];
        assert!(commands(&tests, Engine::Bochs, Vendor::Intel, 1).contains("SKIP: waits by loops"));
        assert!(commands(&tests, Engine::Tcg, Vendor::Amd, 1).contains("x86/hyperv_ipi"));
    }

    #[test]
    fn a_reason_ends_no_word_of_the_shell() {
        assert!(UNSUITED.iter().all(|(.., why)| !why.contains('\'')));
    }

    #[test]
    fn each_test_is_between_its_markers() {
        let test = Test {
            name: "n".into(),
            program: "x86/n".into(),
            arguments: "-i 3".into(),
        };
        let script = commands(&[test], Engine::Tcg, Vendor::Amd, 1);
        assert!(script.contains("say 'test: n begin'") && script.contains("x86/n -i 3"));
        assert!(script.contains("for attempt in x;"));
    }

    #[test]
    fn a_test_that_fails_with_c_now_and_then_is_run_again() {
        let again = "for attempt in x x x;";
        for (engine, other, name) in [
            (Engine::Bochs, Engine::Tcg, "svm_int_ctl_test"),
            (Engine::Tcg, Engine::Bochs, "hyperv_clock"),
        ] {
            let tests = [Test {
                name: name.into(),
                program: format!("x86/{name}"),
                arguments: String::new(),
            }];
            assert!(commands(&tests, engine, Vendor::Amd, 1).contains(again));
            assert!(!commands(&tests, other, Vendor::Amd, 1).contains(again));
        }
    }
}
