// SPDX-License-Identifier: GPL-2.0

//! Results without our modules, which those with them are compared with.
//!
//! They are the same until something changes that they depend on: what passed or was skipped is
//! kept. What failed runs again the next time. A test that failed by chance, for example because
//! the machine was busy, would otherwise never have to pass with our module.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, anyhow, ensure};

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
        run: impl FnOnce(&[Test]) -> Result<Outcome>,
    ) -> Result<Results> {
        ensure!(
            self.bench.ours.is_none(),
            "results with our modules are not kept"
        );
        let store = Store::new(cache, self)?;
        let mut tap = store.read();
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
            let outcome = run(&open)?;
            (lines, status) = (outcome.lines, outcome.status);
            tap.extend(outcome.tap);
            store.write(&tap)?;
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

    /// Returns the results that are kept.
    fn read(&self) -> Vec<TapReport> {
        // Without them, or with a file of another version of this program, all tests run.
        let text = self.0.as_deref().map(fs::read).and_then(Result::ok);
        text.and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Keeps those results that need not be confirmed.
    fn write(&self, tap: &[TapReport]) -> Result<()> {
        match self.0.as_deref() {
            None => Ok(()),
            Some(path) => keep(path, tap),
        }
    }
}

fn keep(path: &Path, tap: &[TapReport]) -> Result<()> {
    let kept: Vec<&TapReport> = tap
        .iter()
        .filter(|report| report.verdict != Verdict::Failed)
        .collect();
    write_atomic(path, &serde_json::to_vec_pretty(&kept)?)
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

    #[test]
    fn what_failed_is_not_kept_and_runs_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store(Some(dir.path().join("results.json")));
        assert!(store.read().is_empty());
        let tap = [
            report("good", Verdict::Passed),
            report("bad", Verdict::Failed),
            report("absent", Verdict::Skipped),
        ];
        store.write(&tap).unwrap();
        let kept = store.read();
        assert_eq!(kept, [tap[0].clone(), tap[2].clone()]);

        let test = |name: &str| Test {
            name: name.into(),
            program: format!("x86/{name}"),
            arguments: String::new(),
        };
        let tests = [test("good"), test("bad"), test("absent"), test("new")];
        assert_eq!(without_result(&tests, &kept), [test("bad"), test("new")]);
    }

    #[test]
    fn a_file_that_cannot_be_read_means_that_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        fs::write(&path, "[{\"name\": 1}]").unwrap();
        assert!(Store(Some(path)).read().is_empty());
        assert!(Store(None).read().is_empty());
    }
}
