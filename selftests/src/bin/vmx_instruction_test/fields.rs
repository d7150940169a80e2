// SPDX-License-Identifier: GPL-2.0

//! VMREAD and VMWRITE of all fields.

use anyhow::{ensure, Result};
use selftests::guest::vmx::field::{self, segment};
use selftests::guest::vmx::script::{vmread, vmwrite, Answer, Operation};
use selftests::tap::{self, Point};

use crate::{answers, Fixture, DONE};
use Answer::Valid;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "VMREAD and VMWRITE refuse fields that do not exist",
            |fixture| {
                let none = [
                    0x0000_8000,
                    0x1_0000_0000 | 0x681e,
                    1 << 63 | 0x681e,
                    0x681f,
                    0x5ffe,
                    0x7ffe,
                ];
                let mut machine = fixture.current()?;
                for field in none {
                    answers(
                        &mut machine,
                        &[(vmread(field), Valid(12)), (vmwrite(field, 0), Valid(12))],
                    )?;
                }
                Ok(())
            },
        ),
        Point::new(
            "VMWRITE of what an exit writes is as the capabilities say",
            |fixture| {
                let mut machine = fixture.current()?;
                let writable = machine.capabilities.misc >> 29 & 1 == 1;
                let expected = if writable { DONE } else { Valid(13) };
                answers(
                    &mut machine,
                    &[(vmwrite(field::EXIT_REASON.into(), 0x55), expected)],
                )
            },
        ),
        Point::new("a field has as many bits as its width says", |fixture| {
            let all = u64::MAX;
            let cases = [
                (field::VPID, 0xffff),
                (field::GUEST_SELECTOR, 0xffff),
                (field::TSC_OFFSET, all),
                (field::TSC_OFFSET + 1, 0xffff_ffff),
                (field::EXCEPTION_BITMAP, 0xffff_ffff),
                (field::GUEST_LIMIT, 0xffff_ffff),
                // Access rights have bits that are reserved.
                (field::GUEST_RIGHTS, 0x1_f0ff),
                (field::GUEST_RIGHTS + segment::TR, 0x1_f0ff),
                (field::GUEST_RSP, all),
                (field::HOST_RIP, all),
            ];
            let mut machine = fixture.current()?;
            for (field, bits) in cases {
                let field = u64::from(field);
                answers(
                    &mut machine,
                    &[
                        (vmwrite(field, all), DONE),
                        (vmread(field), Answer::Done(bits)),
                        (vmwrite(field, 0), DONE),
                        (vmread(field), Answer::Done(0)),
                    ],
                )?;
            }
            Ok(())
        }),
        Point::new("the upper half of a field is its upper half", |fixture| {
            let low = u64::from(field::LINK_POINTER);
            answers(
                &mut fixture.current()?,
                &[
                    (vmwrite(low, 0x1111_2222_3333_4444), DONE),
                    (vmread(low + 1), Answer::Done(0x1111_2222)),
                    (vmwrite(low + 1, 0x5555_6666), DONE),
                    (vmread(low), Answer::Done(0x5555_6666_3333_4444)),
                ],
            )
        }),
        Point::new(
            "all fields are found, and keep what they are given",
            all_fields,
        ),
    ]
}

/// All encodings of fields with an index below 64: width, type, index, half.
fn encodings() -> impl Iterator<Item = u64> {
    let widths = 0..4u64;
    let types = (0..4u64).flat_map(move |kind| widths.clone().map(move |width| (width, kind)));
    types.flat_map(|(width, kind)| (0..128u64).map(move |low| width << 13 | kind << 10 | low))
}

/// A sum that depends on the order.
fn add(sum: u64, value: u64) -> u64 {
    (sum ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(9)
}

fn all_fields(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.current()?;
    let all: Vec<u64> = encodings().collect();
    let mut found = 0;
    for group in all.chunks(128) {
        let value = |field: u64| field.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let operations: Vec<Operation> = group
            .iter()
            .map(|field| vmwrite(*field, value(*field)))
            .chain(group.iter().map(|field| vmread(*field)))
            .collect();
        let mut sum = 0;
        let seen = machine.execute(&operations)?;
        for (operation, answer) in operations.iter().zip(&seen) {
            sum = match answer {
                Answer::Done(value) => add(sum, *value),
                Answer::Valid(number) => add(sum, number << 56),
                other => anyhow::bail!("{operation:x?}: {other:x?}"),
            };
        }
        let (writes, reads) = seen.split_at(group.len());
        found += reads
            .iter()
            .filter(|answer| matches!(answer, Answer::Done(_)))
            .count();
        for (write, read) in writes.iter().zip(reads) {
            let refused = |answer: &Answer| *answer == Valid(12);
            ensure!(
                refused(write) == refused(read),
                "VMWRITE: {write:x?}, VMREAD: {read:x?}"
            );
        }
        // Not the same with all providers: ours has fields only where their control can be set.
        tap::note(format_args!("fields from {:#x}: {sum:#x}", group[0]));
    }
    ensure!(found > 100, "{found} fields are found");
    Ok(())
}
