// SPDX-License-Identifier: GPL-2.0

//! What was executed, as LLVM says it in the form of lcov.

use std::collections::BTreeMap;
use std::path::Path;

/// Where a branch is: the line, and two numbers that the compiler gives it there.
pub type Place = (usize, usize, usize);

/// How often each line and each outcome of a condition in a file was executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// By the number of the line.
    pub lines: BTreeMap<usize, u64>,
    /// By the place of the outcome.
    pub branches: BTreeMap<Place, u64>,
}

impl Executed {
    /// Adds what another run has executed.
    pub fn add(&mut self, other: &Self) {
        for (line, count) in &other.lines {
            self.line(*line, *count);
        }
        for (place, count) in &other.branches {
            self.branch(*place, *count);
        }
    }

    fn line(&mut self, number: usize, count: u64) {
        let sum = self.lines.entry(number).or_default();
        *sum = sum.saturating_add(count);
    }

    fn branch(&mut self, place: Place, count: u64) {
        let sum = self.branches.entry(place).or_default();
        *sum = sum.saturating_add(count);
    }
}

/// What was executed of files, by their paths in the checkout.
pub type Files = BTreeMap<String, Executed>;

/// Reads the counts of the files in the checkout.
pub fn parse(checkout: &Path, text: &str) -> Files {
    let mut files = Files::new();
    let mut file = None;
    for line in text.lines() {
        let Some((word, rest)) = line.split_once(':') else {
            continue;
        };
        if word == "SF" {
            let inside = Path::new(rest).strip_prefix(checkout).ok();
            file = inside.map(|path| path.display().to_string());
        }
        let Some(name) = &file else {
            continue;
        };
        let numbers: Vec<&str> = rest.split(',').collect();
        match (word, &numbers[..]) {
            ("DA", [line, count]) => {
                if let (Ok(line), Ok(count)) = (line.parse(), count.parse()) {
                    files.entry(name.clone()).or_default().line(line, count);
                }
            }
            ("BRDA", [line, block, branch, count]) => {
                // A condition that was never evaluated has a dash there.
                let count = count.parse().unwrap_or(0);
                if let (Ok(line), Ok(block), Ok(branch)) =
                    (line.parse(), block.parse(), branch.parse())
                {
                    let executed = files.entry(name.clone()).or_default();
                    executed.branch((line, block, branch), count);
                }
            }
            _ => {}
        }
    }
    files
}

/// Adds what other runs have executed.
pub fn add(files: &mut Files, others: &Files) {
    for (name, executed) in others {
        files.entry(name.clone()).or_default().add(executed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_branches_of_all_runs_are_added() {
        let text = "SF:/c/a.rs\nFN:1,x\nDA:1,2\nDA:2,0\nBRDA:2,0,0,3\nBRDA:2,0,1,-\nBRF:2\n\
                    end_of_record\nSF:/other/b.rs\nDA:1,1\nend_of_record\n";
        let mut files = parse(Path::new("/c"), text);
        assert_eq!(files.len(), 1);
        add(&mut files, &parse(Path::new("/c"), "SF:/c/a.rs\nDA:2,5\n"));
        let a = &files["a.rs"];
        assert_eq!(a.lines, BTreeMap::from([(1, 2), (2, 5)]));
        assert_eq!(a.branches, BTreeMap::from([((2, 0, 0), 3), ((2, 0, 1), 0)]));
    }
}
