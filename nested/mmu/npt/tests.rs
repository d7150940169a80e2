// SPDX-License-Identifier: GPL-2.0

//! Each bit of an entry, at each level of each format; each bit of the error code.

use super::bit::{NO_EXECUTE, PAGE, PRESENT, USER, WRITE};
use super::*;
use crate::mmu::testing::NPT;

const PWU: u64 = PRESENT | WRITE | USER;

const LONG5: Npt = Npt {
    paging: Paging::Long5,
    ..NPT
};
const PAE: Npt = Npt {
    paging: Paging::Pae,
    ..NPT
};
const LEGACY: Npt = Npt {
    paging: Paging::Legacy {
        page_size_extension: true,
    },
    no_execute: false,
    ..NPT
};

/// What setting a bit makes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Ignored,
    Reserved,
    /// A bit of the address: this one.
    Address(u32),
    Page,
    NotExecutable,
}
use Effect::{Address, Ignored, NotExecutable, Page, Reserved};

fn effect(npt: &Npt, base: u64, bit: u32, level: Level) -> Effect {
    let before = npt.decode(base, level);
    let after = npt.decode(base | 1 << bit, level);

    match (before, after) {
        _ if before == after => Ignored,
        (_, Decoded::Reserved) => Reserved,
        (Decoded::Table { .. }, Decoded::Page { .. }) => Page,
        (Decoded::Table { table: a, .. }, Decoded::Table { table: b, .. })
        | (Decoded::Page { page: a, .. }, Decoded::Page { page: b, .. })
            if a != b =>
        {
            Address((b.into_raw() - a.into_raw()).ilog2())
        }
        (
            Decoded::Table { permissions, .. } | Decoded::Page { permissions, .. },
            Decoded::Table {
                permissions: now, ..
            }
            | Decoded::Page {
                permissions: now, ..
            },
        ) => {
            assert_eq!(permissions.without(Permissions::EXECUTE), now);
            NotExecutable
        }
        other => panic!("{other:?}"),
    }
}

/// Compares the effect of each bit from 3 with what is expected.
fn check(npt: &Npt, base: u64, level: Level, expected: impl Fn(u32) -> Effect) {
    for bit in 3..if npt.entry_bits() == 32 { 32 } else { 64 } {
        if base >> bit & 1 == 0 {
            assert_eq!(
                effect(npt, base, bit, level),
                expected(bit),
                "{npt:?} {level:?} {bit}"
            );
        }
    }
}

impl Npt {
    fn entry_bits(&self) -> u32 {
        if self.is_legacy() {
            32
        } else {
            64
        }
    }
}

#[test]
fn each_bit_of_long_mode_has_its_effect() {
    for npt in [NPT, LONG5] {
        for level in [Level::Table256T, Level::Table512G] {
            check(&npt, PWU, level, |bit| match bit {
                7 | 8 | 40..=51 => Reserved,
                12..=39 => Address(bit),
                63 => NotExecutable,
                _ => Ignored,
            });
        }
        for level in [Level::Page1G, Level::Page2M] {
            check(&npt, PWU, level, |bit| match bit {
                7 => Page,
                40..=51 => Reserved,
                12..=39 => Address(bit),
                63 => NotExecutable,
                _ => Ignored,
            });
        }
        for (level, low) in [(Level::Page1G, 30), (Level::Page2M, 21)] {
            check(&npt, PWU | PAGE, level, |bit| match bit {
                // PAT.
                12 => Ignored,
                13..=51 if bit < low || bit >= 40 => Reserved,
                13..=39 => Address(bit),
                63 => NotExecutable,
                _ => Ignored,
            });
        }
        check(&npt, PWU, Level::Page4K, |bit| match bit {
            40..=51 => Reserved,
            12..=39 => Address(bit),
            63 => NotExecutable,
            _ => Ignored,
        });
    }
}

#[test]
fn each_bit_of_pae_has_its_effect() {
    let table_pointer = Npt {
        no_execute: false,
        ..PAE
    };
    for npt in [PAE, table_pointer] {
        check(&npt, PRESENT, Level::Page1G, |bit| match bit {
            5..=8 | 40..=63 => Reserved,
            12..=39 => Address(bit),
            _ => Ignored,
        });
        for bit in [1, 2] {
            assert_eq!(
                npt.decode(PRESENT | 1 << bit, Level::Page1G),
                Decoded::Reserved
            );
        }
    }
    check(&PAE, PWU, Level::Page2M, |bit| match bit {
        7 => Page,
        40..=62 => Reserved,
        12..=39 => Address(bit),
        63 => NotExecutable,
        _ => Ignored,
    });
    check(&PAE, PWU | PAGE, Level::Page2M, |bit| match bit {
        13..=20 | 40..=62 => Reserved,
        21..=39 => Address(bit),
        63 => NotExecutable,
        _ => Ignored,
    });
    check(&PAE, PWU, Level::Page4K, |bit| match bit {
        40..=62 => Reserved,
        12..=39 => Address(bit),
        63 => NotExecutable,
        _ => Ignored,
    });
    // The entries of the page-directory-pointer table permit everything.
    assert_eq!(
        PAE.decode(PRESENT, Level::Page1G),
        Decoded::Table {
            table: Gpa::from_raw(0),
            permissions: Permissions::ALL
        }
    );
}

#[test]
fn each_bit_of_legacy_paging_has_its_effect() {
    check(&LEGACY, PWU, Level::Page2M, |bit| match bit {
        7 => Page,
        12..=31 => Address(bit),
        _ => Ignored,
    });
    check(&LEGACY, PWU | PAGE, Level::Page2M, |bit| match bit {
        13..=20 => Address(bit + 19),
        21 => Reserved,
        22..=31 => Address(bit),
        _ => Ignored,
    });
    check(&LEGACY, PWU, Level::Page4K, |bit| match bit {
        12..=31 => Address(bit),
        _ => Ignored,
    });
    let narrow = Npt {
        physical_address_width: 36,
        ..LEGACY
    };
    check(&narrow, PWU | PAGE, Level::Page2M, |bit| match bit {
        13..=16 => Address(bit + 19),
        17..=21 => Reserved,
        22..=31 => Address(bit),
        _ => Ignored,
    });
    let without_extension = Npt {
        paging: Paging::Legacy {
            page_size_extension: false,
        },
        ..LEGACY
    };
    check(&without_extension, PWU, Level::Page2M, |bit| match bit {
        12..=31 => Address(bit),
        _ => Ignored,
    });
}

#[test]
fn bit_63_is_reserved_without_nxe() {
    for paging in [Paging::Long4, Paging::Long5, Paging::Pae] {
        let npt = Npt {
            paging,
            no_execute: false,
            ..NPT
        };
        for level in Level::ALL.into_iter().filter(|level| *level <= npt.top()) {
            for large in [0, PAGE] {
                let base = if (paging, level) == (Paging::Pae, Level::Page1G) {
                    PRESENT
                } else {
                    PWU | large
                };
                assert_eq!(npt.decode(base | NO_EXECUTE, level), Decoded::Reserved);
            }
        }
    }
}

#[test]
fn pages_of_a_gigabyte_exist_only_where_l1_has_them() {
    let npt = Npt {
        gigabyte_pages: false,
        ..NPT
    };
    assert_eq!(npt.decode(PWU | PAGE, Level::Page1G), Decoded::Reserved);
    assert_ne!(npt.decode(PWU | PAGE, Level::Page2M), Decoded::Reserved);
    assert_ne!(NPT.decode(PWU | PAGE, Level::Page1G), Decoded::Reserved);
}

#[test]
fn absent_entries_are_not_looked_at() {
    for npt in [NPT, LONG5, PAE, LEGACY] {
        for level in Level::ALL {
            assert_eq!(npt.decode(!PRESENT, level), Decoded::NotPresent);
        }
    }
}

fn access(kind: Kind, mode: Mode) -> Access {
    Access {
        kind,
        mode,
        stage: Stage::Final,
    }
}

#[test]
fn each_combination_of_permissions_permits_what_it_should() {
    for raw in 0..8 {
        let [write, user, execute] = [0, 1, 2].map(|bit| raw >> bit & 1 != 0);
        let permissions = Permissions::READ
            .with(Permissions::WRITE.when(write))
            .with(Permissions::USER.when(user))
            .with(Permissions::EXECUTE.when(execute));

        for mode in [Mode::User, Mode::Supervisor] {
            let all = |npt: &Npt| {
                [Kind::Read, Kind::Write, Kind::Fetch]
                    .map(|kind| npt.permits(permissions, access(kind, mode)))
            };
            assert_eq!(all(&NPT), [user, user && write, user && execute]);

            let trap = Npt {
                execute_trap: true,
                ..NPT
            };
            let fetch = execute && !(mode == Mode::Supervisor && user);
            assert_eq!(all(&trap), [true, write, fetch]);
        }
    }
}

#[test]
fn the_error_code_says_what_happened() {
    let code = |npt: &Npt, why, access| {
        let refusal = Refusal {
            why,
            permitted: Permissions::NONE,
        };
        npt.error_code(&refusal, access)
    };
    let read = Access::new(Kind::Read);

    for (why, expected) in [
        (Why::NotPresent, 0x1_0000_0004),
        (Why::Inaccessible, 0x1_0000_0004),
        (Why::Forbidden, 0x1_0000_0005),
        (Why::Reserved, 0x1_0000_000d),
    ] {
        assert_eq!(code(&NPT, why, read), expected);
    }
    for (kind, expected) in [(Kind::Write, 6), (Kind::Fetch, 0x14)] {
        assert_eq!(
            code(&NPT, Why::NotPresent, Access::new(kind)),
            1 << 32 | expected
        );
    }
    let table = Access {
        stage: Stage::PageTable,
        ..Access::new(Kind::Write)
    };
    assert_eq!(code(&NPT, Why::NotPresent, table), 0x2_0000_0006);
}

#[test]
fn fetches_are_told_apart_only_if_they_can_be_forbidden() {
    for (no_execute, execute_trap, expected) in [
        (false, false, 0x4),
        (true, false, 0x14),
        (false, true, 0x10),
        (true, true, 0x10),
    ] {
        let npt = Npt {
            no_execute,
            execute_trap,
            ..NPT
        };
        let refusal = Refusal {
            why: Why::NotPresent,
            permitted: Permissions::NONE,
        };
        let fetch = access(Kind::Fetch, Mode::Supervisor);
        assert_eq!(npt.error_code(&refusal, fetch), 1 << 32 | expected);
    }
}

#[test]
fn ncr3_has_the_address_that_its_format_says() {
    let ncr3 = 0x00ff_1234_5678_9fff;

    assert_eq!(NPT.table(ncr3), Gpa::from_raw(0x000f_1234_5678_9000));
    assert_eq!(PAE.table(ncr3), Gpa::from_raw(0x5678_9fe0));
    assert_eq!(LEGACY.table(ncr3), Gpa::from_raw(0x5678_9000));
}
