// SPDX-License-Identifier: GPL-2.0

//! `lab test`: all suites, one line each, and the sum.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::cache::Cache;
use crate::checks;
use crate::kernel::Variant;
use crate::machine::accel::{self, Engine};
use crate::machine::{Status, Target};
use crate::options::{Options, Paging, Vendor};
use crate::selftests::{self as upstream, Selftests};
use crate::step::clock;
use crate::tap::Verdict;

use super::harness::{self, PLANTS};
use super::{
    Bench, Levels, Provider, guest, lifecycle, nested, selftests, stock, vendor_name, workload,
};

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Suite {
    /// What was tested.
    pub name: String,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that did not run.
    pub skipped: u32,
    /// How long it took, unless something else measured it.
    pub time: Option<Duration>,
    /// What failed, and why something was skipped.
    pub details: Vec<String>,
}

impl Suite {
    fn new(name: String) -> Self {
        Self {
            name,
            passed: 0,
            failed: 0,
            skipped: 0,
            time: None,
            details: Vec::new(),
        }
    }

    /// Counts one result.
    fn count(&mut self, verdict: Verdict, detail: impl FnOnce() -> String) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed => self.failed += 1,
            Verdict::Skipped => self.skipped += 1,
        }
        if verdict != Verdict::Passed {
            self.details
                .push(format!("{}: {}", verdict.word(), detail()));
        }
    }

    /// Counts one test that has no result because of an error.
    fn broke(&mut self, error: &anyhow::Error) {
        self.count(Verdict::Failed, || format!("{error:#}"));
    }
}

/// The name of the static checks, of which each is a line of the table.
const CHECKS: &str = "static checks";

/// Which suites are wanted: those whose names contain a text, or all.
#[derive(Clone, Debug, Default)]
pub struct Selection(Option<String>);

impl Selection {
    /// Selects suites by a part of their names; make passes an unset variable as an empty string.
    pub fn new(part: Option<&str>) -> Self {
        Self(part.filter(|part| !part.is_empty()).map(str::to_lowercase))
    }

    fn has(&self, name: &str) -> bool {
        let part = self.0.as_deref().unwrap_or_default();
        name.to_lowercase().contains(part)
    }
}

/// Suites that run one after the other.
struct Track<'a> {
    selection: &'a Selection,
    suites: Vec<Suite>,
}

impl Track<'_> {
    /// Runs a suite, if it is wanted, and measures it; an error is a failed test.
    fn run(&mut self, name: String, work: impl FnOnce(&mut Suite) -> Result<()>) {
        if !self.selection.has(&name) {
            return;
        }
        let start = Instant::now();
        let mut suite = Suite::new(name);
        if let Err(error) = work(&mut suite) {
            suite.broke(&error);
        }
        suite.time = Some(start.elapsed());
        self.suites.push(suite);
    }
}

/// Runs what is selected and prints the table.
pub fn test(cache: &Cache, options: &Options, selection: &Selection) -> Result<ExitCode> {
    let checks = if selection.has(CHECKS) {
        checks::run(cache, options)?
    } else {
        Vec::new()
    };
    let mut suites: Vec<Suite> = checks
        .into_iter()
        .map(|check| Suite {
            name: check.suite,
            passed: check.passed,
            failed: check.failed,
            skipped: check.skipped,
            time: None,
            details: check.detail.into_iter().collect(),
        })
        .collect();
    suites.extend(machines(cache, options, selection)?);
    ensure!(!suites.is_empty(), "no suite has a name like that");
    print!("{}", table(&suites));
    let failed: u32 = suites.iter().map(|suite| suite.failed).sum();
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the suites that boot machines, on both vendors.
fn machines(cache: &Cache, options: &Options, selection: &Selection) -> Result<Vec<Suite>> {
    let stock = Bench::prepare(cache, options, Variant::Stock, Provider::C)?;
    let patched = Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?;
    let c = Bench {
        ours: None,
        ..patched.clone()
    };
    let bare = Bench::prepare(cache, options, Variant::NoBuiltin, Provider::Ours)?;
    // With the modules for the patched kernel, which an unpatched one must refuse.
    let refusing = Bench {
        ours: patched.ours.clone(),
        ..stock.clone()
    };
    let module_tests = lifecycle::build(cache)?;
    let guest_tests = guest::build(cache)?;
    let workload = workload::build(cache)?;
    let upstream = upstream::ensure(cache, &stock.kernel)?;
    // Each emulator keeps one core busy: the two vendors run side by side.
    let tracks = std::thread::scope(|scope| {
        let tracks = [Vendor::Amd, Vendor::Intel].map(|vendor| {
            let (stock, refusing, c, patched, bare) = (&stock, &refusing, &c, &patched, &bare);
            let (module_tests, workload, upstream) = (&module_tests, &workload, &upstream);
            let guest_tests = &guest_tests;
            scope.spawn(move || -> Result<Vec<Suite>> {
                let target = Target {
                    vendor,
                    engine: accel::choose(vendor, options.accel)?,
                    smp: options.smp,
                    memory: 2048,
                };
                let label = |what: &str| label(what, &target);
                let mut track = Track {
                    selection,
                    suites: Vec::new(),
                };
                track.run(label("harness"), |suite| plants(suite, c, &target));
                track.run(label("L0, L1, L2"), |suite| {
                    for (name, bench) in [("C", c), ("ours", patched)] {
                        levels(suite, name, bench, &target, workload);
                    }
                    Ok(())
                });
                for bench in [refusing, patched, bare] {
                    let name = label(&format!("life cycle, {} kernel", bench.kernel.variant));
                    track.run(name, |suite| {
                        life_cycle(suite, bench, &target, module_tests)
                    });
                }
                let runs = [("patched", c), ("ours", patched), ("ours-alone", bare)];
                if vendor == Vendor::Amd {
                    guests(&mut track, c, &[("ours", patched)], &target, guest_tests);
                }
                for engine in selftest_engines(vendor, target.engine) {
                    let target = Target { engine, ..target };
                    compared(&mut track, cache, stock, &runs, &target, upstream);
                }
                Ok(track.suites)
            })
        });
        tracks.map(|track| {
            track
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread of a vendor panicked")))
        })
    });
    let mut suites = Vec::new();
    for track in tracks {
        suites.extend(track?);
    }
    Ok(suites)
}

/// Returns the name of a suite that runs on a machine.
fn label(what: &str, target: &Target) -> String {
    format!("{what} ({}, {})", vendor_name(target.vendor), target.engine)
}

/// Returns the engines on which the upstream selftests run, where the others run on `engine`.
///
/// The two emulators of SVM lack different things, and neither is always right.
fn selftest_engines(vendor: Vendor, engine: Engine) -> Vec<Engine> {
    match (vendor, engine) {
        (Vendor::Amd, Engine::Tcg) => vec![Engine::Tcg, Engine::Bochs],
        _ => vec![engine],
    }
}

/// Plants faults, each of which must be found.
fn plants(suite: &mut Suite, bench: &Bench, target: &Target) -> Result<()> {
    for plant in PLANTS {
        let outcome = harness::run(plant, bench, target)?;
        let objection = harness::objection(plant, &outcome);
        let verdict = if objection.is_none() {
            Verdict::Passed
        } else {
            Verdict::Failed
        };
        suite.count(verdict, || objection.unwrap_or_default());
    }
    Ok(())
}

/// Counts each point of the life cycle of our modules on one kernel.
fn life_cycle(
    suite: &mut Suite,
    bench: &Bench,
    target: &Target,
    program: &std::path::Path,
) -> Result<()> {
    for (verdict, detail) in lifecycle::verdicts(&lifecycle::run(bench, target, program)?) {
        suite.count(verdict, || detail);
    }
    Ok(())
}

/// Boots the chain of levels with one provider.
fn levels(
    suite: &mut Suite,
    name: &str,
    bench: &Bench,
    target: &Target,
    workload: &std::path::Path,
) {
    let levels = Levels {
        last: 2,
        paging: Paging::Nested,
    };
    let chain = match nested::chain(bench, target, levels, workload) {
        Ok(chain) => chain,
        Err(error) => return suite.broke(&error.context(name.to_owned())),
    };
    let verdict = if chain.passed() {
        Verdict::Passed
    } else {
        Verdict::Failed
    };
    suite.count(verdict, || match (&chain.outcome.status, &chain.mismatch) {
        (Status::Failed { reason, excerpt }, _) => format!("{name}: {reason}\n{excerpt}"),
        (Status::Passed, mismatch) => {
            format!("{name}: {}", mismatch.as_deref().unwrap_or_default())
        }
    });
}

/// Runs the upstream selftests on the stock kernel and on others, and compares each with the first.
fn compared(
    track: &mut Track<'_>,
    cache: &Cache,
    stock: &Bench,
    runs: &[(&str, &Bench)],
    target: &Target,
    upstream: &Selftests,
) {
    let mut base = None;
    for (name, bench) in runs {
        let suite = label(&format!("KVM selftests, {name}"), target);
        track.run(suite, |suite| {
            let tests = selftests::list(&upstream.dir)?;
            let base = match &base {
                Some(base) => base,
                None => base.insert(stock::results(cache, stock, target, upstream, &tests)?),
            };
            let outcome = selftests::run(bench, target, upstream, &tests, name)?;
            for reason in base.stopped.iter().chain(&selftests::stopped(&outcome)) {
                suite.count(Verdict::Failed, || reason.clone());
            }
            let rows = selftests::compare(&tests, &base.tap, &outcome.tap);
            print!("{}", selftests::table(&rows));
            for row in rows {
                suite.count(row.verdict, || format!("{}: {}", row.name, row.reason));
            }
            Ok(())
        });
    }
}

/// Runs the guest tests with the C provider and with others, and compares each with the first.
fn guests(
    track: &mut Track<'_>,
    c: &Bench,
    runs: &[(&str, &Bench)],
    target: &Target,
    programs: &std::path::Path,
) {
    let mut base = None;
    for (name, bench) in runs {
        let suite = label(&format!("guest tests, {name}"), target);
        track.run(suite, |suite| {
            let base = match &base {
                Some(base) => base,
                None => base.insert(guest::run(c, target, programs, "c")?),
            };
            let outcome = guest::run(bench, target, programs, name)?;
            for (verdict, detail) in guest::compare(base, &outcome) {
                suite.count(verdict, || detail);
            }
            Ok(())
        });
    }
}

/// Formats the table, the details of what did not pass, and the sum.
pub fn table(suites: &[Suite]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\n{:<56}{:>7}{:>7}{:>8}{:>12}",
        "suite", "passed", "failed", "skipped", "time"
    );
    for suite in suites {
        let time = suite.time.map(clock).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:<56}{:>7}{:>7}{:>8}{time:>12}",
            suite.name, suite.passed, suite.failed, suite.skipped
        );
    }
    // What failed comes last: of a long log, many places show the end only.
    text.push('\n');
    let skip = Verdict::Skipped.word();
    for last in [false, true] {
        for suite in suites {
            let of_now = |detail: &&String| detail.starts_with(skip) != last;
            for detail in suite.details.iter().filter(of_now) {
                let _ = writeln!(text, "{}: {}", suite.name, detail.trim_end());
            }
        }
    }
    let sum = |count: fn(&Suite) -> u32| suites.iter().map(count).sum::<u32>();
    let _ = writeln!(
        text,
        "\n{} passed, {} failed, {} skipped",
        sum(|suite| suite.passed),
        sum(|suite| suite.failed),
        sum(|suite| suite.skipped)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sum_and_a_skip_says_why() {
        let mut first = Suite::new("one".into());
        first.count(Verdict::Passed, String::new);
        first.count(Verdict::Skipped, || "no such CPU".into());
        let all = Selection::default();
        let mut track = Track {
            selection: &all,
            suites: vec![first],
        };
        track.run("two".into(), |_| anyhow::bail!("broken"));
        let text = table(&track.suites);
        assert!(
            text.ends_with("\n1 passed, 1 failed, 1 skipped\n"),
            "{text}"
        );
        assert!(text.contains("one: skip: no such CPU") && text.contains("two: FAIL: broken"));
    }

    #[test]
    fn a_suite_that_is_not_selected_does_not_run() {
        let selection = Selection::new(Some("kvm SELF"));
        let mut track = Track {
            selection: &selection,
            suites: Vec::new(),
        };
        track.run("harness (amd)".into(), |_| panic!("it runs"));
        track.run("KVM selftests (amd)".into(), |_| Ok(()));
        assert_eq!(track.suites.len(), 1);
        assert!(Selection::new(Some("")).has("anything") && Selection::new(None).has(CHECKS));
    }
}
