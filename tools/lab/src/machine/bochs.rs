// SPDX-License-Identifier: GPL-2.0

//! Level 0 under Bochs, which emulates VMX and SVM: boots from a CD image.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};

use crate::image::rootfs::Rootfs;
use crate::image::{initramfs, iso};
use crate::options::Vendor;
use crate::process;

use super::{CMDLINE, Machine, Programs, Run, Target};

/// What the kernel takes for the frequency of the TSC.
///
/// Bochs counts an instruction as one tick, and executes some 50 million of them in a second. With
/// the frequency of the real processor a guest's second would last a minute: a time limit would
/// mean nothing, and a process that spins until another one runs would spin for ever.
const CLOCK: &str = "tsc_early_khz=200000";

/// Descriptor of the console in the child.
const CONSOLE: i32 = 10;

/// What Bochs itself prints.
const OUTPUT: &str = "bochs.out";

/// Returns the CPU model for a vendor.
pub fn model(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Intel => "tigerlake",
        Vendor::Amd => "ryzen",
    }
}

/// Returns Bochs's line about the CPU.
fn processor(target: &Target) -> String {
    let model = model(target.vendor);
    let smp = target.smp;
    format!(
        "cpu: model={model}, count={smp}, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1"
    )
}

/// Returns what makes results on this machine differ from those on another one.
pub fn description(target: &Target) -> String {
    format!("{} {CLOCK}", processor(target))
}

/// Where Bochs's serial port goes.
#[derive(Clone, Copy, Debug)]
pub enum Serial<'a> {
    /// Out only, to a file or descriptor.
    File(&'a str),
    /// In and out, on a terminal.
    Terminal(&'a str),
}

/// Returns Bochs's configuration.
pub fn configuration(run: &Run, programs: &Programs, work: &Path, serial: Serial<'_>) -> String {
    let share = programs.tools.dir.join("usr/share");
    let serial = match serial {
        Serial::File(path) => format!("mode=file, dev={path}"),
        Serial::Terminal(path) => format!("mode=term, dev={path}"),
    };
    format!(
        "megs: {memory}\n\
         romimage: file={share}/bochs/BIOS-bochs-latest\n\
         vgaromimage: file={share}/vgabios/vgabios.bin\n\
         {processor}\n\
         boot: cdrom\n\
         ata0-master: type=cdrom, path={work}/boot.iso, status=inserted\n\
         com1: enabled=1, {serial}\n\
         clock: sync=none, time0=local\n\
         sound: driver=dummy\n\
         display_library: rfb, options=\"timeout=0\"\n\
         log: {work}/bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n",
        memory = run.target.memory,
        processor = processor(&run.target),
        share = share.display(),
        work = work.display(),
    )
}

/// Writes the CD image of a run into `work`.
pub fn image(run: &Run, work: &Path, root: &Rootfs, stage: &Path) -> Result<()> {
    let archive = work.join("initramfs");
    initramfs::pack(root, stage, &archive)?;
    let mut words = vec![CMDLINE.to_owned(), CLOCK.to_owned()];
    words.extend(run.cmdline.iter().cloned());
    iso::create(work, &run.kernel, &archive, &words.join(" "))?;
    Ok(())
}

/// Returns the command that boots the image in `work`; its own messages go to a file there.
fn command(run: &Run, programs: &Programs, work: &Path, serial: Serial<'_>) -> Result<Command> {
    let rc = work.join("bochsrc");
    fs::write(&rc, configuration(run, programs, work, serial))?;
    // Debian's binary has the debugger: its first command is to go on.
    let go = work.join("debugger");
    fs::write(&go, "c\n")?;
    let output = File::create(work.join(OUTPUT))?;
    let mut bochs = programs.tools.command("bochs-bin");
    bochs
        .current_dir(work)
        .env("BXSHARE", programs.tools.dir.join("usr/share/bochs"))
        .args(["-q", "-unlock", "-f"])
        .arg(&rc)
        .arg("-rc")
        .arg(&go)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(bochs)
}

/// Returns the command that boots a run with its serial port on the terminal given.
pub fn interactive(run: &Run, programs: &Programs, work: &Path, tty: &str) -> Result<Command> {
    command(run, programs, work, Serial::Terminal(tty))
}

/// Boots a run.
pub fn start(
    run: &Run,
    programs: &Programs,
    work: &Path,
    root: &Rootfs,
    stage: &Path,
) -> Result<Machine> {
    image(run, work, root, stage)?;
    let (reader, writer) = os_pipe::pipe()?;
    let device = format!("/proc/self/fd/{CONSOLE}");
    let mut bochs = command(run, programs, work, Serial::File(&device))?;
    let mapping = FdMapping {
        parent_fd: OwnedFd::from(writer),
        child_fd: CONSOLE,
    };
    bochs
        .process_group(0)
        .fd_mappings(vec![mapping])
        .context("descriptor of the console")?;
    let child = process::spawn(&mut bochs).context("starting Bochs")?;
    Ok(Machine {
        child,
        console: File::from(OwnedFd::from(reader)),
        logs: vec![work.join("bochs.log"), work.join(OUTPUT)],
    })
}
