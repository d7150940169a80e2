// SPDX-License-Identifier: GPL-2.0

//! The report of `lab run`.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;

use crate::command;
use crate::machine::Target;
use crate::machine::accel::Engine;
use crate::step::{clock, timings};

use super::nested::Chain;
use super::{Bench, Provider, vendor_name};

/// How many exit reasons the report shows.
const TOP: usize = 12;

/// Exits of L2 for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Handled by level 0.
    pub l0: u64,
    /// Reflected to level 1.
    pub l1: u64,
}

/// Adds up the exit counters of all VMs: lines `NAME L0-count L1-count`.
pub fn exits(counters: &[(String, String)]) -> Vec<(String, Exits)> {
    let mut sums: BTreeMap<&str, Exits> = BTreeMap::new();
    let files = counters.iter().filter(|(file, _)| file.ends_with("/exits"));
    for line in files.flat_map(|(_, text)| text.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, l0, l1] = words[..]
            && let (Ok(l0), Ok(l1)) = (l0.parse::<u64>(), l1.parse::<u64>())
        {
            let sum = sums.entry(name).or_default();
            sum.l0 += l0;
            sum.l1 += l1;
        }
    }
    let mut list: Vec<(String, Exits)> = sums
        .into_iter()
        .filter(|(_, exits)| exits.l0 + exits.l1 > 0)
        .map(|(name, exits)| (name.to_owned(), exits))
        .collect();
    list.sort_by_key(|(_, exits)| std::cmp::Reverse(exits.l0 + exits.l1));
    list
}

/// Returns the first line that a program prints about its version.
fn version(bench: &Bench, program: &str, argument: &str) -> Result<String> {
    // Bochs ends with a status of its own after --help: the text is what counts.
    let mut command = bench.programs.tools.command(program);
    let (_, text) = command::verdict(command.arg(argument))?;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| line.chars().any(|c| c.is_ascii_digit()));
    Ok(line.unwrap_or("version unknown").to_owned())
}

/// Formats the report.
pub fn nested(
    bench: &Bench,
    target: &Target,
    provider: Provider,
    last: u8,
    chain: &Chain,
) -> Result<String> {
    let mut text = String::from("\n");
    let outcome = &chain.outcome;
    let mut row = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    row(
        "kernel",
        &format!("Linux {} ({})", bench.kernel.version, bench.kernel.variant),
    );
    for (name, value) in &outcome.facts {
        if let Some(module) = name.strip_prefix("module ") {
            row("module", &format!("{module} {value}"));
        }
    }
    row("provider", &provider.to_string());
    row("vendor", vendor_name(target.vendor));
    row("L0 runs on", &target.engine.to_string());
    if target.engine == Engine::Bochs {
        row("Bochs", &version(bench, "bochs-bin", "--help")?);
    }
    row("QEMU", &version(bench, "qemu-system-x86_64", "--version")?);

    let _ = writeln!(text, "\nL{last} computed");
    for (level, line) in &outcome.lines {
        if let Some(result) = line.strip_prefix("workload: ").filter(|_| *level == last) {
            let _ = writeln!(text, "  {result}");
        }
    }
    let verdict = match &chain.mismatch {
        None => "the same as the host".to_owned(),
        Some(problem) => format!("NOT the same as the host: {problem}"),
    };
    let _ = writeln!(text, "  {verdict} (checksum {})", chain.expected);

    let exits = exits(&outcome.counters);
    let _ = writeln!(text, "\nExits of L2, by who took them");
    if exits.is_empty() {
        let why = match provider {
            Provider::C => "the C provider counts none",
            Provider::Ours => "NONE COUNTED",
        };
        let _ = writeln!(text, "  {why}");
    } else {
        let _ = writeln!(text, "  {:<28}{:>12}{:>12}", "reason", "L0", "L1");
        for (name, exits) in exits.iter().take(TOP) {
            let _ = writeln!(text, "  {name:<28}{:>12}{:>12}", exits.l0, exits.l1);
        }
        if let Some(rest) = exits.get(TOP..).filter(|rest| !rest.is_empty()) {
            let (l0, l1) = rest
                .iter()
                .fold((0, 0), |(l0, l1), (_, e)| (l0 + e.l0, l1 + e.l1));
            let _ = writeln!(
                text,
                "  {:<28}{l0:>12}{l1:>12}",
                format!("{} others", rest.len())
            );
        }
    }

    let _ = writeln!(text, "\nTime of each step");
    for (name, duration) in timings().iter().chain(&outcome.steps) {
        let _ = writeln!(text, "  {name:<44}{:>10}", clock(*duration));
    }
    let _ = writeln!(text, "\nConsole: {}", outcome.log.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_virtual_machines_are_added_and_sorted() {
        let file = |vm: &str, text: &str| {
            (
                format!("/sys/kernel/debug/nested/{vm}/exits"),
                text.to_owned(),
            )
        };
        let list = exits(&[
            file("7-1", "CPUID 1 20\nHLT 0 5\nNEVER 0 0\n"),
            file("8-1", "HLT 2 40\n"),
            (
                "/sys/kernel/debug/nested/7-1/entries".into(),
                "A 9 9".into(),
            ),
        ]);
        let hlt = ("HLT".to_owned(), Exits { l0: 2, l1: 45 });
        let cpuid = ("CPUID".to_owned(), Exits { l0: 1, l1: 20 });
        assert_eq!(list, [hlt, cpuid]);
    }

    #[test]
    fn lines_that_are_no_counters_are_left_out() {
        let text = "# name l0 l1\nCPUID x 1\nA 1\n".to_owned();
        assert!(exits(&[("/x/exits".into(), text)]).is_empty());
    }
}
