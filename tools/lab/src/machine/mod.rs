// SPDX-License-Identifier: GPL-2.0

//! Machines for level 0: one description of a run, several things that can execute it.

pub mod accel;
pub mod bochs;
pub mod console;
pub mod icount;
pub mod vng;
pub mod watch;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::archive::Toolroot;
use crate::image::level::{self, Module, Place};
use crate::image::rootfs::Rootfs;
use crate::options::Vendor;
use crate::process::{self, Scratch};
use crate::step::Step;
use crate::tap::TapReport;

use accel::Engine;
use watch::{Event, Watcher};

/// Programs that machines need on the host.
#[derive(Clone, Debug)]
pub struct Programs {
    /// QEMU, Bochs and busybox.
    pub tools: Toolroot,
    /// Directory with virtme-ng's programs.
    pub virtme: PathBuf,
}

/// After which time a run is given up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Wall-clock time of the whole run.
    pub total: Duration,
    /// Time without a line on the console.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(900),
            silence: Duration::from_secs(180),
        }
    }
}

/// Silence that is allowed until level 0 is up.
const BOOT: Duration = Duration::from_secs(120);

/// How long an emulator may take to end after it closed its console.
const ENDING: Duration = Duration::from_secs(5);

/// The machine that a run wants.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Vendor of its virtualization extension.
    pub vendor: Vendor,
    /// What executes it.
    pub engine: Engine,
    /// Virtual CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory: u32,
}

/// Returns what makes results on a machine differ from those on another one.
pub fn description(target: &Target) -> String {
    let machine = match target.engine {
        Engine::Tcg | Engine::Kvm => vng::description(target),
        Engine::Icount => icount::description(target),
        Engine::Bochs => bochs::description(target),
    };
    format!("{machine} {} MiB", target.memory)
}

/// A run of level 0, the same for all engines.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name for files and messages: letters, digits and dashes.
    pub name: String,
    /// The kernel that boots.
    pub kernel: PathBuf,
    /// Further words of the kernel's command line.
    pub cmdline: Vec<String>,
    /// Files of the guest; `image::level::base` is always there.
    pub files: Rootfs,
    /// Modules in the order in which they are inserted.
    pub modules: Vec<Module>,
    /// A shell script that is the work of level 0; its exit status decides.
    pub commands: String,
    /// When to give up.
    pub limits: Limits,
    /// Where to run.
    pub target: Target,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The commands ended with status 0.
    Passed,
    /// Something else happened.
    Failed {
        /// One line.
        reason: String,
        /// The part of the console that shows it.
        excerpt: String,
    },
}

/// A file with exit counters that a level printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The level.
    pub level: u8,
    /// Path of the file there.
    pub file: String,
    /// Its content.
    pub text: String,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// The whole console.
    pub log: PathBuf,
    /// TAP documents on the console.
    pub tap: Vec<TapReport>,
    /// What guests reported by name.
    pub facts: BTreeMap<String, String>,
    /// Exit counters that levels printed.
    pub counters: Vec<Counters>,
    /// Durations of the parts of the run, in order.
    pub steps: Vec<(String, Duration)>,
    /// Lines of user space with the level that printed them.
    pub lines: Vec<(u8, String)>,
}

impl Outcome {
    /// Returns whether the run passed.
    pub fn passed(&self) -> bool {
        self.status == Status::Passed
    }
}

/// Words of the kernel's command line for every level.
///
/// Warnings reach the console and are fatal: whatever goes wrong in any level ends the run.
pub const CMDLINE: &str = "console=ttyS0 panic=-1 panic_on_warn=1 oops=panic softlockup_panic=1 \
     hung_task_panic=1 loglevel=5 printk.devkmsg=on tsc=reliable nokaslr";

/// A machine that was started.
pub struct Machine {
    /// The process to wait for and to end.
    pub child: Child,
    /// Its console.
    pub console: File,
    /// Files in which it may say why it stopped.
    pub logs: Vec<PathBuf>,
}

impl Machine {
    /// Returns how the process ended whose console has been closed.
    fn ended(&mut self) -> Result<String> {
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.to_string());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok("its console closed, its process still there".to_owned())
    }
}

/// Ends the machine when nobody waits for it any more.
impl Drop for Machine {
    fn drop(&mut self) {
        // virtme-ng starts QEMU through other programs, and not in its own process group.
        let family = process::descendants(Pid::from_child(&self.child));
        let _ = self.child.kill();
        for process in family {
            // It may have ended by itself.
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Stages the files of a run in `work`.
pub fn stage(run: &Run, programs: &Programs, work: &Path) -> Result<(Rootfs, PathBuf)> {
    let mut root = level::base(&programs.tools)?;
    root.text("/lab/env", "LAST=0\n").extend(&run.files);
    root.text("/lab/commands", &run.commands);
    level::add_modules(&mut root, Place::Host, &run.modules)?;
    let stage = work.join("root");
    root.stage(&stage)?;
    Ok((root, stage))
}

/// Executes a run and watches it until it ends.
pub fn execute(run: &Run, programs: &Programs, logs: &Path, step: &Step) -> Result<Outcome> {
    fs::create_dir_all(logs)?;
    // In the directory of the logs, which is in the cache: hard links to its files work there.
    let work = Scratch::new_in(logs)?;
    step.progress("image");
    let start = Instant::now();
    let (root, stage) = stage(run, programs, work.path())?;
    let machine = match run.target.engine {
        Engine::Tcg | Engine::Kvm => vng::start(run, programs, work.path(), &stage)?,
        Engine::Icount => icount::start(run, programs, work.path(), &root, &stage)?,
        Engine::Bochs => bochs::start(run, programs, work.path(), &root, &stage)?,
    };
    let log = logs.join(format!("{}.log", run.name));
    observe(run, machine, &log, start, step)
}

/// Follows the console of a machine until something ends the run.
fn observe(
    run: &Run,
    mut machine: Machine,
    log: &Path,
    start: Instant,
    step: &Step,
) -> Result<Outcome> {
    let mut file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let (sender, lines) = mpsc::channel();
    let console = machine.console.try_clone()?;
    std::thread::spawn(move || console::read_lines(console, &sender));
    let mut watcher = Watcher::new(start);
    let mut heard = Instant::now();
    // Once something went wrong, what follows on the console belongs to the message.
    let mut settle: Option<Instant> = None;
    loop {
        let now = Instant::now();
        // Firmware and boot loader say nothing for a while, longer than some limits.
        let patience = if watcher.is_up() {
            run.limits.silence
        } else {
            run.limits.silence.max(BOOT)
        };
        let end = [
            Some(start + run.limits.total),
            Some(heard + patience),
            settle,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now);
        match lines.recv_timeout(end.saturating_duration_since(now)) {
            Ok(line) => {
                heard = Instant::now();
                writeln!(file, "{line}")?;
                match watcher.see(&line, heard) {
                    Event::Nothing => {}
                    Event::Progress(text) => step.progress(&text),
                    Event::Fault => {
                        settle.get_or_insert(heard + watch::SETTLE);
                    }
                    Event::End => break,
                }
                if settle.is_some() && watcher.excerpt_is_full() {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if settle.is_some_and(|time| now >= time) {
                    break;
                }
                if now >= start + run.limits.total {
                    watcher.fail(format!("not done after {} s", run.limits.total.as_secs()));
                    break;
                }
                if now >= heard + patience {
                    let silence = patience.as_secs();
                    watcher.fail(format!("hang: nothing on the console for {silence} s"));
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = machine.ended()?;
                watcher.fail(format!(
                    "the machine stopped before its end marker ({status})"
                ));
                break;
            }
        }
    }
    let failed = !watcher.finished_well();
    let said = if failed {
        said_in(&machine.logs)
    } else {
        String::new()
    };
    drop(machine);
    file.write_all(said.as_bytes())?;
    Ok(watcher.outcome(log.to_owned(), &said))
}

/// Returns the last lines of the logs that an emulator wrote.
fn said_in(logs: &[PathBuf]) -> String {
    let mut text = String::new();
    for log in logs {
        let content = fs::read(log).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> = content
            .lines()
            // Bochs lists its plug-ins, the sound library its complaints.
            .filter(|line| !line.starts_with("00000000000i") && !line.starts_with("ALSA lib"))
            .filter(|line| !line.trim().is_empty())
            .collect();
        for line in &lines[lines.len().saturating_sub(12)..] {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
