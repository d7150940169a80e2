// SPDX-License-Identifier: GPL-2.0

//! What a flush relies on when it looks at the significant parts of entries only.

use proptest::prelude::*;

use super::*;
use crate::mmu::testing::properties;

fn ept() -> impl Strategy<Value = Format> {
    let largest = prop_oneof![
        Just(Level::Page4K),
        Just(Level::Page2M),
        Just(Level::Page1G)
    ];
    (any::<[bool; 3]>(), largest, 36..=52u32).prop_map(
        |([accessed_dirty, mode_based, execute_only], largest_page, physical_address_width)| {
            Format::Ept(Ept {
                top: Level::Table512G,
                accessed_dirty,
                mode_based,
                execute_only,
                largest_page,
                physical_address_width,
            })
        },
    )
}

fn npt() -> impl Strategy<Value = Format> {
    let paging = prop_oneof![
        Just(Paging::Long5),
        Just(Paging::Long4),
        Just(Paging::Pae),
        any::<bool>().prop_map(|page_size_extension| Paging::Legacy {
            page_size_extension
        }),
    ];
    (any::<[bool; 3]>(), paging, 36..=52u32).prop_map(
        |([no_execute, execute_trap, gigabyte_pages], paging, physical_address_width)| {
            Format::Npt(Npt {
                paging,
                no_execute,
                execute_trap,
                gigabyte_pages,
                physical_address_width,
            })
        },
    )
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![ept(), npt()]
}

fn level() -> impl Strategy<Value = Level> {
    any::<prop::sample::Index>().prop_map(|index| Level::ALL[index.index(Level::ALL.len())])
}

/// Entries of which many are valid: few bits are set but among the flags.
fn entry() -> impl Strategy<Value = u64> {
    (any::<[u64; 3]>(), any::<bool>()).prop_map(|([a, b, c], is_sparse)| {
        let sparse = a & b & c;
        if is_sparse {
            sparse
        } else {
            sparse | a & 0xfff
        }
    })
}

/// A few bits.
fn flips() -> impl Strategy<Value = u64> {
    prop::collection::vec(0..64u32, 0..4)
        .prop_map(|bits| bits.iter().fold(0, |all, bit| all ^ 1 << bit))
}

/// What an entry of the format can be.
fn of_size(format: &Format, raw: u64) -> u64 {
    match format.entry_size() {
        EntrySize::Four => raw & 0xffff_ffff,
        EntrySize::Eight => raw,
    }
}

/// Returns where a valid entry leads to, and what it permits but writing.
fn target(decoded: Decoded) -> Option<(Gpa, Permissions, Option<u8>)> {
    let but_writing = |permissions: Permissions| permissions.without(Permissions::WRITE);
    match decoded {
        Decoded::Page {
            page,
            permissions,
            memory_type,
        } => Some((page, but_writing(permissions), Some(memory_type))),
        Decoded::Table { table, permissions } => Some((table, but_writing(permissions), None)),
        Decoded::NotPresent | Decoded::Reserved => None,
    }
}

proptest! {
    #![proptest_config(properties(20_000))]

    #[test]
    fn the_significant_part_decides_what_an_entry_means(
        format in format(), level in level(), raw in entry(), other: u64,
    ) {
        let kept = format.significant(raw);
        let software = other & !format.significant(u64::MAX);
        let other = of_size(&format, kept | software);
        let raw = of_size(&format, raw);
        prop_assert_eq!(format.decode(raw, level), format.decode(other, level));
    }

    #[test]
    fn an_entry_stays_valid_unless_the_change_says_otherwise(
        format in format(), level in level(), raw in entry(), flips in flips(),
    ) {
        let (before, now) = (of_size(&format, raw), of_size(&format, raw ^ flips));
        let Some(target_before) = target(format.decode(before, level)) else {
            return Ok(());
        };
        let change = format.compare(format.significant(before), format.significant(now), level);
        if change != Change::Other {
            prop_assert_eq!(Some(target_before), target(format.decode(now, level)));
        }
    }
}
