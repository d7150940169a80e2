// SPDX-License-Identifier: GPL-2.0

//! Builds the kernel and the modules of this project and boots them on emulated machines.

mod archive;
mod benchmark;
mod cache;
mod checks;
mod command;
mod coverage;
mod doc;
mod host;
mod hypervisor;
mod image;
mod kernel;
mod machine;
mod modules;
mod options;
mod process;
mod scenario;
mod selftests;
mod step;
mod tap;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cache::Cache;
use crate::checks::CheckOutcome;
use crate::kernel::Variant;
use crate::options::{Options, Switch};
use crate::scenario::{Provider, Selection};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install or unpack what builds and machines need
    Setup {
        /// Look for a newer Linux 7.3.y in Debian's archive
        #[arg(long)]
        update: bool,
    },
    /// Build the kernel
    Kernel {
        /// Build the kernel without the patches
        #[arg(long)]
        stock: bool,
    },
    /// Build nested-vmx.ko and nested-svm.ko
    Modules,
    /// Build the KVM selftests of the kernel source
    Selftests,
    /// Boot the levels and print the report of the work that the last one did
    Run {
        /// Whose nested virtualization level 0 uses
        #[arg(long, env = "PROVIDER", value_enum, default_value = "ours")]
        provider: Provider,
    },
    /// Open a shell at level 0
    Shell {
        /// Whose nested virtualization level 0 uses
        #[arg(long, env = "PROVIDER", value_enum, default_value = "ours")]
        provider: Provider,
    },
    /// Run all tests and print the table of their results
    Test {
        /// Run only the suites whose names contain this text, for example `harness` or `intel`
        #[arg(long, env = "ONLY", value_name = "TEXT")]
        only: Option<String>,
    },
    /// Measure what operations cost, with both providers
    Bench {
        /// Measure only on the machines whose names contain this text: amd, intel, amd-icount
        #[arg(long, env = "ONLY", value_name = "TEXT", default_value = "")]
        only: String,
        /// Measure only these rows, by their short names
        #[arg(long, env = "ROWS", value_name = "NAMES", default_value = "")]
        rows: String,
        /// Count VM entries and accesses to VMCSs, too, in another boot with a level more
        #[arg(long, env = "TRANSITIONS", value_enum, default_value = "0")]
        transitions: Switch,
        /// Compare with the results in Documentation/performance/, and leave them as they are
        #[arg(long)]
        check: bool,
    },
    /// Run random programs of L1 and L2 with both providers in turn, and compare
    Fuzz {
        #[command(flatten)]
        cases: scenario::Cases,
    },
    /// Run the static checks
    Checks,
    /// Run the tests with instrumentation, on the host and in kernels, and print which lines they reach
    Coverage {
        /// Run only what has a name that contains this text, for example `host` or `guest tests (amd`
        #[arg(long, env = "ONLY", value_name = "TEXT")]
        only: Option<String>,
    },
    /// Run Clippy over the kernel side and the host side
    Clippy,
    /// Build the documents and rustdoc as HTML
    Doc,
}

fn main() -> ExitCode {
    let result = run(&Cli::parse());
    // What a signal interrupted is no failure to report.
    process::wait_if_ending();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verdict(outcomes: &[CheckOutcome]) -> ExitCode {
    if outcomes.iter().any(|outcome| outcome.failed > 0) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    process::listen()?;
    let cache = Cache::open()?;
    host::packages()?;
    let options = &cli.options;
    match &cli.action {
        Action::Setup { update } => {
            if *update {
                kernel::source::forget_choice(&cache)?;
            }
            host::setup(&cache)?;
        }
        Action::Kernel { stock } => {
            let variant = if *stock {
                Variant::Stock
            } else {
                Variant::asked_for(options)
            };
            let kernel = kernel::ensure(&cache, options, variant)?;
            let nested = if kernel.builtin {
                "with nested code of its own"
            } else {
                "without nested code of its own"
            };
            println!(
                "Linux {} ({}): KVM {nested}",
                kernel.version, kernel.variant
            );
            println!("{}", kernel.bzimage.display());
            for module in &kernel.modules {
                println!("{}", module.display());
            }
        }
        Action::Modules => {
            let kernel = kernel::ensure(&cache, options, Variant::asked_for(options))?;
            let modules = modules::ensure(&cache, &kernel)?;
            println!("{}\n{}", modules.vmx.display(), modules.svm.display());
        }
        Action::Selftests => {
            let kernel = kernel::ensure(&cache, options, Variant::Stock)?;
            let selftests = selftests::ensure(&cache, &kernel)?;
            println!("{}", selftests.dir.display());
        }
        Action::Run { provider } => return scenario::run(&cache, options, *provider),
        Action::Shell { provider } => return scenario::shell(&cache, options, *provider),
        Action::Test { only } => {
            let selection = Selection::new(only.as_deref());
            return scenario::test(&cache, options, &selection);
        }
        Action::Bench {
            only,
            rows,
            transitions,
            check,
        } => {
            let benchmark = scenario::Benchmark::prepare(&cache, options, *transitions)?;
            let machines = scenario::machines_named(only)?;
            return if *check {
                benchmark.check(&machines, rows)
            } else {
                benchmark.publish(&machines, rows)
            };
        }
        Action::Fuzz { cases } => return scenario::fuzz(&cache, options, *cases),
        Action::Checks => {
            return Ok(verdict(&checks::run(&cache, options)?));
        }
        Action::Coverage { only } => {
            let selection = Selection::new(only.as_deref());
            return coverage::run(&cache, options, &selection);
        }
        Action::Clippy => return Ok(verdict(&checks::clippy(&cache, options)?)),
        Action::Doc => doc::build(&cache, options)?,
    }
    Ok(ExitCode::SUCCESS)
}
