// SPDX-License-Identifier: GPL-2.0

//! Results in the form of kselftest: TAP 13, with the exit status that goes with it.

use std::fmt::Display;
use std::process::ExitCode;

use anyhow::Result;

/// Exit status of a program of which nothing ran.
const SKIP: u8 = 4;

/// The reason for which a test point does not apply; as an error it skips the point.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// A test point.
pub struct Point<T> {
    /// A sentence that says what holds if the point passes.
    pub name: String,
    /// The test; what it needs is in the argument.
    pub run: fn(&T) -> Result<()>,
}

impl<T> Point<T> {
    /// Names a test.
    pub fn new(name: impl Into<String>, run: fn(&T) -> Result<()>) -> Self {
        let name = name.into();
        Self { name, run }
    }
}

/// Prints text that is no result, each line marked as such.
pub fn note(text: impl Display) {
    for line in text.to_string().lines() {
        println!("# {line}");
    }
}

/// Prints what must be the same with all providers: the lab compares it.
pub fn same(what: impl Display, value: impl Display) {
    println!("# same: {what}: {value}");
}

/// Ends a program of which nothing can run.
pub fn skip_all(reason: impl Display) -> ExitCode {
    println!("TAP version 13\n1..0 # SKIP {reason}");
    ExitCode::from(SKIP)
}

/// Runs the points in order; `restore` makes the state that each of them expects.
///
/// A state that cannot be restored fails the point that left it. The next ones would fail because
/// of it, hence the program ends there.
pub fn run<T>(points: &[Point<T>], context: &T, restore: fn(&T) -> Result<()>) -> ExitCode {
    println!("TAP version 13\n1..{}", points.len());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (number, Point { name, run }) in points.iter().enumerate() {
        let number = number + 1;
        let result = run(context);
        let restored = restore(context);
        match (&result, &restored) {
            (Ok(()), Ok(())) => {
                passed += 1;
                println!("ok {number} {name}");
            }
            (Err(error), Ok(())) if error.is::<Skip>() => {
                skipped += 1;
                println!("ok {number} {name} # SKIP {error}");
            }
            _ => {
                failed += 1;
                for error in [&result, &restored]
                    .into_iter()
                    .filter_map(|r| r.as_ref().err())
                {
                    note(format_args!("{error:#}"));
                }
                println!("not ok {number} {name}");
            }
        }
        if let Err(error) = restored {
            println!("Bail out! after \"{name}\": {error:#}");
            break;
        }
    }
    println!("# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0");
    match (failed, passed) {
        (0, 0) => ExitCode::from(SKIP),
        (0, _) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
