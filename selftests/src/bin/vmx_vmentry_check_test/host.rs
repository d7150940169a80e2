// SPDX-License-Identifier: GPL-2.0

//! The rules for the state of L1.

use selftests::guest::vmx::control::exit;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;

use crate::Fails::Host;
use crate::{rules, Cpu, Fixture};

/// An address that is not canonical with 48 bits, nor with 57.
const NOT_CANONICAL: u64 = 1 << 62;

/// A canonical address of the upper half.
const UPPER: u64 = 0xffff_8000_0000_0000;

fn as_it_is(_: &mut Fields, _: &Cpu<'_>) {}

/// A valid page-attribute table.
const PAT: u64 = 0x0007_0406_0007_0406;

/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = registers();
    points.extend(segments());
    points
}

fn registers() -> Vec<Point<Fixture>> {
    rules! {
        "L1 must have CR0.PE": Host, |fields, _| fields.clear(field::HOST_CR0, 1), as_it_is;
        "L1 must have CR0.NE": Host, |fields, _| fields.clear(field::HOST_CR0, 1 << 5), as_it_is;
        "L1 must have CR0.PG": Host, |fields, _| fields.clear(field::HOST_CR0, 1 << 31), as_it_is;
        "L1 must have CR4.VMXE": Host,
            |fields, _| fields.clear(field::HOST_CR4, 1 << 13), as_it_is;
        "L1 must have CR4.PAE": Host, |fields, _| fields.clear(field::HOST_CR4, 1 << 5), as_it_is;
        "L1 must have no reserved bit of CR4": Host,
            |fields, _| fields.set(field::HOST_CR4, 1 << 31),
            |fields, _| fields.set(field::HOST_CR4, 1 << 7);
        "L1 must have no bit of the upper half of CR4": Host,
            |fields, _| fields.set(field::HOST_CR4, 1 << 63), as_it_is;
        "L1's CR3 must be within the address width": Host,
            |fields, cpu| fields.set(field::HOST_CR3, cpu.end), as_it_is;
        "L1 must be in 64-bit mode, as it is": Host,
            |fields, _| fields.clear(field::EXIT, exit::HOST_64_BIT), as_it_is;
        "L1's SYSENTER_ESP must be canonical": Host,
            |fields, _| fields.put(field::HOST_SYSENTER, NOT_CANONICAL),
            |fields, _| fields.put(field::HOST_SYSENTER, UPPER);
        "L1's SYSENTER_EIP must be canonical": Host,
            |fields, _| fields.put(field::HOST_SYSENTER + 2, NOT_CANONICAL),
            |fields, _| fields.put(field::HOST_SYSENTER + 2, UPPER);
        "L1's RIP must be canonical": Host,
            |fields, _| fields.set(field::HOST_RIP, NOT_CANONICAL), as_it_is;
        "L1's page-attribute table must have types that exist": Host, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_PAT);
            fields.put(field::HOST_PAT, PAT | 2 << 24);
        }, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_PAT);
            fields.put(field::HOST_PAT, PAT);
        };
        "L1's page-attribute table must have no reserved bits": Host, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_PAT);
            fields.put(field::HOST_PAT, PAT | 8 << 56);
        }, |fields, _| fields.put(field::HOST_PAT, PAT | 8 << 56);
        "L1's EFER must have no reserved bits": Host, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_EFER);
            fields.put(field::HOST_EFER, EFER | 1 << 9);
        }, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_EFER);
            fields.put(field::HOST_EFER, EFER);
        };
        "L1's EFER must have LMA in 64-bit mode": Host, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_EFER);
            fields.put(field::HOST_EFER, EFER & !(1 << 10));
        }, |fields, _| fields.put(field::HOST_EFER, 0);
        "L1's EFER must have LME in 64-bit mode": Host, |fields, _| {
            fields.set(field::EXIT, exit::LOAD_EFER);
            fields.put(field::HOST_EFER, EFER & !(1 << 8));
        }, |fields, _| fields.put(field::HOST_EFER, 0);
    }
}

/// Where the selector of a segment of L1 is.
const CS: u32 = field::HOST_SELECTOR + 2;

fn segments() -> Vec<Point<Fixture>> {
    rules! {
        "L1's ES must be no user's": Host,
            |fields, _| fields.set(field::HOST_SELECTOR, 3), as_it_is;
        "L1's CS must be no user's": Host, |fields, _| fields.set(CS, 1), as_it_is;
        "L1's SS must be no user's": Host,
            |fields, _| fields.set(field::HOST_SELECTOR + 4, 2), as_it_is;
        "L1's DS must be in the global table": Host,
            |fields, _| fields.set(field::HOST_SELECTOR + 6, 4),
            |fields, _| fields.put(field::HOST_SELECTOR + 6, 0);
        "L1's FS must be in the global table": Host,
            |fields, _| fields.set(field::HOST_SELECTOR + 8, 4),
            |fields, _| fields.put(field::HOST_SELECTOR + 8, 0);
        "L1's GS must be no user's": Host,
            |fields, _| fields.set(field::HOST_SELECTOR + 10, 1),
            |fields, _| fields.put(field::HOST_SELECTOR + 10, 0);
        "L1's TR must be in the global table": Host,
            |fields, _| fields.set(field::HOST_TR_SELECTOR, 4), as_it_is;
        "L1's CS must not be null": Host, |fields, _| fields.put(CS, 0), as_it_is;
        "L1's TR must not be null": Host,
            |fields, _| fields.put(field::HOST_TR_SELECTOR, 0), as_it_is;
        "L1's base of FS must be canonical": Host,
            |fields, _| fields.put(field::HOST_BASE, NOT_CANONICAL),
            |fields, _| fields.put(field::HOST_BASE, UPPER);
        "L1's base of GS must be canonical": Host,
            |fields, _| fields.put(field::HOST_BASE + 2, NOT_CANONICAL),
            |fields, _| fields.put(field::HOST_BASE + 2, UPPER);
        "L1's base of TR must be canonical": Host,
            |fields, _| fields.set(field::HOST_BASE + 4, NOT_CANONICAL), as_it_is;
        "L1's base of GDTR must be canonical": Host,
            |fields, _| fields.set(field::HOST_BASE + 6, NOT_CANONICAL), as_it_is;
        "L1's base of IDTR must be canonical": Host,
            |fields, _| fields.set(field::HOST_BASE + 8, NOT_CANONICAL), as_it_is;
    }
}
