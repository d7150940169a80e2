// SPDX-License-Identifier: GPL-2.0

//! What the processor itself says of near-valid states of a VMCS: a program in the place of the
//! kernel, with the code that `vmx_near_valid_test` runs as L1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::image::rootfs::Rootfs;
use crate::machine::{self, Limits, Outcome, Run, Target};
use crate::options::checkout;
use crate::{command, host, step};

use super::Bench;
use super::lifecycle::TARGET;

/// The test whose answers these are.
pub const TEST: &str = "vmx_near_valid_test";

/// Builds the program, in the form of a kernel for the boot loader.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let checkout = checkout()?;
    let output = checkout.join("build/bare");
    let _lock = cache.lock("bare")?;
    step::run("build the program without a kernel", |step| {
        let mut cargo = host::clean("cargo");
        cargo
            .args(["build", "--release", "--locked"])
            // Cargo reads the configuration of the directory that it runs in.
            .current_dir(checkout.join("selftests/bare"))
            .env("CARGO_TARGET_DIR", &output);
        command::logged(&mut cargo, &cache.log("bare")?, |line| step.progress(line))
    })?;
    let image = output.join("bare.bin");
    let mut objcopy = Command::new("objcopy");
    objcopy
        .args(["-O", "binary"])
        .arg(output.join(TARGET).join("release/bare"))
        .arg(&image);
    command::output(&mut objcopy)?;
    let size = fs::metadata(&image)
        .context("the program without a kernel")?
        .len();
    anyhow::ensure!(size > 0x400, "objcopy has left {size} bytes");
    Ok(image)
}

/// Boots the program.
pub fn run(bench: &Bench, target: &Target, image: &Path) -> Result<Outcome> {
    let run = Run {
        name: "bare-intel".into(),
        kernel: image.to_owned(),
        cmdline: Vec::new(),
        files: Rootfs::default(),
        modules: Vec::new(),
        commands: String::new(),
        limits: Limits {
            total: Duration::from_secs(300),
            silence: Duration::from_secs(60),
        },
        target: *target,
    };
    step::run("near-valid states without a kernel", |step| {
        machine::execute(&run, &bench.programs, &bench.logs, step)
    })
}
