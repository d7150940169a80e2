// SPDX-License-Identifier: GPL-2.0

//! The workload program: built once, run on the host for the result that a guest must reach.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::{command, host, step};

/// The target whose C library can be linked statically; `--target` keeps flags off build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the workload, statically linked.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let source = super::workload_source()?;
    let output = cache.root().join("workload");
    let _lock = cache.lock("workload")?;
    step::run("build the workload", |step| {
        let mut cargo = host::clean("cargo");
        cargo
            .args([
                "build",
                "--release",
                "--locked",
                "--target",
                TARGET,
                "--manifest-path",
            ])
            .arg(source.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", &output)
            .env("RUSTFLAGS", "-C target-feature=+crt-static");
        command::logged(&mut cargo, &cache.log("workload")?, |line| {
            step.progress(line)
        })
    })?;
    Ok(output.join(TARGET).join("release/workload"))
}

/// Runs the workload on the host and returns its checksum.
pub fn reference(workload: &Path, seed: u64) -> Result<String> {
    let text = command::output(Command::new(workload).args(["run", &seed.to_string()]))?;
    let lines: Vec<&str> = text.lines().collect();
    checksum(lines.into_iter()).context("the workload printed no checksum on the host")
}

/// Finds the checksum in what the workload printed.
pub fn checksum<'a>(mut lines: impl Iterator<Item = &'a str>) -> Option<String> {
    lines
        .find_map(|line| line.strip_prefix("workload: checksum="))
        .map(str::to_owned)
}

/// Compares what a guest computed with the host's result.
pub fn compare<'a>(lines: impl Iterator<Item = &'a str>, expected: &str) -> Result<()> {
    let found = checksum(lines).context("the workload printed no checksum in the last guest")?;
    ensure!(
        found == expected,
        "the last guest computed {found}, the host {expected}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_guest_must_be_that_of_the_host() {
        let lines = ["workload: memory=1", "workload: checksum=ab"];
        assert!(compare(lines.into_iter(), "ab").is_ok());
        assert!(compare(lines.into_iter(), "cd").is_err());
        assert!(compare(["workload: failed=1"].into_iter(), "ab").is_err());
    }
}
