// SPDX-License-Identifier: GPL-2.0

//! VM entries and accesses to control structures, which weigh more on hardware than other
//! instructions: how many of them an operation of a guest's guest takes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Column;
use crate::options::Vendor;

/// Kinds of instructions.
const KINDS: usize = 4;

/// Numbers of instructions by their kind.
pub type Numbers = [u64; KINDS];

/// Returns the names of the kinds.
fn kinds(vendor: Vendor) -> [&'static str; KINDS] {
    match vendor {
        Vendor::Intel => ["VM entries", "VMREAD", "VMWRITE", "others"],
        Vendor::Amd => ["VMRUN", "VMLOAD", "VMSAVE", "others"],
    }
}

/// The results for a vendor, by the name of the operation: with the C provider, with ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    vendor: Vendor,
    rows: BTreeMap<String, [Option<Numbers>; 2]>,
}

impl Transitions {
    /// Begins without results.
    pub fn new(vendor: Vendor) -> Self {
        let rows = BTreeMap::new();
        Self { vendor, rows }
    }

    /// Adds a result.
    pub fn add(&mut self, row: &str, column: Column, numbers: Numbers) {
        let slots = self.rows.entry(row.to_owned()).or_default();
        match column {
            Column::L1 => (),
            Column::C => slots[0] = Some(numbers),
            Column::Ours => slots[1] = Some(numbers),
        }
    }

    /// Returns the operations in words with their numbers, kind by kind, C before ours.
    fn lines(&self) -> Vec<(&'static str, Vec<u64>)> {
        let mut lines = Vec::new();
        for (name, words) in super::ROWS {
            if let Some([Some(c), Some(ours)]) = self.rows.get(*name) {
                let numbers = c.iter().zip(ours).flat_map(|(c, ours)| [*c, *ours]);
                lines.push((*words, numbers.collect()));
            }
        }
        lines
    }

    /// Formats the table.
    pub fn table(&self) -> String {
        let mut text = format!("  {:<42}", "for one operation of L2, C / ours");
        for kind in kinds(self.vendor) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{kind:>13}");
        }
        for (words, numbers) in self.lines() {
            let _ = write!(text, "\n  {words:<42}");
            for pair in numbers.chunks(2) {
                let pair: Vec<String> = pair.iter().map(u64::to_string).collect();
                let _ = write!(text, "{:>13}", pair.join(" / "));
            }
        }
        text.push('\n');
        text
    }

    /// Writes the results.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let heads = kinds(self.vendor)
            .into_iter()
            .flat_map(|kind| [format!("{kind}, C"), format!("{kind}, ours")]);
        writer.write_record(std::iter::once("Operation".to_owned()).chain(heads))?;
        for (words, numbers) in self.lines() {
            let numbers = numbers.iter().map(u64::to_string);
            writer.write_record(std::iter::once(words.to_owned()).chain(numbers))?;
        }
        crate::cache::write_atomic(path, &writer.into_inner()?)
    }

    /// Reads results.
    pub fn read(vendor: Vendor, path: &Path) -> Result<Self> {
        let mut transitions = Self::new(vendor);
        let reader = csv::Reader::from_path(path);
        let mut reader = reader.with_context(|| format!("reading {}", path.display()))?;
        for record in reader.records() {
            let record = record.with_context(|| format!("in {}", path.display()))?;
            let words = record.get(0).unwrap_or_default();
            let name = super::name(words)
                .with_context(|| format!("{}: no row {words:?}", path.display()))?;
            let numbers: Vec<u64> = record
                .iter()
                .skip(1)
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            ensure!(numbers.len() == 2 * KINDS, "{}: {words}", path.display());
            for (index, column) in [Column::C, Column::Ours].into_iter().enumerate() {
                let numbers = std::array::from_fn(|kind| numbers[2 * kind + index]);
                transitions.add(name, column, numbers);
            }
        }
        Ok(transitions)
    }

    /// Returns a line for each kind of which ours takes more than it did.
    pub fn losses(before: &Self, now: &Self) -> Vec<String> {
        let mut losses = Vec::new();
        for (row, [_, old]) in &before.rows {
            let new = now.rows.get(row).and_then(|[_, ours]| *ours);
            let (Some(old), Some(new)) = (old, new) else {
                losses.push(format!("{row}: not counted"));
                continue;
            };
            for ((kind, old), new) in kinds(before.vendor).iter().zip(old).zip(new) {
                if new > *old {
                    losses.push(format!("{row}: {kind}: {old} before, {new} now"));
                }
            }
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transitions(reads: u64) -> Transitions {
        let mut transitions = Transitions::new(Vendor::Intel);
        transitions.add("cpuid", Column::C, [3, 50, 40, 2]);
        transitions.add("cpuid", Column::Ours, [3, reads, 30, 1]);
        transitions
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transitions.csv");
        transitions(20).write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("\nCPUID,3,3,50,20,40,30,2,1\n"), "{text}");
        let read = Transitions::read(Vendor::Intel, &path).unwrap();
        assert_eq!(read, transitions(20));
        assert!(read.table().contains("50 / 20"));
    }

    #[test]
    fn one_more_is_a_loss() {
        assert!(Transitions::losses(&transitions(20), &transitions(19)).is_empty());
        let losses = Transitions::losses(&transitions(20), &transitions(21));
        assert_eq!(losses, ["cpuid: VMREAD: 20 before, 21 now"]);
        let none = Transitions::new(Vendor::Intel);
        assert_eq!(Transitions::losses(&transitions(20), &none).len(), 1);
    }
}
