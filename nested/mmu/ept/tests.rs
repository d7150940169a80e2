// SPDX-License-Identifier: GPL-2.0

//! Each bit of an entry, at each level; each bit of the qualification.

use super::bit::{EXECUTE, PAGE, READ, USER_EXECUTE, WRITE};
use super::*;
use crate::mmu::access::Mode;
use crate::mmu::testing::EPT;

const RWX: u64 = READ | WRITE | EXECUTE;
const MODE_BASED: Ept = Ept {
    mode_based: true,
    ..EPT
};

/// What setting a bit in an entry that permits everything makes of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Ignored,
    Misconfigured,
    Address,
    Page,
    MemoryType,
}

fn effect(ept: &Ept, base: u64, bit: u32, level: Level) -> Effect {
    let before = ept.decode(base, level);
    let after = ept.decode(base | 1 << bit, level);

    match (before, after) {
        _ if before == after => Effect::Ignored,
        (_, Decoded::Reserved) => Effect::Misconfigured,
        (Decoded::Table { .. }, Decoded::Page { .. }) => Effect::Page,
        (Decoded::Table { table: a, .. }, Decoded::Table { table: b, .. })
        | (Decoded::Page { page: a, .. }, Decoded::Page { page: b, .. })
            if a != b =>
        {
            assert_eq!(b.into_raw() - a.into_raw(), 1 << bit);
            Effect::Address
        }
        (Decoded::Page { .. }, Decoded::Page { .. }) => Effect::MemoryType,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_bit_of_a_reference_to_a_table_has_its_effect() {
    for bit in 3..64 {
        for level in [Level::Table256T, Level::Table512G] {
            let expected = match bit {
                3..=7 | 40..=51 => Effect::Misconfigured,
                12..=39 => Effect::Address,
                _ => Effect::Ignored,
            };
            assert_eq!(effect(&EPT, RWX, bit, level), expected, "{level:?} {bit}");
        }
        for level in [Level::Page1G, Level::Page2M] {
            let expected = match bit {
                3..=6 | 40..=51 => Effect::Misconfigured,
                7 => Effect::Page,
                12..=39 => Effect::Address,
                _ => Effect::Ignored,
            };
            assert_eq!(effect(&EPT, RWX, bit, level), expected, "{level:?} {bit}");
        }
    }
}

#[test]
fn each_bit_of_an_entry_that_maps_a_page_has_its_effect() {
    for (level, low) in [
        (Level::Page1G, 30),
        (Level::Page2M, 21),
        (Level::Page4K, 12),
    ] {
        // Memory type 4, so that a type with another bit is 5, 6 or 4, all of which exist.
        let base = RWX | PAGE | 4 << 3;
        for bit in (3..64).filter(|bit| ![5, 7].contains(bit)) {
            let expected = match bit {
                3 | 4 | 6 => Effect::MemoryType,
                12..=51 if bit < low || bit >= 40 => Effect::Misconfigured,
                12..=39 => Effect::Address,
                _ => Effect::Ignored,
            };
            assert_eq!(effect(&EPT, base, bit, level), expected, "{level:?} {bit}");
        }
        for memory_type in 0..8 {
            let decoded = EPT.decode(RWX | PAGE | memory_type << 3, level);
            let refused = [2, 3, 7].contains(&memory_type);
            assert_eq!(decoded == Decoded::Reserved, refused, "{memory_type}");
        }
    }
    // At the lowest level the bit for large pages is ignored.
    assert_eq!(
        effect(&EPT, RWX | 4 << 3, 7, Level::Page4K),
        Effect::Ignored
    );
}

#[test]
fn the_address_width_of_l1_decides_what_is_reserved() {
    for width in 36..=52 {
        let ept = Ept {
            physical_address_width: width,
            ..EPT
        };
        for level in Level::ALL {
            for bit in 32..52 {
                let reserved = ept.decode(RWX | 1 << bit, level) == Decoded::Reserved;
                assert_eq!(reserved, bit >= width, "{width} {level:?} {bit}");
            }
        }
    }
}

#[test]
fn large_pages_exist_only_where_l1_has_them() {
    for largest_page in Level::PAGES {
        let ept = Ept {
            largest_page,
            ..EPT
        };
        for level in [Level::Page2M, Level::Page1G] {
            let refused = ept.decode(RWX | PAGE, level) == Decoded::Reserved;
            assert_eq!(refused, level > largest_page);
        }
    }
}

#[test]
fn each_combination_of_permissions_is_present_absent_or_misconfigured() {
    for raw in 0..16u64 {
        let [read, write, execute, user] = [0, 1, 2, 3].map(|bit| raw >> bit & 1 != 0);
        let entry = raw & 7 | if user { USER_EXECUTE } else { 0 };

        for mode_based in [false, true] {
            for execute_only in [false, true] {
                let ept = Ept {
                    mode_based,
                    execute_only,
                    ..EPT
                };
                let fetch = execute || (mode_based && user);
                for level in Level::ALL {
                    let decoded = ept.decode(entry, level);
                    if !(read || write || fetch) {
                        assert_eq!(decoded, Decoded::NotPresent);
                    } else if !read && (write || !execute_only) {
                        assert_eq!(decoded, Decoded::Reserved);
                    } else {
                        let (Decoded::Table { permissions, .. }
                        | Decoded::Page { permissions, .. }) = decoded
                        else {
                            panic!("{decoded:?}");
                        };
                        assert_eq!(permissions.has(Permissions::READ), read);
                        assert_eq!(permissions.has(Permissions::WRITE), write);
                        assert_eq!(permissions.has(Permissions::EXECUTE), execute);
                        assert_eq!(
                            permissions.has(Permissions::USER_EXECUTE),
                            mode_based && user
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn absent_entries_are_not_looked_at() {
    // With mode-based execute control bit 10 makes an entry present.
    assert_eq!(EPT.decode(!RWX, Level::Page4K), Decoded::NotPresent);
    assert_eq!(
        MODE_BASED.decode(!(RWX | USER_EXECUTE), Level::Page4K),
        Decoded::NotPresent
    );
    assert_eq!(MODE_BASED.decode(!RWX, Level::Page4K), Decoded::Reserved);
}

fn qualification_of(ept: &Ept, why: Why, permitted: Permissions, access: Access) -> u64 {
    let refusal = Refusal { why, permitted };
    match ept.exit(&refusal, access, Linear::Valid) {
        EptExit::Violation { qualification } => qualification,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_qualification_says_what_the_access_was() {
    let none = Permissions::NONE;
    for (kind, stage, flags, expected) in [
        (Kind::Read, Stage::Final, true, 0x181),
        (Kind::Write, Stage::Final, true, 0x182),
        (Kind::Fetch, Stage::Final, true, 0x184),
        (Kind::Read, Stage::PageTable, true, 0x083),
        (Kind::Write, Stage::PageTable, true, 0x083),
        (Kind::Read, Stage::PageTable, false, 0x081),
        (Kind::Write, Stage::PageTable, false, 0x083),
    ] {
        let ept = Ept {
            accessed_dirty: flags,
            ..EPT
        };
        let access = Access {
            kind,
            mode: Mode::User,
            stage,
        };
        assert_eq!(
            qualification_of(&ept, Why::NotPresent, none, access),
            expected,
            "{access:?}"
        );
    }
    let refusal = Refusal {
        why: Why::NotPresent,
        permitted: none,
    };
    assert_eq!(
        EPT.exit(&refusal, Access::new(Kind::Read), Linear::None),
        EptExit::Violation { qualification: 1 }
    );
}

#[test]
fn the_qualification_says_what_all_entries_permit() {
    for (permission, bit) in [
        (Permissions::READ, 3),
        (Permissions::WRITE, 4),
        (Permissions::EXECUTE, 5),
    ] {
        let of = |ept| qualification_of(ept, Why::Forbidden, permission, Access::new(Kind::Write));
        assert_eq!(of(&EPT), 0x182 | 1 << bit);
        assert_eq!(of(&MODE_BASED), 0x182 | 1 << bit);
    }
    let user = Permissions::USER_EXECUTE;
    let of = |ept| qualification_of(ept, Why::Forbidden, user, Access::new(Kind::Write));
    assert_eq!(of(&MODE_BASED), 0x182 | 1 << 6);
    assert_eq!(of(&EPT), 0x182);
}

#[test]
fn a_reserved_bit_is_a_misconfiguration_and_a_full_log_its_own_exit() {
    for (why, exit) in [
        (Why::Reserved, EptExit::Misconfiguration),
        (Why::LogFull, EptExit::LogFull),
    ] {
        let refusal = Refusal {
            why,
            permitted: Permissions::NONE,
        };
        assert_eq!(
            EPT.exit(&refusal, Access::new(Kind::Write), Linear::Valid),
            exit
        );
    }
}

#[test]
fn fetches_need_what_the_mode_says() {
    for (ept, mode, needed) in [
        (EPT, Mode::User, Permissions::EXECUTE),
        (EPT, Mode::Supervisor, Permissions::EXECUTE),
        (MODE_BASED, Mode::User, Permissions::USER_EXECUTE),
        (MODE_BASED, Mode::Supervisor, Permissions::EXECUTE),
    ] {
        let access = Access {
            kind: Kind::Fetch,
            mode,
            stage: Stage::Final,
        };
        assert_eq!(ept.needs(access), needed);
    }
}

#[test]
fn the_format_follows_the_pointer_and_the_capabilities() {
    let all = EptVpidCapability::new(u64::MAX);
    for (raw, top, flags) in [
        (0x101e, Level::Table512G, false),
        (0x105e, Level::Table512G, true),
        (0x1066, Level::Table256T, true),
    ] {
        let ept = Ept::new(Eptp::new(raw, all, 40).unwrap(), all, true, 40);
        assert_eq!((ept.top, ept.accessed_dirty), (top, flags));
        assert!(ept.mode_based && ept.execute_only);
        assert_eq!(ept.largest_page, Level::Page1G);
    }
    for (missing, largest_page) in [
        (EptVpidCapability::PAGE_1G, Level::Page2M),
        (
            EptVpidCapability::PAGE_1G | EptVpidCapability::PAGE_2M,
            Level::Page4K,
        ),
    ] {
        let capability = EptVpidCapability::new(!(missing | EptVpidCapability::EXECUTE_ONLY));
        let ept = Ept::new(Eptp::new(0x101e, all, 40).unwrap(), capability, false, 40);
        assert_eq!(ept.largest_page, largest_page);
        assert!(!ept.execute_only);
    }
}
