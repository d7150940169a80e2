// SPDX-License-Identifier: GPL-2.0

//! What tests reach of each file, and what they do not.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::lcov::{Executed, Files};
use super::reasons;
use super::source::{END, Source};

/// Lines of a function that follow each other, but for comments, and that no test reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    first: usize,
    last: usize,
    function: String,
    reason: Option<&'static str>,
}

impl Gap {
    /// Formats it with the file that it is in.
    fn text(&self, file: &str) -> String {
        let Self { first, last, .. } = self;
        let mut place = format!("{file}:{first}");
        if first != last {
            place += &format!("-{last}");
        }
        if !self.function.is_empty() {
            place += &format!(" {}()", self.function);
        }
        format!("  {place}: {}\n", self.reason.unwrap_or("no test yet"))
    }
}

/// How many lines and outcomes of conditions there are, and how many of them tests reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    lines: usize,
    /// Lines that tests on the host reach.
    host: usize,
    /// Lines that are reached in a kernel.
    kernel: usize,
    /// Lines that either reaches.
    all: usize,
    branches: usize,
    taken: usize,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.host += other.host;
        self.kernel += other.kernel;
        self.all += other.all;
        self.branches += other.branches;
        self.taken += other.taken;
    }

    /// Returns the part of the lines that is reached.
    pub fn reached(&self) -> f64 {
        self.all as f64 / self.lines.max(1) as f64
    }

    /// Formats it as a line of the table.
    fn row(&self, name: &str) -> String {
        let part = |some: usize, of: usize| match of {
            0 => "-".to_owned(),
            _ => format!("{:.1}%", 100.0 * some as f64 / of as f64),
        };
        // Nothing of the kernel side is built for the host.
        let host = if name.starts_with("rust") {
            "-".to_owned()
        } else {
            part(self.host, self.lines)
        };
        format!(
            "{name:<48}{:>6}{host:>8}{:>8}{:>8}{:>10}{:>8}\n",
            self.lines,
            part(self.kernel, self.lines),
            part(self.all, self.lines),
            self.branches,
            part(self.taken, self.branches)
        )
    }
}

/// What tests reach of a file.
#[derive(Debug)]
struct File {
    name: String,
    sum: Sum,
    gaps: Vec<Gap>,
}

impl File {
    fn new(name: &str, source: &Source, host: &Executed, kernel: &Executed) -> Self {
        let mut all = host.clone();
        all.add(kernel);
        all.lines.retain(|line, _| !source.is_test(*line));
        all.branches.retain(|(line, ..), _| !source.is_test(*line));
        let reached = |by: &Executed| {
            let count = |line| by.lines.get(line).is_some_and(|count| *count > 0);
            all.lines.keys().filter(|line| count(line)).count()
        };
        let taken = all.branches.values().filter(|count| **count > 0);
        Self {
            name: name.to_owned(),
            sum: Sum {
                lines: all.lines.len(),
                host: reached(host),
                kernel: reached(kernel),
                all: reached(&all),
                branches: all.branches.len(),
                taken: taken.count(),
            },
            gaps: gaps(name, source, &all),
        }
    }
}

/// Returns the lines of a file that were not executed.
fn gaps(name: &str, source: &Source, executed: &Executed) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    // Whether the line before was not executed either.
    let mut goes_on = false;
    for (line, count) in &executed.lines {
        let before = goes_on;
        goes_on = *count == 0;
        if !goes_on {
            continue;
        }
        let function = source.function(*line);
        let reason = reasons::of(name, function, source.line(*line));
        let reason = reason.or(source.excuse(*line));
        // A block that is not entered is not left either.
        let same = |gap: &Gap| gap.reason == reason || reason == Some(END);
        match gaps.last_mut() {
            Some(gap) if before && gap.function == function && same(gap) => gap.last = *line,
            _ => gaps.push(Gap {
                first: *line,
                last: *line,
                function: function.to_owned(),
                reason,
            }),
        }
    }
    gaps
}

/// What tests reach of a tree of files.
#[derive(Debug)]
pub struct Reached {
    root: String,
    files: Vec<File>,
}

impl Reached {
    /// Returns what tests reach of the files below a directory of the checkout, without those that
    /// are tests themselves: on the host, and in kernels.
    pub fn of(checkout: &Path, root: &str, host: &Files, kernel: &Files) -> Result<Self> {
        let nothing = Executed::default();
        let mut files = Vec::new();
        for (name, source) in Source::all(&checkout.join(root))? {
            let name = format!("{root}/{name}");
            let [host, kernel] = [host, kernel].map(|files| files.get(&name).unwrap_or(&nothing));
            let file = File::new(&name, &source, host, kernel);
            if file.sum.lines > 0 {
                files.push(file);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            files,
        })
    }

    /// Adds up all files.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for file in &self.files {
            sum.add(&file.sum);
        }
        sum
    }

    /// Lists the lines that no test reaches, with the reasons.
    fn gaps(&self) -> String {
        let of_file = |file: &File| -> String {
            let gaps = file.gaps.iter();
            gaps.map(|gap| gap.text(&file.name)).collect()
        };
        self.files.iter().map(of_file).collect()
    }

    /// Returns a line of the table for each directory below the root, and one for all.
    fn sums(&self) -> String {
        let mut directories: BTreeMap<String, Sum> = BTreeMap::new();
        for file in &self.files {
            let parts: Vec<&str> = file.name.split('/').collect();
            let directory = match parts[..] {
                [root, below, _, ..] => format!("{root}/{below}/"),
                _ => format!("{}/*.rs", self.root),
            };
            directories.entry(directory).or_default().add(&file.sum);
        }
        let rows = directories.iter().map(|(name, sum)| sum.row(name));
        rows.chain([self.sum().row(&format!("{}/", self.root))])
            .collect()
    }
}

/// Formats the lines that no test reaches, and the tables.
pub fn text(trees: &[Reached]) -> String {
    let all = |part: fn(&Reached) -> String| trees.iter().map(part).collect::<String>();
    let head = format!(
        "{:<48}{:>6}{:>8}{:>8}{:>8}{:>10}{:>8}\n",
        "lines reached by tests", "lines", "host", "kernel", "all", "branches", "all"
    );
    let rows = |tree: &Reached| {
        let rows = tree.files.iter().map(|file| file.sum.row(&file.name));
        rows.collect()
    };
    format!(
        "\nLines that no test reaches:\n\n{}\n{head}{}\n{head}{}",
        all(Reached::gaps),
        all(rows),
        all(Reached::sums)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::lcov;
    use super::*;

    /// Makes a file of a crate, and returns what is reached of it by two runs.
    fn reached(code: &str, host: &str, kernel: &str) -> Reached {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("nested");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("x.rs"), code).unwrap();
        let files = |lines: &str| {
            let path = root.join("x.rs");
            lcov::parse(dir.path(), &format!("SF:{}\n{lines}", path.display()))
        };
        Reached::of(dir.path(), "nested", &files(host), &files(kernel)).unwrap()
    }

    #[test]
    fn lines_that_no_test_reaches_are_put_together() {
        let code = "fn a() {\n    1;\n    2;\n}\nconst fn b() {}\n#[cfg(test)]\nmod tests {\n}\n";
        let lines = "DA:1,1\nDA:2,0\nDA:3,0\nDA:4,0\nDA:5,0\nDA:7,0\n";
        let reached = reached(code, lines, "");
        let sum = reached.sum();
        assert_eq!((sum.lines, sum.all), (5, 1));
        assert!((sum.reached() - 0.2).abs() < 1e-9);
        let gaps = reached.gaps();
        let gaps: Vec<&str> = gaps.lines().collect();
        assert_eq!(gaps[0], "  nested/x.rs:2-4 a(): no test yet");
        assert_eq!(gaps[1], "  nested/x.rs:5 b(): the compiler evaluates it");
        assert_eq!(gaps.len(), 2);
    }

    #[test]
    fn a_line_that_only_a_kernel_reaches_is_no_gap() {
        let code = "fn a() {\n    1;\n    2;\n}\n";
        let host = "DA:1,1\nDA:2,0\nDA:3,0\nBRDA:2,0,0,1\nBRDA:2,0,1,-\n";
        let reached = reached(code, host, "DA:1,1\nDA:2,7\nBRDA:2,0,0,1\nBRDA:2,0,1,1\n");
        let expected = Sum {
            lines: 3,
            host: 1,
            kernel: 2,
            all: 2,
            branches: 2,
            taken: 2,
        };
        assert_eq!(reached.sum(), expected);
        assert_eq!(reached.gaps(), "  nested/x.rs:3 a(): no test yet\n");
        let text = text(&[reached]);
        let row = text.lines().find(|line| line.starts_with("nested/x.rs"));
        let words: Vec<&str> = row.unwrap().split_whitespace().collect();
        let expected = ["nested/x.rs", "3", "33.3%", "66.7%", "66.7%", "2", "100.0%"];
        assert_eq!(words, expected);
        assert!(text.lines().last().unwrap().starts_with("nested/ "));
    }
}
