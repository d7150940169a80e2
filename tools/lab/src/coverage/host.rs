// SPDX-License-Identifier: GPL-2.0

//! What the tests of nested/ execute on the host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{Cache, remove_all};
use crate::options::checkout;
use crate::{command, host, step};

use super::CRATE;
use super::llvm::{FLAGS, Tools, UNSTABLE};

/// Runs the tests; returns what they executed, in the form of lcov.
pub fn executed(cache: &Cache, tools: &Tools, work: &Path) -> Result<String> {
    let manifest = checkout()?.join(CRATE).join("Cargo.toml");
    // Build scripts and macros are instrumented, too, and leave profiles of their own.
    let profiles = work.join("profiles");
    remove_all(&profiles)?;
    fs::create_dir_all(&profiles)?;
    let programs = step::run("tests of nested/ on the host, instrumented", |step| {
        let cargo = || {
            let mut cargo = host::clean("cargo");
            cargo
                .args(["test", "--release", "--locked", "--lib", "--manifest-path"])
                .arg(&manifest)
                .env("CARGO_TARGET_DIR", work.join("target"))
                .env("RUSTFLAGS", FLAGS)
                .env(UNSTABLE.0, UNSTABLE.1)
                .env("LLVM_PROFILE_FILE", profiles.join("%p-%m.profraw"));
            cargo
        };
        let mut build = cargo();
        build.args(["--no-run", "--message-format=json"]);
        let programs = programs(&command::output(&mut build)?);
        command::logged(&mut cargo(), &cache.log("coverage")?, |line| {
            step.progress(line);
        })?;
        Ok(programs)
    })?;
    let entries = fs::read_dir(&profiles)?;
    let profiles: Result<Vec<PathBuf>, _> =
        entries.map(|entry| entry.map(|it| it.path())).collect();
    tools.export(work, "host", &profiles?, &programs)
}

/// Finds the test programs in cargo's messages.
fn programs(messages: &str) -> Vec<PathBuf> {
    let message = |line| serde_json::from_str::<serde_json::Value>(line).ok();
    let values = messages.lines().filter_map(message);
    let program = |value: serde_json::Value| Some(PathBuf::from(value["executable"].as_str()?));
    values.filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_the_messages_of_cargo() {
        let messages = "{\"executable\":null}\n{\"executable\":\"/a/b\"}\nnoise\n";
        assert_eq!(programs(messages), [PathBuf::from("/a/b")]);
    }
}
