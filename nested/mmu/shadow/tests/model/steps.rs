// SPDX-License-Identifier: GPL-2.0

//! What can happen, and bytes that say it: those of a fuzzer.

use arbitrary::{Arbitrary, Result, Unstructured};

/// An entry that L1 writes, as small numbers.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Edit {
    /// Which of L1's tables.
    #[arbitrary(with = below::<4>)]
    pub(super) table: u8,
    /// Which of the indexes that addresses of the test have.
    pub(super) index: u8,
    /// What the entry refers to.
    pub(super) target: u8,
    /// Permissions and flags.
    pub(super) bits: u8,
    /// The entry maps a large page; or has a bit that it must not have.
    pub(super) shape: u8,
}

/// Something that happens.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Step {
    /// L1 writes to one of its tables.
    Edit(Edit),
    /// L1 takes flags and permissions from an entry that it has written, or gives some.
    Change {
        #[arbitrary(with = below::<4>)]
        table: u8,
        index: u8,
        bits: u8,
    },
    /// L2 accesses an address, and if it can write to a table of L1, it does that.
    Access {
        #[arbitrary(with = below::<2>)]
        cpu: u8,
        address: u8,
        #[arbitrary(with = below::<3>)]
        kind: u8,
        edit: Edit,
    },
    /// L0 maps what L2 will probably access.
    Prefault {
        #[arbitrary(with = below::<2>)]
        cpu: u8,
        address: u8,
    },
    /// L1 flushes on a processor.
    Flush {
        #[arbitrary(with = below::<2>)]
        cpu: u8,
        is_all: bool,
    },
    /// L0 tracks calm tables, perhaps after L1 has flushed often.
    Settle {
        #[arbitrary(with = below::<4>)]
        flushes: u8,
    },
    /// L0 moves pages.
    Unmap {
        page: u8,
        #[arbitrary(with = one_to::<3>)]
        count: u8,
    },
    /// L0 reads which pages are dirty.
    DirtyPass,
    /// L0 begins or ends logging.
    Log {
        #[arbitrary(with = below::<3>)]
        tracking: u8,
    },
    /// L0 wants to know what is used.
    Age { page: u8, is_test: bool },
    /// L0 has large pages again.
    Recover { page: u8 },
    /// L0 drops everything.
    ZapAll,
    /// L0 needs memory.
    Evict { wanted: u8 },
    /// L0 is short of memory.
    Shrink { wanted: u8 },
    /// L0 frees what waits.
    Reclaim,
    /// A processor switches to the other root.
    Switch {
        #[arbitrary(with = below::<2>)]
        cpu: u8,
    },
    /// User space reads which pages are dirty, and says later which of them it has copied.
    ReadLog,
    /// User space says of pages that it copies them now.
    ClearLog {
        page: u8,
        #[arbitrary(with = one_to::<3>)]
        count: u8,
    },
}

fn below<const END: u8>(bytes: &mut Unstructured<'_>) -> Result<u8> {
    bytes.int_in_range(0..=END - 1)
}

fn one_to<const LAST: u8>(bytes: &mut Unstructured<'_>) -> Result<u8> {
    bytes.int_in_range(1..=LAST)
}
