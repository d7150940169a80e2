// SPDX-License-Identifier: GPL-2.0

//! What can happen.

use super::*;

/// An entry that L1 writes, as small numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edit {
    /// Which of L1's tables.
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
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// L1 writes to one of its tables.
    Edit(Edit),
    /// L1 takes flags and permissions from an entry that it has written, or gives some.
    Change { table: u8, index: u8, bits: u8 },
    /// L2 accesses an address, and if it can write to a table of L1, it does that.
    Access {
        cpu: u8,
        address: u8,
        kind: u8,
        edit: Edit,
    },
    /// L0 maps what L2 will probably access.
    Prefault { cpu: u8, address: u8 },
    /// L1 flushes on a processor.
    Flush { cpu: u8, is_all: bool },
    /// L0 tracks calm tables, perhaps after L1 has flushed often.
    Settle { flushes: u8 },
    /// L0 moves pages.
    Unmap { page: u8, count: u8 },
    /// L0 reads which pages are dirty.
    DirtyPass,
    /// L0 begins or ends logging.
    Log { tracking: u8 },
    /// L0 wants to know what is used.
    Age { page: u8, is_test: bool },
    /// L0 has large pages again.
    Recover { page: u8 },
    /// L0 drops everything.
    ZapAll,
    /// L0 needs memory.
    Evict { wanted: u8 },
    /// L0 frees what waits.
    Reclaim,
    /// A processor switches to the other root.
    Switch { cpu: u8 },
}

fn edit() -> impl Strategy<Value = Edit> {
    (0..4u8, any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()).prop_map(
        |(table, index, target, bits, shape)| Edit {
            table,
            index,
            target,
            bits,
            shape,
        },
    )
}

/// Returns something that happens, what is frequent more often.
pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => edit().prop_map(Step::Edit),
        8 => (0..4u8, any::<u8>(), any::<u8>()).prop_map(|(table, index, bits)| {
            Step::Change { table, index, bits }
        }),
        20 => (0..2u8, any::<u8>(), 0..3u8, edit()).prop_map(|(cpu, address, kind, edit)| {
            Step::Access { cpu, address, kind, edit }
        }),
        3 => (0..2u8, any::<u8>()).prop_map(|(cpu, address)| Step::Prefault { cpu, address }),
        4 => (0..2u8, any::<bool>()).prop_map(|(cpu, is_all)| Step::Flush { cpu, is_all }),
        4 => (0..4u8).prop_map(|flushes| Step::Settle { flushes }),
        2 => (any::<u8>(), 1..4u8).prop_map(|(page, count)| Step::Unmap { page, count }),
        2 => Just(Step::DirtyPass),
        1 => (0..3u8).prop_map(|tracking| Step::Log { tracking }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(page, is_test)| Step::Age { page, is_test }),
        1 => any::<u8>().prop_map(|page| Step::Recover { page }),
        1 => Just(Step::ZapAll),
        1 => any::<u8>().prop_map(|wanted| Step::Evict { wanted }),
        1 => Just(Step::Reclaim),
        1 => (0..2u8).prop_map(|cpu| Step::Switch { cpu }),
    ]
}
