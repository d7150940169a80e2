// SPDX-License-Identifier: GPL-2.0

//! `lab bench`: what operations of a guest and of its guest cost, in instructions.
//!
//! One boot of level 0 has both providers, one after the other. Level 0 runs on Bochs, whose TSC
//! counts instructions: the results are the same each time.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::benchmark::transitions::Transitions;
use crate::benchmark::{Column, Measured, chart, file};
use crate::cache::{Cache, write_atomic};
use crate::image::level::{self, Module, Nest, Work};
use crate::image::rootfs::Rootfs;
use crate::kernel::Variant;
use crate::machine::accel::Engine;
use crate::machine::bochs;
use crate::machine::{self, CMDLINE, Limits, Outcome, Run, Status, Target};
use crate::options::{Options, Switch, Vendor, checkout};
use crate::step;

use super::lifecycle::build_program;
use super::{Bench, Levels, Provider, vendor_name};

/// The program that measures.
const PROGRAM: &str = "nested_benchmark";

/// What is counted by levels of their own: operations whose rounds a trace shows, and how many.
const COUNTED: &str = "samples=80 cpuid hypercall rdmsr port-kernel";

/// What a boot of level 0 is for.
struct Plan<'a> {
    /// Name for files and messages.
    name: &'static str,
    /// The last level.
    last: u8,
    /// What level 0 does.
    host: &'static str,
    /// What the levels between it and the last one do.
    middle: &'static str,
    /// The program's arguments.
    rows: &'a str,
    /// Memory of level 0 besides that for the levels, in MiB.
    memory: u32,
    /// A parameter of the vendor's module at level 0.
    parameter: Option<&'static str>,
}

/// Parameters of kvm.ko at all levels.
///
/// Both features make KVM wait actively, by amounts that it adapts to what happened before: what is
/// waited would be counted, and differ from run to run.
const STEADY: [&str; 2] = ["halt_poll_ns=0", "lapic_timer_advance=0"];

/// Ready to measure.
pub struct Benchmark {
    bench: Bench,
    program: PathBuf,
    /// Whether VM entries are counted, too.
    transitions: bool,
}

impl Benchmark {
    /// Builds what is needed.
    pub fn prepare(cache: &Cache, options: &Options, transitions: Switch) -> Result<Self> {
        Ok(Self {
            bench: Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?,
            program: build_program(cache, PROGRAM)?,
            transitions: transitions == Switch::On,
        })
    }

    /// Measures on the machines of vendors and prints the tables; `rows` names what to measure, all
    /// if it is empty.
    ///
    /// Each emulator keeps one core busy: they run side by side.
    fn results(&self, vendors: &[Vendor], rows: &str) -> Result<Vec<Results>> {
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = vendors
                .iter()
                .map(|vendor| scope.spawn(|| self.measure(*vendor, rows)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("the thread of a vendor panicked")))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        for results in &results {
            let vendor = results.vendor;
            println!("\n{} ({})", vendor_name(vendor), bochs::model(vendor));
            print!("{}", results.measured.table());
            if let Some(transitions) = &results.transitions {
                print!("\n{}", transitions.table());
            }
        }
        Ok(results)
    }

    /// Measures, prints the tables, and writes them and the chart into the tree if they are whole.
    pub fn publish(&self, vendors: &[Vendor], rows: &str) -> Result<ExitCode> {
        let all_results = self.results(vendors, rows)?;
        if !rows.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        for results in &all_results {
            file::write(&instructions_of(results.vendor)?, &results.measured)?;
            if let Some(transitions) = &results.transitions {
                transitions.write(&transitions_of(results.vendor)?)?;
            }
        }
        // The chart has the vendors that were not measured now, too, as far as there are results.
        let mut all = Vec::new();
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let path = instructions_of(vendor)?;
            if path.is_file() {
                all.push((vendor_name(vendor), file::read(&path)?));
            }
        }
        let charts: Vec<_> = all.iter().map(|(name, results)| (*name, results)).collect();
        let path = directory()?.join("instructions.svg");
        write_atomic(&path, chart::svg(&charts)?.as_bytes())?;
        println!(
            "\nThe results and their chart are in {}",
            directory()?.display()
        );
        Ok(ExitCode::SUCCESS)
    }

    /// Measures, prints the tables, and fails if an operation takes more than the tree says.
    pub fn check(&self, vendors: &[Vendor], rows: &str) -> Result<ExitCode> {
        let mut losses = Vec::new();
        for results in self.results(vendors, rows)? {
            let vendor = results.vendor;
            let before = file::read(&instructions_of(vendor)?)?.only(rows);
            let mut lost = file::losses(&before, &results.measured);
            if let Some(transitions) = &results.transitions {
                let before = Transitions::read(vendor, &transitions_of(vendor)?)?;
                lost.extend(Transitions::losses(&before, transitions));
            }
            let vendor = vendor_name(vendor);
            losses.extend(lost.into_iter().map(|loss| format!("{vendor}: {loss}")));
        }
        println!();
        for loss in &losses {
            println!("LOSS: {loss}");
        }
        if losses.is_empty() {
            println!("No operation takes more than it did.");
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }

    /// Measures on a vendor's machine.
    fn measure(&self, vendor: Vendor, rows: &str) -> Result<Results> {
        let outcome = self.run(
            vendor,
            &Plan {
                name: "benchmark",
                last: 2,
                host: include_str!("../image/guest/bench.sh"),
                middle: include_str!("../image/guest/bench.middle.sh"),
                rows,
                memory: 0,
                parameter: None,
            },
        )?;
        let mut results = Results {
            vendor,
            measured: instructions(&outcome)?,
            transitions: None,
        };
        if rows.is_empty() && self.transitions {
            let outcome = self.run(
                vendor,
                &Plan {
                    name: "transitions",
                    last: 3,
                    host: include_str!("../image/guest/transitions.sh"),
                    middle: include_str!("../image/guest/transitions.middle.sh"),
                    rows: COUNTED,
                    // For a trace, and its text.
                    memory: 384,
                    // Level 0 is to see each access to a VMCS.
                    parameter: (vendor == Vendor::Intel).then_some("enable_shadow_vmcs=0"),
                },
            )?;
            results.transitions = Some(transitions(vendor, &outcome)?);
        }
        Ok(results)
    }

    /// Boots level 0 once.
    fn run(&self, vendor: Vendor, plan: &Plan<'_>) -> Result<Outcome> {
        let target = Target {
            vendor,
            engine: Engine::Bochs,
            smp: 1,
            memory: level::memory(0, plan.last) + plan.memory,
        };
        let run = self.describe(&target, plan)?;
        let name = format!("{} ({}, {})", plan.name, vendor_name(vendor), target.engine);
        let outcome = step::run(&name, |step| {
            machine::execute(&run, &self.bench.programs, &self.bench.logs, step)
        })?;
        if let Status::Failed { reason, excerpt } = &outcome.status {
            let log = outcome.log.display();
            bail!("{excerpt}\n{reason}\nThe whole console: {log}");
        }
        Ok(outcome)
    }

    fn describe(&self, target: &Target, plan: &Plan<'_>) -> Result<Run> {
        let bench = &self.bench;
        let ours = bench.our_module(target.vendor).context("no module")?;
        let name = ours.path.file_name().and_then(|name| name.to_str());
        let module = format!("/lab/mod/{}", name.context("a module without a name")?);
        let mut tools = Rootfs::default();
        let shared = include_str!("../image/guest/bench.guest.sh");
        tools.file(&format!("/bin/{PROGRAM}"), &self.program).text(
            "/lab/bench.guest",
            &format!("ROWS='{}'\n{shared}", plan.rows),
        );
        let nest = Nest {
            last: plan.last,
            kernel: bench.kernel.bzimage.clone(),
            work: Work::Script("nested_benchmark clock\n"),
            modules: steady(bench.guest_kvm(target.vendor, Levels::up_to(2))?),
            nested: vec![ours],
            cmdline: CMDLINE.to_owned(),
            seed: 0,
            smp: target.smp,
            engine: target.engine,
            files: tools,
            middle: Some(plan.middle),
        };
        let mut files = Rootfs::default();
        level::add_nest(&mut files, &bench.programs.tools, &nest)?;
        // Level 0 inserts our module when its turn comes.
        let c = Bench {
            ours: None,
            ..bench.clone()
        };
        let mut modules = steady(c.modules(target)?);
        if let (Some(parameter), Some(vendor)) = (plan.parameter, modules.last_mut()) {
            *vendor = vendor.clone().with(parameter);
        }
        Ok(Run {
            name: format!("{}-{}", plan.name, vendor_name(target.vendor)),
            kernel: bench.kernel.bzimage.clone(),
            cmdline: Vec::new(),
            files,
            modules,
            commands: format!("OUR_MODULE={module}\n{}", plan.host),
            limits: Limits::default(),
            target: *target,
        })
    }
}

/// The results for a vendor.
struct Results {
    vendor: Vendor,
    measured: Measured,
    /// If they were asked for, and all rows.
    transitions: Option<Transitions>,
}

/// Returns the directory of the results in the tree.
fn directory() -> Result<PathBuf> {
    Ok(checkout()?.join("Documentation/performance"))
}

/// Returns the file with the instructions for a vendor.
fn instructions_of(vendor: Vendor) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{}.csv", vendor_name(vendor))))
}

/// Returns the file with the VM entries for a vendor.
fn transitions_of(vendor: Vendor) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{}-transitions.csv", vendor_name(vendor))))
}

/// Returns the vendors whose names contain a text.
pub fn vendors_named(part: &str) -> Result<Vec<Vendor>> {
    let mut vendors = vec![Vendor::Amd, Vendor::Intel];
    vendors.retain(|vendor| vendor_name(*vendor).contains(part));
    ensure!(!vendors.is_empty(), "no vendor has a name like {part:?}");
    Ok(vendors)
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

/// Returns the column that a provider's results are in.
fn column(provider: &str) -> Result<Column> {
    match provider {
        "c" => Ok(Column::C),
        "ours" => Ok(Column::Ours),
        _ => bail!("no provider is called {provider:?}"),
    }
}

/// Finds the instructions on the console.
fn instructions(outcome: &Outcome) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut provider = None;
    for (level, line) in &outcome.lines {
        let Some(line) = line.strip_prefix("bench: ") else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["provider", name] => provider = Some(column(name)?),
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

/// Finds the VM entries on the console.
fn transitions(vendor: Vendor, outcome: &Outcome) -> Result<Transitions> {
    let mut transitions = Transitions::new(vendor);
    let mut provider = None;
    for (_, line) in &outcome.lines {
        let Some(line) = line.strip_prefix("transitions: ") else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["provider", name] => provider = Some(column(name)?),
            [row, ref numbers @ ..] => {
                let numbers: Vec<u64> = numbers
                    .iter()
                    .map(|word| word.parse())
                    .collect::<Result<_, _>>()?;
                let numbers = numbers.try_into();
                let numbers = numbers.map_err(|_| anyhow!("transitions: {line}"))?;
                let provider = provider.context("results before the first provider")?;
                transitions.add(row, provider, numbers);
            }
            [] => bail!("an empty line of the benchmark"),
        }
    }
    Ok(transitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[(u8, &str)]) -> Outcome {
        Outcome {
            status: Status::Passed,
            log: "log".into(),
            tap: Vec::new(),
            facts: Default::default(),
            counters: Vec::new(),
            steps: Vec::new(),
            lines: lines
                .iter()
                .map(|(level, line)| (*level, (*line).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn results_belong_to_the_provider_before_them_and_to_their_level() {
        let measured = instructions(&outcome(&[
            (0, "bench: cpuid 1000"),
            (0, "bench: provider c"),
            (1, "bench: boot 70"),
            (1, "bench: cpuid 9000"),
            (2, "bench: boot 80"),
            (0, "bench: provider ours"),
            (1, "bench: boot 71"),
            (1, "bench: cpuid 6000"),
            (2, "bench: boot 60"),
        ]))
        .unwrap();
        let rows: Vec<_> = measured.rows().map(|(_, _, counts)| counts).collect();
        assert_eq!(
            (rows[0].l1, rows[0].c, rows[0].ours),
            (Some(1000), Some(9000), Some(6000))
        );
        assert_eq!((rows[1].c, rows[1].ours), (Some(80), Some(60)));
        assert!(instructions(&outcome(&[(1, "bench: cpuid 9")])).is_err());
    }

    #[test]
    fn vm_entries_are_found_for_both_providers() {
        let lines = [
            (0, "transitions: provider c"),
            (0, "transitions: cpuid 2 30 20 4"),
            (0, "transitions: provider ours"),
            (0, "transitions: cpuid 2 10 5 0"),
        ];
        let table = transitions(Vendor::Intel, &outcome(&lines))
            .unwrap()
            .table();
        assert!(
            table.contains("30 / 10") && table.contains("20 / 5"),
            "{table}"
        );
        let short = [(0, "transitions: provider c"), (0, "transitions: cpuid 2")];
        assert!(transitions(Vendor::Intel, &outcome(&short)).is_err());
    }

    #[test]
    fn a_part_of_a_name_picks_vendors() {
        assert_eq!(vendors_named("").unwrap().len(), 2);
        assert_eq!(vendors_named("intel").unwrap(), [Vendor::Intel]);
        assert!(vendors_named("arm").is_err());
    }
}
