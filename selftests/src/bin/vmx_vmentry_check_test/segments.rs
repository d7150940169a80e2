// SPDX-License-Identifier: GPL-2.0

//! The rules for the segments of L2.
//!
//! Reserved access rights are none of them: VMWRITE drops them, as some processors do.

use selftests::guest::layout::BUFFER;
use selftests::guest::vmx::control::secondary;
use selftests::guest::vmx::field::segment::{CS, DS, ES, FS, GDTR, GS, IDTR, LDTR, SS, TR};
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;

use crate::guest::{at_once, pae};
use crate::Fails::Guest;
use crate::{rules, Cpu, Fixture};

/// An address that is not canonical with 48 bits, nor with 57.
const NOT_CANONICAL: u64 = 1 << 62;

/// A canonical address of the upper half.
const UPPER: u64 = 0xffff_8000_0000_0000;

/// The segment is not usable.
const UNUSABLE: u64 = 1 << 16;

fn as_it_is(_: &mut Fields, _: &Cpu<'_>) {}

fn rights(fields: &mut Fields, segment: u32, rights: u64) {
    fields.put(field::GUEST_RIGHTS + segment, rights);
}

fn selector(fields: &mut Fields, segment: u32, selector: u64) {
    fields.put(field::GUEST_SELECTOR + segment, selector);
}

fn base(fields: &mut Fields, segment: u32, base: u64) {
    fields.put(field::GUEST_BASE + segment, base);
}

fn limit(fields: &mut Fields, segment: u32, limit: u64) {
    fields.put(field::GUEST_LIMIT + segment, limit);
}

/// Gives L2 a usable local table.
fn local_table(fields: &mut Fields) {
    selector(fields, LDTR, 0x38);
    rights(fields, LDTR, 0x82);
    limit(fields, LDTR, 0xf);
    base(fields, LDTR, BUFFER);
}

/// Puts L2 into virtual-8086 mode.
fn virtual_8086(fields: &mut Fields) {
    pae(fields);
    fields.set(field::GUEST_RFLAGS, 1 << 17);
    for segment in [ES, CS, SS, DS, FS, GS] {
        selector(fields, segment, 0x100);
        base(fields, segment, 0x1000);
        limit(fields, segment, 0xffff);
        rights(fields, segment, 0xf3);
    }
}

/// Puts L2 at CPL 3.
fn user(fields: &mut Fields) {
    at_once(fields);
    selector(fields, CS, 0x1b);
    rights(fields, CS, 0xa0fb);
    selector(fields, SS, 0x23);
    rights(fields, SS, 0xc0f3);
    for segment in [ES, DS, FS, GS] {
        selector(fields, segment, 0x23);
        rights(fields, segment, 0xc0f3);
    }
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = selectors_and_bases();
    points.extend(code_and_stack());
    points.extend(data());
    points.extend(system());
    points.extend(of_virtual_8086());
    points
}

fn selectors_and_bases() -> Vec<Point<Fixture>> {
    rules! {
        "TR must be in the global table": Guest(0),
            |fields, _| selector(fields, TR, 0x2c), as_it_is;
        "LDTR must be in the global table if it is usable": Guest(0), |fields, _| {
            local_table(fields);
            selector(fields, LDTR, 0x3c);
        }, |fields, _| selector(fields, LDTR, 4);
        "SS must have the requested privilege of CS": Guest(0), |fields, _| {
            user(fields);
            selector(fields, SS, 0x22);
        }, |fields, _| user(fields);
        "the base of TR must be canonical": Guest(0),
            |fields, _| base(fields, TR, NOT_CANONICAL),
            |fields, _| { at_once(fields); base(fields, TR, UPPER) };
        "the base of FS must be canonical": Guest(0),
            |fields, _| base(fields, FS, NOT_CANONICAL), |fields, _| base(fields, FS, UPPER);
        "the base of GS must be canonical": Guest(0),
            |fields, _| base(fields, GS, NOT_CANONICAL), |fields, _| base(fields, GS, UPPER);
        "the base of LDTR must be canonical if it is usable": Guest(0), |fields, _| {
            local_table(fields);
            base(fields, LDTR, NOT_CANONICAL);
        }, |fields, _| {
            local_table(fields);
            base(fields, LDTR, UPPER);
        };
        "the base of CS must have 32 bits": Guest(0),
            |fields, _| base(fields, CS, 1 << 32), as_it_is;
        "the base of SS must have 32 bits": Guest(0),
            |fields, _| base(fields, SS, 1 << 32),
            |fields, _| { at_once(fields); base(fields, SS, 1 << 31) };
        "the base of DS must have 32 bits": Guest(0),
            |fields, _| base(fields, DS, 1 << 32), |fields, _| base(fields, DS, 1 << 31);
        "the base of ES must have 32 bits": Guest(0),
            |fields, _| base(fields, ES, 1 << 32), |fields, _| base(fields, ES, 1 << 31);
        "the base of GDTR must be canonical": Guest(0),
            |fields, _| base(fields, GDTR, NOT_CANONICAL), |fields, _| base(fields, GDTR, UPPER);
        "the base of IDTR must be canonical": Guest(0),
            |fields, _| base(fields, IDTR, NOT_CANONICAL), |fields, _| base(fields, IDTR, UPPER);
        "the limit of GDTR must have 16 bits": Guest(0),
            |fields, _| limit(fields, GDTR, 0x1_0000), |fields, _| limit(fields, GDTR, 0xffff);
        "the limit of IDTR must have 16 bits": Guest(0),
            |fields, _| limit(fields, IDTR, 0x1_0000), |fields, _| limit(fields, IDTR, 0xffff);
    }
}

fn code_and_stack() -> Vec<Point<Fixture>> {
    rules! {
        "CS must be accessed code": Guest(0),
            |fields, _| rights(fields, CS, 0xa09a), as_it_is;
        "CS must be code in a restricted L2": Guest(0),
            |fields, _| rights(fields, CS, 0xa093), |fields, _| rights(fields, CS, 0xa099);
        "CS must be no system segment": Guest(0),
            |fields, _| rights(fields, CS, 0xa08b), as_it_is;
        "CS must be present": Guest(0), |fields, _| rights(fields, CS, 0xa01b), as_it_is;
        "CS must be usable": Guest(0),
            |fields, _| rights(fields, CS, 0xa09b | UNUSABLE), as_it_is;
        "CS must have the privilege of SS": Guest(0),
            |fields, _| rights(fields, CS, 0xa0fb), as_it_is;
        "conforming CS must have no less privilege than SS": Guest(0),
            |fields, _| rights(fields, CS, 0xa0ff), |fields, _| rights(fields, CS, 0xa09f);
        "CS of 64 bits must not be one of 32 bits": Guest(0),
            |fields, _| rights(fields, CS, 0xe09b), as_it_is;
        "CS must have granularity for a large limit": Guest(0),
            |fields, _| rights(fields, CS, 0x209b), |fields, _| {
                rights(fields, CS, 0x209b);
                limit(fields, CS, 0xf_ffff);
            };
        "CS must have no granularity for an uneven limit": Guest(0),
            |fields, _| limit(fields, CS, 0xffff_fffe), |fields, _| limit(fields, CS, 0xfff);
        "SS must be writable": Guest(0),
            |fields, _| rights(fields, SS, 0xc091), |fields, _| rights(fields, SS, 0xc097);
        "SS must be accessed": Guest(0), |fields, _| rights(fields, SS, 0xc092), as_it_is;
        "SS must be no code": Guest(0), |fields, _| rights(fields, SS, 0xc09b), as_it_is;
        "SS must be present": Guest(0), |fields, _| rights(fields, SS, 0xc013), as_it_is;
        "SS must have the privilege that is requested": Guest(0),
            |fields, _| rights(fields, SS, 0xc0f3), as_it_is;
        "a null SS has no rights to check": Guest(0),
            |fields, _| rights(fields, SS, 0xc083),
            |fields, _| { selector(fields, SS, 0); rights(fields, SS, UNUSABLE) };
        "CS may be data in an unrestricted L2 in protected mode": Guest(0), |fields, _| {
            at_once(fields);
            rights(fields, CS, 0xa093);
        }, |fields, _| {
            pae(fields);
            fields.set(field::SECONDARY, secondary::UNRESTRICTED);
            rights(fields, CS, 0xc093);
        };
    }
}

fn data() -> Vec<Point<Fixture>> {
    rules! {
        "DS must be accessed": Guest(0),
            |fields, _| rights(fields, DS, 0xc092), |fields, _| rights(fields, DS, 0xc091);
        "ES must be readable if it is code": Guest(0),
            |fields, _| rights(fields, ES, 0xc099), |fields, _| rights(fields, ES, 0xc09b);
        "FS must be no system segment": Guest(0),
            |fields, _| rights(fields, FS, 0xc083), |fields, _| rights(fields, FS, UNUSABLE);
        "GS must be present": Guest(0),
            |fields, _| rights(fields, GS, 0xc013), |fields, _| rights(fields, GS, UNUSABLE);
        "DS must have the privilege that is requested": Guest(0), |fields, _| {
            selector(fields, DS, 0x23);
            rights(fields, DS, 0xc093);
        }, |fields, _| {
            selector(fields, DS, 0x23);
            rights(fields, DS, 0xc0f3);
        };
        "FS must have granularity for a large limit": Guest(0),
            |fields, _| rights(fields, FS, 0x4093), |fields, _| {
                rights(fields, FS, 0x4093);
                limit(fields, FS, 0xf_ffff);
            };
        "GS must have no granularity for an uneven limit": Guest(0),
            |fields, _| limit(fields, GS, 0xffff_0fff & !1), |fields, _| limit(fields, GS, 0x1fff);
    }
}

fn system() -> Vec<Point<Fixture>> {
    rules! {
        "TR must be a busy task": Guest(0), |fields, _| rights(fields, TR, 0x89), as_it_is;
        "TR must be a task of 64 bits in long mode": Guest(0),
            |fields, _| rights(fields, TR, 0x83), |fields, _| {
                pae(fields);
                rights(fields, TR, 0x83);
                limit(fields, TR, 0x2f);
            };
        "TR must be a system segment": Guest(0), |fields, _| rights(fields, TR, 0x9b), as_it_is;
        "TR must be present": Guest(0), |fields, _| rights(fields, TR, 0x0b), as_it_is;
        "TR must be usable": Guest(0),
            |fields, _| rights(fields, TR, 0x8b | UNUSABLE), as_it_is;
        "TR must have granularity for a large limit": Guest(0),
            |fields, _| limit(fields, TR, 0x10_0000), |fields, _| {
                limit(fields, TR, 0x10_0fff);
                rights(fields, TR, 0x808b);
            };
        "LDTR must be a local table": Guest(0),
            |fields, _| { local_table(fields); rights(fields, LDTR, 0x83) },
            |fields, _| local_table(fields);
        "LDTR must be a system segment": Guest(0),
            |fields, _| { local_table(fields); rights(fields, LDTR, 0x92) },
            |fields, _| local_table(fields);
        "LDTR must be present": Guest(0),
            |fields, _| { local_table(fields); rights(fields, LDTR, 0x02) },
            |fields, _| { local_table(fields); rights(fields, LDTR, 0x02 | UNUSABLE) };
        "LDTR must have no granularity for an uneven limit": Guest(0),
            |fields, _| { local_table(fields); rights(fields, LDTR, 0x8082) },
            |fields, _| {
                local_table(fields);
                rights(fields, LDTR, 0x8082);
                limit(fields, LDTR, 0xfff);
            };
    }
}

fn of_virtual_8086() -> Vec<Point<Fixture>> {
    rules! {
        "the base of CS is its selector in virtual-8086 mode": Guest(0),
            |fields, _| { virtual_8086(fields); base(fields, CS, 0x1010) },
            |fields, _| virtual_8086(fields);
        "the base of GS is its selector in virtual-8086 mode": Guest(0),
            |fields, _| { virtual_8086(fields); base(fields, GS, 0) },
            |fields, _| virtual_8086(fields);
        "the limit of DS is 0xffff in virtual-8086 mode": Guest(0),
            |fields, _| { virtual_8086(fields); limit(fields, DS, 0xfffff) },
            |fields, _| virtual_8086(fields);
        "the rights of SS are 0xf3 in virtual-8086 mode": Guest(0),
            |fields, _| { virtual_8086(fields); rights(fields, SS, 0x93) },
            |fields, _| virtual_8086(fields);
        "the rights of ES are 0xf3 in virtual-8086 mode": Guest(0),
            |fields, _| { virtual_8086(fields); rights(fields, ES, UNUSABLE) },
            |fields, _| virtual_8086(fields);
    }
}
