// SPDX-License-Identifier: GPL-2.0

//! Watches the console of a run: what ends it, what it reports, how far it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::tap::{self, TapReport};

use super::console::{Line, Source};
use super::{Counters, Outcome, Status};

/// How long the console may go on after a fault, for the rest of its message.
pub const SETTLE: Duration = Duration::from_millis(1500);

/// Lines of an excerpt before and after the line that shows a fault.
const BEFORE: usize = 10;
const AFTER: usize = 50;

/// How a kernel's message about its own failure begins, and what we call it.
const BEGINNINGS: &[(&str, &str)] = &[
    ("Kernel panic - not syncing", "kernel panic"),
    ("Oops: ", "oops"),
    ("Oops - ", "oops"),
    ("general protection fault", "general protection fault"),
    ("kernel BUG at", "BUG"),
    ("watchdog: BUG: soft lockup", "soft lockup"),
    ("watchdog: Watchdog detected hard LOCKUP", "hard lockup"),
    ("BUG: KASAN", "KASAN report"),
    ("BUG: ", "BUG"),
    ("WARNING: possible ", "lockdep splat"),
    ("WARNING: inconsistent lock state", "lockdep splat"),
    ("WARNING: suspicious RCU usage", "lockdep splat"),
    ("WARNING: bad unlock balance", "lockdep splat"),
    ("WARNING: nested lock was not taken", "lockdep splat"),
    ("INFO: possible ", "lockdep splat"),
    ("DEBUG_LOCKS_WARN_ON", "lockdep splat"),
    ("WARNING: ", "WARNING"),
    ("rcu: INFO: ", "RCU stall"),
    ("UBSAN: ", "UBSAN report"),
    ("traps: PANIC: double fault", "double fault"),
    ("invalid opcode: ", "invalid opcode"),
];

/// What QEMU prints when a guest cannot go on; it comes from the level below the guest.
const EMULATOR: &[(&str, &str)] = &[
    ("KVM internal error", "KVM internal error"),
    ("KVM: entry failed", "failed VM entry"),
    ("error: kvm run failed", "KVM_RUN failed"),
    ("qemu: hardware error", "hardware error"),
    ("(XEN) Panic on CPU", "Xen panic"),
];

/// What a line means for the run.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Go on.
    Nothing,
    /// Go on, and show how far the run is.
    Progress(String),
    /// Something is wrong.
    Fault,
    /// The end marker.
    End,
}

/// Everything known about a run from the lines so far.
pub struct Watcher {
    lines: Vec<String>,
    /// Reason, and number of the line that shows it.
    fault: Option<(String, usize)>,
    finished: Option<bool>,
    user: Vec<(u8, String)>,
    facts: BTreeMap<String, String>,
    counters: Vec<Counters>,
    /// The level whose counters are being printed.
    collecting: Option<u8>,
    steps: Vec<(String, Duration)>,
    last_step: Instant,
}

impl Watcher {
    /// Begins with the start of the machine.
    pub fn new(start: Instant) -> Self {
        Self {
            lines: Vec::new(),
            fault: None,
            finished: None,
            user: Vec::new(),
            facts: BTreeMap::new(),
            counters: Vec::new(),
            collecting: None,
            steps: Vec::new(),
            last_step: start,
        }
    }

    /// Takes in a line that came at `now`.
    pub fn see(&mut self, raw: &str, now: Instant) -> Event {
        self.lines.push(raw.to_owned());
        let line = Line::parse(raw);
        if let Some(what) = fault_in(&line) {
            if self.fault.is_none() {
                let reason = format!("L{}: {what}: {}", line.level, line.text);
                self.fault = Some((reason, self.lines.len() - 1));
            }
            return Event::Fault;
        }
        if line.source != Source::User {
            return Event::Nothing;
        }
        if let Some(marker) = line.text.strip_prefix("=== lab: ") {
            return self.marker(line.level, marker, now);
        }
        if self.collecting == Some(line.level) {
            if let Some(counters) = self.counters.last_mut() {
                counters.text.push_str(line.text);
                counters.text.push('\n');
            }
            return Event::Nothing;
        }
        if let Some((name, value)) = line
            .text
            .strip_prefix("fact: ")
            .and_then(|text| text.split_once('='))
        {
            self.facts.insert(name.to_owned(), value.to_owned());
        }
        self.user.push((line.level, line.text.to_owned()));
        Event::Nothing
    }

    fn marker(&mut self, level: u8, marker: &str, now: Instant) -> Event {
        let (word, rest) = marker.split_once(' ').unwrap_or((marker, ""));
        match word {
            "up" => {
                let name = format!("boot of L{}", rest.trim_start_matches("level="));
                self.step(&name, now);
                Event::Progress(name)
            }
            "start" => {
                let name = format!("start of L{}", rest.trim_start_matches("level="));
                self.step(
                    &format!("preparation of L{}", rest.trim_start_matches("level=")),
                    now,
                );
                Event::Progress(name)
            }
            "done" => {
                let level = rest.split([' ', '=']).nth(1).unwrap_or_default();
                self.step(&format!("work of L{level}"), now);
                Event::Nothing
            }
            "step" => {
                self.step(rest, now);
                Event::Progress(rest.to_owned())
            }
            "counters" if rest == "end" => {
                self.collecting = None;
                Event::Nothing
            }
            "counters" => {
                self.counters.push(Counters {
                    level,
                    file: rest.to_owned(),
                    text: String::new(),
                });
                self.collecting = Some(level);
                Event::Nothing
            }
            "lost" => {
                let level = rest.trim_start_matches("level=");
                self.fail(format!(
                    "L{level} stopped before its end marker: triple fault or reset"
                ));
                Event::Fault
            }
            "fail" => {
                self.fail(rest.to_owned());
                Event::Nothing
            }
            "end" => {
                self.step("end of L0", now);
                let status = rest.trim_start_matches("status=");
                if status != "0" {
                    self.fail(format!("the commands of L0 ended with status {status}"));
                }
                self.finished = Some(status == "0");
                Event::End
            }
            _ => Event::Nothing,
        }
    }

    fn step(&mut self, name: &str, now: Instant) {
        self.steps.push((name.to_owned(), now - self.last_step));
        self.last_step = now;
    }

    /// Returns whether level 0 runs its work.
    pub fn is_up(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Records why the run failed, unless something before it did.
    pub fn fail(&mut self, reason: String) {
        if self.fault.is_none() {
            self.fault = Some((reason, self.lines.len().saturating_sub(1)));
        }
    }

    /// Returns whether enough lines followed a fault.
    pub fn excerpt_is_full(&self) -> bool {
        self.fault
            .as_ref()
            .is_some_and(|(_, at)| self.lines.len() > at + AFTER)
    }

    /// Returns whether the end marker came, with status 0, and nothing else was wrong.
    pub fn finished_well(&self) -> bool {
        self.fault.is_none() && self.finished == Some(true)
    }

    /// Returns the result; `said` is what the emulator's own log says.
    pub fn outcome(self, log: PathBuf, said: &str) -> Outcome {
        let status = match self.fault {
            None => Status::Passed,
            Some((reason, at)) => {
                let from = at.saturating_sub(BEFORE);
                let to = (at + AFTER).min(self.lines.len());
                let mut excerpt = self.lines[from..to].join("\n");
                if !said.is_empty() {
                    excerpt.push_str("\n--- the emulator's log:\n");
                    excerpt.push_str(said.trim_end());
                }
                Status::Failed { reason, excerpt }
            }
        };
        let level0: Vec<&str> = self
            .user
            .iter()
            .filter(|(level, _)| *level == 0)
            .map(|(_, text)| text.as_str())
            .collect();
        let tap: Vec<TapReport> = tap::reports(&level0);
        Outcome {
            status,
            log,
            tap,
            facts: self.facts,
            counters: self.counters,
            steps: self.steps,
            lines: self.user,
        }
    }
}

/// Returns what is wrong according to a line.
fn fault_in(line: &Line<'_>) -> Option<&'static str> {
    let table = match line.source {
        Source::User => return None,
        Source::Kernel => BEGINNINGS,
        Source::Machine => EMULATOR,
    };
    let found = table
        .iter()
        .find(|(beginning, _)| line.text.starts_with(beginning));
    if let Some((_, what)) = found {
        return Some(what);
    }
    let hung = line.text.starts_with("INFO: task ") && line.text.contains(" blocked for more than");
    (line.source == Source::Kernel && hung).then_some("hung task")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let now = Instant::now();
        let mut watcher = Watcher::new(now);
        for line in lines {
            watcher.see(line, now);
        }
        watcher.outcome("log".into(), "")
    }

    fn reason(lines: &[&str]) -> String {
        match outcome(lines).status {
            Status::Failed { reason, .. } => reason,
            Status::Passed => panic!("passed"),
        }
    }

    #[test]
    fn each_kind_of_fault_is_found_and_has_its_level() {
        let cases = [
            ("[ 1.0] Kernel panic - not syncing: x", "L0: kernel panic"),
            (
                "[ 1.0] L1| [ 2.0] WARNING: kernel/x.c:3 at f+0x1/0x2, CPU#0: sh/1",
                "L1: WARNING",
            ),
            (
                "[ 1.0] L1| [ 2.0] L2| [ 3.0] BUG: unable to handle page fault",
                "L2: BUG",
            ),
            (
                "[ 1.0] WARNING: possible circular locking dependency detected",
                "L0: lockdep splat",
            ),
            (
                "[ 1.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
                "L0: RCU stall",
            ),
            (
                "[ 1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
                "L0: soft lockup",
            ),
            (
                "[ 1.0] INFO: task sh:1 blocked for more than 120 seconds.",
                "L0: hung task",
            ),
            (
                "[ 1.0] Oops: general protection fault, 0000 [#1]",
                "L0: oops",
            ),
            (
                "[ 1.0] L1| KVM internal error. Suberror: 1",
                "L1: KVM internal error",
            ),
            (
                "[ 1.0] L1| [ 1.0] L2| KVM: entry failed, hardware error 0x80000021",
                "L2: failed VM entry",
            ),
        ];
        for (line, expected) in cases {
            assert!(reason(&[line]).starts_with(expected), "{line}");
        }
    }

    #[test]
    fn what_a_program_prints_is_no_fault() {
        let result = outcome(&["[ 1.0] | WARNING: x", "[ 1.0] | === lab: end status=0"]);
        assert!(result.passed());
        assert_eq!(result.lines, [(0, "WARNING: x".to_owned())]);
    }

    #[test]
    fn the_first_fault_is_the_reason_and_its_context_the_excerpt() {
        let result = outcome(&[
            "[ 1.0] before",
            "[ 1.0] BUG: x",
            "[ 1.0] Kernel panic - not syncing",
        ]);
        let Status::Failed { reason, excerpt } = result.status else {
            panic!("passed")
        };
        assert_eq!(reason, "L0: BUG: BUG: x");
        assert_eq!(excerpt.lines().count(), 3);
    }

    #[test]
    fn a_level_that_vanishes_is_a_fault() {
        assert!(reason(&["[ 1.0] | === lab: lost level=1"]).contains("L1 stopped"));
    }

    #[test]
    fn a_status_other_than_zero_is_a_failure() {
        let lines = ["[ 1.0] | === lab: end status=3"];
        assert_eq!(reason(&lines), "the commands of L0 ended with status 3");
    }

    #[test]
    fn facts_counters_and_steps_are_collected() {
        let result = outcome(&[
            "[ 1.0] | === lab: up level=0",
            "[ 1.0] | fact: kernel=7.3.4",
            "[ 1.0] | === lab: counters /sys/kernel/debug/nested/7-1/exits",
            "[ 1.0] L1| [ 1.0] | of another level",
            "[ 1.0] | CPUID 1 2",
            "[ 1.0] | === lab: counters end",
            "[ 1.0] L1| [ 1.0] | === lab: done level=1 status=0",
            "[ 1.0] | === lab: end status=0",
        ]);
        assert!(result.passed());
        assert_eq!(result.facts["kernel"], "7.3.4");
        let counters = Counters {
            level: 0,
            file: "/sys/kernel/debug/nested/7-1/exits".into(),
            text: "CPUID 1 2\n".into(),
        };
        assert_eq!(result.counters, [counters]);
        let names: Vec<_> = result.steps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["boot of L0", "work of L1", "end of L0"]);
    }
}
