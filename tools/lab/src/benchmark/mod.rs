// SPDX-License-Identifier: GPL-2.0

//! The results of the benchmark: their table, their file in the tree, their chart.

pub mod chart;
pub mod file;
pub mod transitions;

use std::collections::BTreeMap;
use std::fmt::Write;

/// Where something was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// A guest of level 0.
    L1,
    /// The guest's guest, with KVM's own nested code at level 0.
    C,
    /// The guest's guest, with our module at level 0.
    Ours,
}

/// What a row is, by its name on the console and in words.
const ROWS: &[(&str, &str)] = &[
    ("cpuid", "CPUID"),
    ("hypercall", "VMCALL or VMMCALL"),
    ("rdmsr", "RDMSR"),
    ("wrmsr", "WRMSR"),
    ("port-kernel", "OUT, device in the hypervisor's kernel"),
    ("port-user", "OUT, device in its user space"),
    ("timer", "timer, armed to interrupt"),
    ("hlt", "HLT, wake-up by a timer"),
    ("ipi", "IPI to another vCPU and its answer"),
    ("fault-cold", "page fault, page not mapped anywhere"),
    ("fault-shadow", "page fault, page not mapped by L0 only"),
    ("flush", "a page is replaced, 255 are read"),
    ("dirty-log", "dirty log, per page written"),
    ("log-pass", "dirty log of level 0, per page written"),
    ("flush-gigabyte", "flush of a page, 1 GiB mapped"),
    ("flush-first", "the first eight flushes, 128 MiB mapped"),
    ("fault-exits", "exits for 100 page faults"),
    ("tables-gigabyte", "KiB of tables for 1 GiB"),
    ("boot", "boot of Linux"),
];

/// The instructions of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In a guest of level 0.
    pub l1: Option<u64>,
    /// In the guest's guest, with the C provider.
    pub c: Option<u64>,
    /// In the guest's guest, with ours.
    pub ours: Option<u64>,
}

impl Counts {
    /// Returns ours divided by that of the C provider.
    pub fn ratio(&self) -> Option<f64> {
        match (self.c, self.ours) {
            (Some(c), Some(ours)) if c > 0 => Some(ours as f64 / c as f64),
            _ => None,
        }
    }

    /// Returns the ratio for a table.
    fn ratio_in_words(&self) -> String {
        self.ratio()
            .map_or("-".into(), |ratio| format!("{ratio:.2}"))
    }
}

/// Returns the name of the row with these words.
fn name(words: &str) -> Option<&'static str> {
    let row = ROWS.iter().find(|(_, other)| *other == words);
    row.map(|(name, _)| *name)
}

/// The results for a vendor, by the name of the row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured(BTreeMap<String, Counts>);

impl Measured {
    /// Adds a result.
    pub fn add(&mut self, row: &str, column: Column, value: u64) {
        let counts = self.0.entry(row.to_owned()).or_default();
        match column {
            Column::L1 => counts.l1 = Some(value),
            Column::C => counts.c = Some(value),
            Column::Ours => counts.ours = Some(value),
        }
    }

    /// Returns the rows that were measured, in the order of the table: name, words, result.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, &'static str, Counts)> + '_ {
        ROWS.iter()
            .filter_map(|(name, words)| Some((*name, *words, *self.0.get(*name)?)))
    }

    /// Keeps the rows that are named in a list, or all if it is empty.
    #[must_use]
    pub fn only(mut self, names: &str) -> Self {
        let names: Vec<&str> = names.split_whitespace().collect();
        self.0
            .retain(|name, _| names.is_empty() || names.contains(&name.as_str()));
        self
    }

    /// Formats the table.
    pub fn table(&self) -> String {
        let number = |count: Option<u64>| count.map_or("-".into(), grouped);
        let mut text = format!(
            "  {:<42}{:>13}{:>13}{:>13}{:>8}\n",
            "instructions", "L1", "L2 on C", "L2 on ours", "ratio"
        );
        for (_, words, counts) in self.rows() {
            let ratio = counts
                .ratio()
                .map_or("-".into(), |ratio| format!("{ratio:.2}"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "  {words:<42}{:>13}{:>13}{:>13}{ratio:>8}",
                number(counts.l1),
                number(counts.c),
                number(counts.ours)
            );
        }
        text
    }
}

/// Formats a number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        let mut measured = Measured::default();
        measured.add("rdmsr", Column::L1, 1000);
        for (row, factor) in [("cpuid", 1), ("rdmsr", 10)] {
            measured.add(row, Column::C, 2000 * factor);
            measured.add(row, Column::Ours, 1500 * factor);
        }
        measured
    }

    #[test]
    fn the_table_has_a_row_for_each_operation_in_order() {
        let table = measured().table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["CPUID", "-", "2,000", "1,500", "0.75"]);
        assert_eq!(rows[2], ["RDMSR", "1,000", "20,000", "15,000", "0.75"]);
    }

    #[test]
    fn rows_can_be_picked_by_name() {
        assert_eq!(measured().only("rdmsr ipi").rows().count(), 1);
        assert_eq!(measured().only("").rows().count(), 2);
    }

    #[test]
    fn digits_are_grouped_from_the_end() {
        let numbers = [7, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(numbers, ["7", "999", "1,000", "1,234,567"]);
    }
}
