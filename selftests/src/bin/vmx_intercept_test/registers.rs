// SPDX-License-Identifier: GPL-2.0

//! Control registers: masks, shadows and targets.

use anyhow::Result;
use selftests::guest::vmx::control::{primary, reason};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::VmxMachine;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// Writes CR0 from RAX.
    l2_write_cr0: "mov cr0, rax", "mov rbx, cr0", "vmcall";
    /// Writes CR4 from RAX.
    l2_write_cr4: "mov cr4, rax", "mov rbx, cr4", "vmcall";
    /// Reads CR0.
    l2_read_cr0: "mov rbx, cr0", "smsw ecx", "vmcall";
    /// Reads CR4.
    l2_read_cr4: "mov rbx, cr4", "vmcall";
    /// LMSW.
    l2_lmsw: "lmsw ax", "mov rbx, cr0", "vmcall";
    /// CLTS.
    l2_clts: "clts", "mov rbx, cr0", "vmcall";
    /// Writes CR3 from RAX.
    l2_write_cr3: "mov cr3, rax", "mov rbx, cr3", "vmcall";
}

/// CR0.TS.
const TS: u64 = 8;

/// CR0.AM.
const AM: u64 = 1 << 18;

/// CR4.PGE.
const PGE: u64 = 1 << 7;

/// CR4.TSD.
const TSD: u64 = 1 << 2;

/// Gives L2 a value of CR0 to write.
fn write_cr0(fields: &Fields, machine: &VmxMachine, bits: u64) {
    machine.set_register(RAX, fields.get(field::GUEST_CR0) ^ bits);
}

/// L1 owns a bit of CR0; L2 reads the shadow.
fn own_cr0(fields: &mut Fields, bits: u64, shadow: u64) {
    fields.put(field::CR0_MASK, bits);
    fields.put(field::CR0_SHADOW, shadow);
}

/// Runs code that must finish, and returns the exit of its end with L2's RBX.
fn finished(fixture: &Fixture, code: Code, change: crate::Change<'_>) -> Result<(u64, u64)> {
    let run = fixture.run(code, change)?;
    expect("what L2 did", run.ran, Ran::Finished)?;
    fixture.with(|machine| Ok((run.exit.cr0, machine.register(0))))
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = cr0();
    points.extend(others());
    points
}

fn cr0() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a write to CR0 exits if a bit of L1 differs from the shadow",
            |fixture| {
                let exit = fixture.exits(
                    l2_write_cr0,
                    reason::CONTROL_REGISTER,
                    &|fields, machine| {
                        own_cr0(fields, AM, 0);
                        write_cr0(fields, machine, AM);
                    },
                )?;
                expect("qualification: MOV to CR0 from RAX", exit.qualification, 0)
            },
        ),
        Point::new(
            "a write to CR0 does not exit if the bits of L1 are as in the shadow",
            |fixture| {
                let (cr0, read) = finished(fixture, l2_write_cr0, &|fields, machine| {
                    own_cr0(fields, AM, AM);
                    write_cr0(fields, machine, AM | TS);
                })?;
                // L2 sees what it wrote; the processor has the bit of L1 as L1 has it.
                expect("CR0.AM and TS", cr0 & (AM | TS), TS)?;
                expect("CR0.AM and TS that L2 reads", read & (AM | TS), AM | TS)
            },
        ),
        Point::new(
            "a write to CR0 of bits that are L2's does not exit",
            |fixture| {
                let (cr0, read) = finished(fixture, l2_write_cr0, &|fields, machine| {
                    write_cr0(fields, machine, AM | TS);
                })?;
                expect("CR0.AM and TS", cr0 & (AM | TS), AM | TS)?;
                expect("CR0.AM and TS that L2 reads", read & (AM | TS), AM | TS)
            },
        ),
        Point::new("L2 reads the shadow where the bits are L1's", |fixture| {
            let (_, read) = finished(fixture, l2_read_cr0, &|fields, _| {
                own_cr0(fields, AM | TS, TS);
                fields.set(field::GUEST_CR0, AM);
            })?;
            expect("CR0.AM and TS that L2 reads", read & (AM | TS), TS)?;
            let smsw = fixture.with(|machine| Ok(machine.register(1)))?;
            expect("CR0.TS by SMSW", smsw & TS, TS)
        }),
        Point::new(
            "LMSW exits if a bit of L1 differs from the shadow",
            |fixture| {
                let exit =
                    fixture.exits(l2_lmsw, reason::CONTROL_REGISTER, &|fields, machine| {
                        own_cr0(fields, TS, 0);
                        machine.set_register(RAX, TS | 1);
                    })?;
                expect(
                    "qualification: LMSW",
                    exit.qualification,
                    3 << 4 | (TS | 1) << 16,
                )
            },
        ),
        Point::new(
            "LMSW does not exit if the bits of L1 are as in the shadow",
            |fixture| {
                let (cr0, read) = finished(fixture, l2_lmsw, &|fields, machine| {
                    own_cr0(fields, TS, TS);
                    machine.set_register(RAX, TS | 1);
                })?;
                expect("CR0.TS", cr0 & TS, 0)?;
                expect("CR0.TS that L2 reads", read & TS, TS)
            },
        ),
        Point::new("LMSW of bits that are L2's does not exit", |fixture| {
            let (cr0, _) = finished(fixture, l2_lmsw, &|_, machine| {
                machine.set_register(RAX, TS | 1);
            })?;
            expect("CR0.TS", cr0 & TS, TS)
        }),
        Point::new(
            "CLTS exits if CR0.TS is L1's and set in the shadow",
            |fixture| {
                let exit = fixture.exits(l2_clts, reason::CONTROL_REGISTER, &|fields, _| {
                    own_cr0(fields, TS, TS);
                    fields.set(field::GUEST_CR0, TS);
                })?;
                expect("qualification: CLTS", exit.qualification, 2 << 4)
            },
        ),
        Point::new(
            "CLTS does nothing if CR0.TS is L1's and clear in the shadow",
            |fixture| {
                let (cr0, _) = finished(fixture, l2_clts, &|fields, _| {
                    own_cr0(fields, TS, 0);
                    fields.set(field::GUEST_CR0, TS);
                })?;
                expect("CR0.TS", cr0 & TS, TS)
            },
        ),
        Point::new("CLTS clears CR0.TS if it is L2's", |fixture| {
            let (cr0, _) = finished(fixture, l2_clts, &|fields, _| {
                fields.set(field::GUEST_CR0, TS);
            })?;
            expect("CR0.TS", cr0 & TS, 0)
        }),
    ]
}

fn others() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a write to CR4 exits if a bit of L1 differs from the shadow",
            |fixture| {
                let exit = fixture.exits(
                    l2_write_cr4,
                    reason::CONTROL_REGISTER,
                    &|fields, machine| {
                        fields.put(field::CR4_MASK, PGE);
                        fields.put(field::CR4_SHADOW, 0);
                        machine.set_register(RAX, fields.get(field::GUEST_CR4) | PGE);
                    },
                )?;
                expect("qualification: MOV to CR4 from RAX", exit.qualification, 4)
            },
        ),
        Point::new(
            "a write to CR4 of bits that are L2's does not exit",
            |fixture| {
                let (_, read) = finished(fixture, l2_write_cr4, &|fields, machine| {
                    fields.put(field::CR4_MASK, PGE);
                    fields.put(field::CR4_SHADOW, PGE);
                    machine.set_register(RAX, fields.get(field::GUEST_CR4) | PGE | TSD);
                })?;
                expect(
                    "CR4.PGE and TSD that L2 reads",
                    read & (PGE | TSD),
                    PGE | TSD,
                )?;
                fixture.with(|machine| {
                    let cr4 = machine.read(field::GUEST_CR4)?;
                    expect("CR4.PGE and TSD", cr4 & (PGE | TSD), TSD)
                })
            },
        ),
        Point::new(
            "L2 reads the shadow of CR4 where the bits are L1's",
            |fixture| {
                let (_, read) = finished(fixture, l2_read_cr4, &|fields, _| {
                    fields.put(field::CR4_MASK, 1 << 13 | PGE);
                    fields.put(field::CR4_SHADOW, PGE);
                })?;
                expect(
                    "CR4.VMXE and PGE that L2 reads",
                    read & (1 << 13 | PGE),
                    PGE,
                )
            },
        ),
        Point::new("L2 cannot clear CR4.VMXE", |fixture| {
            let run = fixture.run(l2_write_cr4, &|fields, machine| {
                machine.set_register(RAX, fields.get(field::GUEST_CR4) & !(1 << 13));
            })?;
            expect("what L2 did", run.ran, Ran::Exception(13))
        }),
        Point::new(
            "a load of CR3 with one of L1's values does not exit",
            |fixture| {
                let count = fixture.with(|machine| Ok(machine.capabilities.misc >> 16 & 0x1ff))?;
                if count < 2 {
                    return Err(Skip(format!("L1's processor has {count} of them")).into());
                }
                for (count, ran) in [
                    (0, Ran::Exit(reason::CONTROL_REGISTER)),
                    (1, Ran::Exit(reason::CONTROL_REGISTER)),
                    (2, Ran::Finished),
                ] {
                    let run = fixture.run(l2_write_cr3, &|fields, machine| {
                        let cr3 = fields.get(field::GUEST_CR3);
                        fields.set(field::PRIMARY, primary::CR3_LOAD);
                        fields.put(field::CR3_TARGET_COUNT, count);
                        fields.put(field::CR3_TARGET, 0x1000);
                        fields.put(field::CR3_TARGET + 2, cr3);
                        machine.set_register(RAX, cr3);
                    })?;
                    expect(
                        format_args!("what L2 did with {count} values"),
                        run.ran,
                        ran,
                    )?;
                }
                Ok(())
            },
        ),
    ]
}
