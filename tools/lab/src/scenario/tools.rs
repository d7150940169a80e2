// SPDX-License-Identifier: GPL-2.0

//! Programs of `tools/` that run in guests; the workload also runs on the host, for the result that
//! a guest must reach.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::options::checkout;
use crate::{command, host, step};

/// The target whose C library can be linked statically; `--target` keeps flags off build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs, statically linked.
#[derive(Clone, Debug)]
pub struct Tools {
    /// What the last guest does.
    pub workload: PathBuf,
    /// What shows the counters of level 0.
    pub nested_top: PathBuf,
}

impl Tools {
    /// Builds them.
    pub fn build(cache: &Cache) -> Result<Self> {
        Ok(Self {
            workload: build(cache, "workload")?,
            nested_top: build(cache, "nested-top")?,
        })
    }
}

fn build(cache: &Cache, name: &str) -> Result<PathBuf> {
    let source = checkout()?.join("tools").join(name);
    let output = cache.root().join(name);
    let _lock = cache.lock(name)?;
    step::run(&format!("build {name}"), |step| {
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
        command::logged(&mut cargo, &cache.log(name)?, |line| step.progress(line))
    })?;
    Ok(output.join(TARGET).join("release").join(name))
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
