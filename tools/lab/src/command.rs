// SPDX-License-Identifier: GPL-2.0

//! Child processes: their output goes to a log, and a failure shows its last lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;

/// How much of a log an error shows.
const TAIL_LINES: usize = 40;

/// Runs a command with both outputs in a log file; `on_line` sees each line as it comes.
pub fn logged(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let text = display(command);
    writeln!(file, "+ {text}")?;
    let (reader, writer) = os_pipe::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = process::spawn(command).with_context(|| format!("starting {text}"))?;
    // The command object owns the write ends; the pipe only ends when they are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = VecDeque::new();
    let mut lines = BufReader::new(reader);
    let mut raw = Vec::new();
    while lines.read_until(b'\n', &mut raw)? > 0 {
        file.write_all(&raw)?;
        let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
        raw.clear();
        on_line(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait()?;
    process::wait_if_ending();
    if status.success() {
        return Ok(());
    }
    let tail: Vec<String> = tail.into();
    bail!(
        "{text}\n{status}; the last lines of {}:\n    {}",
        log.display(),
        tail.join("\n    ")
    )
}

/// Runs a command and returns its standard output; a failure shows its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let text = display(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {text}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    bail!(
        "{text}\n{}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    )
}

/// Returns whether a command succeeds, with its outputs joined.
pub fn verdict(command: &mut Command) -> Result<(bool, String)> {
    let text = display(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {text}"))?;
    let mut joined = String::from_utf8_lossy(&output.stdout).into_owned();
    joined.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), joined))
}

/// Formats a command as one could type it.
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes a word for a shell where that is needed.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_shows_its_last_lines_and_where_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let mut seen = Vec::new();
        let error = logged(&mut command, &log, |line| seen.push(line.to_owned())).unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(seen, ["one", "two"]);
        assert!(
            text.contains("exit status: 3") && text.contains("two"),
            "{text}"
        );
        assert!(std::fs::read_to_string(log).unwrap().contains("one\ntwo\n"));
    }

    #[test]
    fn words_with_special_characters_are_quoted() {
        assert_eq!(quote("LLVM=-19"), "LLVM=-19");
        assert_eq!(quote("it's $x"), r"'it'\''s $x'");
        assert_eq!(quote(""), "''");
    }
}
