// SPDX-License-Identifier: GPL-2.0

//! Results of kernel selftests: TAP documents between the markers of the runner, and exit codes.
//!
//! The parser is the crate `tap_parser`. It reads TAP 14, of which what kselftest prints (version
//! 13) is a subset once the lines that are no TAP are left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tap_parser::{DirectiveKind, TapParser, TapStatement};

/// The result of one test program or of one of its test points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not run, and says why.
    Skipped,
}

impl Verdict {
    /// Returns what an exit status means by kselftest's convention.
    pub fn of_status(status: i32) -> Self {
        match status {
            0 => Self::Passed,
            4 => Self::Skipped,
            _ => Self::Failed,
        }
    }

    /// Returns the word for a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapReport {
    /// Name of the program.
    pub name: String,
    /// What happened to the program as a whole.
    pub verdict: Verdict,
    /// Why it did not pass, as far as it says so.
    pub reason: String,
    /// Its test points, empty if it prints no TAP.
    pub points: Vec<(String, Verdict)>,
    /// What it says that must be the same with all providers, by its name.
    pub same: BTreeMap<String, String>,
}

impl TapReport {
    /// Makes a result without test points.
    pub fn new(name: &str, verdict: Verdict, reason: String) -> Self {
        Self {
            name: name.into(),
            verdict,
            reason,
            points: Vec::new(),
            same: BTreeMap::new(),
        }
    }
}

/// How a line begins that must be the same with all providers: a name and a value follow.
const SAME: &str = "# same: ";

/// Returns the tests in the lines of a console.
///
/// The runner prints `test: NAME begin` and `test: NAME end status=N` around each program. A test
/// without its end is the one that stopped the machine.
pub fn reports(lines: &[&str]) -> Vec<TapReport> {
    let mut reports = Vec::new();
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in lines {
        let marker = line
            .strip_prefix("test: ")
            .and_then(|rest| rest.split_once(' '));
        match (marker, &mut open) {
            (Some((name, "begin")), _) => {
                if let Some((name, output)) = open.take() {
                    reports.push(report(name, None, &output));
                }
                open = Some((name, Vec::new()));
            }
            (Some((name, end)), Some((current, _))) if name == *current => {
                let status = end
                    .strip_prefix("end status=")
                    .and_then(|word| word.parse().ok());
                if let (Some(status), Some((_, output))) = (status, open.take()) {
                    reports.push(report(name, Some(status), &output));
                }
            }
            (_, Some((_, output))) => output.push(line),
            (_, None) => {}
        }
    }
    if let Some((name, output)) = open {
        reports.push(report(name, None, &output));
    }
    reports
}

/// Judges one program by its exit status and what it printed.
fn report(name: &str, status: Option<i32>, output: &[&str]) -> TapReport {
    let mut points = Vec::new();
    let mut verdict = status.map_or(Verdict::Failed, Verdict::of_status);
    let mut reason = match status {
        None => "the machine stopped during this test".to_owned(),
        Some(0) => String::new(),
        Some(124 | 143) => "not done within its time limit".to_owned(),
        Some(status) => last_word(output).unwrap_or_else(|| format!("exit status {status}")),
    };
    match parse(output) {
        None => {}
        Some(Ok(parsed)) => {
            let failed = parsed
                .iter()
                .find(|(_, verdict)| *verdict == Verdict::Failed);
            // A program may exit with 0 although one of its points failed.
            if let (Some((point, _)), Verdict::Passed) = (failed, verdict) {
                verdict = Verdict::Failed;
                reason = format!("not ok {point}");
            }
            points = parsed;
        }
        Some(Err(problem)) if verdict == Verdict::Passed => {
            verdict = Verdict::Failed;
            reason = problem;
        }
        Some(Err(_)) => {}
    }
    let same = output
        .iter()
        .filter_map(|line| line.strip_prefix(SAME)?.rsplit_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    TapReport {
        name: name.to_owned(),
        verdict,
        reason,
        points,
        same,
    }
}

/// Returns the line that says best why a test did not pass.
fn last_word(output: &[&str]) -> Option<String> {
    let lines: Vec<&str> = output
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect();
    // The line after the heading has the place and the condition.
    let assertion = lines
        .iter()
        .position(|line| line.contains("==== Test Assertion Failure"))
        .and_then(|at| lines.get(at + 1));
    assertion
        .or_else(|| lines.iter().find(|line| line.starts_with("not ok")))
        .or_else(|| lines.iter().find(|line| line.contains("SKIP")))
        .or_else(|| lines.last())
        .map(|line| (*line).to_owned())
}

/// Parses the TAP document in the output of a program, if there is one.
fn parse(output: &[&str]) -> Option<Result<Vec<(String, Verdict)>, String>> {
    let start = output
        .iter()
        .position(|line| line.starts_with("TAP version"))?;
    let mut document = String::from("TAP version 14\n");
    let mut planned = None;
    for line in &output[start + 1..] {
        if let Some(plan) = line.strip_prefix("1..") {
            planned = plan
                .split_whitespace()
                .next()
                .and_then(|count| count.parse::<usize>().ok());
        }
        let tap = ["ok ", "not ok ", "1..", "Bail out!"];
        if tap.iter().any(|beginning| line.starts_with(beginning)) {
            document.push_str(line);
            document.push('\n');
        }
    }
    let statements = match TapParser::new().parse(&document) {
        Ok(statements) => statements,
        Err(error) => return Some(Err(error.to_string())),
    };
    let points: Vec<(String, Verdict)> = statements
        .into_iter()
        .filter_map(|statement| match statement {
            TapStatement::TestPoint(test) => {
                let skipped = matches!(
                    test.directive.map(|directive| directive.kind),
                    Some(DirectiveKind::Skip)
                );
                let verdict = match (test.result, skipped) {
                    (_, true) => Verdict::Skipped,
                    (true, false) => Verdict::Passed,
                    (false, false) => Verdict::Failed,
                };
                Some((test.desc.unwrap_or_default().to_owned(), verdict))
            }
            _ => None,
        })
        .collect();
    match planned {
        Some(planned) if planned != points.len() => Some(Err(format!(
            "{} of {planned} test points ran",
            points.len()
        ))),
        _ => Some(Ok(points)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kselftest_document_between_other_lines_is_parsed() {
        let reports = reports(&[
            "test: x86/a begin",
            "Random seed: 0x6b8b4567",
            "TAP version 13",
            "1..3",
            "# Starting 3 tests",
            "ok 1 one",
            "noise",
            "ok 2 two # SKIP no such CPU",
            "not ok 3 three",
            "test: x86/a end status=1",
        ]);
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].verdict, Verdict::Failed);
        assert_eq!(reports[0].reason, "not ok 3 three");
        let verdicts: Vec<_> = reports[0]
            .points
            .iter()
            .map(|(_, verdict)| *verdict)
            .collect();
        assert_eq!(
            verdicts,
            [Verdict::Passed, Verdict::Skipped, Verdict::Failed]
        );
    }

    #[test]
    fn the_exit_status_decides_without_tap() {
        let reports = reports(&[
            "test: a begin",
            "test: a end status=0",
            "test: b begin",
            "1..0 # SKIP - KVM_CAP_X missing",
            "test: b end status=4",
            "test: c begin",
            "test: c end status=124",
        ]);
        let seen: Vec<_> = reports
            .iter()
            .map(|report| (report.verdict, report.reason.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Verdict::Passed, ""),
                (Verdict::Skipped, "1..0 # SKIP - KVM_CAP_X missing"),
                (Verdict::Failed, "not done within its time limit"),
            ]
        );
    }

    #[test]
    fn the_reason_of_a_failed_assertion_is_its_condition() {
        let reports = reports(&[
            "test: a begin",
            "==== Test Assertion Failure ====",
            "  x86/a.c:10: x == y",
            "  pid=446 tid=446 errno=0 - Success",
            "test: a end status=254",
        ]);
        assert_eq!(reports[0].reason, "x86/a.c:10: x == y");
    }

    #[test]
    fn a_test_without_its_end_stopped_the_machine() {
        let reports = reports(&["test: a begin", "something"]);
        assert_eq!(reports[0].verdict, Verdict::Failed);
        assert!(reports[0].reason.contains("stopped"));
    }

    #[test]
    fn a_failed_point_counts_even_if_the_program_exits_with_zero() {
        let reports = reports(&[
            "test: a begin",
            "TAP version 13",
            "1..1",
            "not ok 1 x",
            "test: a end status=0",
        ]);
        assert_eq!(reports[0].verdict, Verdict::Failed);
    }

    #[test]
    fn a_document_that_stops_early_is_a_failure() {
        let reports = reports(&[
            "test: a begin",
            "TAP version 13",
            "1..2",
            "ok 1 x",
            "test: a end status=0",
        ]);
        assert_eq!(reports[0].verdict, Verdict::Failed);
        assert_eq!(reports[0].reason, "1 of 2 test points ran");
    }
}
