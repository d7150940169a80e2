// SPDX-License-Identifier: GPL-2.0

//! Interrupting KVM_RUN from outside.

use std::cell::Cell;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::VcpuFd;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(null()) };
    /// A signal came while this thread ran no vCPU.
    static EARLY: AtomicBool = const { AtomicBool::new(false) };
}

/// Makes the vCPU of this thread return from KVM_RUN, now or when it is about to enter it.
extern "C" fn interrupt(_signal: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if flag.is_null() {
        EARLY.with(|early| early.store(true, Ordering::SeqCst));
    } else {
        // SAFETY: The thread runs the vCPU whose flag this is.
        unsafe { (*flag).store(1, Ordering::SeqCst) };
    }
}

/// Makes SIGALRM and SIGUSR1 interrupt KVM_RUN.
pub fn install() -> Result<()> {
    for signal in [libc::SIGALRM, libc::SIGUSR1] {
        // SAFETY: All bit patterns of zeros are values of the structure.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = interrupt as *const () as usize;
        // SAFETY: The handler only stores to an atomic.
        let result = unsafe { libc::sigaction(signal, &action, null_mut()) };
        ensure!(result == 0, "sigaction failed");
    }
    Ok(())
}

/// Says which vCPU the signals of this thread are for.
pub fn bind(vcpu: &mut VcpuFd) {
    let flag: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
    IMMEDIATE_EXIT.set(flag.cast());
    if EARLY.with(|early| early.swap(false, Ordering::SeqCst)) {
        vcpu.set_kvm_immediate_exit(1);
    }
}

/// Says that the signals of this thread are for no vCPU.
pub fn unbind() {
    IMMEDIATE_EXIT.set(null());
}

/// Interrupts KVM_RUN of the only thread after some time, and not for what was asked for before; a
/// time of zero only does the latter.
pub fn after(time: Duration) -> Result<()> {
    let zero = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: zero,
        it_value: libc::timeval {
            tv_sec: i64::try_from(time.as_secs())?,
            tv_usec: i64::from(time.subsec_micros()),
        },
    };
    let stop = libc::itimerval {
        it_interval: zero,
        it_value: zero,
    };
    for timer in [stop, timer] {
        // SAFETY: The timers are valid ones.
        let result = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, null_mut()) };
        ensure!(result == 0, "setitimer failed");
        if timer.it_value.tv_sec == 0 && timer.it_value.tv_usec == 0 {
            EARLY.with(|early| early.store(false, Ordering::SeqCst));
        }
    }
    Ok(())
}

/// A thread that can be interrupted.
#[derive(Clone, Copy, Debug)]
pub struct Thread(libc::pthread_t);

impl Thread {
    /// Returns the thread that calls this.
    pub fn this() -> Self {
        // SAFETY: The function has no conditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// Interrupts KVM_RUN there; the thread must not have been joined.
    pub fn interrupt(self) -> Result<()> {
        // SAFETY: The caller joins the thread later.
        let result = unsafe { libc::pthread_kill(self.0, libc::SIGUSR1) };
        ensure!(result == 0, "pthread_kill failed");
        Ok(())
    }
}

/// Does what is left of an exit to user space, so that the state can be saved.
pub fn complete(vcpu: &mut VcpuFd) -> Result<()> {
    vcpu.set_kvm_immediate_exit(1);
    let result = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    match result {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        other => Err(anyhow::anyhow!("{other:?}")).context("KVM_RUN with immediate_exit"),
    }
}
