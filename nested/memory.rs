// SPDX-License-Identifier: GPL-2.0

//! Memory of L1 as the architecture's code sees it.

use crate::address::Gpa;

/// There is no memory at an address, or it cannot be accessed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inaccessible;

/// Memory of L1.
///
/// Other vCPUs and devices write to it at any time. Whoever reads something twice may get two
/// values: read once, into a snapshot, and look at that.
pub trait GuestMemory {
    /// Reads the bytes at `gpa` and after it, which may be in several pages, each byte once.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible>;

    /// Writes the bytes at `gpa` and after it, which may be in several pages.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Inaccessible>;
}

/// How wide the entries of a page table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySize {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl EntrySize {
    /// Returns the width in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// What became of a compare-exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Exchange {
    /// The new value is there.
    Done,
    /// Memory had another value, and keeps it.
    Changed,
    /// The memory can be read only, and keeps what it has.
    ReadOnly,
}

/// Page tables in memory of L1.
///
/// Neither function sleeps if the implementation is called with a spinlock held.
pub trait GuestTables {
    /// Reads entries that follow each other, each once and as a whole, and extends them with zeros.
    ///
    /// `first` is aligned to the size, and all of the entries are in its page.
    fn read_entries(
        &self,
        first: Gpa,
        size: EntrySize,
        entries: &mut [u64],
    ) -> Result<(), Inaccessible>;

    /// Replaces an entry if it is still `old`.
    fn compare_exchange(
        &self,
        entry: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<Exchange, Inaccessible>;
}
