// SPDX-License-Identifier: GPL-2.0

//! `nested-top`: what nested virtualization does on this host, live, per VM.
//!
//! It shows what the modules nested-vmx and nested-svm count in debugfs.

mod rates;
mod report;
mod sample;
mod view;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use rates::{between, Activity};
use sample::Sample;

/// Shows what nested virtualization does on this host, live, per VM.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Prints the counters once, with the rates over one interval, and ends
    #[arg(long)]
    once: bool,
    /// Prints a line of JSON for each interval instead of the live view
    #[arg(long)]
    json: bool,
    /// Shows the VMs of one process only
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,
    /// Seconds between two samples
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Where the modules show their counters
    #[arg(long, value_name = "DIR", default_value = "/sys/kernel/debug/nested")]
    debugfs: PathBuf,
}

/// Parses a number of seconds that one can wait for.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("not between 0.01 and 86400".to_owned())
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nested-top: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether the reader of the output is gone, as that of `| head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn run(options: &Options) -> Result<()> {
    let interval = Duration::from_secs_f64(options.interval);
    if !options.once && !options.json {
        return view::show(&options.debugfs, options.pid, interval);
    }
    let read = || Sample::read(&options.debugfs, options.pid);
    let mut before = read()?;
    loop {
        sleep(interval);
        let now = read()?;
        print(options, &between(&before, &now))?;
        before = now;
        if options.once {
            return Ok(());
        }
    }
}

fn print(options: &Options, activities: &[Activity]) -> Result<()> {
    let mut output = io::stdout().lock();
    if options.json {
        writeln!(output, "{}", report::json(activities)?)?;
    } else {
        write!(output, "{}", report::text(activities))?;
    }
    output.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
        for text in ["0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(0.5));
    }
}
