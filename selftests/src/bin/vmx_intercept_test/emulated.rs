// SPDX-License-Identifier: GPL-2.0

//! Memory that L0 accesses in L2's place: strings that go to ports, and come from there.
//!
//! L0 goes through L1's EPT by itself then, for the string and for L2's page tables.

use anyhow::Result;
use selftests::guest::layout::PML;
use selftests::guest::machine::Stop;
use selftests::guest::tables::table_of;
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::memory::{entry, logged, set_entries, EXECUTE, PAGE, READ, WRITE, WRITE_BACK};
use crate::{address, Code, Fixture, Ran, Run};

guest_code! {
    /// OUTS of a byte.
    l2_outsb: "outsb", "vmcall";
    /// INS of a byte.
    l2_insb: "insb", "vmcall";
}

/// A port that L1 does not intercept.
const PORT: u16 = 0x3f8;

/// What user space answers to IN.
const ANSWER: u8 = 0x5a;

/// Registers of L2: RDX, RSI, RDI.
const OPERANDS: [usize; 3] = [2, 3, 4];

/// Bits of the exit qualification: whether the linear address is valid, and whether the access was to
/// its translation.
const LINEAR: u64 = 1 << 7;
const TRANSLATED: u64 = 1 << 8;

/// All that L2 may do.
const ALL: u64 = READ | WRITE | EXECUTE | WRITE_BACK;

/// Flags of an entry.
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// Runs code with an entry of L1's table; returns how it ran, and what the entry is then.
fn run_with(
    fixture: &Fixture,
    code: Code,
    page: u64,
    bits: u64,
    change: fn(&mut Fields),
) -> Result<(Run, u64)> {
    let nested = fixture.with(|machine| Ok(machine.machine.tables.nested))?;
    let run = fixture.run(code, &|fields, machine| {
        let slot = entry(machine.memory(), nested, page);
        machine.memory().write(PAGE, b'L');
        for (register, value) in OPERANDS.into_iter().zip([PORT.into(), PAGE, PAGE]) {
            machine.set_register(register, value);
        }
        change(fields);
        set_entries(machine, &[(slot, bits)]);
    });
    let after = fixture.with(|machine| {
        let slot = entry(machine.memory(), nested, page);
        let after = machine.memory().read::<u64>(slot);
        set_entries(machine, &[(slot, page | ALL)]);
        Ok(after)
    })?;
    Ok((run?, after))
}

/// Checks what an access exits with that L1's table does not allow.
fn refused(
    fixture: &Fixture,
    code: Code,
    page: u64,
    bits: u64,
    expected: (u64, u64),
) -> Result<()> {
    let (run, _) = run_with(fixture, code, page, bits, |_| ())?;
    let (reason, qualification) = expected;
    let what = format_args!("entry {bits:#x}");
    expect(what, run.ran, Ran::Exit(reason))?;
    // IN comes before what it reads is written.
    let stops = match address(code) == address(l2_insb) && page == PAGE {
        true => vec![Stop::In(PORT, 1)],
        false => Vec::new(),
    };
    expect("what user space saw", run.stops, stops)?;
    expect("RIP", run.exit.rip, address(code))?;
    expect("qualification", run.exit.qualification, qualification)?;
    expect("physical address", run.exit.physical, page)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a string that L0 reads for L2 is a violation where L1 has no page",
            |fixture| {
                let expected = (reason::EPT_VIOLATION, READ | LINEAR | TRANSLATED);
                refused(fixture, l2_outsb, PAGE, 0, expected)
            },
        ),
        Point::new(
            "a string that L0 writes for L2 is a violation where L1 forbids that",
            |fixture| {
                let access = WRITE | LINEAR | TRANSLATED;
                let expected = (reason::EPT_VIOLATION, access);
                refused(fixture, l2_insb, PAGE, 0, expected)?;
                let bits = PAGE | READ | EXECUTE | WRITE_BACK;
                let expected = (reason::EPT_VIOLATION, access | 5 << 3);
                refused(fixture, l2_insb, PAGE, bits, expected)?;
                let (run, _) = run_with(fixture, l2_outsb, PAGE, bits, |_| ())?;
                expect("a read", run.ran, Ran::Finished)?;
                expect("the string", run.stops, vec![Stop::Out(PORT, vec![b'L'])])
            },
        ),
        Point::new(
            "an entry that is not valid is found by L0's accesses, too",
            |fixture| {
                let expected = (reason::EPT_MISCONFIGURATION, 0);
                let bits = PAGE | WRITE | WRITE_BACK;
                refused(fixture, l2_outsb, PAGE, bits, expected)?;
                let bits = PAGE | ALL | 1 << 51;
                refused(fixture, l2_insb, PAGE, bits, expected)
            },
        ),
        Point::new("L0 reads L2's page tables by L1's EPT", |fixture| {
            let table = fixture.with(|machine| {
                let root = machine.machine.tables.root;
                Ok(table_of(machine.memory(), root, PAGE))
            })?;
            // They are written, too, for their flags.
            let access = READ | WRITE | LINEAR;
            let expected = (reason::EPT_VIOLATION, access);
            refused(fixture, l2_outsb, table, 0, expected)?;
            let bits = table | READ | EXECUTE | WRITE_BACK;
            let expected = (reason::EPT_VIOLATION, access | 5 << 3);
            refused(fixture, l2_outsb, table, bits, expected)
        }),
        Point::new(
            "accesses by L0 set the flags of L1's entry where L1 wants that",
            |fixture| {
                let supported =
                    fixture.with(|machine| Ok(machine.capabilities.ept_vpid >> 21 & 1 == 1))?;
                if !supported {
                    return Err(Skip("L1's processor sets no bits".into()).into());
                }
                let wanted: fn(&mut Fields) = |fields| fields.set(field::EPTP, 1 << 6);
                let bits = PAGE | ALL;
                let (run, after) = run_with(fixture, l2_outsb, PAGE, bits, wanted)?;
                expect("OUTS", run.ran, Ran::Finished)?;
                expect("entry after a read", after, bits | ACCESSED)?;
                let (run, after) = run_with(fixture, l2_insb, PAGE, bits, wanted)?;
                expect("INS", run.ran, Ran::Finished)?;
                expect("entry after a write", after, bits | ACCESSED | DIRTY)?;
                let byte = fixture.with(|machine| Ok(machine.memory().read::<u8>(PAGE)))?;
                expect("the string", byte, ANSWER)?;
                let (run, after) = run_with(fixture, l2_insb, PAGE, bits, |_| ())?;
                expect("INS without flags", run.ran, Ran::Finished)?;
                expect("entry without flags", after, bits)
            },
        ),
        Point::new("a page that L0 writes for L2 is logged", |fixture| {
            let run = logged(fixture, l2_insb, 511, |machine| {
                machine.set_register(OPERANDS[0], PORT.into());
                machine.set_register(OPERANDS[2], PAGE);
            })?;
            expect("what L2 did", run.ran, Ran::Finished)?;
            fixture.with(|machine| {
                expect("index", machine.read(field::PML_INDEX)?, 510)?;
                let entry = machine.memory().read::<u64>(PML + 511 * 8);
                expect("entry", entry, PAGE)
            })
        }),
    ]
}
