// SPDX-License-Identifier: GPL-2.0

//! Progress of long steps: a spinner on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a step that runs says so where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

static TIMINGS: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// The display of a step that is under way.
pub struct Step {
    name: String,
    start: Instant,
    bar: Option<ProgressBar>,
    last_line: RefCell<Instant>,
}

impl Step {
    /// Shows how far the step is, for example a count of objects.
    pub fn progress(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_owned());
            return;
        }
        let mut last = self.last_line.borrow_mut();
        if last.elapsed() >= PLAIN_INTERVAL {
            *last = Instant::now();
            println!(
                "  {}: {message} ({})",
                self.name,
                clock(self.start.elapsed())
            );
        }
    }
}

/// Runs one step, shows its progress, and records its duration for the report.
pub fn run<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let bar = spinner(name);
    if bar.is_none() {
        println!("> {name}");
    }
    let step = Step {
        name: name.to_owned(),
        start,
        bar,
        last_line: RefCell::new(start),
    };
    let result = work(&step);
    if let Some(bar) = &step.bar {
        bar.finish_and_clear();
    }
    let elapsed = start.elapsed();
    let mark = if result.is_ok() { "+" } else { "!" };
    println!("{mark} {name} ({})", clock(elapsed));
    record(name, elapsed);
    result.with_context(|| name.to_owned())
}

/// Runs work that prints its own result; a terminal shows a spinner meanwhile.
pub fn quiet<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let bar = spinner(name);
    let result = work();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    record(name, start.elapsed());
    result
}

/// Returns a spinner where there is a terminal.
fn spinner(name: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    Some(bar)
}

fn record(name: &str, elapsed: Duration) {
    if let Ok(mut timings) = TIMINGS.lock() {
        timings.push((name.to_owned(), elapsed));
    }
}

/// Prints a remark between steps.
pub fn note(text: &str) {
    println!("  {text}");
}

/// Returns the steps that ended so far, in that order, with their durations.
pub fn timings() -> Vec<(String, Duration)> {
    TIMINGS
        .lock()
        .map(|timings| timings.clone())
        .unwrap_or_default()
}

/// Formats a duration as minutes and seconds.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{}.{} s", seconds, duration.subsec_millis() / 100)
    } else {
        format!("{}:{:02} min", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_a_clock() {
        assert_eq!(clock(Duration::from_millis(1290)), "1.2 s");
        assert_eq!(clock(Duration::from_secs(61)), "1:01 min");
    }

    #[test]
    fn a_failed_step_is_recorded_and_names_itself() {
        let error = run("a step that fails", |_| -> Result<()> {
            anyhow::bail!("reason")
        })
        .unwrap_err();
        assert_eq!(format!("{error:#}"), "a step that fails: reason");
        assert!(
            timings()
                .iter()
                .any(|(name, _)| name == "a step that fails")
        );
    }
}
