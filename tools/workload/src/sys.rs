// SPDX-License-Identifier: GPL-2.0

//! Thin wrappers of the system calls that the parts use; all `unsafe` but the register test is here.

use std::io::Error;
use std::ptr::null_mut;

/// Bytes in a page of x86.
pub const PAGE: usize = 4096;

/// Describes the failure of the system call `what` from errno.
pub fn failure(what: &str) -> String {
    format!("{what}: {}", Error::last_os_error())
}

/// An anonymous mapping, unmapped when dropped.
pub struct Mapping {
    base: *mut u8,
    length: usize,
}

/// Who sees writes to a mapping after a fork.
#[derive(Clone, Copy)]
pub enum Sharing {
    /// Copied on write.
    Private,
    /// The same memory in parent and child.
    Shared,
}

impl Mapping {
    /// Maps `length` bytes, readable and writable.
    pub fn new(length: usize, sharing: Sharing) -> Result<Self, String> {
        let flags = libc::MAP_ANONYMOUS
            | match sharing {
                Sharing::Private => libc::MAP_PRIVATE,
                Sharing::Shared => libc::MAP_SHARED,
            };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches no memory
        // of this program.
        let base = unsafe { libc::mmap(null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(failure("mmap"));
        }
        Ok(Self {
            base: base.cast(),
            length,
        })
    }

    /// Returns the number of whole pages.
    pub fn pages(&self) -> usize {
        self.length / PAGE
    }

    /// Returns the address of word `word` of page `page`.
    pub fn word(&self, page: usize, word: usize) -> *mut u64 {
        let offset = page * PAGE + word * 8;
        assert!(offset + 8 <= self.length);
        self.base.wrapping_add(offset).cast()
    }

    /// Reads a word; volatile, because another process may write it.
    pub fn read(&self, page: usize, word: usize) -> u64 {
        // SAFETY: `word` checked that the address is inside the mapping, which is readable unless
        // `protect` took that away: then the process gets the SIGSEGV it asked for.
        unsafe { self.word(page, word).read_volatile() }
    }

    /// Writes a word.
    pub fn write(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.word(page, word).write_volatile(value) }
    }

    /// Changes the protection of `count` pages from `first` on.
    pub fn protect(&self, first: usize, count: usize, protection: i32) -> Result<(), String> {
        // SAFETY: the range is inside this mapping; nothing holds references into it.
        match unsafe { libc::mprotect(self.word(first, 0).cast(), count * PAGE, protection) } {
            0 => Ok(()),
            _ => Err(failure("mprotect")),
        }
    }

    /// Gives the pages back to the kernel: they read as zero afterwards.
    pub fn discard(&self, first: usize, count: usize) -> Result<(), String> {
        // SAFETY: as for `protect`.
        match unsafe {
            libc::madvise(
                self.word(first, 0).cast(),
                count * PAGE,
                libc::MADV_DONTNEED,
            )
        } {
            0 => Ok(()),
            _ => Err(failure("madvise")),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it exists.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// Runs `work` in a child process; its result is the child's exit status.
pub fn fork(work: impl FnOnce() -> i32) -> Result<libc::pid_t, String> {
    // SAFETY: this program has one thread whenever it forks, so that the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(failure("fork")),
        0 => {
            let status = work();
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        child => Ok(child),
    }
}

/// Waits for a child and returns its exit status; a death by a signal is an error.
pub fn wait(child: libc::pid_t) -> Result<i32, String> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(child, &mut status, 0) } == child {
            break;
        }
        if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Err(failure("waitpid"));
        }
    }
    if libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(format!("a child died of signal {}", libc::WTERMSIG(status)))
    }
}

/// Opens a pipe: (read end, write end).
pub fn pipe() -> Result<(i32, i32), String> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    match unsafe { libc::pipe(ends.as_mut_ptr()) } {
        0 => Ok((ends[0], ends[1])),
        _ => Err(failure("pipe")),
    }
}

/// Closes a descriptor that this program opened.
pub fn close(descriptor: i32) {
    // SAFETY: the callers own the descriptor and do not use it again.
    unsafe { libc::close(descriptor) };
}

/// Reads one word from a pipe or a timer.
pub fn read_word(descriptor: i32) -> Result<u64, String> {
    let mut bytes = [0u8; 8];
    // SAFETY: `bytes` has room for the eight bytes asked for.
    match unsafe { libc::read(descriptor, bytes.as_mut_ptr().cast(), 8) } {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(failure("read of a word")),
    }
}

/// Writes one word to a pipe.
pub fn write_word(descriptor: i32, word: u64) -> Result<(), String> {
    let bytes = word.to_ne_bytes();
    // SAFETY: `bytes` holds the eight bytes.
    match unsafe { libc::write(descriptor, bytes.as_ptr().cast(), 8) } {
        8 => Ok(()),
        _ => Err(failure("write of a word")),
    }
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

/// Installs a handler that is told the signal and the address of a fault.
pub fn handle(
    signal: i32,
    handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void),
) -> Result<(), String> {
    // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is valid; the handlers of this program touch atomics and call mprotect only.
    match unsafe { libc::sigaction(signal, &action, null_mut()) } {
        0 => Ok(()),
        _ => Err(failure("sigaction")),
    }
}
