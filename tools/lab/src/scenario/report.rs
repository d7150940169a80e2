// SPDX-License-Identifier: GPL-2.0

//! The report of `lab run`.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::machine::accel::Engine;
use crate::machine::{Counters, Target};
use crate::options::Paging;
use crate::step::{clock, timings};

use super::nested::{self, Chain};
use super::{Bench, Levels, Provider, vendor_name, version};

/// How many exit reasons the report shows.
const TOP: usize = 12;

/// Exits of a guest's guest for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Handled by the level that counts.
    pub host: u64,
    /// Reflected to its guest.
    pub guest: u64,
}

impl Exits {
    fn sum(self) -> u64 {
        self.host + self.guest
    }
}

/// Adds up what a level counted for all its VMs: lines `NAME HOST-count GUEST-count`.
pub fn exits(counters: &[Counters], level: u8) -> Vec<(String, Exits)> {
    let mut sums: BTreeMap<&str, Exits> = BTreeMap::new();
    let files = counters
        .iter()
        .filter(|counters| counters.level == level && counters.file.ends_with("/exits"));
    for line in files.flat_map(|counters| counters.text.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, host, guest] = words[..] else {
            continue;
        };
        if let (Ok(host), Ok(guest)) = (host.parse::<u64>(), guest.parse::<u64>()) {
            let sum = sums.entry(name).or_default();
            sum.host += host;
            sum.guest += guest;
        }
    }
    let mut list: Vec<(String, Exits)> = sums
        .into_iter()
        .filter(|(_, exits)| exits.sum() > 0)
        .map(|(name, exits)| (name.to_owned(), exits))
        .collect();
    list.sort_by_key(|(_, exits)| std::cmp::Reverse(exits.sum()));
    list
}

/// What `nested-top --json` shows of a VM.
#[derive(Debug, Deserialize)]
pub struct Top {
    entries: BTreeMap<String, u64>,
    failed_checks: BTreeMap<String, u64>,
    #[serde(default)]
    mmu: BTreeMap<String, u64>,
}

impl Top {
    /// Returns how many entries of L2 were made that L1 asked for.
    pub fn entered(&self) -> u64 {
        self.entries.get("entered").copied().unwrap_or_default()
    }
}

/// Returns what it has shown at level 0, of each VM.
pub fn top(counters: &[Counters]) -> Result<Vec<Top>> {
    let shown = counters
        .iter()
        .find(|counters| counters.level == 0 && counters.file == "nested-top");
    // A line of the console has a limit, at which what is longer was folded.
    let text = shown.context("it did not run")?.text.replace('\n', "");
    serde_json::from_str(&text).with_context(|| format!("not understood: {text}"))
}

/// Formats what level 0 counted of the entries of L2.
fn entries(vms: &[Top]) -> String {
    let mut text = String::from("\nEntries of L2\n");
    for vm in vms {
        for (name, count) in &vm.entries {
            let _ = writeln!(text, "  {name:<28}{count:>12}");
        }
        for (name, count) in &vm.failed_checks {
            let _ = writeln!(text, "  {name:<28}{count:>12} failed");
        }
        for (name, count) in vm.mmu.iter().filter(|(_, count)| **count != 0) {
            let _ = writeln!(text, "  page tables, {name:<15}{count:>12}");
        }
    }
    text
}

/// Formats what the level `host` counted.
fn exits_table(host: u8, exits: &[(String, Exits)], provider: Provider) -> String {
    let mut text = format!("\nExits of L{}, by who took them\n", host + 2);
    let mut row = |name: &str, host: &str, guest: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<28}{host:>12}{guest:>12}");
    };
    if exits.is_empty() {
        let why = match provider {
            Provider::C => "the C provider counts none",
            Provider::Ours => "NONE COUNTED",
        };
        row(why, "", "");
        return text;
    }
    row("reason", &format!("L{host}"), &format!("L{}", host + 1));
    let (top, rest) = exits.split_at(exits.len().min(TOP));
    for (name, exits) in top {
        row(name, &exits.host.to_string(), &exits.guest.to_string());
    }
    if !rest.is_empty() {
        let host: u64 = rest.iter().map(|(_, exits)| exits.host).sum();
        let guest: u64 = rest.iter().map(|(_, exits)| exits.guest).sum();
        let name = format!("{} others", rest.len());
        row(&name, &host.to_string(), &guest.to_string());
    }
    text
}

/// Formats the report.
pub fn nested(
    bench: &Bench,
    target: &Target,
    provider: Provider,
    levels: Levels,
    chain: &Chain,
) -> Result<String> {
    let mut text = String::from("\n");
    let last = levels.last;
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
    row("L1", &bench.l1.name());
    row("L0 runs on", &target.engine.to_string());
    if target.engine == Engine::Bochs {
        row("Bochs", &version(bench, Engine::Bochs)?);
    }
    row("vCPUs", &processors(target));
    if levels.paging == Paging::Shadow {
        row("guests' KVM", "with shadow paging");
    }
    if levels.without.unrestricted {
        row("guests' KVM", "without unrestricted guests");
    }
    if levels.without.shadow_vmcs {
        row("all levels", "without VMCS shadowing");
    }
    row("QEMU", &version(bench, Engine::Tcg)?);

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

    for guest in 2..=last {
        let host = guest - 2;
        let exits = exits(&outcome.counters, host);
        text.push_str(&exits_table(host, &exits, provider));
    }
    if provider == Provider::Ours {
        text.push_str(&entries(&top(&outcome.counters)?));
    }

    let _ = writeln!(text, "\nTime of each step");
    for (name, duration) in timings().iter().chain(&outcome.steps) {
        let _ = writeln!(text, "  {name:<44}{:>10}", clock(*duration));
    }
    let _ = writeln!(text, "\nConsole: {}", outcome.log.display());
    Ok(text)
}

/// Says how many processors each level has.
fn processors(target: &Target) -> String {
    match nested::processors(target) {
        same if same == target.smp => format!("{same} at each level"),
        other => format!("{} at each level, {other} at L0", target.smp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(level: u8, file: &str, text: &str) -> Counters {
        Counters {
            level,
            file: format!("/sys/kernel/debug/nested/{file}"),
            text: text.into(),
        }
    }

    #[test]
    fn counters_of_all_virtual_machines_are_added_and_sorted() {
        let counted = [
            counters(0, "7-1/exits", "CPUID 1 20\nHLT 0 5\nNEVER 0 0\n"),
            counters(0, "8-1/exits", "HLT 2 40\n"),
            counters(0, "7-1/entries", "A 9 9"),
            counters(1, "7-1/exits", "MSR 3 4\n"),
        ];
        let row = |name: &str, host, guest| (name.to_owned(), Exits { host, guest });
        assert_eq!(exits(&counted, 0), [row("HLT", 2, 45), row("CPUID", 1, 20)]);
        assert_eq!(exits(&counted, 1), [row("MSR", 3, 4)]);
    }

    #[test]
    fn the_table_of_a_level_names_the_levels_and_sums_up_what_is_rare() {
        let many: String = (0..TOP + 2)
            .map(|count| format!("R{count} 1 {}\n", TOP + 2 - count))
            .collect();
        let counted = exits(&[counters(1, "x/exits", &many)], 1);
        let text = exits_table(1, &counted, Provider::Ours);
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[1].join(" "), "Exits of L3, by who took them");
        assert_eq!(words[2], ["reason", "L1", "L2"]);
        assert_eq!(words.last().unwrap(), &["2", "others", "2", "3"]);
    }

    #[test]
    fn entries_are_those_that_nested_top_shows_at_level_0() {
        let json = "[{\"entries\":{\"entered\":9,\"ref\nused\":1},\"failed_checks\":{\"A\":1}}]\n";
        let of_level = |level| Counters {
            file: "nested-top".into(),
            ..counters(level, "", json)
        };
        let vms = top(&[of_level(0)]).unwrap();
        assert_eq!(vms[0].entered(), 9);
        assert!(entries(&vms).contains("refused") && entries(&vms).contains(" failed"));
        assert!(top(&[of_level(1)]).is_err());
    }

    #[test]
    fn lines_that_are_no_counters_are_left_out() {
        let counted = [counters(0, "x/exits", "# name l0 l1\nCPUID x 1\nA 1\n")];
        assert!(exits(&counted, 0).is_empty());
    }
}
