// SPDX-License-Identifier: GPL-2.0

//! The console of a machine as a sequence of lines, and who printed each of them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::mpsc::Sender;

/// Reads lines until the console closes; a last line without its end counts as well.
pub fn read_lines(console: File, lines: &Sender<String>) {
    let mut reader = BufReader::new(console);
    let mut raw = Vec::new();
    while matches!(reader.read_until(b'\n', &mut raw), Ok(count) if count > 0) {
        let line = String::from_utf8_lossy(&raw);
        let line = line.trim_end_matches(['\n', '\r']).to_owned();
        raw.clear();
        // The receiver has seen enough.
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// Who printed a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel.
    Kernel,
    /// A program, by way of the kernel's log.
    User,
    /// Firmware, a boot loader, or the emulator that runs this level.
    Machine,
}

/// A line of the console without its prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The level that printed it.
    pub level: u8,
    /// What in that level printed it.
    pub source: Source,
    /// The text.
    pub text: &'a str,
}

impl<'a> Line<'a> {
    /// Takes the prefixes off: time stamps, `L1| ` for a level's console, `| ` for programs.
    pub fn parse(mut text: &'a str) -> Self {
        let mut level = 0;
        loop {
            let (rest, stamped) = without_timestamp(text);
            text = rest;
            if let Some(rest) = text.strip_prefix("| ").filter(|_| stamped) {
                return Self {
                    level,
                    source: Source::User,
                    text: rest,
                };
            }
            match level_prefix(text) {
                Some((deeper, rest)) if stamped => {
                    level = deeper;
                    text = rest;
                }
                _ => {
                    let source = if stamped {
                        Source::Kernel
                    } else {
                        Source::Machine
                    };
                    return Self {
                        level,
                        source,
                        text,
                    };
                }
            }
        }
    }
}

/// Takes a time stamp of the kernel's log off, `[    1.234567] `.
fn without_timestamp(text: &str) -> (&str, bool) {
    let stamp = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .filter(|(stamp, _)| {
            stamp.contains('.')
                && stamp
                    .chars()
                    .all(|c| c.is_ascii_digit() || ". ".contains(c))
        });
    match stamp {
        Some((_, rest)) => (rest, true),
        None => (text, false),
    }
}

/// Takes `L1| ` off.
fn level_prefix(text: &str) -> Option<(u8, &str)> {
    let (number, rest) = text.strip_prefix('L')?.split_once("| ").or_else(|| {
        // An empty line of a level.
        text.strip_prefix('L')?
            .strip_suffix('|')
            .map(|number| (number, ""))
    })?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: u8, source: Source, text: &str) -> Line<'_> {
        Line {
            level,
            source,
            text,
        }
    }

    #[test]
    fn a_line_belongs_to_the_innermost_level_that_it_names() {
        assert_eq!(
            Line::parse("[    1.5] L1| [    0.25] L2| [   0.1] | workload: a=b"),
            line(2, Source::User, "workload: a=b")
        );
        assert_eq!(
            Line::parse("[    1.5] L1| [    0.25] Kernel panic - not syncing: x"),
            line(1, Source::Kernel, "Kernel panic - not syncing: x")
        );
        assert_eq!(
            Line::parse("[    1.5] L1| KVM internal error. Suberror: 1"),
            line(1, Source::Machine, "KVM internal error. Suberror: 1")
        );
        assert_eq!(Line::parse("SeaBIOS"), line(0, Source::Machine, "SeaBIOS"));
    }

    #[test]
    fn brackets_that_are_no_time_stamp_stay() {
        let text = "[drm] something";
        assert_eq!(Line::parse(text), line(0, Source::Machine, text));
        assert_eq!(Line::parse("[ 1.0] [x] y").text, "[x] y");
    }

    #[test]
    fn a_last_line_without_an_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "one\r\ntwo").unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        read_lines(File::open(path).unwrap(), &sender);
        drop(sender);
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}
