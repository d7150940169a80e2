// SPDX-License-Identifier: GPL-2.0

//! Guest tests: the programs in `selftests/` that are the host of an L1 and an L2 of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::image::rootfs::Rootfs;
use crate::machine::{self, Limits, Outcome, Run, Status, Target};
use crate::options::{Vendor, checkout};
use crate::tap::{TapReport, Verdict};
use crate::{command, host, step};

use super::kept::{Purpose, Question, Results};
use super::lifecycle::{TARGET, processors, remarks};
use super::selftests::{Test, going_on};
use super::{Bench, bare, vendor_name};

/// The programs for a vendor, and their arguments.
fn programs(vendor: Vendor) -> &'static [(&'static str, &'static str)] {
    match vendor {
        Vendor::Amd => &[
            ("svm_instruction_test", ""),
            ("svm_vmrun_check_test", ""),
            ("svm_event_test", ""),
            ("svm_intercept_test", ""),
            ("svm_address_space_test", "--runs 4000"),
            ("nested_task_test", ""),
            ("nested_timer_test", ""),
            ("nested_memory_test", "--rounds 10 --kills 100"),
            ("nested_processor_test", "--rounds 10"),
            ("nested_third_level_test", "--rounds 4000 --moves 200"),
            ("nested_tables_test", "--rounds 30"),
            (
                "nested_state_test",
                "--rounds 2000 --module /lab/mod/nested-svm.ko",
            ),
        ],
        Vendor::Intel => &[
            ("vmx_instruction_test", ""),
            ("vmx_vmentry_check_test", ""),
            ("vmx_intercept_test", ""),
            ("vmx_smm_test", ""),
            ("vmx_enlightened_test", ""),
            ("vmx_near_valid_test", "--states 2048"),
            ("nested_task_test", ""),
            ("nested_timer_test", ""),
            ("nested_memory_test", "--rounds 5 --kills 50"),
            ("nested_processor_test", "--rounds 5"),
            ("nested_third_level_test", "--rounds 400 --moves 100"),
            ("nested_tables_test", "--rounds 30"),
            (
                "nested_state_test",
                "--rounds 1000 --module /lab/mod/nested-vmx.ko",
            ),
        ],
    }
}

/// The last option of the programs that take our module out: where it is.
const MODULE: &str = " --module ";

/// Seconds of the guest that a program may take with a usual kernel.
const TIME_LIMIT: u32 = 300;

/// Time without a line on the console after which a program is given up with its machine, with a
/// usual kernel.
const SILENCE: Duration = Duration::from_secs(240);

/// Builds the programs, statically linked, and returns their directory.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let checkout = checkout()?;
    let source = checkout.join("selftests");
    // Not in the cache: cargo takes the library of another checkout for this one's.
    let output = checkout.join("build/selftests");
    let _lock = cache.lock("module-selftests")?;
    step::run("build the guest tests", |step| {
        let mut cargo = host::clean("cargo");
        cargo
            .args(["build", "--release", "--locked", "--bins"])
            // Cargo reads the configuration of the directory that it runs in.
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &output);
        command::logged(&mut cargo, &cache.log("guest-tests")?, |line| {
            step.progress(line)
        })
    })?;
    Ok(output.join(TARGET).join("release"))
}

/// Returns whether a program is for a vendor.
pub fn has(vendor: Vendor, name: &str) -> bool {
    programs(vendor).iter().any(|(program, _)| *program == name)
}

/// Returns the programs as tests.
fn list(vendor: Vendor) -> Vec<Test> {
    let test = |(name, arguments): &(&str, &str)| Test {
        name: (*name).into(),
        program: (*name).into(),
        arguments: (*arguments).into(),
    };
    programs(vendor).iter().map(test).collect()
}

/// Returns the script that runs the programs one after the other, for so many times the usual time
/// at most.
fn commands(tests: &[Test], slowdown: u32) -> String {
    let mut script: String = tests
        .iter()
        .map(|test| test.script(TIME_LIMIT * slowdown, 1))
        .collect();
    script.push_str("true\n");
    script
}

/// Runs the programs in one boot of level 0, or more if they stop the machine.
pub fn run(bench: &Bench, target: &Target, programs: &Path, label: &str) -> Result<Outcome> {
    going_on(&list(target.vendor), label, |tests, label| {
        boot(bench, target, programs, tests, label)
    })
}

/// Which of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that could take our module out. An L1 or L2 on wrong tracks can stop Bochs there.
    Moving,
    /// All others.
    Staying,
}

/// Runs a part of the programs, without those of their points that take our module out.
pub fn run_while_loaded(
    bench: &Bench,
    target: &Target,
    programs: &Path,
    part: Part,
    label: &str,
) -> Result<Outcome> {
    let tests = list_while_loaded(target.vendor, part);
    going_on(&tests, label, |tests, label| {
        boot(bench, target, programs, tests, label)
    })
}

/// Returns the programs without the arguments that name our module: they leave it in then.
fn list_while_loaded(vendor: Vendor, part: Part) -> Vec<Test> {
    let tests = list(vendor).into_iter().filter(|test| {
        let is_moving = test.arguments.contains(MODULE);
        is_moving == (part == Part::Moving)
    });
    let without = |test: Test| {
        let arguments = test.arguments.split(MODULE).next().unwrap_or_default();
        Test {
            arguments: arguments.into(),
            ..test
        }
    };
    tests.map(without).collect()
}

/// Returns the results with the C provider; they may be kept from an earlier run.
pub fn base(cache: &Cache, c: &Bench, target: &Target, programs: &Path) -> Result<Results> {
    let tests = list(target.vendor);
    let mut key = Key::builder("guest tests");
    for Test { program, .. } in &tests {
        key = key.add(program, fs::read(programs.join(program))?);
    }
    let question = Question {
        what: "guest tests, C",
        bench: c,
        target,
        programs: key.finish().to_string(),
        commands: commands(&tests, c.kernel.slowdown()),
        tests: &tests,
        purpose: Purpose::Comparison,
    };
    question.results(cache, |tests| {
        going_on(tests, "c", |tests, label| {
            boot(c, target, programs, tests, label)
        })
        .map(Results::from)
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
    let slowdown = bench.kernel.slowdown();
    let usual = Duration::from_secs(u64::from(TIME_LIMIT) * tests.len() as u64 + 120);
    let run = Run {
        name: format!("guest-tests-{vendor}-{label}"),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules(target)?,
        commands: commands(tests, slowdown),
        limits: Limits {
            total: slowdown * usual,
            silence: slowdown * SILENCE,
        },
        // Two processors of L1 at once, and a host that disturbs them.
        target: Target {
            smp: target.smp.max(processors(target.engine)),
            ..*target
        },
    };
    let name = format!("guest tests ({vendor}, {}, {label})", target.engine);
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// Compares what a program says with two providers, or without a kernel and as L1.
fn compare_sayings(
    program: &str,
    base: &BTreeMap<String, String>,
    ours: &BTreeMap<String, String>,
) -> Vec<(Verdict, String)> {
    let compared = base.iter().filter_map(|(name, by_c)| {
        let by_ours = ours.get(name)?;
        let verdict = if by_c == by_ours {
            Verdict::Passed
        } else {
            Verdict::Failed
        };
        let text = format!("{program}: {name}\n  expected: {by_c}\n  ours:     {by_ours}");
        Some((verdict, text))
    });
    compared.collect()
}

/// Returns the results of `ours`, point by point: what passes in `base` must pass there, and what
/// is to be the same must be.
pub fn compare(
    vendor: Vendor,
    base: &Results,
    bare: Option<&Results>,
    ours: &Results,
) -> Vec<(Verdict, String)> {
    let mut verdicts = Vec::new();
    for Test { name, .. } in list(vendor) {
        let find = |results: &Results| -> Option<TapReport> {
            let report = results.tap.iter().find(|report| report.name == name);
            report.cloned()
        };
        let base_points = find(base).map(|report| report.points).unwrap_or_default();
        match find(ours) {
            Some(report) => {
                let remarks =
                    |point: &str| (remarks(&base.lines, point), remarks(&ours.lines, point));
                verdicts.extend(compare_program(&base_points, &report, remarks));
                // KVM's own code lets states pass that no processor would.
                let expected = if name == bare::TEST { bare } else { Some(base) };
                let expected = expected.and_then(find);
                if let Some(expected) = expected {
                    verdicts.extend(compare_sayings(&name, &expected.same, &report.same));
                }
            }
            None => verdicts.push((Verdict::Failed, format!("{name}: it did not run"))),
        }
    }
    let bare = bare.map(|bare| ("without a kernel: ", bare));
    for (what, results) in [("the C provider: ", base), ("", ours)]
        .into_iter()
        .chain(bare)
    {
        if let Status::Failed { reason, excerpt } = &results.status {
            verdicts.push((Verdict::Failed, format!("{what}{reason}\n{excerpt}")));
        }
    }
    verdicts
}

/// Compares one program; `remarks` are what it says about a point with C and with ours.
pub fn compare_program(
    base: &[(String, Verdict)],
    ours: &TapReport,
    remarks: impl Fn(&str) -> (String, String),
) -> Vec<(Verdict, String)> {
    let mut verdicts = Vec::new();
    let verdict_of = |points: &[(String, Verdict)], point: &str| {
        let found = points.iter().find(|(other, _)| other == point);
        found.map(|(_, verdict)| *verdict)
    };
    for (point, verdict) in &ours.points {
        let (by_c, by_ours) = remarks(point);
        let text = format!("{}: {point}{by_ours}", ours.name);
        verdicts.push(match (verdict_of(base, point), verdict) {
            (_, Verdict::Passed) => (Verdict::Passed, text),
            // The emulator's gap, or a bug of the kernel: not ours, and not hidden either.
            (Some(Verdict::Failed), _) => (
                Verdict::Skipped,
                format!("{text}\n  fails with the C provider as well:{by_c}"),
            ),
            (Some(Verdict::Skipped) | None, Verdict::Skipped) => (Verdict::Skipped, text),
            _ => (Verdict::Failed, text),
        });
    }
    for (point, verdict) in base {
        if *verdict == Verdict::Passed && verdict_of(&ours.points, point).is_none() {
            let text = format!("{}: {point} was not reached: {}", ours.name, ours.reason);
            verdicts.push((Verdict::Failed, text));
        }
    }
    let of_points = |wanted| ours.points.iter().any(|(_, verdict)| *verdict == wanted);
    let counted = verdicts
        .iter()
        .any(|(verdict, _)| *verdict == Verdict::Failed);
    // It did not run at all, or ended in some other way than its points say.
    let rest = match ours.verdict {
        Verdict::Passed => false,
        Verdict::Skipped => verdicts.is_empty(),
        Verdict::Failed => !counted && !of_points(Verdict::Failed),
    };
    if rest {
        verdicts.push((ours.verdict, format!("{}: {}", ours.name, ours.reason)));
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use Verdict::{Failed, Passed, Skipped};

    use super::*;

    fn verdicts(base: Option<Verdict>, ours: Option<Verdict>, program: Verdict) -> Vec<Verdict> {
        let points = |verdict: Option<Verdict>| -> Vec<(String, Verdict)> {
            verdict
                .map(|verdict| ("p".into(), verdict))
                .into_iter()
                .collect()
        };
        let report = TapReport {
            name: "a".into(),
            verdict: program,
            reason: "why".into(),
            points: points(ours),
            same: BTreeMap::new(),
        };
        let rows = compare_program(&points(base), &report, |_| Default::default());
        rows.into_iter().map(|(verdict, _)| verdict).collect()
    }

    #[test]
    fn ours_may_fail_no_point_that_c_passes() {
        let cases = [
            (Some(Passed), Some(Passed), Passed),
            (Some(Passed), Some(Failed), Failed),
            (Some(Passed), Some(Skipped), Failed),
            (Some(Passed), None, Failed),
            (Some(Failed), Some(Failed), Skipped),
            (Some(Failed), Some(Passed), Passed),
            (Some(Skipped), Some(Skipped), Skipped),
            (Some(Skipped), Some(Failed), Failed),
            (None, Some(Failed), Failed),
        ];
        for (base, ours, expected) in cases {
            let program = match ours {
                Some(Passed | Skipped) => Passed,
                Some(Failed) | None => Failed,
            };
            assert_eq!(
                verdicts(base, ours, program),
                [expected],
                "{base:?} {ours:?}"
            );
        }
    }

    #[test]
    fn a_program_that_fails_in_no_point_has_failed() {
        assert_eq!(
            verdicts(Some(Passed), Some(Passed), Failed),
            [Passed, Failed]
        );
        assert_eq!(verdicts(None, None, Failed), [Failed]);
        assert_eq!(verdicts(None, None, Skipped), [Skipped]);
    }

    #[test]
    fn what_is_to_be_the_same_is_compared_by_its_name() {
        let say = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            pairs.iter().map(pair).collect()
        };
        let base = say(&[("a", "1"), ("b", "2"), ("not reached", "3")]);
        let rows = compare_sayings("p", &base, &say(&[("a", "1"), ("b", "3")]));
        let verdicts: Vec<Verdict> = rows.iter().map(|(verdict, _)| *verdict).collect();
        assert_eq!(verdicts, [Passed, Failed]);
        assert!(rows[1].1.contains("expected: 2") && rows[1].1.contains("ours:     3"));
    }

    #[test]
    fn a_module_that_stays_is_named_to_no_program() {
        for vendor in [Vendor::Amd, Vendor::Intel] {
            let parts = [Part::Moving, Part::Staying].map(|part| list_while_loaded(vendor, part));
            assert_eq!(parts[0].len(), 1);
            assert_eq!(parts.concat().len(), list(vendor).len());
            assert!(!commands(&parts.concat(), 1).contains(".ko"));
            assert!(commands(&parts[0], 1).contains("nested_state_test --rounds "));
        }
    }

    #[test]
    fn each_program_is_between_its_markers() {
        let script = commands(&list(Vendor::Amd), 1);
        assert!(script.contains("say 'test: nested_memory_test begin'"));
        assert!(script.contains("/lab/selftests/svm_intercept_test  <"));
    }
}
