// SPDX-License-Identifier: GPL-2.0

//! `lab test`: all suites, one line each, and the sum.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::checks::{self, CheckOutcome};
use crate::kernel::Variant;
use crate::machine::Target;
use crate::machine::accel::{self, Engine};
use crate::options::{Options, Vendor};
use crate::selftests::{self as upstream, Selftests};
use crate::step::clock;
use crate::tap::Verdict;

use super::harness::{self, PLANTS};
use super::jobs::Jobs;
use super::kept::{self, Once, Results};
use super::tools::Tools;
use super::{
    Bench, Cases, Provider, bare, fuzz, guest, kselftest, lifecycle, nested, selftests, vendor_name,
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
    /// How long it took, if it ran to its end.
    pub time: Option<Duration>,
    /// What failed, and why something was skipped.
    pub details: Vec<String>,
}

impl Suite {
    /// Returns a suite of which nothing is known yet.
    pub fn new(name: String) -> Self {
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
    pub fn count(&mut self, verdict: Verdict, detail: impl FnOnce() -> String) {
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
    pub fn broke(&mut self, error: &anyhow::Error) {
        self.count(Verdict::Failed, || format!("{error:#}"));
    }
}

impl From<CheckOutcome> for Suite {
    fn from(check: CheckOutcome) -> Self {
        Self {
            name: check.suite,
            passed: check.passed,
            failed: check.failed,
            skipped: check.skipped,
            time: Some(check.time),
            details: check.detail.into_iter().collect(),
        }
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

    /// Returns whether a suite is wanted.
    pub fn has(&self, name: &str) -> bool {
        let part = self.0.as_deref().unwrap_or_default();
        name.to_lowercase().contains(part)
    }
}

/// Runs what is selected and prints the table.
pub fn test(cache: &Cache, options: &Options, selection: &Selection) -> Result<ExitCode> {
    let ground = Ground::prepare(cache, options)?;
    let mut jobs = Jobs::default();
    jobs.add_several(CHECKS.into(), || static_checks(cache, options));
    jobs.mark_last_long();
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let target = Target {
            vendor,
            engine: accel::choose(vendor, options.accel)?,
            smp: options.smp,
            memory: 2048,
        };
        own_suites(&mut jobs, cache, &ground, target);
        for engine in selftest_engines(vendor, target.engine) {
            upstream_suites(&mut jobs, cache, &ground, Target { engine, ..target });
        }
    }
    let suites = jobs.run(selection)?;
    ensure!(!suites.is_empty(), "no suite has a name like that");
    print!("{}", table(&suites));
    let failed: u32 = suites.iter().map(|suite| suite.failed).sum();
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the static checks: compilers, which machines that boot meanwhile leave time.
fn static_checks(cache: &Cache, options: &Options) -> Vec<Suite> {
    match checks::run(cache, options) {
        Ok(checks) => checks.into_iter().map(Suite::from).collect(),
        Err(error) => {
            let mut suite = Suite::new(CHECKS.into());
            suite.broke(&error);
            vec![suite]
        }
    }
}

/// Everything that is built before the first machine boots.
struct Ground {
    /// An unpatched kernel.
    stock: Bench,
    /// That kernel, and modules that it must refuse.
    refusing: Bench,
    /// A patched kernel with its own nested code.
    c: Bench,
    /// That kernel, and our modules.
    patched: Bench,
    /// A kernel without nested code of its own, and our modules.
    bare: Bench,
    module_tests: PathBuf,
    guest_tests: PathBuf,
    bare_program: PathBuf,
    tools: Tools,
    upstream: Selftests,
    upstream_tests: Vec<selftests::Test>,
}

impl Ground {
    fn prepare(cache: &Cache, options: &Options) -> Result<Self> {
        let stock = Bench::prepare(cache, options, Variant::Stock, Provider::C)?;
        let patched = Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?;
        let upstream = upstream::ensure(cache, &stock.kernel)?;
        Ok(Self {
            refusing: Bench {
                ours: patched.ours.clone(),
                ..stock.clone()
            },
            c: Bench {
                ours: None,
                ..patched.clone()
            },
            bare: Bench::prepare(cache, options, Variant::NoBuiltin, Provider::Ours)?,
            module_tests: lifecycle::build(cache)?,
            guest_tests: guest::build(cache)?,
            bare_program: bare::build(cache)?,
            tools: Tools::build(cache)?,
            upstream_tests: selftests::list(&upstream.dir)?,
            stock,
            patched,
            upstream,
        })
    }
}

/// Adds the suites of this project.
fn own_suites<'a>(jobs: &mut Jobs<'a>, cache: &'a Cache, ground: &'a Ground, target: Target) {
    let Ground {
        refusing,
        c,
        patched,
        bare,
        ..
    } = ground;
    let label = |what: &str| label(what, &target);
    jobs.add(label("harness"), move |suite| {
        plants(suite, cache, c, &target)
    });
    jobs.add(label("L0, L1, L2"), move |suite| {
        for (name, bench) in [("C", c), ("ours", patched)] {
            match nested::test(cache, bench, &target, &ground.tools) {
                Ok(result) => suite.count(result.verdict, || format!("{name}: {}", result.reason)),
                Err(error) => suite.broke(&error.context(name)),
            }
        }
        Ok(())
    });
    for bench in [refusing, patched, bare] {
        let name = label(&format!("life cycle, {} kernel", bench.kernel.variant));
        jobs.add(name, move |suite| {
            life_cycle(suite, bench, &target, &ground.module_tests)
        });
        if bench.kernel.variant == Variant::Builtin {
            jobs.mark_last_long();
        }
    }
    jobs.add(label("fuzz"), move |suite| {
        let cases = Cases::of_test(target.vendor);
        let outcome = fuzz::run(patched, &target, &ground.guest_tests, cases)?;
        fuzz::count(suite, &outcome);
        Ok(())
    });
    jobs.mark_last_long();
    let of_c = Arc::new(Once::default());
    let base = Arc::clone(&of_c);
    jobs.add(label("guest tests, ours"), move |suite| {
        // The processor itself is at hand if it is an emulated one.
        let emulated = (target.vendor, target.engine) == (Vendor::Intel, Engine::Bochs);
        let without_kernel = emulated.then(|| bare::run(c, &target, &ground.bare_program));
        let without_kernel = without_kernel.transpose()?.map(Results::from);
        let base = base.get(|| guest::base(cache, c, &target, &ground.guest_tests))?;
        let outcome = guest::run(patched, &target, &ground.guest_tests, "ours")?;
        let (bare, ours) = (without_kernel.as_ref(), outcome.into());
        for (verdict, detail) in guest::compare(target.vendor, base, bare, &ours) {
            suite.count(verdict, || detail);
        }
        Ok(())
    });
    jobs.mark_last_long();
    // The harness is the same for both; Bochs would take minutes.
    if target.engine != Engine::Bochs {
        jobs.add(label("kselftest"), move |suite| {
            let base = of_c.get(|| guest::base(cache, c, &target, &ground.guest_tests))?;
            for (verdict, detail) in kselftest::run(patched, &target, base)? {
                suite.count(verdict, || detail);
            }
            Ok(())
        });
    }
}

/// Adds the upstream selftests, each run of which is compared with one on the stock kernel.
fn upstream_suites<'a>(jobs: &mut Jobs<'a>, cache: &'a Cache, ground: &'a Ground, target: Target) {
    let Ground {
        c, patched, bare, ..
    } = ground;
    let base = Arc::new(Once::default());
    for (name, bench) in [("patched", c), ("ours", patched), ("ours-alone", bare)] {
        let base = Arc::clone(&base);
        let suite = label(&format!("KVM selftests, {name}"), &target);
        jobs.add(suite, move |suite| {
            let results = |name, bench: &Bench| {
                let (upstream, tests) = (&ground.upstream, &ground.upstream_tests);
                selftests::results(cache, bench, &target, upstream, tests, name)
            };
            let base = base.get(|| results("stock", &ground.stock))?;
            let this = results(name, bench)?;
            for reason in [base, &this].into_iter().filter_map(selftests::stopped) {
                suite.count(Verdict::Failed, || reason);
            }
            let rows = selftests::compare(&ground.upstream_tests, &base.tap, &this.tap);
            print!("{}", selftests::table(&rows));
            for row in rows {
                suite.count(row.verdict, || format!("{}: {}", row.name, row.reason));
            }
            Ok(())
        });
    }
}

/// Returns the name of a suite that runs on a machine.
fn label(what: &str, target: &Target) -> String {
    format!("{what} ({}, {})", vendor_name(target.vendor), target.engine)
}

/// Returns the engines on which the upstream selftests run, where the others run on `engine`.
///
/// The two emulators of SVM lack different things, and neither is always right.
pub fn selftest_engines(vendor: Vendor, engine: Engine) -> Vec<Engine> {
    match (vendor, engine) {
        (Vendor::Amd, Engine::Tcg) => vec![Engine::Tcg, Engine::Bochs],
        _ => vec![engine],
    }
}

/// Plants faults, each of which must be found.
fn plants(suite: &mut Suite, cache: &Cache, bench: &Bench, target: &Target) -> Result<()> {
    let names = PLANTS.map(|plant| plant.name);
    let machine = (bench, target);
    let results = kept::of_this_program(cache, "harness", machine, &names, |name| {
        let plant = PLANTS.into_iter().find(|plant| plant.name == name);
        harness::result(plant.context("no such plant")?, bench, target)
    })?;
    for result in results {
        suite.count(result.verdict, || result.reason);
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
    let mut skipped = BTreeMap::<&str, Vec<&str>>::new();
    let mut failed = String::from("\n");
    for suite in suites {
        for detail in suite.details.iter().map(|detail| detail.trim_end()) {
            if detail.starts_with(Verdict::Skipped.word()) {
                skipped.entry(detail).or_default().push(&suite.name);
            } else {
                let _ = writeln!(failed, "{}: {detail}", suite.name);
            }
        }
    }
    text.push('\n');
    for (detail, suites) in skipped {
        let _ = writeln!(text, "{detail}\n    in {}", suites.join("; "));
    }
    text.push_str(&failed);
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
        let mut second = Suite::new("two".into());
        second.broke(&anyhow::anyhow!("broken"));
        let text = table(&[first, second]);
        assert!(
            text.ends_with("\n1 passed, 1 failed, 1 skipped\n"),
            "{text}"
        );
        assert!(text.contains("\nskip: no such CPU\n    in one\n"), "{text}");
        assert!(text.contains("\ntwo: FAIL: broken\n"), "{text}");
    }

    #[test]
    fn a_reason_to_skip_is_said_once() {
        let suites = ["one", "two"].map(|name| {
            let mut suite = Suite::new(name.into());
            suite.count(Verdict::Skipped, || "no such CPU".into());
            suite
        });
        let text = table(&suites);
        assert_eq!(text.matches("no such CPU").count(), 1, "{text}");
        assert!(text.contains("in one; two\n"), "{text}");
    }

    #[test]
    fn a_selection_is_a_part_of_a_name_in_any_case() {
        assert!(Selection::new(Some("KVM self")).has("kvm selftests (amd)"));
        assert!(!Selection::new(Some("kvm")).has("harness (amd)"));
        assert!(Selection::new(Some("")).has("anything") && Selection::new(None).has(CHECKS));
    }
}
