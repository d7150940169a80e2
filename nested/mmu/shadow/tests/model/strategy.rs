// SPDX-License-Identifier: GPL-2.0

//! What happens at random.

use super::steps::{Edit, Step};
use proptest::prelude::*;

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
        1 => any::<u8>().prop_map(|wanted| Step::Shrink { wanted }),
        1 => Just(Step::Reclaim),
        1 => (0..2u8).prop_map(|cpu| Step::Switch { cpu }),
        1 => Just(Step::ReadLog),
        2 => (any::<u8>(), 1..4u8).prop_map(|(page, count)| Step::ClearLog { page, count }),
    ]
}
