// SPDX-License-Identifier: GPL-2.0

//! `lab bench`: what operations of a guest and of its guest cost, in instructions.
//!
//! One boot of level 0 has both providers, one after the other. Level 0 runs on Bochs, whose TSC
//! counts instructions: the results are the same each time. For SVM, QEMU with a clock that counts
//! instructions gives a second opinion.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

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

/// The program that measures a guest of the level where it runs.
const PROGRAM: &str = "nested_benchmark";

/// The program that measures what page tables cost level 0.
const PAGING_PROGRAM: &str = "nested_paging_benchmark";

/// What is counted by levels of their own: operations whose rounds a trace shows, and how many.
const COUNTED: &str = "samples=80 cpuid hypercall rdmsr port-kernel";

/// What executes level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    vendor: Vendor,
    engine: Engine,
}

impl Machine {
    const INTEL: Self = Self::new(Vendor::Intel, Engine::Bochs);
    const AMD: Self = Self::new(Vendor::Amd, Engine::Bochs);
    const AMD_AGAIN: Self = Self::new(Vendor::Amd, Engine::Icount);
    const ALL: [Self; 3] = [Self::INTEL, Self::AMD, Self::AMD_AGAIN];

    const fn new(vendor: Vendor, engine: Engine) -> Self {
        Self { vendor, engine }
    }

    /// Returns the name for files, and to choose it by.
    fn name(self) -> String {
        let vendor = vendor_name(self.vendor);
        match self.engine {
            Engine::Bochs => vendor.to_owned(),
            engine => format!("{vendor}-{}", engine.name()),
        }
    }

    /// Returns what it is, for the heads of tables.
    fn description(self) -> String {
        match self.engine {
            Engine::Bochs => format!("{}, Bochs {}", self.name(), bochs::model(self.vendor)),
            engine => format!("{}, {engine}", vendor_name(self.vendor)),
        }
    }
}

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

/// When to give a boot up: three emulators may share two processors.
const LIMITS: Limits = Limits {
    total: Duration::from_secs(1800),
    silence: Duration::from_secs(300),
};

/// Ready to measure.
pub struct Benchmark {
    bench: Bench,
    program: PathBuf,
    paging_program: PathBuf,
    /// Whether VM entries are counted, too.
    transitions: bool,
}

impl Benchmark {
    /// Builds what is needed.
    pub fn prepare(cache: &Cache, options: &Options, transitions: Switch) -> Result<Self> {
        Ok(Self {
            bench: Bench::prepare(cache, options, Variant::Builtin, Provider::Ours)?,
            program: build_program(cache, PROGRAM)?,
            paging_program: build_program(cache, PAGING_PROGRAM)?,
            transitions: transitions == Switch::On,
        })
    }

    /// Measures on machines and prints the tables; `rows` names what to measure, all
    /// if it is empty.
    ///
    /// Each emulator keeps one processor busy: they run side by side.
    fn results(&self, machines: &[Machine], rows: &str) -> Result<Vec<Results>> {
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = machines
                .iter()
                .map(|machine| scope.spawn(|| self.measure(*machine, rows)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("the thread of a machine panicked")))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        for results in &results {
            println!("\n{}", results.machine.description());
            print!("{}", results.measured.table());
            if let Some(transitions) = &results.transitions {
                print!("\n{}", transitions.table());
            }
        }
        Ok(results)
    }

    /// Measures, prints the tables, and writes them and the chart into the tree if they are whole.
    pub fn publish(&self, machines: &[Machine], rows: &str) -> Result<ExitCode> {
        let all_results = self.results(machines, rows)?;
        if !rows.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        for results in &all_results {
            file::write(&instructions_of(results.machine)?, &results.measured)?;
            if let Some(transitions) = &results.transitions {
                transitions.write(&transitions_of(results.machine)?)?;
            }
        }
        // The chart has what was not measured now, too, as far as there are results.
        let mut all = Vec::new();
        for machine in [Machine::INTEL, Machine::AMD] {
            let path = instructions_of(machine)?;
            if path.is_file() {
                all.push((vendor_name(machine.vendor), file::read(&path)?));
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
    pub fn check(&self, machines: &[Machine], rows: &str) -> Result<ExitCode> {
        let mut losses = Vec::new();
        for results in self.results(machines, rows)? {
            let machine = results.machine;
            let before = file::read(&instructions_of(machine)?)?.only(rows);
            let mut lost = file::losses(&before, &results.measured);
            if let Some(transitions) = &results.transitions {
                let before = Transitions::read(machine.vendor, &transitions_of(machine)?)?;
                lost.extend(Transitions::losses(&before, transitions));
            }
            let name = machine.name();
            losses.extend(lost.into_iter().map(|loss| format!("{name}: {loss}")));
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

    /// Measures on a machine.
    fn measure(&self, machine: Machine, rows: &str) -> Result<Results> {
        let vendor = machine.vendor;
        let outcome = self.run(
            machine,
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
            machine,
            measured: instructions(&outcome)?,
            transitions: None,
        };
        if rows.is_empty() && self.transitions && machine.engine == Engine::Bochs {
            let outcome = self.run(
                machine,
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
    fn run(&self, machine: Machine, plan: &Plan<'_>) -> Result<Outcome> {
        let Machine { vendor, engine } = machine;
        let target = Target {
            vendor,
            engine,
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
            kernel: bench.guests.kernel.bzimage.clone(),
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
        files.file(&format!("/bin/{PAGING_PROGRAM}"), &self.paging_program);
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
            name: format!(
                "{}-{}",
                plan.name,
                Machine::new(target.vendor, target.engine).name()
            ),
            kernel: bench.kernel.bzimage.clone(),
            cmdline: Vec::new(),
            files,
            modules,
            commands: format!("OUR_MODULE={module}\n{}", plan.host),
            limits: LIMITS,
            target: *target,
        })
    }
}

/// The results of a machine.
struct Results {
    machine: Machine,
    measured: Measured,
    /// If they were asked for, and all rows.
    transitions: Option<Transitions>,
}

/// Returns the directory of the results in the tree.
fn directory() -> Result<PathBuf> {
    Ok(checkout()?.join("Documentation/performance"))
}

/// Returns the file with the instructions of a machine.
fn instructions_of(machine: Machine) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{}.csv", machine.name())))
}

/// Returns the file with the VM entries of a machine.
fn transitions_of(machine: Machine) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{}-transitions.csv", machine.name())))
}

/// Returns the machines whose names contain a text.
pub fn machines_named(part: &str) -> Result<Vec<Machine>> {
    let mut machines = Machine::ALL.to_vec();
    machines.retain(|machine| machine.name().contains(part));
    ensure!(!machines.is_empty(), "no machine has a name like {part:?}");
    Ok(machines)
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
        let (row, guest, value) = match words[..] {
            ["provider", name] => {
                provider = Some(column(name)?);
                continue;
            }
            // The boot of a level is reported by itself, other rows by the level below.
            ["boot", value] => ("boot", *level, value),
            [row, value] => (row, *level + 1, value),
            [row, "l1", value] => (row, 1, value),
            [row, "l2", value] => (row, 2, value),
            _ => bail!("a line of the benchmark that is none: {line}"),
        };
        let column = match guest {
            1 => Column::L1,
            _ => provider.context("results before the first provider")?,
        };
        let value = value.parse().with_context(|| format!("bench: {line}"))?;
        measured.add(row, column, value);
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
    use std::collections::BTreeSet;

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
            (0, "bench: log-pass l1 5"),
            (0, "bench: log-pass l2 6"),
        ]))
        .unwrap();
        let rows: Vec<_> = measured.rows().map(|(_, _, counts)| counts).collect();
        assert_eq!(
            (rows[0].l1, rows[0].c, rows[0].ours),
            (Some(1000), Some(9000), Some(6000))
        );
        assert_eq!((rows[1].l1, rows[1].ours), (Some(5), Some(6)));
        assert_eq!((rows[2].c, rows[2].ours), (Some(80), Some(60)));
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
    fn each_machine_has_a_file_of_its_own_for_its_results() {
        let files: BTreeSet<_> = Machine::ALL
            .iter()
            .map(|machine| instructions_of(*machine).unwrap())
            .collect();
        assert!(files.iter().all(|file| file.is_file()));
        assert_eq!(files.len(), Machine::ALL.len());
    }

    #[test]
    fn a_part_of_a_name_picks_machines() {
        assert_eq!(machines_named("").unwrap().len(), 3);
        assert_eq!(machines_named("intel").unwrap(), [Machine::INTEL]);
        assert_eq!(machines_named("icount").unwrap(), [Machine::AMD_AGAIN]);
        assert!(machines_named("arm").is_err());
    }
}
