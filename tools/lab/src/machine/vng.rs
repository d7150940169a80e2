// SPDX-License-Identifier: GPL-2.0

//! Level 0 under QEMU, driven by virtme-ng: emulated, or with the machine's own KVM.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{command, process};

use super::accel::Engine;
use super::{CMDLINE, Machine, Programs, Run, Target};

/// Returns QEMU's word for the CPU.
pub fn processor(engine: Engine) -> &'static str {
    match engine {
        Engine::Kvm => "host",
        // Five levels of page tables would make each walk longer, twice over in a guest.
        Engine::Tcg | Engine::Icount | Engine::Bochs => "max,+svm,-la57",
    }
}

/// Returns what makes results on this machine differ from those on another one.
pub fn description(target: &Target) -> String {
    format!("{} x {}", target.smp, processor(target.engine))
}

/// Returns the command that boots `run` with `script` as the guest's work.
///
/// The guest sees the host's filesystem, hence the staged files, without copying them.
pub fn command(
    run: &Run,
    programs: &Programs,
    work: &Path,
    script: Option<&str>,
) -> Result<Command> {
    let target = &run.target;
    // The child must find virtme-run, which is beside vng.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(programs.virtme.clone()).chain(std::env::split_paths(&path));
    // virtme-ng looks for modules beside the kernel, and writes there: give it a kernel alone.
    let kernel = work.join("bzImage");
    fs::copy(&run.kernel, &kernel).with_context(|| format!("no {}", run.kernel.display()))?;
    let mut vng = Command::new(programs.virtme.join("vng"));
    vng.env("PATH", std::env::join_paths(dirs)?)
        .current_dir(work)
        .arg("--run")
        .arg(&kernel)
        .arg(format!(
            "--qemu={}",
            programs.tools.wrapper("qemu-system-x86_64")?.display()
        ))
        .arg(format!("--qemu-opts=-cpu {}", processor(target.engine)))
        .args(["--verbose", "--disable-microvm", "--disable-monitor"])
        .arg(format!("--cpus={}", target.smp))
        .arg(format!("--memory={}M", target.memory));
    if target.engine != Engine::Kvm {
        // A thread for each CPU of the machine.
        vng.arg("--disable-kvm")
            .arg("--qemu-opts=-accel tcg,thread=multi");
    }
    for word in CMDLINE
        .split_whitespace()
        .chain(run.cmdline.iter().map(String::as_str))
    {
        vng.arg(format!("--append={word}"));
    }
    if let Some(script) = script {
        vng.arg("--exec").arg(script);
    }
    Ok(vng)
}

/// Returns the guest's script that enters the staged filesystem.
pub fn entry(work: &Path, stage: &Path) -> Result<String> {
    let path = work.join("enter.sh");
    fs::write(&path, include_str!("../image/guest/enter.sh"))?;
    Ok(format!(
        "exec {} sh {} {}",
        command::quote(&stage.join("bin/busybox").to_string_lossy()),
        command::quote(&path.to_string_lossy()),
        command::quote(&stage.to_string_lossy())
    ))
}

/// Returns the command that boots a run with its console on the terminal of this process.
pub fn interactive(run: &Run, programs: &Programs, work: &Path, script: &str) -> Result<Command> {
    // virtme-ng starts the user's shell on the console; ours is the entry of the level.
    let shell = work.join("shell");
    fs::write(&shell, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755))?;
    let mut vng = command(run, programs, work, None)?;
    vng.arg("--shell").arg(shell);
    Ok(vng)
}

/// Boots a run.
pub fn start(run: &Run, programs: &Programs, work: &Path, stage: &Path) -> Result<Machine> {
    let script = entry(work, stage)?;
    let mut vng = command(run, programs, work, Some(&script))?;
    // With --verbose the serial console goes to standard error.
    let (reader, writer) = os_pipe::pipe()?;
    let output = work.join("vng.out");
    vng.stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(writer)
        .process_group(0);
    let child = process::spawn(&mut vng).context("starting vng")?;
    Ok(Machine {
        child,
        console: File::from(OwnedFd::from(reader)),
        logs: vec![output],
    })
}
