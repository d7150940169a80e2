// SPDX-License-Identifier: GPL-2.0

//! `lab bench`: what operations of a guest and of its guest cost, in instructions.
//!
//! One boot of level 0 has both providers, one after the other. Level 0 runs on Bochs, whose TSC
//! counts instructions: the results are the same each time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::benchmark::{Column, Measured};
use crate::cache::Cache;
use crate::image::level::{self, Module, Nest, Work};
use crate::image::rootfs::Rootfs;
use crate::kernel::Variant;
use crate::machine::accel::Engine;
use crate::machine::{self, CMDLINE, Limits, Outcome, Run, Status, Target};
use crate::options::{Options, Paging, Vendor};
use crate::step;

use super::lifecycle::build_program;
use super::{Bench, Provider, vendor_name};

/// The program that measures.
const PROGRAM: &str = "nested_benchmark";

/// The last level, which boots an operating system and does no more.
const LAST: u8 = 2;

/// Parameters of kvm.ko at all levels.
///
/// Both features make KVM wait actively, by amounts that it adapts to what happened before: what is
/// waited would be counted, and differ from run to run.
const STEADY: [&str; 2] = ["halt_poll_ns=0", "lapic_timer_advance=0"];

/// Ready to measure.
pub struct Benchmark {
    bench: Bench,
    program: PathBuf,
}

impl Benchmark {
    /// Builds what is needed.
    pub fn prepare(cache: &Cache, options: &Options) -> Result<Self> {
        Ok(Self {
            bench: Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?,
            program: build_program(cache, PROGRAM)?,
        })
    }

    /// Measures on a vendor's machine; `rows` names what to measure, all if it is empty.
    pub fn measure(&self, vendor: Vendor, rows: &str) -> Result<Measured> {
        let target = Target {
            vendor,
            engine: Engine::Bochs,
            smp: 1,
            memory: level::memory(0, LAST),
        };
        let run = self.describe(&target, rows)?;
        let name = format!("benchmark ({}, {})", vendor_name(vendor), target.engine);
        let outcome = step::run(&name, |step| {
            machine::execute(&run, &self.bench.programs, &self.bench.logs, step)
        })?;
        if let Status::Failed { reason, excerpt } = &outcome.status {
            bail!(
                "{excerpt}\n{reason}\nThe whole console: {}",
                outcome.log.display()
            );
        }
        read(&outcome)
    }

    fn describe(&self, target: &Target, rows: &str) -> Result<Run> {
        let bench = &self.bench;
        let ours = bench.our_module(target.vendor).context("no module")?;
        let mut files = Rootfs::default();
        let measuring = format!(
            "ROWS='{rows}'\n{}",
            include_str!("../image/guest/bench.guest.sh")
        );
        files
            .file(&format!("/bin/{PROGRAM}"), &self.program)
            .text("/lab/bench.guest", &measuring);
        let nest = Nest {
            last: LAST,
            kernel: bench.kernel.bzimage.clone(),
            work: Work::Script("nested_benchmark clock\n"),
            modules: steady(bench.guest_kvm(target.vendor, Paging::Nested)?),
            nested: Vec::new(),
            cmdline: CMDLINE.to_owned(),
            seed: 0,
            smp: target.smp,
            engine: target.engine,
            files,
            middle: Some(include_str!("../image/guest/bench.middle.sh")),
        };
        let mut files = Rootfs::default();
        level::add_nest(&mut files, &bench.programs.tools, &nest)?;
        let module = file_name(&ours.path)?;
        files.file(&format!("/lab/mod/{module}"), &ours.path);
        let c = Bench {
            ours: None,
            ..bench.clone()
        };
        Ok(Run {
            name: format!("benchmark-{}", vendor_name(target.vendor)),
            kernel: bench.kernel.bzimage.clone(),
            cmdline: Vec::new(),
            files,
            modules: steady(c.modules(target)?),
            commands: format!(
                "OUR_MODULE=/lab/mod/{module}\n{}",
                include_str!("../image/guest/bench.sh")
            ),
            limits: Limits::default(),
            target: *target,
        })
    }
}

/// Measures on the vendors whose names contain `only`, and prints the tables.
pub fn bench(cache: &Cache, options: &Options, only: &str, rows: &str) -> Result<ExitCode> {
    let benchmark = Benchmark::prepare(cache, options)?;
    for vendor in [Vendor::Amd, Vendor::Intel] {
        if vendor_name(vendor).contains(only) {
            let measured = benchmark.measure(vendor, rows)?;
            println!("\n{}\n{}", vendor_name(vendor), measured.table());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the name of a module's file.
fn file_name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.context("a module without a name")
}

/// Gives kvm.ko its parameters.
fn steady(modules: Vec<Module>) -> Vec<Module> {
    modules
        .into_iter()
        .map(|module| {
            if module.path.ends_with("kvm.ko") {
                STEADY.iter().fold(module, |module, word| module.with(word))
            } else {
                module
            }
        })
        .collect()
}

/// Finds the results on the console.
fn read(outcome: &Outcome) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut provider = None;
    for (level, line) in &outcome.lines {
        let Some(line) = line.strip_prefix("bench: ") else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["provider", "c"] => provider = Some(Column::C),
            ["provider", "ours"] => provider = Some(Column::Ours),
            [row, value] => {
                // The boot of a level is reported by itself, other rows by the level below.
                let guest = if row == "boot" { *level } else { *level + 1 };
                let column = match guest {
                    1 => Column::L1,
                    _ => provider.context("results before the first provider")?,
                };
                let value = value.parse().with_context(|| format!("bench: {line}"))?;
                measured.add(row, column, value);
            }
            _ => bail!("a line of the benchmark that is none: {line}"),
        }
    }
    Ok(measured)
}
