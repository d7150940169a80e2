// SPDX-License-Identifier: GPL-2.0

//! What level 0 does with the memory of L1 while L2 runs: the content stays.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{RwLockWriteGuard, TryLockError};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use selftests::guest::signal::Thread;
use selftests::guest::Random;

use crate::shrink::shrink;
use crate::world::{World, BLOCK};

/// A process with a copy of this one's memory, that does nothing.
struct Duplicate(libc::pid_t);

impl Duplicate {
    /// Makes one: each page is copied when somebody writes to it next.
    fn new() -> Result<Self> {
        // SAFETY: The child calls nothing but functions that are safe in a copy of a process.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: The function has no conditions.
                unsafe { libc::pause() };
            },
            child if child > 0 => Ok(Self(child)),
            _ => Err(std::io::Error::last_os_error()).context("fork"),
        }
    }
}

impl Drop for Duplicate {
    fn drop(&mut self) {
        // SAFETY: The child is ours, and nobody has waited for it.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The host, with what it has done.
pub struct Host<'a> {
    world: &'a World,
    /// The threads of the processors.
    pub threads: Vec<Thread>,
    duplicate: Option<Duplicate>,
    done: BTreeMap<&'static str, u64>,
}

impl<'a> Host<'a> {
    /// Returns a host that has done nothing yet.
    pub fn new(world: &'a World) -> Self {
        Self {
            world,
            threads: Vec::new(),
            duplicate: None,
            done: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    /// Returns what it has done.
    pub fn story(&self) -> String {
        let done = self.done.iter();
        let words: Vec<String> = done
            .map(|(what, times)| format!("{what} {times}"))
            .collect();
        words.join(", ")
    }

    /// Does something, at random.
    pub fn disturb(&mut self, random: &mut Random) -> Result<()> {
        match random.below(17) {
            0..3 => self.copy_on_write(),
            3 => self.drop_duplicate(),
            4 => self.huge(random),
            5 => self.compact(),
            6..10 => self.read_log(),
            10 => self.toggle_log(),
            11 | 12 => self.interrupt(random),
            13 => self.drop_roots(),
            14 => self.remove_slot(),
            15 => self.shrink(random),
            _ => self.replace(random),
        }
    }

    /// Does something that makes KVM drop what it has, for short tests.
    pub fn disturb_all(&mut self, random: &mut Random) -> Result<()> {
        match random.below(4) {
            0 => self.copy_on_write(),
            1 | 2 => self.drop_roots(),
            _ => self.disturb(random),
        }
    }

    /// Makes all pages such that a write moves them.
    fn copy_on_write(&mut self) -> Result<()> {
        self.count("copies on write");
        self.duplicate = Some(Duplicate::new()?);
        Ok(())
    }

    fn drop_duplicate(&mut self) -> Result<()> {
        self.duplicate = None;
        Ok(())
    }

    /// Makes a large page of small ones, which moves them.
    fn huge(&mut self, random: &mut Random) -> Result<()> {
        let offset = self.world.offset + BLOCK * random.below(self.world.size() / BLOCK);
        // It fails if the memory has copies.
        if self.world.arena.collapse(offset, BLOCK)? {
            self.count("large pages");
        }
        Ok(())
    }

    /// Lets the kernel move pages.
    fn compact(&mut self) -> Result<()> {
        if fs::write("/proc/sys/vm/compact_memory", "1").is_ok() {
            self.count("compactions");
        }
        Ok(())
    }

    /// Takes memory of tables back, as if the host were short of it.
    pub fn shrink(&mut self, random: &mut Random) -> Result<()> {
        self.count("calls of the shrinker");
        shrink(1 << random.below(10))
    }

    /// Reads the log of written pages, and checks it.
    fn read_log(&mut self) -> Result<()> {
        self.count("logs");
        self.world.read_log()
    }

    /// Reads the log, which begins if there is none.
    pub fn log(&mut self) -> Result<()> {
        let active = self.world.log.lock().unwrap().active;
        match active {
            Some(_) => self.read_log(),
            None => self.toggle_log(),
        }
    }

    /// Begins or ends logging.
    pub fn toggle_log(&mut self) -> Result<()> {
        self.count("beginnings and ends of logs");
        self.world.toggle_log()
    }

    /// Lets a processor return.
    fn interrupt(&mut self, random: &mut Random) -> Result<()> {
        self.count("interrupts");
        let index = random.below(self.threads.len() as u64);
        self.threads[usize::try_from(index)?].interrupt()
    }

    /// Makes KVM drop all tables while processors use them.
    pub fn drop_roots(&mut self) -> Result<()> {
        self.count("drops of all roots");
        self.world.drop_roots()
    }

    /// Takes the memory away and gives it back, between two instructions of the guests.
    pub fn remove_slot(&mut self) -> Result<()> {
        self.count("removals of the slot");
        let world = self.world;
        self.closed(|| {
            let active = world.log.lock().unwrap().active;
            if active.is_some() {
                world.toggle_log()?;
            }
            world.set_slot(false, false)?;
            world.set_slot(true, false)?;
            if active.is_some() {
                world.toggle_log()?;
            }
            Ok(())
        })
    }

    /// Puts copies of the pages in their place, or protects them for a moment.
    fn replace(&mut self, random: &mut Random) -> Result<()> {
        self.count("replacements");
        let world = self.world;
        let block = world.offset + BLOCK * random.below(world.size() / BLOCK);
        let pages = 0x1000 * random.below(32);
        self.closed(|| world.arena.replace_part(block, 0x1000 + pages))
    }

    /// Does something while no processor runs.
    fn closed(&self, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let world = self.world;
        world.closing.store(true, Ordering::SeqCst);
        let gate = self.close();
        let result = gate.and_then(|_gate| what());
        world.closing.store(false, Ordering::SeqCst);
        result
    }

    fn close(&self) -> Result<RwLockWriteGuard<'a, ()>> {
        for _ in 0..100_000 {
            match self.world.gate.try_write() {
                Ok(gate) => return Ok(gate),
                Err(TryLockError::Poisoned(_)) => bail!("a thread panicked"),
                Err(TryLockError::WouldBlock) => (),
            }
            for thread in &self.threads {
                thread.interrupt()?;
            }
            thread::sleep(Duration::from_micros(100));
        }
        bail!("a processor does not stop")
    }

    /// Ends all that goes on.
    pub fn end(&mut self) -> Result<()> {
        self.duplicate = None;
        ensure!(
            !self.world.closing.load(Ordering::SeqCst),
            "the gate is still closed"
        );
        Ok(())
    }
}
