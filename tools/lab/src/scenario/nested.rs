// SPDX-License-Identifier: GPL-2.0

//! `lab run`: level 0 boots level 1, which boots level 2, which computes.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::hypervisor::Hypervisor;
use crate::image::level::{self, Nest, Work};
use crate::image::rootfs::Rootfs;
use crate::kernel::Variant;
use crate::machine::accel::Engine;
use crate::machine::{self, CMDLINE, Limits, Outcome, Run, Status, Target};
use crate::options::{Options, Vendor};
use crate::step;
use crate::tap::{TapReport, Verdict};

use super::kept;
use super::tools::{self, Tools};
use super::{Bench, Levels, Provider, report, target, vendor_name};

/// Seed of the workload; any number would do.
pub const SEED: u64 = 20_240_601;

/// Where level 0 has the program that shows its counters.
pub const NESTED_TOP: &str = "/bin/nested-top";

/// A run of the chain of levels with what it must compute.
pub struct Chain {
    /// How it ended.
    pub outcome: Outcome,
    /// The host's checksum of the workload.
    pub expected: String,
    /// Why the chain failed although the machine did not.
    pub mismatch: Option<String>,
}

impl Chain {
    /// Returns whether all levels did what they should.
    pub fn passed(&self) -> bool {
        self.outcome.passed() && self.mismatch.is_none()
    }

    /// Returns the result as that of a test.
    fn report(&self, name: &str) -> TapReport {
        let (verdict, reason) = match (&self.outcome.status, &self.mismatch) {
            (Status::Failed { reason, excerpt }, _) => {
                (Verdict::Failed, format!("{reason}\n{excerpt}"))
            }
            (Status::Passed, Some(mismatch)) => (Verdict::Failed, mismatch.clone()),
            (Status::Passed, None) => (Verdict::Passed, String::new()),
        };
        TapReport::new(name, verdict, reason)
    }
}

/// Describes the levels above level 0, the last of which runs the workload.
pub fn nest(bench: &Bench, target: &Target, levels: Levels, tools: &Tools) -> Result<Nest> {
    Ok(Nest {
        last: levels.last,
        kernel: bench.guests.kernel.bzimage.clone(),
        work: Work::Workload(tools.workload.clone()),
        modules: match &bench.l1 {
            Hypervisor::Debian(kernel) => kernel.kvm(target.vendor),
            Hypervisor::Linux | Hypervisor::Xen(..) => bench.guest_kvm(target.vendor, levels)?,
        },
        nested: bench
            .our_guest_module(target.vendor, levels)
            .into_iter()
            .collect(),
        cmdline: match &bench.l1 {
            Hypervisor::Linux => CMDLINE.to_owned(),
            Hypervisor::Debian(_) | Hypervisor::Xen(..) => format!("{CMDLINE} {OF_DEBIAN}"),
        },
        seed: SEED,
        smp: target.smp,
        engine: target.engine,
        files: Rootfs::default(),
        middle: None,
    })
}

/// Returns the number of processors of level 0.
///
/// With more than one, Bochs cannot run guests of KVM reliably; see errata.rst.
pub fn processors(target: &Target) -> u32 {
    match (target.engine, target.vendor) {
        (Engine::Bochs, Vendor::Intel) => 1,
        _ => target.smp,
    }
}

/// Describes the run.
pub fn describe(bench: &Bench, target: &Target, levels: Levels, tools: &Tools) -> Result<Run> {
    let last = levels.last;
    let nest = nest(bench, target, levels, tools)?;
    let mut files = Rootfs::default();
    level::add_nest(&mut files, &bench.programs.tools, &nest)?;
    files.file(NESTED_TOP, &tools.nested_top);
    let mut commands = include_str!("../image/guest/nested.sh").to_owned();
    match &bench.l1 {
        Hypervisor::Linux => {}
        Hypervisor::Debian(kernel) => {
            files.file("/lab/l1/bzImage", &kernel.bzimage());
        }
        Hypervisor::Xen(xen, kernel) => {
            files
                .extend(&level::qemu_for_pc(&bench.programs.tools)?)
                .file("/lab/l1/bzImage", &kernel.bzimage())
                .file("/lab/l1/xen", xen);
            commands = format!(
                "XEN_CPU={}\nXEN_MEMORY={XEN_MEMORY}\n{}",
                xen_cpu(target),
                include_str!("../image/guest/xen.sh")
            );
        }
    }
    Ok(Run {
        name: format!("nested-{}-l{last}", vendor_name(target.vendor)),
        kernel: bench.kernel.bzimage.clone(),
        cmdline: Vec::new(),
        files,
        modules: bench.modules_below(target, levels)?,
        commands,
        limits: limits(bench, last),
        target: Target {
            memory: target.memory.max(memory_of_host(&bench.l1, last)),
            smp: processors(target),
            ..*target
        },
    })
}

/// Words for Debian's kernel: with this mitigation it warns of itself; see errata.rst.
const OF_DEBIAN: &str = "indirect_target_selection=off";

/// Memory of Xen and its domains, in MiB.
const XEN_MEMORY: u32 = 1152;

/// Returns the memory of level 0 in MiB.
fn memory_of_host(l1: &Hypervisor, last: u8) -> u32 {
    match l1 {
        Hypervisor::Linux => level::memory(0, last),
        // A kernel for all computers is larger.
        Hypervisor::Debian(_) => level::memory(0, last) + 256,
        Hypervisor::Xen(..) => XEN_MEMORY + 896,
    }
}

/// Returns QEMU's words for the processor of Xen; why it has this and not that is in errata.rst.
///
/// The TSC of QEMU's emulator is invariant, but it does not say so: that takes force.
fn xen_cpu(target: &Target) -> &'static str {
    match (target.engine, target.vendor) {
        (Engine::Tcg | Engine::Icount, _) => "host,-rdtscp,+invtsc,x-force-features=on",
        (Engine::Bochs, Vendor::Intel) => "host,+invtsc,-vmx-apicv-vid,-vmx-apicv-register",
        (Engine::Bochs, Vendor::Amd) | (Engine::Kvm, _) => "host,+invtsc",
    }
}

/// How much longer each level above L2 takes than the one below it.
const SLOWDOWN: u32 = 8;

/// How much longer Xen's first domain may take than an L2 of Linux: see errata.rst.
const SLOWDOWN_OF_XEN: u32 = 3;

/// Returns the limits for a chain of levels.
fn limits(bench: &Bench, last: u8) -> Limits {
    let of_l1 = match bench.l1 {
        Hypervisor::Linux | Hypervisor::Debian(_) => 1,
        Hypervisor::Xen(..) => SLOWDOWN_OF_XEN,
    };
    let of_levels = SLOWDOWN.pow(u32::from(last.saturating_sub(2)));
    let factor = of_levels * of_l1 * bench.kernel.slowdown();
    let least = Limits::default();
    Limits {
        total: least.total * factor,
        silence: least.silence * factor,
    }
}

/// Boots the chain and compares what the last level computed with the host.
pub fn chain(bench: &Bench, target: &Target, levels: Levels, tools: &Tools) -> Result<Chain> {
    let last = levels.last;
    let expected = tools::reference(&tools.workload, SEED)?;
    let run = describe(bench, target, levels, tools)?;
    let name = format!(
        "boot L0 to L{last} ({}, {})",
        vendor_name(target.vendor),
        target.engine
    );
    let outcome = step::run(&name, |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })?;
    let mismatch = if outcome.passed() {
        let lines = outcome.lines.iter().filter(|(level, _)| *level == last);
        tools::compare(lines.map(|(_, text)| text.as_str()), &expected)
            .err()
            .map(|error| error.to_string())
            .or_else(|| unseen(bench, last, &outcome))
    } else {
        None
    };
    Ok(Chain {
        outcome,
        expected,
        mismatch,
    })
}

/// Returns the result of the chain up to L2 as that of a test. Without our module, it may be kept from
/// an earlier run.
pub fn test(cache: &Cache, bench: &Bench, target: &Target, tools: &Tools) -> Result<TapReport> {
    let boot = || chain(bench, target, Levels::up_to(2), tools);
    if bench.ours.is_some() {
        return Ok(boot()?.report("levels"));
    }
    let workload = Key::builder("workload").add("program", fs::read(&tools.workload)?);
    let name = format!("levels, {}", workload.finish());
    let results =
        kept::of_this_program(cache, "L0, L1, L2, C", (bench, target), &[&name], |name| {
            Ok(boot()?.report(name))
        })?;
    results.into_iter().next().context("no result")
}

/// Returns what is wrong if our module was in a level whose guest has a guest, and saw no exit.
fn unseen(bench: &Bench, last: u8, outcome: &Outcome) -> Option<String> {
    bench.ours.as_ref()?;
    let blind = (2..=last).find(|guest| report::exits(&outcome.counters, guest - 2).is_empty());
    if let Some(guest) = blind {
        return Some(format!("our module has counted no exit of L{guest}"));
    }
    match report::top(&outcome.counters) {
        Ok(vms) if vms.iter().any(|vm| vm.entered() > 0) => None,
        Ok(_) => Some("nested-top shows no entry of L2".to_owned()),
        Err(error) => Some(format!("nested-top: {error:#}")),
    }
}

/// Runs the chain that the options ask for and prints the report.
pub fn run(cache: &Cache, options: &Options, provider: Provider) -> Result<ExitCode> {
    let target = target(options)?;
    let levels = Levels::asked_for(options, provider)?;
    let variant = Variant::asked_for(options);
    let mut bench = Bench::prepare(cache, options, variant, provider)?;
    bench.l1 = Hypervisor::ensure(cache, options.l1)?;
    let tools = Tools::build(cache)?;
    let chain = chain(&bench, &target, levels, &tools)?;
    if let Status::Failed { reason, excerpt } = &chain.outcome.status {
        println!(
            "{excerpt}\n\nFAILED: {reason}\nThe whole console: {}",
            chain.outcome.log.display()
        );
        return Ok(ExitCode::FAILURE);
    }
    print!(
        "{}",
        report::nested(&bench, &target, provider, levels, &chain)?
    );
    Ok(if chain.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
