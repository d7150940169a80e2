// SPDX-License-Identifier: GPL-2.0

//! The file of results in the tree, and what became worse since.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Counts, Measured};

/// Returns how much more an operation may take than the file says, as a part of it.
///
/// Most numbers are the same in each boot. That of Linux depends on when timers interrupt.
fn tolerance(row: &str) -> f64 {
    match row {
        "boot" => 0.05,
        _ => 0.02,
    }
}

/// A line of the file; the names of the fields are the heads of the columns.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "Operation")]
    words: String,
    #[serde(rename = "L1")]
    l1: Option<u64>,
    #[serde(rename = "L2, C")]
    c: Option<u64>,
    #[serde(rename = "L2, ours")]
    ours: Option<u64>,
    #[serde(rename = "Ratio")]
    ratio: String,
}

/// Writes results.
pub fn write(path: &Path, measured: &Measured) -> Result<()> {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    for (_, words, counts) in measured.rows() {
        writer.serialize(Line {
            words: words.to_owned(),
            l1: counts.l1,
            c: counts.c,
            ours: counts.ours,
            ratio: counts.ratio_in_words(),
        })?;
    }
    crate::cache::write_atomic(path, &writer.into_inner()?)
}

/// Reads results.
pub fn read(path: &Path) -> Result<Measured> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("reading {}", path.display()))?;
    let mut measured = Measured::default();
    for line in reader.deserialize() {
        let line: Line = line.with_context(|| format!("in {}", path.display()))?;
        let name = super::name(&line.words)
            .with_context(|| format!("{}: no row {:?}", path.display(), line.words))?;
        let counts = Counts {
            l1: line.l1,
            c: line.c,
            ours: line.ours,
        };
        measured.0.insert(name.to_owned(), counts);
    }
    Ok(measured)
}

/// Returns a line for each row in which ours takes more than it did.
pub fn losses(before: &Measured, now: &Measured) -> Vec<String> {
    let mut losses = Vec::new();
    for (name, words, old) in before.rows() {
        let Some(old) = old.ours else { continue };
        match now.0.get(name).and_then(|counts| counts.ours) {
            None => losses.push(format!("{words}: {old} before, not measured now")),
            Some(new) if new as f64 > old as f64 * (1.0 + tolerance(name)) => {
                let loss = 100.0 * (new as f64 / old as f64 - 1.0);
                losses.push(format!("{words}: {old} before, {new} now (+{loss:.1} %)"));
            }
            Some(_) => (),
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::super::Column;
    use super::*;

    fn measured(ours: u64) -> Measured {
        let mut measured = Measured::default();
        measured.add("cpuid", Column::C, 2000);
        measured.add("cpuid", Column::Ours, ours);
        measured
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        write(&path, &measured(1000)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("\nCPUID,,2000,1000,0.50\n"), "{text}");
        assert_eq!(read(&path).unwrap(), measured(1000));
    }

    #[test]
    fn a_row_that_no_longer_exists_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.csv");
        std::fs::write(
            &path,
            "Operation,L1,\"L2, C\",\"L2, ours\",Ratio\nX,1,2,3,1.50\n",
        )
        .unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("no row \"X\""));
    }

    #[test]
    fn two_percent_are_tolerated_and_five_of_a_boot() {
        assert!(losses(&measured(1000), &measured(900)).is_empty());
        assert!(losses(&measured(1000), &measured(1020)).is_empty());
        assert_eq!(
            losses(&measured(1000), &measured(1021)),
            ["CPUID: 1000 before, 1021 now (+2.1 %)"]
        );
        assert_eq!(losses(&measured(1000), &Measured::default()).len(), 1);
        let boot = |ours| {
            let mut measured = Measured::default();
            measured.add("boot", Column::Ours, ours);
            measured
        };
        assert!(losses(&boot(1000), &boot(1050)).is_empty());
        assert_eq!(losses(&boot(1000), &boot(1051)).len(), 1);
    }
}
