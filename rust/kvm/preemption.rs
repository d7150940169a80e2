// SPDX-License-Identifier: GPL-2.0

//! Preemption of the thread that runs a vCPU.

use crate::bindings;
use core::marker::PhantomData;
use kernel::ffi::c_int;

/// Preemption is disabled as long as this lives: the thread stays on its processor.
///
/// # Invariants
///
/// The value was made by the thread that has it.
pub struct Preemption {
    processor: c_int,
    // It must not go to another thread.
    thread: PhantomData<*mut ()>,
}

impl Preemption {
    /// Disables preemption.
    pub fn disable() -> Self {
        // INVARIANT: This is the thread.
        Self {
            // SAFETY: Ends with `drop()`.
            processor: unsafe { bindings::nested_helper_get_cpu() },
            thread: PhantomData,
        }
    }

    /// Returns the number of the processor.
    pub fn processor(&self) -> c_int {
        self.processor
    }
}

impl Drop for Preemption {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this thread has disabled preemption.
        unsafe { bindings::nested_helper_put_cpu() }
    }
}
