// SPDX-License-Identifier: GPL-2.0

//! Results without our modules, which those with them are compared with.
//!
//! They are the same until something changes that they depend on: what passed or was skipped is
//! kept. What failed runs again the next time. What our module need not pass because of that is kept if
//! it fails in the same way again: a test that failed by chance, for example because the machine was
//! busy, would otherwise never have to pass with our module.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Key, write_atomic};
use crate::machine::accel::Engine;
use crate::machine::{self, CMDLINE, Outcome, Status, Target};
use crate::step;
use crate::tap::{TapReport, Verdict};

use super::selftests::Test;
use super::{Bench, vendor_name, version};

/// Results that several suites need, and the first of them gets.
#[derive(Default)]
pub struct Once(OnceLock<Result<Results, String>>);

impl Once {
    /// Returns the results, or what went wrong; the first caller's `results` runs.
    pub fn get(&self, results: impl FnOnce() -> Result<Results>) -> Result<&Results> {
        let all = self
            .0
            .get_or_init(|| results().map_err(|error| format!("{error:#}")));
        all.as_ref().map_err(|error| anyhow!("{error}"))
    }
}

/// Tests as they run without our modules.
pub struct Question<'a> {
    /// What the tests are, as it stands in tables.
    pub what: &'a str,
    /// The kernel and its modules.
    pub bench: &'a Bench,
    /// Where they run.
    pub target: &'a Target,
    /// Key of the programs.
    pub programs: String,
    /// The script that runs all of them.
    pub commands: String,
    /// The tests.
    pub tests: &'a [Test],
    /// What the results are for.
    pub purpose: Purpose,
}

/// What results are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Those with our modules are compared with them.
    Comparison,
    /// They are results of their own: what failed runs again until it passes.
    Verdict,
}

/// The results to compare with.
pub struct Results {
    /// Each test that was run, now or in an earlier run.
    pub tap: Vec<TapReport>,
    /// What the tests printed that ran now.
    pub lines: Vec<(u8, String)>,
    /// How the run ended as a whole.
    pub status: Status,
}

impl From<Outcome> for Results {
    fn from(outcome: Outcome) -> Self {
        Self {
            tap: outcome.tap,
            lines: outcome.lines,
            status: outcome.status,
        }
    }
}

impl Question<'_> {
    /// Returns the results; runs the tests of which none is kept.
    pub fn results(
        &self,
        cache: &Cache,
        run: impl FnOnce(&[Test]) -> Result<Results>,
    ) -> Result<Results> {
        ensure!(
            self.bench.ours.is_none(),
            "results with our modules are not kept"
        );
        let store = Store::new(cache, self)?;
        let Kept {
            results: mut tap,
            failed_once,
        } = store.read();
        let open = without_result(self.tests, &tap);
        if !tap.is_empty() {
            step::note(&format!(
                "{} ({}, {}): {} of {} results are kept from an earlier run",
                self.what,
                vendor_name(self.target.vendor),
                self.target.engine,
                self.tests.len() - open.len(),
                self.tests.len()
            ));
        }
        let (mut lines, mut status) = (Vec::new(), Status::Passed);
        if !open.is_empty() {
            let results = run(&open)?;
            (lines, status) = (results.lines, results.status);
            tap.extend(results.tap);
            store.write(&Kept::of(&tap, &failed_once, self.purpose))?;
        }
        Ok(Results { tap, lines, status })
    }
}

/// Returns the tests of which there is no result.
fn without_result(tests: &[Test], tap: &[TapReport]) -> Vec<Test> {
    let has_result = |test: &&Test| tap.iter().any(|report| report.name == test.name);
    tests
        .iter()
        .filter(|test| !has_result(test))
        .cloned()
        .collect()
}

/// Returns the results of what this program does itself, by name, on a machine without our modules;
/// they are kept as long as neither the program nor that changes.
pub fn of_this_program(
    cache: &Cache,
    what: &str,
    (bench, target): (&Bench, &Target),
    names: &[&str],
    run: impl Fn(&str) -> Result<TapReport>,
) -> Result<Vec<TapReport>> {
    let program = Key::builder("lab").add("program", fs::read(std::env::current_exe()?)?);
    let tests: Vec<Test> = names.iter().map(|name| Test::named(name)).collect();
    let question = Question {
        what,
        bench,
        target,
        programs: program.finish().to_string(),
        commands: what.to_owned(),
        tests: &tests,
        purpose: Purpose::Verdict,
    };
    let results = question.results(cache, |open| {
        let tap = open.iter().map(|test| run(&test.name));
        Ok(Results {
            tap: tap.collect::<Result<_>>()?,
            lines: Vec::new(),
            status: Status::Passed,
        })
    })?;
    Ok(results.tap)
}

/// Where results are kept, if they are.
struct Store(Option<PathBuf>);

impl Store {
    /// Determines the place by everything that the results depend on.
    fn new(cache: &Cache, question: &Question<'_>) -> Result<Self> {
        let Question { bench, target, .. } = question;
        if target.engine == Engine::Kvm {
            // The processor, its microcode and the kernel that runs us: too much to know.
            return Ok(Self(None));
        }
        let mut key = Key::builder("results")
            .add("kernel", bench.kernel.key.as_str())
            .add("programs", &question.programs)
            .add("emulator", version(bench, target.engine)?)
            .add("machine", machine::description(target))
            .add("command line", CMDLINE)
            .add("commands", &question.commands);
        for module in bench.modules(target)? {
            key = key.add("parameters", module.parameters);
        }
        let dir = cache.root().join("results");
        fs::create_dir_all(&dir)?;
        Ok(Self(Some(dir.join(format!("{}.json", key.finish())))))
    }

    /// Returns what is kept.
    fn read(&self) -> Kept {
        // Without it, or with a file of another version of this program, all tests run.
        let text = self.0.as_deref().map(fs::read).and_then(Result::ok);
        text.and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Keeps results.
    fn write(&self, kept: &Kept) -> Result<()> {
        match self.0.as_deref() {
            None => Ok(()),
            Some(path) => write_atomic(path, &serde_json::to_vec_pretty(kept)?),
        }
    }
}

/// What is known of tests from earlier runs.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The results that need not be confirmed.
    results: Vec<TapReport>,
    /// Those of tests that have failed in the last run, and not in the same way before.
    failed_once: Vec<TapReport>,
}

impl Kept {
    /// Returns what to keep of results, some of which may confirm earlier ones.
    fn of(tap: &[TapReport], failed_once: &[TapReport], purpose: Purpose) -> Self {
        /// What a failure is known by: of a program without test points, that is the reason.
        fn way(report: &TapReport) -> (&str, &[(String, Verdict)], &str) {
            (&report.name, &report.points, &report.reason)
        }

        let mut kept = Self::default();
        for report in tap {
            let is_confirmed = purpose == Purpose::Comparison
                && failed_once.iter().any(|other| way(other) == way(report));
            let is_sure = report.verdict != Verdict::Failed || is_confirmed;
            let place = if is_sure {
                &mut kept.results
            } else {
                &mut kept.failed_once
            };
            place.push(report.clone());
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, verdict: Verdict) -> TapReport {
        TapReport {
            name: name.into(),
            verdict,
            reason: String::new(),
            points: vec![("point".into(), verdict)],
            same: Default::default(),
        }
    }

    fn test(name: &str) -> Test {
        Test {
            name: name.into(),
            program: format!("x86/{name}"),
            arguments: String::new(),
        }
    }

    #[test]
    fn what_failed_runs_again_until_it_has_failed_in_the_same_way_twice() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store(Some(dir.path().join("results.json")));
        let tests = ["good", "bad", "absent", "new"].map(test);
        let [good, bad, absent] = [
            report("good", Verdict::Passed),
            report("bad", Verdict::Failed),
            report("absent", Verdict::Skipped),
        ];
        let run = |bad: &TapReport| {
            let before = store.read();
            let mut tap = before.results;
            for report in [&good, bad, &absent] {
                if !tap.iter().any(|kept| kept.name == report.name) {
                    tap.push(report.clone());
                }
            }
            let kept = Kept::of(&tap, &before.failed_once, Purpose::Comparison);
            store.write(&kept).unwrap();
            without_result(&tests, &store.read().results)
        };
        assert!(store.read().results.is_empty());
        assert_eq!(run(&bad), [test("bad"), test("new")]);
        let mut worse = bad.clone();
        worse.points.push(("another".into(), Verdict::Failed));
        assert_eq!(run(&worse), [test("bad"), test("new")]);
        assert_eq!(run(&bad), [test("bad"), test("new")]);
        let mut other = bad.clone();
        other.reason = "for another reason".into();
        assert_eq!(run(&other), [test("bad"), test("new")]);
        assert_eq!(run(&bad), [test("bad"), test("new")]);
        assert_eq!(run(&bad), [test("new")]);
    }

    #[test]
    fn a_failure_that_excuses_nothing_is_never_kept() {
        let bad = [report("bad", Verdict::Failed)];
        let once = Kept::of(&bad, &[], Purpose::Verdict);
        let twice = Kept::of(&bad, &once.failed_once, Purpose::Verdict);
        assert!(twice.results.is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_means_that_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        fs::write(&path, "[{\"name\": 1}]").unwrap();
        assert_eq!(Store(Some(path)).read(), Kept::default());
        assert_eq!(Store(None).read(), Kept::default());
    }
}
