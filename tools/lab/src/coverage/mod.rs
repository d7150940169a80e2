// SPDX-License-Identifier: GPL-2.0

//! `lab coverage`: the lines of nested/ and rust/ that tests reach, on the host and in kernels.
//!
//! The compiler's own instrumentation counts, in both.

mod host;
mod kernel;
mod lcov;
mod llvm;
mod profile;
mod reasons;
mod report;
mod source;

use std::fs;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Result, anyhow, ensure};

use crate::cache::Cache;
use crate::options::{Options, Vendor, checkout};
use crate::scenario::Selection;
use crate::scenario::jobs::Jobs;

use kernel::{Counted, Ground};
use lcov::Files;
use llvm::Tools;
use report::Reached;

/// The crate with the architecture, which has tests on the host.
const CRATE: &str = "nested";

/// The directory of the crates that are for a kernel only.
const KERNEL_SIDE: &str = "rust";

/// The part of the lines of the architecture that tests must reach at least.
const GOAL: f64 = 0.9;

/// What the counters of a module cannot tell.
const NOT_COUNTED: &str = "Not counted is what a module has executed before it was taken out, as in the \
     tests of the life cycle.";

/// Runs the tests and prints what they reach; fails below the goal.
pub fn run(cache: &Cache, options: &Options, selection: &Selection) -> Result<ExitCode> {
    let tools = Tools::find()?;
    let checkout = checkout()?;
    let work = checkout.join("build/coverage");
    fs::create_dir_all(&work)?;
    let ground = Ground::prepare(cache, options, &tools, &work)?;
    let (of_host, counted) = (Mutex::new(None), Counted::default());
    let mut jobs = Jobs::default();
    jobs.add("tests on the host".into(), |_| {
        let text = host::executed(cache, &tools, &work)?;
        *of_host
            .lock()
            .map_err(|_| anyhow!("another run panicked"))? = Some(text);
        Ok(())
    });
    jobs.mark_last_long();
    kernel::add_runs(&mut jobs, options, &ground, &counted)?;
    let suites = jobs.run(selection)?;
    ensure!(!suites.is_empty(), "nothing has a name like that");
    let of_host = of_host.into_inner().ok().flatten();
    let host = lcov::parse(&checkout, &of_host.unwrap_or_default());
    let mut kernel = Files::new();
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let text = counted.executed(&tools, &work, &ground, vendor)?;
        lcov::add(&mut kernel, &lcov::parse(&checkout, &text));
    }
    let reached = |root| Reached::of(&checkout, root, &host, &kernel);
    let trees = [reached(CRATE)?, reached(KERNEL_SIDE)?];
    print!("{}", report::text(&trees));
    println!("\n{NOT_COUNTED}");
    let failed = suites.iter().filter(|suite| suite.failed > 0);
    let failed: Vec<String> = failed
        .map(|suite| format!("{}: {}", suite.name, suite.details.join("\n")))
        .collect();
    ensure!(
        failed.is_empty(),
        "not all is counted\n{}",
        failed.join("\n")
    );
    let [architecture, _] = trees.map(|tree| tree.sum().reached());
    Ok(if architecture >= GOAL {
        ExitCode::SUCCESS
    } else {
        println!("The goal for {CRATE}/ is {:.0} %", 100.0 * GOAL);
        ExitCode::FAILURE
    })
}
