// SPDX-License-Identifier: GPL-2.0

//! What our modules execute in a kernel while machines run the tests.
//!
//! The modules are built once more, with the compiler's instrumentation. Its counters are data of
//! the module: Linux shows them in `/sys/module/NAME/notes/`, as it does with every section that is
//! a note, thus that is what the section with the counters is called.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::Cache;
use crate::kernel::Variant;
use crate::machine::accel;
use crate::machine::{Counters, Outcome, Status, Target};
use crate::modules::{self, OurModules};
use crate::options::{Options, Vendor};
use crate::scenario::guest::Part;
use crate::scenario::jobs::Jobs;
use crate::scenario::tools::Tools as Programs;
use crate::scenario::{Bench, Cases, Levels, Provider};
use crate::scenario::{fuzz, guest, nested, selftests, suites, vendor_name};
use crate::selftests::{self as upstream, Selftests};
use crate::{command, kernel};

use super::llvm::{FLAGS, Tools};
use super::profile;

/// ELF's type of a note.
const NOTE: u32 = 7;

/// Random cases of the fuzzer: our module is taken out and put in after so many, and what it has
/// counted of those before is gone with it.
const CASES: u64 = 64;

/// Everything that is built before the first machine boots.
pub struct Ground {
    bench: Bench,
    guest_tests: PathBuf,
    upstream: Selftests,
    upstream_tests: Vec<selftests::Test>,
    programs: Programs,
}

impl Ground {
    /// Builds it.
    pub fn prepare(cache: &Cache, options: &Options, tools: &Tools, work: &Path) -> Result<Self> {
        let mut bench = Bench::prepare(cache, options, Variant::Builtin, Provider::C)?;
        bench.ours = Some(modules(cache, &bench, tools, work)?);
        let stock = kernel::ensure(cache, options, Variant::Stock)?;
        let upstream = upstream::ensure(cache, &stock)?;
        Ok(Self {
            bench,
            guest_tests: guest::build(cache)?,
            upstream_tests: selftests::list(&upstream.dir)?,
            upstream,
            programs: Programs::build(cache)?,
        })
    }
}

/// Builds our modules with counters that a machine can read.
fn modules(cache: &Cache, bench: &Bench, tools: &Tools, work: &Path) -> Result<OurModules> {
    // There is no runtime in a kernel. It would write profiles, which is done here.
    let flags = format!("KRUSTFLAGS={FLAGS} -Zno-profiler-runtime");
    let dir = work.join("instrumented");
    let what = "with counters of what is executed";
    let modules = modules::ensure_in(cache, &bench.kernel, &dir, what, &[&flags])?;
    for module in [&modules.vmx, &modules.svm] {
        let mut objcopy = tools.command("llvm-objcopy");
        objcopy.arg(format!("--set-section-type={}={NOTE}", profile::COUNTERS));
        command::output(objcopy.arg(module))?;
    }
    Ok(modules)
}

/// What machines have counted.
#[derive(Default)]
pub struct Counted(Mutex<Vec<(Vendor, Vec<u64>)>>);

impl Counted {
    /// Takes in what a run has printed. Whether its tests passed is for `lab test` to say.
    fn take(&self, vendor: Vendor, outcome: &Outcome) -> Result<()> {
        if let Status::Failed { reason, excerpt } = &outcome.status {
            bail!("{reason}\n{excerpt}");
        }
        let mut found = Vec::new();
        for Counters { level, file, text } in &outcome.counters {
            if *level == 0 && file.ends_with(profile::COUNTERS) {
                found.push((vendor, profile::counters(text)?));
            }
        }
        if found.is_empty() {
            // A machine that stops is a test that has failed, of which there may be more behind it.
            let stopped = outcome.tap.last().map_or("", |test| &test.reason);
            bail!("our module has printed no counters: {stopped}");
        }
        self.0.lock().map_err(|_| poisoned())?.extend(found);
        Ok(())
    }

    /// Returns what was executed of a vendor's module, in the form of lcov: nothing if no run was
    /// wanted.
    pub fn executed(
        &self,
        tools: &Tools,
        work: &Path,
        ground: &Ground,
        vendor: Vendor,
    ) -> Result<String> {
        let module = ground.bench.our_module(vendor).context("no module")?.path;
        let bytes = fs::read(&module)?;
        let mut profiles = Vec::new();
        let counted = self.0.lock().map_err(|_| poisoned())?;
        for (_, counters) in counted.iter().filter(|(other, _)| *other == vendor) {
            let name = format!("{}-{}.profraw", vendor_name(vendor), profiles.len());
            let path = work.join(name);
            fs::write(&path, profile::encode(&bytes, counters)?)?;
            profiles.push(path);
        }
        if profiles.is_empty() {
            return Ok(String::new());
        }
        tools.export(work, vendor_name(vendor), &profiles, &[module])
    }
}

fn poisoned() -> anyhow::Error {
    anyhow!("a run panicked")
}

/// Adds the runs with our module, for both vendors. Those of the life cycle take the module out.
pub fn add_runs<'a>(
    jobs: &mut Jobs<'a>,
    options: &Options,
    ground: &'a Ground,
    counted: &'a Counted,
) -> Result<()> {
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let target = Target {
            vendor,
            engine: accel::choose(vendor, options.accel)?,
            smp: options.smp,
            memory: 2048,
        };
        let mut add = |name: &str, boot: Boot, target: Target| {
            let name = format!("{name} ({}, {})", vendor_name(vendor), target.engine);
            jobs.add(name, move |_| counted.take(vendor, &boot(ground, &target)?));
        };
        for (name, boot) in RUNS {
            add(name, *boot, target);
        }
        for engine in suites::selftest_engines(vendor, target.engine) {
            add("KVM selftests", kvm_selftests, Target { engine, ..target });
        }
        add("guest tests", guest_tests, target);
        jobs.mark_last_long();
    }
    Ok(())
}

/// Runs something in a machine.
type Boot = fn(&Ground, &Target) -> Result<Outcome>;

/// What runs on one engine, and does not take minutes.
const RUNS: &[(&str, Boot)] = &[
    ("fuzz", random_programs),
    ("L0, L1, L2", levels),
    ("guest tests, state", state_tests),
];

fn guest_tests(ground: &Ground, target: &Target) -> Result<Outcome> {
    let (bench, programs) = (&ground.bench, &ground.guest_tests);
    guest::run_while_loaded(bench, target, programs, Part::Staying, "coverage")
}

fn state_tests(ground: &Ground, target: &Target) -> Result<Outcome> {
    let (bench, programs) = (&ground.bench, &ground.guest_tests);
    guest::run_while_loaded(bench, target, programs, Part::Moving, "coverage-state")
}

fn random_programs(ground: &Ground, target: &Target) -> Result<Outcome> {
    let cases = Cases {
        count: CASES,
        ..Cases::of_test(target.vendor)
    };
    fuzz::run(&ground.bench, target, &ground.guest_tests, cases)
}

fn levels(ground: &Ground, target: &Target) -> Result<Outcome> {
    let chain = nested::chain(&ground.bench, target, Levels::up_to(2), &ground.programs)?;
    match chain.mismatch {
        Some(mismatch) => bail!(mismatch),
        None => Ok(chain.outcome),
    }
}

fn kvm_selftests(ground: &Ground, target: &Target) -> Result<Outcome> {
    let tests = &ground.upstream_tests;
    selftests::run(&ground.bench, target, &ground.upstream, tests, "coverage")
}
