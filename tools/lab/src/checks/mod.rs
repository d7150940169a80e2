// SPDX-License-Identifier: GPL-2.0

//! Static checks of the tree: nothing here boots a machine.

mod sparse;
pub mod tree;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::command;
use crate::host::{Toolchain, clean};
use crate::kernel::patches::Series;
use crate::kernel::source::{self, Source};
use crate::kernel::{self, Kernel, Variant};
use crate::modules;
use crate::options::{Options, checkout, default_jobs};
use crate::step;
use tree::Tree;

/// The result of a check, as the table of `lab test` shows it.
#[derive(Clone, Debug)]
pub struct CheckOutcome {
    /// Name of the check.
    pub suite: String,
    /// Parts that passed.
    pub passed: u32,
    /// Parts that failed.
    pub failed: u32,
    /// Parts that could not be run here; the detail says why.
    pub skipped: u32,
    /// How long it took.
    pub time: Duration,
    /// What failed or why it was skipped.
    pub detail: Option<String>,
}

/// What one part of a check found.
pub enum Finding {
    /// Nothing to object.
    Passed,
    /// The output that shows what is wrong.
    Failed(String),
    /// Why it does not apply to this tree.
    Skipped(String),
}

impl Finding {
    /// Takes a command's exit status for the verdict.
    pub fn of(command: &mut Command) -> Result<Self> {
        let (ok, text) = command::verdict(command)?;
        Ok(if ok {
            Self::Passed
        } else {
            Self::Failed(format!(
                "{}\n{}",
                command::display(command),
                text.trim_end()
            ))
        })
    }

    /// Takes output for a complaint, and an error for another.
    ///
    /// An error of one part must not hide what the others found.
    pub fn silent(text: Result<String>) -> Self {
        match text {
            Ok(text) if text.trim().is_empty() => Self::Passed,
            Ok(text) => Self::Failed(text),
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }
}

impl CheckOutcome {
    /// Adds up the findings of a check; an error in checking is a failure.
    fn of(suite: &str, findings: Result<Vec<Finding>>) -> Self {
        let mut outcome = Self {
            suite: suite.to_owned(),
            passed: 0,
            failed: 0,
            skipped: 0,
            time: Duration::ZERO,
            detail: None,
        };
        let mut details = Vec::new();
        match findings {
            Err(error) => {
                outcome.failed += 1;
                details.push(format!("{error:#}"));
            }
            Ok(findings) => {
                for finding in findings {
                    match finding {
                        Finding::Passed => outcome.passed += 1,
                        Finding::Failed(text) => {
                            outcome.failed += 1;
                            details.push(text);
                        }
                        Finding::Skipped(reason) => {
                            outcome.skipped += 1;
                            details.push(reason);
                        }
                    }
                }
            }
        }
        if !details.is_empty() {
            outcome.detail = Some(details.join("\n"));
        }
        outcome
    }

    /// Returns the word that the line of the check begins with.
    pub fn verdict(&self) -> &'static str {
        match (self.failed, self.passed) {
            (0, 0) => "skip",
            (0, _) => "pass",
            _ => "FAIL",
        }
    }
}

/// A check: its name and what it does.
type Check = (&'static str, fn(&Context<'_>) -> Result<Vec<Finding>>);

const CHECKS: &[Check] = &[
    ("rustfmt", |context| context.tree.rustfmt()),
    ("cargo clippy", |context| context.tree.clippy()),
    ("cargo test", |context| context.tree.tests()),
    ("the series applies", series_applies),
    ("checkpatch", checkpatch),
    ("sparse", sparse::check),
    ("no panic path", panics),
    ("kernel clippy", kernel_clippy),
    ("sphinx", |context| context.tree.sphinx()),
];

/// The objects of our crates, below the directory of the modules.
const OBJECTS: &[&str] = &[
    "nested/nested.o",
    "rust/kvm/kvm.o",
    "rust/svm/nested_svm.o",
    "rust/vmx/nested_vmx.o",
];

/// What checks work on.
struct Context<'a> {
    cache: &'a Cache,
    tree: Tree,
    toolchain: Toolchain,
    source: Source,
    series: Series,
    kernel: Kernel,
}

/// Runs all checks; prints a line for each, with what is wrong below it.
pub fn run(cache: &Cache, options: &Options) -> Result<Vec<CheckOutcome>> {
    select(cache, options, |_| true)
}

/// Looks for calls of functions that panic, in the objects of our crates.
///
/// What such a function is called with is decided by a guest: its call is a way to stop the host.
fn panics(context: &Context<'_>) -> Result<Vec<Finding>> {
    let modules = modules::ensure(context.cache, &context.kernel)?;
    let dir = modules
        .svm
        .parent()
        .context("a module without a directory")?;

    OBJECTS
        .iter()
        .map(|object| {
            let path = dir.join(object);
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let elf = goblin::elf::Elf::parse(&bytes)?;
            let names = elf
                .syms
                .iter()
                .filter_map(|symbol| elf.strtab.get_at(symbol.st_name));
            let calls: Vec<&str> = names.filter(|name| name.contains("panicking")).collect();
            Ok(if calls.is_empty() {
                Finding::Passed
            } else {
                Finding::Failed(format!("{object} refers to\n{}", calls.join("\n")))
            })
        })
        .collect()
}

/// Runs the checks by Clippy.
pub fn clippy(cache: &Cache, options: &Options) -> Result<Vec<CheckOutcome>> {
    select(cache, options, |name| name.ends_with("clippy"))
}

fn select(cache: &Cache, options: &Options, wanted: fn(&str) -> bool) -> Result<Vec<CheckOutcome>> {
    // The kernel first: some checks read its build.
    let kernel = kernel::ensure(cache, options, Variant::Builtin)?;
    let context = Context {
        cache,
        tree: Tree::new(checkout()?),
        toolchain: Toolchain::ensure(cache)?,
        source: source::ensure(cache, options.ksrc())?,
        series: Series::read(&options.patches_dir()?)?,
        kernel,
    };
    let mut outcomes = Vec::new();
    for (name, check) in CHECKS.iter().filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        let findings = step::quiet(name, || check(&context));
        let outcome = CheckOutcome {
            time: start.elapsed(),
            ..CheckOutcome::of(name, findings)
        };
        println!("{} {name}", outcome.verdict());
        for line in outcome.detail.iter().flat_map(|detail| detail.lines()) {
            println!("    {line}");
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Applies each patch to the original files; a hunk that only matches with fuzz is a failure.
fn series_applies(context: &Context<'_>) -> Result<Vec<Finding>> {
    let _lock = context.cache.lock(&context.source.lock_name())?;
    let notes = context.series.check(&context.source)?;
    Ok(vec![Finding::silent(Ok(notes.join("\n")))])
}

fn checkpatch(context: &Context<'_>) -> Result<Vec<Finding>> {
    let script = context.kernel.srctree.join("scripts/checkpatch.pl");
    let command = || {
        let mut command = Command::new("perl");
        command
            .arg(&script)
            .arg(format!("--root={}", context.kernel.srctree.display()))
            .args(["--strict", "--terse", "--show-types", "--no-summary"])
            // The files are KVM's: MAINTAINERS has them by directory.
            .args(["--ignore", "FILE_PATH_CHANGES"]);
        command
    };
    let mut findings = Vec::new();
    for patch in context.series.paths() {
        findings.push(Finding::of(command().arg(patch))?);
    }
    for file in context.tree.kernel_c_files()? {
        findings.push(Finding::of(command().arg("--file").arg(file))?);
    }
    if findings.is_empty() {
        findings.push(Finding::Skipped("no patch and no C file".into()));
    }
    Ok(findings)
}

/// Builds our modules with Clippy, in an output directory of its own: it may change code.
fn kernel_clippy(context: &Context<'_>) -> Result<Vec<Finding>> {
    let checkout = context.tree.checkout();
    if !checkout.join("Kbuild").is_file() {
        return Ok(vec![Finding::Skipped("the tree has no Kbuild".into())]);
    }
    let dir = checkout.join("build").join("clippy");
    let guard = modules::lock(context.cache, checkout, &context.kernel)?;
    let mut make = modules::make(&context.toolchain, &context.kernel, checkout, &dir, &guard)?;
    make.args(["CLIPPY=1", "KRUSTFLAGS=-Dwarnings", "modules"])
        .arg(format!("-j{}", default_jobs()));
    Ok(vec![Finding::of(&mut make)?])
}

impl Context<'_> {
    /// Returns a scratch directory of the cache, emptied.
    fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cache.root().join("scratch").join(name);
        crate::cache::remove_all(&dir)?;
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// Returns a command in the environment of builds, for programs of the kernel source.
fn quiet_command(program: &str) -> Command {
    clean(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_adds_up_and_keeps_what_failed() {
        let outcome = CheckOutcome::of(
            "suite",
            Ok(vec![
                Finding::Passed,
                Finding::Failed("line".into()),
                Finding::Skipped("reason".into()),
            ]),
        );
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (1, 1, 1));
        assert_eq!(outcome.detail.as_deref(), Some("line\nreason"));
        assert_eq!(outcome.verdict(), "FAIL");
    }

    #[test]
    fn an_error_in_checking_is_a_failure() {
        let outcome = CheckOutcome::of("suite", Err(anyhow::anyhow!("no such program")));
        assert_eq!((outcome.failed, outcome.verdict()), (1, "FAIL"));
    }

    #[test]
    fn only_what_was_skipped_whole_reads_as_skipped() {
        let skipped = CheckOutcome::of("suite", Ok(vec![Finding::Skipped("reason".into())]));
        assert_eq!(skipped.verdict(), "skip");
    }
}
