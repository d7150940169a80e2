// SPDX-License-Identifier: GPL-2.0

//! Processes that this one has started, and what happens to them when this one is told to end.
//!
//! SIGINT, SIGTERM and SIGHUP end all of them, undo what an [`Undo`] stands for, for example a
//! temporary directory, and then end this process, too.
//!
//! # Invariants
//!
//! - Each process that this one has started, directly or not, is a descendant of it until it is
//!   gone: an orphan among them becomes a child of this process.
//! - While the lock of [`PENDING`] is held, no machine and no build starts, and nothing is undone
//!   by anybody else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::cache::remove_all;

/// How long processes may take to end by themselves; emulators give the terminal back then.
const GRACE: Duration = Duration::from_secs(2);

/// How long killed processes may take to be gone.
const REMOVAL: Duration = Duration::from_secs(5);

/// What is left to do if this process must end now.
struct Pending {
    next: u64,
    undo: BTreeMap<u64, Box<dyn FnOnce() + Send>>,
}

static PENDING: Mutex<Pending> = Mutex::new(Pending {
    next: 0,
    undo: BTreeMap::new(),
});

fn pending() -> MutexGuard<'static, Pending> {
    // A thread that panicked left the map as it was before or after its change.
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to listen to the signals that tell this process to end.
pub fn listen() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("becoming the parent of orphans")?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // What nohup or a shell without job control made us ignore stays ignored.
    let heard = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| !ignores(&status, *signal));
    let mut signals = Signals::new(heard).context("listening to signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end(signal);
        }
    });
    Ok(())
}

/// Returns whether a process with this `/proc/PID/status` ignores a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Ends this process because of a signal, and before that everything that it has started.
fn end(signal: i32) {
    let mut pending = pending();
    end_all(|| descendants(getpid()));
    for (_, undo) in std::mem::take(&mut pending.undo) {
        undo();
    }
    // Whoever waits for this process sees which signal ended it.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

/// Ends the processes that `family` finds, gently at first, until it finds none.
fn end_all(family: impl Fn() -> Vec<Pid>) {
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, REMOVAL)] {
        let deadline = Instant::now() + patience;
        let mut told = Vec::new();
        loop {
            let processes = family();
            if processes.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                break;
            }
            for process in processes {
                if !told.contains(&process) {
                    // It may have ended by itself.
                    let _ = kill_process(process, signal);
                    told.push(process);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts a command, unless this process is about to end.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let _gate = pending();
    command.spawn()
}

/// Returns unless this process is about to end: what goes wrong then needs no message.
pub fn wait_if_ending() {
    drop(pending());
}

/// Something to undo when it is dropped, or when a signal ends this process before that.
pub struct Undo(u64);

impl Undo {
    /// Takes care of calling `undo` once.
    ///
    /// It runs under the lock of this module, of which it must call nothing.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        let mut pending = pending();
        let id = pending.next;
        pending.next += 1;
        pending.undo.insert(id, Box::new(undo));
        Self(id)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // The lock is held until it is done: it is not left half done by the end of the process.
        let mut pending = pending();
        if let Some(undo) = pending.undo.remove(&self.0) {
            undo();
        }
    }
}

/// A temporary directory that does not outlive this process, however it is told to end.
pub struct Scratch {
    path: PathBuf,
    _removal: Undo,
}

impl Scratch {
    /// Makes a directory in `parent`.
    pub fn new_in(parent: &Path) -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(".run-")
            .tempdir_in(parent)
            .with_context(|| format!("a directory in {}", parent.display()))?
            .keep();
        let removed = path.clone();
        Ok(Self {
            path,
            _removal: Undo::new(move || {
                // A directory that stays does no harm but the space that it takes.
                let _ = remove_all(&removed);
            }),
        })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the processes that a process has started, directly or not, and that still run.
pub fn descendants(parent: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<(Pid, bool)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, runs)) = parent_and_state(&stat) {
            children.entry(parent).or_default().push((pid, runs));
        }
    }
    let mut family = Vec::new();
    let mut pending = vec![parent];
    while let Some(process) = pending.pop() {
        for (child, runs) in children
            .remove(&process.as_raw_nonzero().get())
            .unwrap_or_default()
        {
            if runs {
                family.push(child);
            }
            pending.push(child);
        }
    }
    family
}

/// Returns the parent in a `/proc/PID/stat`, and whether the process runs: it may have ended, and
/// wait for its parent to notice.
fn parent_and_state(stat: &str) -> Option<(i32, bool)> {
    // The name of the program, in parentheses, may itself contain some.
    let (_, after) = stat.rsplit_once(") ")?;
    let mut words = after.split(' ');
    let runs = !matches!(words.next()?, "Z" | "X");
    Some((words.next()?.parse().ok()?, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell_with_child(script: &str) -> (Child, Pid) {
        let shell = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = Pid::from_child(&shell);
        for _ in 0..1000 {
            if !descendants(pid).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        (shell, pid)
    }

    #[test]
    fn descendants_of_a_shell_are_found_and_ended() {
        let (mut shell, pid) = shell_with_child("sleep 60 & wait");
        assert_eq!(descendants(pid).len(), 1);
        end_all(|| descendants(pid));
        assert!(descendants(pid).is_empty());
        shell.wait().unwrap();
    }

    #[test]
    fn a_process_that_ignores_the_gentle_signal_is_killed() {
        let (mut shell, pid) =
            shell_with_child("sh -c 'trap \"\" TERM; sleep 60; sleep 60' & wait");
        let start = Instant::now();
        end_all(|| descendants(pid));
        assert!(descendants(pid).is_empty() && start.elapsed() < GRACE + REMOVAL);
        shell.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_ended_does_not_run_whatever_its_name() {
        assert_eq!(parent_and_state("7 (a) S 9 (b) S 3 7 7"), Some((3, true)));
        assert_eq!(parent_and_state("7 (sh) Z 3 7 7 0"), Some((3, false)));
        assert_eq!(parent_and_state(""), None);
    }

    #[test]
    fn a_scratch_directory_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new_in(dir.path()).unwrap();
        fs::write(scratch.path().join("file"), "").unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists() && dir.path().exists());
    }

    #[test]
    fn signals_that_the_process_was_made_to_ignore_are_known() {
        let status = "Name:\tlab\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\n";
        assert!(ignores(status, SIGHUP) && ignores(status, SIGINT));
        assert!(!ignores(status, SIGTERM) && !ignores("", SIGHUP));
    }
}
