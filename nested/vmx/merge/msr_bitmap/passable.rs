// SPDX-License-Identifier: GPL-2.0

//! The MSRs that L2 may access without an exit.

use super::{Access, Place, WORDS};

/// Accesses that may pass, as the bits of one word of the bitmap.
type Passable = (usize, u64);

/// Accesses to MSRs that follow each other.
struct Row {
    first: u32,
    count: u32,
    read: bool,
    write: bool,
}

const fn read(first: u32, count: u32) -> Row {
    Row {
        first,
        count,
        read: true,
        write: false,
    }
}

const fn write(first: u32, count: u32) -> Row {
    Row {
        first,
        count,
        read: false,
        write: true,
    }
}

const fn both(first: u32, count: u32) -> Row {
    Row {
        first,
        count,
        read: true,
        write: true,
    }
}

/// The MSRs that pass if neither L1 nor L0 intercepts them.
const PASSABLE_ROWS: &[Row] = &[
    both(0x48, 1),        // IA32_SPEC_CTRL
    write(0x49, 1),       // IA32_PRED_CMD
    both(0xc1, 8),        // IA32_PMC0 and those that follow
    read(0xe7, 2),        // IA32_MPERF, IA32_APERF
    write(0x10b, 1),      // IA32_FLUSH_CMD
    both(0x309, 3),       // IA32_FIXED_CTR0 and those that follow
    read(0x38e, 1),       // IA32_PERF_GLOBAL_STATUS
    both(0x38f, 1),       // IA32_PERF_GLOBAL_CTRL
    write(0x390, 1),      // IA32_PERF_GLOBAL_OVF_CTRL
    both(0x4c1, 8),       // IA32_A_PMC0 and those that follow
    both(0x6a0, 1),       // IA32_U_CET
    both(0x6a2, 1),       // IA32_S_CET
    both(0x6a4, 4),       // IA32_PL0_SSP to IA32_PL3_SSP
    both(0xc000_0100, 3), // IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE
];

/// How many words [`PASSABLE_ROWS`] have bits in.
const PASSABLE_WORDS: usize = 15;

/// [`PASSABLE_ROWS`] by the words of the bitmap, so that each word of L1's is read once.
pub(super) const PASSABLE: [Passable; PASSABLE_WORDS] = passable();

const fn passable() -> [Passable; PASSABLE_WORDS] {
    let mut words = [(WORDS, 0); PASSABLE_WORDS];
    let mut rows = PASSABLE_ROWS;

    while let [row, rest @ ..] = rows {
        let mut index = 0;

        while index < row.count {
            let msr = row.first.wrapping_add(index);

            if row.read {
                add(&mut words, Place::of(msr, Access::Read));
            }
            if row.write {
                add(&mut words, Place::of(msr, Access::Write));
            }
            index = index.wrapping_add(1);
        }
        rows = rest;
    }
    words
}

/// Adds a bit to the entry of its word, or to the first that is free.
const fn add(words: &mut [Passable], place: Option<Place>) {
    let Some(place) = place else { return };
    let mut rest = words;

    while let Some((entry, others)) = rest.split_first_mut() {
        if entry.0 == place.word || entry.0 == WORDS {
            *entry = (place.word, entry.1 | place.mask);
            return;
        }
        rest = others;
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_passable_msrs))]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_words_is_full_and_has_each_word_once() {
        for (index, (word, mask)) in PASSABLE.iter().enumerate() {
            assert!(*word < WORDS);
            assert!(*mask != 0);
            assert!(PASSABLE
                .iter()
                .skip(index + 1)
                .all(|(other, _)| other != word));
        }

        let listed: u32 = PASSABLE_ROWS
            .iter()
            .map(|row| row.count * (u32::from(row.read) + u32::from(row.write)))
            .sum();
        let kept: u32 = PASSABLE.iter().map(|(_, mask)| mask.count_ones()).sum();
        assert_eq!(kept, listed);
    }

    #[test]
    fn no_x2apic_msr_is_in_the_table() {
        for row in PASSABLE_ROWS {
            assert!(row.first + row.count <= 0x800 || row.first > 0x8ff);
        }
    }
}
