// SPDX-License-Identifier: GPL-2.0

//! `lab coverage`: the lines of nested/ that its tests on the host reach.
//!
//! The compiler's own instrumentation counts. What runs in a kernel is not counted: these lines are
//! a lower bound.

mod reasons;
mod source;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::options::checkout;
use crate::{command, host, step};

use source::Source;

/// The crate.
const CRATE: &str = "nested";

/// The part of the lines that tests must reach at least.
const GOAL: f64 = 0.9;

/// How often each line of a file was executed, by its number.
type Lines = BTreeMap<usize, u64>;

/// Lines that follow each other and that no test reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gap {
    first: usize,
    last: usize,
    reason: Option<&'static str>,
}

/// What tests reach of a file.
#[derive(Debug)]
struct File {
    name: String,
    lines: usize,
    gaps: Vec<Gap>,
}

impl File {
    fn missed(&self) -> usize {
        self.gaps.iter().map(|gap| gap.last - gap.first + 1).sum()
    }
}

/// The programs of LLVM that belong to the compiler.
struct Tools(PathBuf);

impl Tools {
    fn find() -> Result<Self> {
        let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let version = command::output(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc says nothing of its host")?;
        let dir = Path::new(sysroot.trim()).join(format!("lib/rustlib/{host}/bin"));
        ensure!(
            dir.join("llvm-cov").is_file(),
            "make coverage needs llvm-cov of this compiler: rustup component add llvm-tools"
        );
        Ok(Self(dir))
    }

    fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }
}

/// Runs the tests of the crate and prints what they reach; fails below the goal.
pub fn run(cache: &Cache) -> Result<ExitCode> {
    let tools = Tools::find()?;
    let checkout = checkout()?;
    let work = checkout.join("build/coverage");
    fs::create_dir_all(&work)?;
    for entry in fs::read_dir(&work)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "profraw")
        {
            fs::remove_file(path)?;
        }
    }
    let programs = step::run("tests of nested/ with instrumentation", |step| {
        let cargo = || {
            let mut cargo = host::clean("cargo");
            cargo
                .args(["test", "--release", "--locked", "--lib", "--manifest-path"])
                .arg(checkout.join(CRATE).join("Cargo.toml"))
                .env("CARGO_TARGET_DIR", work.join("target"))
                .env("RUSTFLAGS", "-C instrument-coverage")
                .env("LLVM_PROFILE_FILE", work.join("nested-%p-%m.profraw"));
            cargo
        };
        let mut build = cargo();
        build.args(["--no-run", "--message-format=json"]);
        let programs = programs(&command::output(&mut build)?);
        command::logged(&mut cargo(), &cache.log("coverage")?, |line| {
            step.progress(line);
        })?;
        Ok(programs)
    })?;
    let lcov = merge(&tools, &work, &programs)?;
    let root = checkout.join(CRATE);
    let files = files(&root, &lcov)?;
    print!("{}", report(&files));
    println!("Not counted: what runs in a kernel only, that is rust/ and the guest tests");
    let reached = reached(&files);
    Ok(if reached >= GOAL {
        ExitCode::SUCCESS
    } else {
        println!("The goal is {:.0} %", 100.0 * GOAL);
        ExitCode::FAILURE
    })
}

/// Finds the test programs in cargo's messages.
fn programs(messages: &str) -> Vec<PathBuf> {
    let message = |line| serde_json::from_str::<serde_json::Value>(line).ok();
    let values = messages.lines().filter_map(message);
    let program = |value: serde_json::Value| Some(PathBuf::from(value["executable"].as_str()?));
    values.filter_map(program).collect()
}

/// Returns the lines of all files, in the form of lcov.
fn merge(tools: &Tools, work: &Path, programs: &[PathBuf]) -> Result<String> {
    let profile = work.join("all.profdata");
    let mut merge = tools.command("llvm-profdata");
    merge.args(["merge", "-sparse", "-o"]).arg(&profile);
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "profraw")
        {
            merge.arg(path);
        }
    }
    command::output(&mut merge)?;
    let mut export = tools.command("llvm-cov");
    export.args(["export", "-format=lcov"]);
    export.arg(format!("-instr-profile={}", profile.display()));
    let (first, others) = programs.split_first().context("cargo has built no test")?;
    export.arg(first);
    for other in others {
        export.arg("-object").arg(other);
    }
    command::output(&mut export)
}

/// Reads the counts of lines of the files below `root`.
fn counts(root: &Path, lcov: &str) -> BTreeMap<String, Lines> {
    let mut files: BTreeMap<String, Lines> = BTreeMap::new();
    let mut file = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let inside = Path::new(path).strip_prefix(root).ok();
            file = inside.map(|path| path.display().to_string());
        }
        let count = line.strip_prefix("DA:").and_then(|rest| {
            let (number, count) = rest.split_once(',')?;
            Some((number.parse().ok()?, count.parse::<u64>().ok()?))
        });
        if let (Some(name), Some((number, count))) = (&file, count) {
            *files
                .entry(name.clone())
                .or_default()
                .entry(number)
                .or_default() += count;
        }
    }
    files
}

/// Returns what tests reach of the files that are no tests themselves.
fn files(root: &Path, lcov: &str) -> Result<Vec<File>> {
    let sources = Source::all(root)?;
    let mut files = Vec::new();
    for (name, lines) in counts(root, lcov) {
        let Some(source) = sources.get(&name) else {
            continue;
        };
        let counted: Lines = lines
            .into_iter()
            .filter(|(number, _)| !source.is_test(*number))
            .collect();
        if !counted.is_empty() {
            files.push(file(&name, source, &counted));
        }
    }
    Ok(files)
}

fn file(name: &str, source: &Source, lines: &Lines) -> File {
    let mut gaps: Vec<Gap> = Vec::new();
    for number in lines.iter().filter(|(_, count)| **count == 0) {
        let number = *number.0;
        let reason = reasons::of(name, source.function(number)).or(source.excuse(number));
        match gaps.last_mut() {
            Some(gap) if gap.last + 1 == number && gap.reason == reason => gap.last = number,
            _ => gaps.push(Gap {
                first: number,
                last: number,
                reason,
            }),
        }
    }
    File {
        name: name.to_owned(),
        lines: lines.len(),
        gaps,
    }
}

/// Returns the part of the lines that is reached.
fn reached(files: &[File]) -> f64 {
    let all: usize = files.iter().map(|file| file.lines).sum();
    let missed: usize = files.iter().map(File::missed).sum();
    1.0 - missed as f64 / all.max(1) as f64
}

fn report(files: &[File]) -> String {
    let mut text = String::from("\nLines of nested/ that no test on the host reaches:\n\n");
    let of_directory = |file: &File| {
        let parts: Vec<&str> = file.name.split('/').collect();
        match parts[..] {
            [first, _, ..] => format!("{CRATE}/{first}/"),
            _ => format!("{CRATE}/"),
        }
    };
    let mut directories: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for file in files {
        let sum = directories.entry(of_directory(file)).or_default();
        *sum = (sum.0 + file.lines, sum.1 + file.missed());
        for Gap {
            first,
            last,
            reason,
        } in &file.gaps
        {
            let reason = reason.unwrap_or("no test yet");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {CRATE}/{}:{first}-{last}: {reason}", file.name);
        }
    }
    let _ = writeln!(
        text,
        "\n{:<24}{:>8}{:>8}{:>9}",
        "host tests", "lines", "missed", "reached"
    );
    let mut row = |name: &str, (lines, missed): (usize, usize)| {
        let part = 100.0 * (1.0 - missed as f64 / lines.max(1) as f64);
        let _ = writeln!(text, "{name:<24}{lines:>8}{missed:>8}{part:>8.1}%");
    };
    for (name, sum) in &directories {
        row(name, *sum);
    }
    let sum = directories
        .values()
        .fold((0, 0), |sum, other| (sum.0 + other.0, sum.1 + other.1));
    row("all", sum);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_no_test_reaches_are_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let code = "fn a() {\n    1;\n    2;\n}\nconst fn b() {}\n#[cfg(test)]\nmod tests {\n}\n";
        fs::write(dir.path().join("x.rs"), code).unwrap();
        let path = dir.path().join("x.rs");
        let lcov = format!(
            "SF:{}\nDA:1,1\nDA:2,0\nDA:3,0\nDA:5,0\nDA:7,0\nend_of_record\nSF:/other.rs\nDA:1,0\n",
            path.display()
        );
        let files = files(dir.path(), &lcov).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].lines, files[0].missed()), (4, 3));
        let gaps: Vec<_> = files[0]
            .gaps
            .iter()
            .map(|gap| (gap.first, gap.last))
            .collect();
        assert_eq!(gaps, [(2, 3), (5, 5)]);
        assert_eq!(files[0].gaps[1].reason, Some("the compiler evaluates it"));
        assert!((reached(&files) - 0.25).abs() < 1e-9);
        assert!(report(&files).contains("nested/x.rs:2-3: no test yet"));
    }

    #[test]
    fn test_programs_are_found_in_the_messages_of_cargo() {
        let messages = "{\"executable\":null}\n{\"executable\":\"/a/b\"}\nnoise\n";
        assert_eq!(programs(messages), [PathBuf::from("/a/b")]);
    }
}
