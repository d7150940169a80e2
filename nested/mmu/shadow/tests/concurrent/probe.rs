// SPDX-License-Identifier: GPL-2.0

//! Words whose operations are points where the scheduler may switch.

use core::sync::atomic::Ordering::SeqCst;
use std::cell::Cell;

use super::*;

std::thread_local! {
    /// All threads of the scheduler are on one of the system.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Lets another thread go on, if the scheduler wants to.
pub(super) fn point() {
    if !IS_QUIET.get() {
        shuttle::sync::atomic::AtomicBool::new(false).load(SeqCst);
    }
}

/// Runs what no other thread takes part in.
pub(super) fn quietly<R>(run: impl FnOnce() -> R) -> R {
    IS_QUIET.set(true);
    let result = run();
    IS_QUIET.set(false);
    result
}

/// Returns whether a value is more than that of a word or an entry that was cleared.
fn is_something(value: u64) -> bool {
    value & !(1 << 63) != 0
}

/// A word.
pub(super) struct Probe(AtomicU64);

impl Word for Probe {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn load(&self) -> u64 {
        // Of a table that is looked through, what is empty is one point.
        if is_something(Word::load(&self.0)) {
            point();
        }
        Word::load(&self.0)
    }

    fn store(&self, value: u64) {
        // Pages that are cleared word by word are nobody else's.
        if is_something(value) {
            point();
        }
        Word::store(&self.0, value);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        point();
        Word::compare_exchange(&self.0, old, new)
    }

    fn fetch_or(&self, bits: u64) -> u64 {
        point();
        Word::fetch_or(&self.0, bits)
    }

    fn fetch_and(&self, bits: u64) -> u64 {
        point();
        Word::fetch_and(&self.0, bits)
    }

    fn fetch_add(&self, value: u64) -> u64 {
        point();
        Word::fetch_add(&self.0, value)
    }
}
