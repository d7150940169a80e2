// SPDX-License-Identifier: GPL-2.0

//! Timers: a clock that never goes back, sleeps that are long enough, expirations that all arrive.

use crate::mix;
use crate::sys::{self, Mapping, Sharing};
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads the clock from two processes that pass each other the last value: it may not go back.
pub fn clock(seed: u64) -> Result<u64, String> {
    const READINGS: u64 = 400;
    let last = Mapping::new(sys::PAGE, Sharing::Shared)?;
    let watch = || {
        // SAFETY: an aligned word of a shared mapping, an atomic for both processes.
        let last = unsafe { &*last.word(0, 0).cast::<AtomicU64>() };
        for reading in 0..READINGS {
            let before = last.load(Ordering::Acquire);
            let now = sys::now();
            if now < before {
                return 1;
            }
            last.fetch_max(now, Ordering::AcqRel);
            if reading % 32 == 0 {
                std::thread::yield_now();
            }
        }
        0
    };
    let child = sys::fork(watch)?;
    let own = watch();
    if own != 0 || sys::wait(child)? != 0 {
        return Err("the monotonic clock went back".into());
    }
    for milliseconds in [1, 3, 10] {
        let start = sys::now();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        if sys::now() - start < milliseconds * 1_000_000 {
            return Err(format!("a sleep of {milliseconds} ms was too short"));
        }
    }
    Ok(mix(seed, READINGS))
}

/// Waits for a timer that fires five times.
pub fn timerfd(seed: u64) -> Result<u64, String> {
    let every = libc::timespec {
        tv_sec: 0,
        tv_nsec: 4_000_000,
    };
    let setting = libc::itimerspec {
        it_interval: every,
        it_value: every,
    };
    let start = sys::now();
    // SAFETY: plain system calls with valid arguments.
    let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
    // SAFETY: as above; the old setting is not wanted.
    if timer < 0 || unsafe { libc::timerfd_settime(timer, 0, &setting, std::ptr::null_mut()) } != 0
    {
        return Err(sys::failure("timerfd"));
    }
    let mut expirations = 0;
    while expirations < 5 {
        expirations += sys::read_word(timer)?;
    }
    let passed = sys::now() - start;
    sys::close(timer);
    // A slow machine may see several expirations in one read: their number is no part of the
    // result.
    if passed < 5 * 4_000_000 {
        return Err(format!("five periods of 4 ms took {passed} ns"));
    }
    Ok(mix(seed, 5))
}

/// Ticks after which the interval timer is disarmed.
const ENOUGH: u64 = 5;

/// Ticks that arrived.
static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_tick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if TICKS.fetch_add(1, Ordering::Relaxed) + 1 == ENOUGH {
        // Not left to the interrupted program: where a tick takes longer than a period, as in a
        // guest of a guest, the next signal is there whenever the handler returns, and the
        // program does not get on as long as the timer runs.
        set_interval(0);
    }
}

/// Lets SIGALRM arrive after each period of so many microseconds, zero for never, and returns the
/// status of the system call. A handler of signals may call it.
fn set_interval(microseconds: libc::suseconds_t) -> libc::c_int {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let setting = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: valid arguments; the old setting is not wanted.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &setting, std::ptr::null_mut()) }
}

/// Computes while an interval timer interrupts with signals, and checks that nothing is disturbed.
pub fn interval(seed: u64) -> Result<u64, String> {
    let compute = || (0..500).fold(std::hint::black_box(seed), mix);
    // Not in the loop, whose first round may come after the last tick.
    let expected = compute();
    TICKS.store(0, Ordering::Relaxed);
    sys::handle(libc::SIGALRM, on_tick)?;
    let deadline = sys::now() + 20_000_000_000;
    if set_interval(2_000) != 0 {
        return Err(sys::failure("setitimer"));
    }
    // The same computation again and again until the ticks came: each must give the same.
    while TICKS.load(Ordering::Relaxed) < ENOUGH {
        if compute() != expected {
            return Err("a tick disturbed a computation".into());
        }
        if sys::now() > deadline {
            return Err("ticks of an interval timer do not arrive".into());
        }
    }
    Ok(mix(expected, ENOUGH))
}
