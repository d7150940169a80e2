// SPDX-License-Identifier: GPL-2.0

//! The unit of everything that faults share.

use core::sync::atomic::{AtomicU64, Ordering};

/// 64 bits that several processors change at the same time.
///
/// Operations that read and write, and loads, are sequentially consistent: whoever reserves an entry
/// and then looks at a sequence must not miss one who bumps the sequence and then looks at entries.
pub trait Word {
    /// Makes a word.
    fn new(value: u64) -> Self;

    /// Reads the word.
    fn load(&self) -> u64;

    /// Writes the word; what was written before is seen by those who read this.
    fn store(&self, value: u64);

    /// Writes `new` if the word is `old`, and returns what it is otherwise.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64>;

    /// Sets bits, and returns what the word was.
    fn fetch_or(&self, bits: u64) -> u64;

    /// Keeps only some bits, and returns what the word was.
    fn fetch_and(&self, bits: u64) -> u64;

    /// Adds, wrapping around, and returns what the word was.
    fn fetch_add(&self, value: u64) -> u64;
}

impl Word for AtomicU64 {
    #[inline]
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn load(&self) -> u64 {
        self.load(Ordering::SeqCst)
    }

    #[inline]
    fn store(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    #[inline]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
    }

    #[inline]
    fn fetch_or(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::SeqCst)
    }

    #[inline]
    fn fetch_and(&self, bits: u64) -> u64 {
        self.fetch_and(bits, Ordering::SeqCst)
    }

    #[inline]
    fn fetch_add(&self, value: u64) -> u64 {
        self.fetch_add(value, Ordering::SeqCst)
    }
}
