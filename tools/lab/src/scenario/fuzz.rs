// SPDX-License-Identifier: GPL-2.0

//! `lab fuzz`: random programs of L1 and L2 with both providers in turn, in one boot of level 0.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cache::Cache;
use crate::image::rootfs::Rootfs;
use crate::kernel::Variant;
use crate::machine::{self, Limits, Outcome, Run, Target};
use crate::options::{Options, Vendor};
use crate::step;

use super::lifecycle::verdicts_of;
use super::selftests::Test;
use super::suites::{Suite, table};
use super::{Bench, Provider, guest, target, vendor_name};

/// The program.
const PROGRAM: &str = "nested_fuzz_test";

/// Which cases to run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cases {
    /// How many cases; each depends on the seed and its number only
    #[arg(long = "cases", env = "CASES", default_value_t = 20_000)]
    pub count: u64,
    /// Where the random numbers begin
    #[arg(long, env = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// The number of the first case
    #[arg(long, env = "FIRST", default_value_t = 0)]
    pub first: u64,
}

impl Cases {
    /// Returns those of `make test`, which take about two minutes.
    pub fn of_test(vendor: Vendor) -> Self {
        let count = match vendor {
            Vendor::Amd => 3072,
            Vendor::Intel => 896,
        };
        Self {
            count,
            seed: 1,
            first: 0,
        }
    }
}

/// Seconds of the guest that the program may take for so many cases.
fn time_limit(count: u64) -> u32 {
    u32::try_from(count / 4)
        .unwrap_or(u32::MAX)
        .saturating_add(300)
}

/// Returns the script that runs the program.
fn commands(vendor: Vendor, cases: Cases) -> String {
    let module = match vendor {
        Vendor::Amd => "nested-svm",
        Vendor::Intel => "nested-vmx",
    };
    let Cases { count, seed, first } = cases;
    let test = Test {
        name: PROGRAM.into(),
        program: PROGRAM.into(),
        arguments: format!("/lab/mod/{module}.ko --cases {count} --seed {seed} --first {first}"),
    };
    test.script(time_limit(count), 1) + "true\n"
}

/// Runs cases; `programs` has the guest tests.
pub fn run(bench: &Bench, target: &Target, programs: &Path, cases: Cases) -> Result<Outcome> {
    let vendor = vendor_name(target.vendor);
    let mut files = Rootfs::default();
    files.file(
        &format!("/lab/selftests/{PROGRAM}"),
        &programs.join(PROGRAM),
    );
    let run = Run {
        name: format!("fuzz-{vendor}"),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules(target)?,
        commands: commands(target.vendor, cases),
        limits: Limits {
            total: Duration::from_secs(4 * u64::from(time_limit(cases.count))),
            silence: Duration::from_secs(240),
        },
        target: *target,
    };
    let name = format!("fuzz ({vendor}, {})", target.engine);
    step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}

/// Counts the results of a run.
pub fn count(suite: &mut Suite, outcome: &Outcome) {
    for (verdict, detail) in verdicts_of(PROGRAM, outcome) {
        suite.count(verdict, || detail);
    }
}

/// Runs the cases that the user asks for, on the vendor of the options.
pub fn fuzz(cache: &Cache, options: &Options, cases: Cases) -> Result<ExitCode> {
    ensure!(cases.count > 0, "CASES must be 1 or more");
    let target = target(options)?;
    let bench = Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?;
    let programs = guest::build(cache)?;
    let outcome = run(&bench, &target, &programs, cases)?;
    let mut suite = Suite::new(format!("fuzz ({})", vendor_name(target.vendor)));
    count(&mut suite, &outcome);
    for (_, line) in &outcome.lines {
        if line.starts_with("# ") {
            println!("{line}");
        }
    }
    let failed = suite.failed > 0;
    print!("{}", table(&[suite]));
    println!("The whole console: {}", outcome.log.display());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_reach_the_program() {
        let cases = Cases {
            count: 7,
            seed: 8,
            first: 9,
        };
        let script = commands(Vendor::Intel, cases);
        let arguments = "--cases 7 --seed 8 --first 9 ";
        assert!(script.contains(&format!(
            "nested_fuzz_test /lab/mod/nested-vmx.ko {arguments}"
        )));
    }
}
