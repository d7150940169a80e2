// SPDX-License-Identifier: GPL-2.0

//! Processes: a ring of pipes, a program started anew, futexes in shared memory, signals.

use crate::sys::{self, Mapping, Sharing};
use crate::{mix, Sequence};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The first argument that makes this program the child of the exec part.
pub const CHILD: &str = "exec-child";

/// Sends a token around a ring of processes; each of them changes it.
pub fn pipe_ring(seed: u64) -> Result<u64, String> {
    const PROCESSES: u64 = 6;
    const ROUNDS: u64 = 40;
    let (first_read, mut write) = {
        let (read, write) = sys::pipe()?;
        (read, write)
    };
    let entry = write;
    let mut children = Vec::new();
    let mut input = first_read;
    for process in 1..=PROCESSES {
        let (read, next) = sys::pipe()?;
        let from = input;
        children.push(sys::fork(|| {
            for _ in 0..ROUNDS {
                let Ok(token) = sys::read_word(from) else {
                    return 1;
                };
                if sys::write_word(next, mix(token, process)).is_err() {
                    return 2;
                }
            }
            0
        })?);
        sys::close(next);
        sys::close(from);
        input = read;
        write = next;
    }
    let _ = write;
    let mut token = seed;
    for _ in 0..ROUNDS {
        sys::write_word(entry, token)?;
        token = sys::read_word(input)?;
    }
    sys::close(entry);
    sys::close(input);
    for child in children {
        if sys::wait(child)? != 0 {
            return Err("a process of the ring lost the token".into());
        }
    }
    Ok(token)
}

/// Starts this program again, several times, and collects what the children print.
pub fn exec(seed: u64) -> Result<u64, String> {
    let mut hash = seed;
    for index in 0..4 {
        let output = Command::new("/proc/self/exe")
            .args([CHILD, &(seed.wrapping_add(index)).to_string()])
            .output()
            .map_err(|error| format!("exec: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let word = u64::from_str_radix(text.trim(), 16)
            .map_err(|_| format!("the child printed {text:?}, {}", output.status))?;
        hash = mix(hash, word);
    }
    Ok(hash)
}

/// What a child of `exec` does: some numbers from its seed.
pub fn exec_child(seed: u64) -> ! {
    let mut sequence = Sequence::new(seed);
    let hash = (0..1000).fold(seed, |hash, _| mix(hash, sequence.next_number()));
    println!("{hash:016x}");
    std::process::exit(0)
}

/// Waits until `*word` is no longer `value`, or somebody wakes us.
fn futex_wait(word: *const u32, value: u32) {
    // SAFETY: `word` is inside a live shared mapping; no timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word,
            libc::FUTEX_WAIT,
            value,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes one waiter.
fn futex_wake(word: *const u32) {
    // SAFETY: as for `futex_wait`.
    unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1) };
}

/// Two processes take turns at a counter in shared memory, with futexes to sleep.
pub fn futex_pingpong(seed: u64) -> Result<u64, String> {
    const TURNS: u32 = 300;
    let map = Mapping::new(2 * sys::PAGE, Sharing::Shared)?;
    map.write(1, 0, seed);
    let play = |parity: u32| {
        // SAFETY: the first word of the mapping, aligned, accessed as an atomic by both processes.
        let turn = unsafe { &*map.word(0, 0).cast::<AtomicU32>() };
        loop {
            let now = turn.load(Ordering::Acquire);
            if now >= TURNS {
                futex_wake(turn.as_ptr());
                return 0;
            }
            if now % 2 == parity {
                map.write(1, 0, mix(map.read(1, 0), u64::from(now)));
                turn.store(now + 1, Ordering::Release);
                futex_wake(turn.as_ptr());
            } else {
                futex_wait(turn.as_ptr(), now);
            }
        }
    };
    let child = sys::fork(|| play(1))?;
    play(0);
    if sys::wait(child)? != 0 {
        return Err("the second player failed".into());
    }
    Ok(map.read(1, 0))
}

/// Signals that the handler saw.
static RECEIVED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RECEIVED.fetch_add(
        1 << (if signal == libc::SIGUSR1 { 0 } else { 32 }),
        Ordering::Relaxed,
    );
}

/// Lets children signal the parent one after the other; none may be lost.
pub fn signals(seed: u64) -> Result<u64, String> {
    RECEIVED.store(0, Ordering::Relaxed);
    sys::handle(libc::SIGUSR1, on_signal)?;
    sys::handle(libc::SIGUSR2, on_signal)?;
    let parent = std::process::id() as i32;
    for round in 0..8 {
        let signal = if round % 3 == 0 {
            libc::SIGUSR2
        } else {
            libc::SIGUSR1
        };
        // SAFETY: signals this process, which has a handler.
        let child = sys::fork(|| i32::from(unsafe { libc::kill(parent, signal) } != 0))?;
        if sys::wait(child)? != 0 {
            return Err("kill failed".into());
        }
        // Another thread may take it, a moment later; one that is pending swallows the next.
        for _ in 0..1000 {
            let received = RECEIVED.load(Ordering::Relaxed);
            if (received >> 32) + (received & u64::from(u32::MAX)) > round {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    match RECEIVED.load(Ordering::Relaxed) {
        0x3_0000_0005 => Ok(mix(seed, 0x3_0000_0005)),
        other => Err(format!("signals received: {other:#x}")),
    }
}
