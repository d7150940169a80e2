// SPDX-License-Identifier: GPL-2.0

//! What VMX instructions refuse: regions, operands in memory, types, launch states.

use anyhow::Result;
use selftests::guest::layout::{NOWHERE, OTHER_VMCS, VMCS, VMXON_REGION};
use selftests::guest::vmx::field;
use selftests::guest::vmx::script::{
    invept, invvpid, vmclear, vmlaunch, vmlaunch_after_mov_ss, vmptrld, vmptrst, vmread,
    vmread_memory, vmresume, vmwrite, vmwrite_memory, vmxon, Answer, Operation,
};
use selftests::tap::Point;
use selftests::vm;

use crate::{answers, instruction_test_l2, Fixture, DONE, GP};
use Answer::{Exception, Invalid, Valid};

/// An address that L1's page tables do not map.
const NOT_MAPPED: u64 = 0x80_0000;

/// An address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 62;

/// The field that most tests use.
const RIP: u64 = field::GUEST_RIP as u64;

/// Returns the first physical address that is too wide.
fn end(fixture: &Fixture) -> Result<u64> {
    let cpuid = vm::cpuid(&fixture.kvm)?;
    let mut entries = cpuid.as_slice().iter();
    let entry = entries.find(|entry| entry.function == 0x8000_0008);
    Ok(1 << entry.map_or(36, |entry| entry.eax & 0xff))
}

fn in_root(fixture: &Fixture, expected: &[(Operation, Answer)]) -> Result<()> {
    answers(&mut fixture.root()?, expected)
}

fn with_current(fixture: &Fixture, expected: &[(Operation, Answer)]) -> Result<()> {
    answers(&mut fixture.current()?, expected)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = regions();
    points.extend(memory());
    points.extend(invalidations());
    points.extend(launch_states());
    points
}

fn regions() -> Vec<Point<Fixture>> {
    vec![
        Point::new("VMXON refuses regions that are none", |fixture| {
            let mut machine = fixture.off()?;
            let end = end(fixture)?;
            for region in [VMXON_REGION + 8, end, end | VMXON_REGION, 1 << 63, NOWHERE] {
                answers(&mut machine, &[(vmxon(region), Invalid)])?;
            }
            for revision in [1 << 31, 1, 0x7fff_ffff] {
                let region = OTHER_VMCS;
                let right = machine.capabilities.revision();
                machine.memory().write(region, right ^ revision);
                answers(&mut machine, &[(vmxon(region), Invalid)])?;
            }
            answers(&mut machine, &[(vmxon(VMXON_REGION), DONE)])
        }),
        Point::new("VMXON fails in VMX operation", |fixture| {
            in_root(
                fixture,
                &[
                    (vmxon(VMXON_REGION), Invalid),
                    (vmclear(VMCS), DONE),
                    (vmptrld(VMCS), DONE),
                    (vmxon(VMXON_REGION), Valid(15)),
                    (vmptrst(), Answer::Done(VMCS)),
                ],
            )
        }),
        Point::new(
            "VMCLEAR refuses addresses that are none, and the region of VMXON",
            |fixture| {
                let end = end(fixture)?;
                in_root(
                    fixture,
                    &[
                        (vmclear(VMCS + 1), Invalid),
                        (vmclear(end), Invalid),
                        (vmclear(VMXON_REGION), Invalid),
                        (vmclear(OTHER_VMCS), DONE),
                        (vmptrld(OTHER_VMCS), DONE),
                        (vmclear(VMCS + 0x800), Valid(2)),
                        (vmclear(end | VMCS), Valid(2)),
                        (vmclear(VMXON_REGION), Valid(3)),
                        (vmptrst(), Answer::Done(OTHER_VMCS)),
                        (vmclear(OTHER_VMCS), DONE),
                        (vmptrst(), Answer::Done(u64::MAX)),
                    ],
                )
            },
        ),
        Point::new(
            "VMPTRLD refuses addresses that are none, and the region of VMXON",
            |fixture| {
                let end = end(fixture)?;
                in_root(
                    fixture,
                    &[
                        (vmptrld(VMCS + 1), Invalid),
                        (vmptrld(end), Invalid),
                        (vmptrld(VMXON_REGION), Invalid),
                        (vmptrld(NOWHERE), Invalid),
                        (vmptrld(OTHER_VMCS), DONE),
                        (vmptrld(VMCS + 0x800), Valid(9)),
                        (vmptrld(end | VMCS), Valid(9)),
                        (vmptrld(VMXON_REGION), Valid(10)),
                        (vmptrld(NOWHERE), Valid(11)),
                        (vmptrst(), Answer::Done(OTHER_VMCS)),
                    ],
                )
            },
        ),
        Point::new("VMPTRLD refuses another revision", |fixture| {
            let mut machine = fixture.current()?;
            let right = machine.capabilities.revision();
            for wrong in [1, 1 << 30] {
                machine.memory().write(OTHER_VMCS, right ^ wrong);
                answers(&mut machine, &[(vmptrld(OTHER_VMCS), Valid(11))])?;
            }
            answers(&mut machine, &[(vmptrst(), Answer::Done(VMCS))])
        }),
        Point::new(
            "a shadow VMCS can be current, but not be launched",
            |fixture| {
                let mut machine = fixture.root()?;
                let revision = machine.capabilities.revision();
                machine.memory().write(OTHER_VMCS, revision | 1 << 31);
                answers(
                    &mut machine,
                    &[
                        (vmclear(OTHER_VMCS), DONE),
                        (vmptrld(OTHER_VMCS), DONE),
                        (vmlaunch(), Invalid),
                    ],
                )
            },
        ),
        Point::new(
            "a VMCS keeps its fields while another one is current",
            |fixture| {
                with_current(
                    fixture,
                    &[
                        (vmwrite(RIP, 0x1111), DONE),
                        (vmclear(OTHER_VMCS), DONE),
                        (vmptrld(OTHER_VMCS), DONE),
                        (vmwrite(RIP, 0x2222), DONE),
                        (vmread(RIP), Answer::Done(0x2222)),
                        (vmptrld(VMCS), DONE),
                        (vmread(RIP), Answer::Done(0x1111)),
                        (vmclear(OTHER_VMCS), DONE),
                        (vmptrst(), Answer::Done(VMCS)),
                        (vmptrld(OTHER_VMCS), DONE),
                        (vmread(RIP), Answer::Done(0x2222)),
                    ],
                )
            },
        ),
    ]
}

/// Returns each instruction with an operand in memory, with another address for it.
fn at(address: u64) -> Vec<Operation> {
    vec![
        vmclear(VMCS).at(address),
        vmptrld(VMCS).at(address),
        vmptrst().at(address),
        vmread_memory(RIP).at(address),
        vmwrite_memory(0, RIP).at(address),
        invept(0, 0, 2).at(address),
        invvpid(1, 0, 2).at(address),
    ]
}

fn memory() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "an operand that is not canonical raises exception GP",
            |fixture| {
                let mut machine = fixture.off()?;
                answers(&mut machine, &[(vmxon(0).at(NOT_CANONICAL), GP)])?;
                machine.vmxon()?;
                answers(
                    &mut machine,
                    &[(vmclear(VMCS), DONE), (vmptrld(VMCS), DONE)],
                )?;
                let expected: Vec<_> = at(NOT_CANONICAL).into_iter().map(|op| (op, GP)).collect();
                answers(&mut machine, &expected)
            },
        ),
        Point::new(
            "an operand that is not mapped raises exception PF",
            |fixture| {
                let mut machine = fixture.off()?;
                answers(&mut machine, &[(vmxon(0).at(NOT_MAPPED), Exception(14, 0))])?;
                machine.vmxon()?;
                answers(
                    &mut machine,
                    &[(vmclear(VMCS), DONE), (vmptrld(VMCS), DONE)],
                )?;
                for operation in at(NOT_MAPPED) {
                    let write = matches!(operation.name(), "VMPTRST" | "VMREAD_MEMORY");
                    let error = if write { 2 } else { 0 };
                    answers(&mut machine, &[(operation, Exception(14, error))])?;
                }
                Ok(())
            },
        ),
        Point::new(
            "VMREAD and VMWRITE may have operands in memory",
            |fixture| {
                with_current(
                    fixture,
                    &[
                        (vmwrite_memory(0xabcd_ef01_2345_6789, RIP), DONE),
                        (vmread_memory(RIP), Answer::Done(0xabcd_ef01_2345_6789)),
                        (vmread(RIP), Answer::Done(0xabcd_ef01_2345_6789)),
                    ],
                )
            },
        ),
        Point::new(
            "VMREAD and VMWRITE look for the field before the operand",
            |fixture| {
                // KVM asks for the VMCS first, and for the field before it writes the operand.
                in_root(
                    fixture,
                    &[
                        (vmread_memory(RIP).at(NOT_MAPPED), Invalid),
                        (vmwrite_memory(0, RIP).at(NOT_MAPPED), Invalid),
                        (vmclear(VMCS), DONE),
                        (vmptrld(VMCS), DONE),
                        (vmread_memory(0x5ffe).at(NOT_MAPPED), Valid(12)),
                    ],
                )
            },
        ),
    ]
}

fn invalidations() -> Vec<Point<Fixture>> {
    vec![
        Point::new("INVEPT refuses types that do not exist", |fixture| {
            with_current(
                fixture,
                &[
                    (invept(0, 0, 0), Valid(28)),
                    (invept(0, 0, 3), Valid(28)),
                    (invept(0, 0, 1 << 32 | 2), Valid(28)),
                    (invept(0, 0, 2), DONE),
                ],
            )
        }),
        Point::new("INVEPT refuses a page table that is none", |fixture| {
            let mut machine = fixture.current()?;
            let nested = machine.machine.tables.nested;
            answers(
                &mut machine,
                &[
                    (invept(nested | 0x1e, 0, 1), DONE),
                    (invept(nested | 0x11e, 0, 1), Valid(28)),
                    (invept(nested | 0x1f, 0, 1), Valid(28)),
                    (invept(nested | 0x16, 0, 1), Valid(28)),
                ],
            )
        }),
        Point::new("INVVPID refuses types that do not exist", |fixture| {
            with_current(
                fixture,
                &[
                    (invvpid(1, 0, 4), Valid(28)),
                    (invvpid(1, 0, 1 << 40), Valid(28)),
                    (invvpid(0, 0, 2), DONE),
                    (invvpid(1, 0, 1), DONE),
                    (invvpid(1, 0, 3), DONE),
                    (invvpid(1, 0x1000, 0), DONE),
                ],
            )
        }),
        Point::new(
            "INVVPID refuses tags and addresses that are none",
            |fixture| {
                with_current(
                    fixture,
                    &[
                        (invvpid(0, 0, 1), Valid(28)),
                        (invvpid(0, 0, 3), Valid(28)),
                        (invvpid(0, 0x1000, 0), Valid(28)),
                        (invvpid(1 | 1 << 16, 0, 1), Valid(28)),
                        (invvpid(1 | 1 << 63, 0, 1), Valid(28)),
                        (invvpid(1, NOT_CANONICAL, 0), Valid(28)),
                        (invvpid(0xffff, 0xffff_8000_0000_0000, 0), DONE),
                    ],
                )
            },
        ),
        Point::new(
            "without a current VMCS they fail without a number",
            |fixture| {
                in_root(
                    fixture,
                    &[
                        (invept(0, 0, 3), Invalid),
                        (invvpid(1, 0, 4), Invalid),
                        (vmlaunch(), Invalid),
                        (vmresume(), Invalid),
                        (vmread(RIP), Invalid),
                        (vmwrite(RIP, 0), Invalid),
                        (vmptrst(), Answer::Done(u64::MAX)),
                    ],
                )
            },
        ),
    ]
}

fn launch_states() -> Vec<Point<Fixture>> {
    vec![
        Point::new("VMRESUME refuses a VMCS that is not launched", |fixture| {
            with_current(fixture, &[(vmresume(), Valid(5)), (vmresume(), Valid(5))])
        }),
        Point::new("VMLAUNCH refuses a VMCS that is launched", |fixture| {
            let mut machine = fixture.root()?;
            let fields = machine.fields(instruction_test_l2 as *const () as u64)?;
            let exit = machine.enter(&fields)?.0.exit()?;
            selftests::expect("reason of the exit", exit.reason, 18)?;
            answers(
                &mut machine,
                &[
                    (vmlaunch(), Valid(4)),
                    (vmresume(), DONE),
                    (vmlaunch(), Valid(4)),
                    (vmptrld(VMCS), DONE),
                    (vmlaunch(), Valid(4)),
                    (vmclear(OTHER_VMCS), DONE),
                    (vmptrld(OTHER_VMCS), DONE),
                    (vmptrld(VMCS), DONE),
                    (vmlaunch(), Valid(4)),
                    (vmresume(), DONE),
                    (vmclear(VMCS), DONE),
                    (vmptrld(VMCS), DONE),
                    (vmresume(), Valid(5)),
                    (vmlaunch(), DONE),
                ],
            )
        }),
        Point::new("an entry that fails does not launch", |fixture| {
            let mut machine = fixture.root()?;
            let mut fields = machine.fields(instruction_test_l2 as *const () as u64)?;
            fields.put(field::GUEST_RFLAGS, 0);
            let entered = machine.enter(&fields)?.0;
            selftests::expect("reason", entered.exit()?.reason, 0x8000_0021)?;
            answers(
                &mut machine,
                &[
                    (vmresume(), Valid(5)),
                    (vmwrite(field::GUEST_RFLAGS.into(), 2), DONE),
                    (vmlaunch(), DONE),
                ],
            )
        }),
        Point::new("VMLAUNCH fails while MOV SS blocks", |fixture| {
            let mut machine = fixture.root()?;
            let fields = machine.fields(instruction_test_l2 as *const () as u64)?;
            let mut operations = machine.load(&fields);
            operations.push(vmlaunch_after_mov_ss());
            operations.push(vmlaunch());
            let seen = machine.execute(&operations)?;
            let (last, rest) = (seen[seen.len() - 1], seen[seen.len() - 2]);
            selftests::expect("VMLAUNCH after MOV SS", rest, Valid(26))?;
            selftests::expect("VMLAUNCH", last, DONE)
        }),
        Point::new(
            "a VMCS in memory that L1 has overwritten is as it is found",
            |fixture| {
                let mut machine = fixture.current()?;
                // Its data are written back by VMCLEAR, and read again by VMPTRLD.
                answers(
                    &mut machine,
                    &[(vmwrite(RIP, 0x77), DONE), (vmclear(VMCS), DONE)],
                )?;
                let revision = machine.capabilities.revision();
                machine.memory().fill(VMCS, 0x1000, 0);
                machine.memory().write(VMCS, revision);
                answers(
                    &mut machine,
                    &[
                        (vmptrld(VMCS), DONE),
                        (vmread(RIP), Answer::Done(0)),
                        (vmresume(), Valid(5)),
                    ],
                )?;
                Ok(())
            },
        ),
    ]
}
