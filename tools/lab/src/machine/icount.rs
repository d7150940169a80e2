// SPDX-License-Identifier: GPL-2.0

//! Level 0 under QEMU's emulator with a clock that counts instructions.
//!
//! An instruction is a nanosecond and a tick of the TSC, and a CPU that waits has the next timer at
//! once. Nothing else reaches the machine: its files are in an initramfs, its calendar begins at a
//! fixed date, and its random numbers are the same each time. Hence a run is like the one before.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};

use crate::image::initramfs;
use crate::image::rootfs::Rootfs;
use crate::process;

use super::{CMDLINE, Machine, Programs, Run, Target, vng};

/// QEMU's words for the clock, where an instruction is 2 to the power of 0 nanoseconds, for the
/// calendar, and for random numbers, which the CPU has instructions for.
const STEADY: [&str; 6] = [
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2026-01-01T00:00:00,clock=vm",
    "-seed",
    "1",
];

/// Descriptor of the console in the child.
const CONSOLE: i32 = 10;

/// What QEMU itself prints.
const OUTPUT: &str = "qemu.out";

/// Returns what makes results on this machine differ from those on another one.
pub fn description(target: &Target) -> String {
    let processor = vng::processor(target.engine);
    format!("{} x {processor} {}", target.smp, STEADY.join(" "))
}

/// Adds what describes the machine of a run, whose files are in `archive`.
fn describe(qemu: &mut Command, run: &Run, archive: &Path) {
    let target = &run.target;
    let processor = vng::processor(target.engine);
    let mut words = vec![CMDLINE];
    words.extend(run.cmdline.iter().map(String::as_str));
    qemu.args(["-machine", "q35", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot"])
        // With a thread for each CPU there would be no order of instructions.
        .args(["-accel", "tcg,thread=single", "-cpu", processor])
        .args(STEADY)
        .args(["-smp", &target.smp.to_string()])
        .args(["-m", &target.memory.to_string()])
        .arg("-kernel")
        .arg(&run.kernel)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", &words.join(" ")])
        .arg("-chardev")
        .arg(format!("file,id=console,path=/proc/self/fd/{CONSOLE}"))
        .args(["-serial", "chardev:console"]);
}

/// Boots a run.
pub fn start(
    run: &Run,
    programs: &Programs,
    work: &Path,
    root: &Rootfs,
    stage: &Path,
) -> Result<Machine> {
    let archive = work.join("initramfs");
    initramfs::pack(root, stage, &archive)?;
    let (reader, writer) = os_pipe::pipe()?;
    let output = File::create(work.join(OUTPUT))?;
    let mut qemu = programs.tools.command("qemu-system-x86_64");
    describe(&mut qemu, run, &archive);
    let mapping = FdMapping {
        parent_fd: OwnedFd::from(writer),
        child_fd: CONSOLE,
    };
    qemu.current_dir(work)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .fd_mappings(vec![mapping])
        .context("descriptor of the console")?;
    let child = process::spawn(&mut qemu).context("starting QEMU")?;
    Ok(Machine {
        child,
        console: File::from(OwnedFd::from(reader)),
        logs: vec![work.join(OUTPUT)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Engine, Limits};
    use crate::options::Vendor;

    #[test]
    fn the_machine_is_described_whole_and_has_nothing_by_default() {
        let run = Run {
            name: "test".into(),
            kernel: "/k/bzImage".into(),
            cmdline: vec!["quiet".into()],
            files: Rootfs::default(),
            modules: Vec::new(),
            commands: String::new(),
            limits: Limits::default(),
            target: Target {
                vendor: Vendor::Amd,
                engine: Engine::Icount,
                smp: 1,
                memory: 984,
            },
        };
        let mut qemu = Command::new("qemu");
        describe(&mut qemu, &run, Path::new("/w/initramfs"));
        let words: Vec<_> = qemu
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let after = |option: &str| {
            let place = words.iter().position(|word| word == option).unwrap();
            words[place + 1].as_str()
        };
        assert!(words.contains(&"-nodefaults".to_owned()));
        assert_eq!(after("-icount"), "shift=0,sleep=off");
        assert_eq!(after("-m"), "984");
        assert_eq!(after("-kernel"), "/k/bzImage");
        assert_eq!(after("-initrd"), "/w/initramfs");
        assert_eq!(after("-append"), format!("{CMDLINE} quiet"));
    }
}
