// SPDX-License-Identifier: GPL-2.0

//! Page tables of L1 for L2, the log of written pages, functions for L2, and a VMCS of L2's own.

use anyhow::Result;
use selftests::guest::layout::{
    BUFFER, EPTP_LIST, PAGE_TABLES_END, PML, SHADOW_VMCS, VMREAD_BITMAP,
};
use selftests::guest::tables::nested_entry;
use selftests::guest::vmx::control::{reason, secondary};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::script::{
    invept, poke_memory, vmclear, vmptrld, vmread, vmwrite, Answer, Operation,
};
use selftests::guest::vmx::VmxMachine;
use selftests::guest::vmx::{field, Fields};
use selftests::guest::GuestMemory;
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// A read of memory.
    l2_load_page: "mov rbx, [rax]", "vmcall";
    /// A write to memory.
    l2_store_page: "mov [rax], rbx", "vmcall";
    /// A jump to memory.
    l2_jump: "jmp rax";
    /// VMFUNC, and a read of memory.
    l2_vmfunc: "vmfunc", "mov rbx, [rdx]", "vmcall";
    /// VMREAD.
    l2_vmread_shadow: "vmread rbx, rax", "vmcall";
    /// VMWRITE.
    l2_vmwrite_shadow: "vmwrite rax, rbx", "vmcall";
}

/// A page that only these tests use.
pub const PAGE: u64 = BUFFER + 0x8000;

/// VMCALL.
const VMCALL: u32 = 0x00c1_010f;

/// Bit of an entry of L1's page table: L2 may read.
pub const READ: u64 = 1;
/// L2 may write.
pub const WRITE: u64 = 2;
/// L2 may execute.
pub const EXECUTE: u64 = 4;

/// Write-back.
pub const WRITE_BACK: u64 = 6 << 3;

/// Returns where a page table of L1 for L2 has the entry of a page.
pub fn entry(memory: &GuestMemory, eptp: u64, page: u64) -> u64 {
    nested_entry(memory, eptp & !0xfff, page)
}

/// Runs code that accesses the page by an entry, and makes it what it was.
fn with_entry(
    fixture: &Fixture,
    code: Code,
    bits: u64,
    change: fn(&mut Fields),
) -> Result<crate::Run> {
    let nested = fixture.with(|machine| Ok(machine.machine.tables.nested))?;
    let run = fixture.run(code, &|fields, machine| {
        let slot = entry(machine.memory(), nested, PAGE);
        machine.memory().write(PAGE, VMCALL);
        machine.set_register(RAX, PAGE + 0x10);
        change(fields);
        set_entries(machine, &[(slot, bits)]);
    });
    fixture.with(|machine| {
        let slot = entry(machine.memory(), nested, PAGE);
        set_entries(
            machine,
            &[(slot, PAGE | READ | WRITE | EXECUTE | WRITE_BACK)],
        );
        Ok(())
    })?;
    run
}

/// Lets L1 write entries of its page table, and forget what it was before.
pub fn set_entries(machine: &mut VmxMachine, entries: &[(u64, u64)]) {
    let write = |(slot, bits): &(u64, u64)| poke_memory(*slot, *bits);
    let mut operations: Vec<Operation> = entries.iter().map(write).collect();
    operations.push(invept(0, 0, 2));
    // What goes wrong here shows in what L2 does.
    let _ = machine.execute(&operations);
}

/// Checks the exit of an access that L1's entry does not allow.
fn violation(fixture: &Fixture, code: Code, bits: u64, qualification: u64) -> Result<()> {
    let run = with_entry(fixture, code, bits, |_| ())?;
    expect("what L2 did", run.ran, Ran::Exit(reason::EPT_VIOLATION))?;
    // Beyond that: the linear address is valid, and it is the one of the access.
    expect(
        "qualification",
        run.exit.qualification & 0x1bf,
        qualification | 0x180,
    )?;
    expect("physical address", run.exit.physical, PAGE + 0x10)?;
    expect("linear address", run.exit.linear, PAGE + 0x10)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = violations();
    points.extend(log());
    points.extend(functions());
    points.extend(shadow());
    points
}

fn violations() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "an access that L1's page table lacks is reflected",
            |fixture| {
                violation(fixture, l2_load_page, 0, 1)?;
                violation(fixture, l2_store_page, 0, 2)?;
                violation(fixture, l2_jump, 0, 4)
            },
        ),
        Point::new(
            "a write that L1's page table forbids is reflected",
            |fixture| {
                let bits = PAGE | READ | EXECUTE | WRITE_BACK;
                violation(fixture, l2_store_page, bits, 2 | 5 << 3)?;
                let run = with_entry(fixture, l2_load_page, bits, |_| ())?;
                expect("a read", run.ran, Ran::Finished)
            },
        ),
        Point::new(
            "an execution that L1's page table forbids is reflected",
            |fixture| {
                let bits = PAGE | READ | WRITE | WRITE_BACK;
                violation(fixture, l2_jump, bits, 4 | 3 << 3)?;
                let run = with_entry(fixture, l2_store_page, bits, |_| ())?;
                expect("a write", run.ran, Ran::Finished)
            },
        ),
        Point::new(
            "a read of what may only be executed is reflected",
            |fixture| {
                let supported =
                    fixture.with(|machine| Ok(machine.capabilities.ept_vpid & 1 == 1))?;
                if !supported {
                    return Err(
                        Skip("L1's processor cannot execute what it cannot read".into()).into(),
                    );
                }
                violation(
                    fixture,
                    l2_load_page,
                    PAGE | EXECUTE | WRITE_BACK,
                    1 | 4 << 3,
                )
            },
        ),
        Point::new(
            "an entry that is not valid is a misconfiguration",
            |fixture| {
                for bits in [
                    PAGE | WRITE | WRITE_BACK,
                    PAGE | WRITE | EXECUTE | WRITE_BACK,
                    PAGE | READ | 2 << 3,
                    PAGE | READ | 7 << 3,
                    PAGE | READ | WRITE_BACK | 1 << 51,
                ] {
                    let run = with_entry(fixture, l2_load_page, bits, |_| ())?;
                    let expected = Ran::Exit(reason::EPT_MISCONFIGURATION);
                    expect(
                        format_args!("what L2 did with entry {bits:#x}"),
                        run.ran,
                        expected,
                    )?;
                    expect("physical address", run.exit.physical & !0xfff, PAGE)?;
                }
                Ok(())
            },
        ),
        Point::new(
            "a page table that L1 changes counts after INVEPT",
            |fixture| {
                let bits = PAGE | READ | WRITE | EXECUTE | WRITE_BACK;
                for _ in 0..3 {
                    let run = with_entry(fixture, l2_store_page, bits, |_| ())?;
                    expect("what L2 did", run.ran, Ran::Finished)?;
                    violation(fixture, l2_store_page, 0, 2)?;
                }
                Ok(())
            },
        ),
        Point::new(
            "accesses set the bits of L1's entry where L1 wants that",
            |fixture| {
                let supported =
                    fixture.with(|machine| Ok(machine.capabilities.ept_vpid >> 21 & 1 == 1))?;
                if !supported {
                    return Err(Skip("L1's processor sets no bits".into()).into());
                }
                let nested = fixture.with(|machine| Ok(machine.machine.tables.nested))?;
                for (code, expected) in [(l2_load_page as Code, 1 << 8), (l2_store_page, 3 << 8)] {
                    let run = fixture.run(code, &|fields, machine| {
                        let slot = entry(machine.memory(), nested, PAGE);
                        machine.set_register(RAX, PAGE);
                        fields.set(field::EPTP, 1 << 6);
                        let bits = machine.memory().read::<u64>(slot) & !(3 << 8);
                        set_entries(machine, &[(slot, bits)]);
                    })?;
                    expect("what L2 did", run.ran, Ran::Finished)?;
                    fixture.with(|machine| {
                        let slot = entry(machine.memory(), nested, PAGE);
                        expect(
                            "bits",
                            machine.memory().read::<u64>(slot) & 3 << 8,
                            expected,
                        )
                    })?;
                }
                Ok(())
            },
        ),
    ]
}

fn log() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a written page is logged", |fixture| {
            logged_store(fixture, 511)?;
            fixture.with(|machine| {
                expect("index", machine.read(field::PML_INDEX)?, 510)?;
                let entry = machine.memory().read::<u64>(PML + 511 * 8);
                expect("entry", entry, PAGE)
            })
        }),
        Point::new("a full log ends L2", |fixture| {
            let run = logged_store(fixture, 0xffff)?;
            expect("what L2 did", run.ran, Ran::Exit(reason::PML_FULL))
        }),
    ]
}

/// Lets L2 write to the page, with the log at an index.
fn logged_store(fixture: &Fixture, index: u64) -> Result<crate::Run> {
    logged(fixture, l2_store_page, index, |machine| {
        machine.set_register(RAX, PAGE + 8);
    })
}

/// Runs code that writes to the page, with the log at an index.
pub fn logged(
    fixture: &Fixture,
    code: Code,
    index: u64,
    prepare: fn(&mut VmxMachine),
) -> Result<crate::Run> {
    let nested = fixture.with(|machine| Ok(machine.machine.tables.nested))?;
    fixture.run(code, &|fields, machine| {
        let memory = machine.memory();
        // L1's entries for other pages that L2 writes to are dirty already.
        let dirty = |page| {
            let slot = entry(memory, nested, page);
            (slot, memory.read::<u64>(slot) | 3 << 8)
        };
        let mut entries: Vec<_> = (0..PAGE_TABLES_END).step_by(0x1000).map(dirty).collect();
        let slot = entry(memory, nested, PAGE);
        entries.push((slot, memory.read::<u64>(slot) & !(3 << 8)));
        machine.memory().fill(PML, 0x1000, 0);
        prepare(machine);
        fields.set(field::EPTP, 1 << 6);
        fields.set(field::SECONDARY, secondary::PML);
        fields.put(field::PML_ADDRESS, PML);
        fields.put(field::PML_INDEX, index);
        set_entries(machine, &entries);
    })
}

fn functions() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 switches to a page table of the list", |fixture| {
            let run = fixture.run(l2_vmfunc, &|fields, machine| {
                switching(fields, machine);
                let eptp = fields.get(field::EPTP);
                machine.memory().write(EPTP_LIST + 8 * 3, eptp);
                machine.set_register(1, 3);
                machine.set_register(2, PAGE);
                machine.memory().write(PAGE, 0x5151u64);
            })?;
            expect("what L2 did", run.ran, Ran::Finished)?;
            expect(
                "what L2 read",
                fixture.with(|machine| Ok(machine.register(0)))?,
                0x5151,
            )
        }),
        Point::new("a page table that is none ends L2", |fixture| {
            for (index, eptp) in [(3, 0), (3, 0x1fu64), (512, 0), (1 << 31, 0)] {
                fixture.exits(l2_vmfunc, reason::VMFUNC, &|fields, machine| {
                    switching(fields, machine);
                    machine.memory().write(EPTP_LIST + 8 * 3, eptp);
                    machine.set_register(1, index);
                })?;
            }
            Ok(())
        }),
        Point::new(
            "a function that L1 does not want ends L2, or is undefined",
            |fixture| {
                fixture.exits(l2_vmfunc, reason::VMFUNC, &|fields, machine| {
                    switching(fields, machine);
                    fields.put(field::VMFUNC_CONTROLS, 0);
                })?;
                let run = fixture.run(l2_vmfunc, &|fields, machine| {
                    switching(fields, machine);
                    machine.set_register(RAX, 64);
                })?;
                expect("function 64", run.ran, Ran::Exception(6))?;
                let run = fixture.run(l2_vmfunc, &|_, _| ())?;
                expect("without the control", run.ran, Ran::Exception(6))
            },
        ),
    ]
}

/// Lets L2 switch page tables.
fn switching(fields: &mut Fields, machine: &mut VmxMachine) {
    machine.memory().fill(EPTP_LIST, 0x1000, 0);
    fields.set(field::SECONDARY, secondary::VMFUNC);
    fields.put(field::VMFUNC_CONTROLS, 1);
    fields.put(field::EPTP_LIST, EPTP_LIST);
}

/// The field that L2 reads and writes.
const SHADOWED: u64 = field::GUEST_RSP as u64;

/// Gives L2 a VMCS of its own, with a value of the field.
fn with_shadow(fields: &mut Fields, machine: &mut VmxMachine, value: u64) {
    let revision = machine.capabilities.revision();
    machine.memory().write(SHADOW_VMCS, revision | 1 << 31);
    let _ = machine.execute(&[
        vmclear(SHADOW_VMCS),
        vmptrld(SHADOW_VMCS),
        vmwrite(SHADOWED, value),
        vmclear(SHADOW_VMCS),
    ]);
    machine.memory().fill(VMREAD_BITMAP, 0x2000, 0);
    machine.set_register(RAX, SHADOWED);
    fields.set(field::SECONDARY, secondary::SHADOW_VMCS);
    fields.put(field::VMREAD_BITMAP, VMREAD_BITMAP);
    fields.put(field::VMWRITE_BITMAP, VMREAD_BITMAP + 0x1000);
    fields.put(field::LINK_POINTER, SHADOW_VMCS);
}

/// Makes the bitmap say that a field exits.
fn not_shadowed(machine: &VmxMachine, bitmap: u64) {
    let byte = bitmap + SHADOWED / 8;
    machine.memory().write(byte, 1u8 << (SHADOWED % 8));
}

fn shadow() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 reads fields of its own VMCS", |fixture| {
            let run = fixture.run(l2_vmread_shadow, &|fields, machine| {
                with_shadow(fields, machine, 0x1357_9bdf);
            })?;
            expect("what L2 did", run.ran, Ran::Finished)?;
            expect(
                "what L2 read",
                fixture.with(|machine| Ok(machine.register(0)))?,
                0x1357_9bdf,
            )
        }),
        Point::new("L2 writes fields of its own VMCS", |fixture| {
            let run = fixture.run(l2_vmwrite_shadow, &|fields, machine| {
                with_shadow(fields, machine, 1);
                machine.set_register(0, 0x2468);
            })?;
            expect("what L2 did", run.ran, Ran::Finished)?;
            let seen = fixture.with(|machine| {
                machine.execute(&[vmclear(SHADOW_VMCS), vmptrld(SHADOW_VMCS), vmread(SHADOWED)])
            })?;
            fixture.renew();
            expect("what is in the VMCS", seen[2], Answer::Done(0x2468))
        }),
        Point::new("fields whose bit is set are reflected", |fixture| {
            fixture.exits(l2_vmread_shadow, reason::VMCLEAR + 4, &|fields, machine| {
                with_shadow(fields, machine, 1);
                not_shadowed(machine, VMREAD_BITMAP);
            })?;
            fixture.exits(
                l2_vmwrite_shadow,
                reason::VMCLEAR + 6,
                &|fields, machine| {
                    with_shadow(fields, machine, 1);
                    not_shadowed(machine, VMREAD_BITMAP + 0x1000);
                },
            )?;
            let run = fixture.run(l2_vmread_shadow, &|fields, machine| {
                with_shadow(fields, machine, 7);
                not_shadowed(machine, VMREAD_BITMAP + 0x1000);
            })?;
            expect("a read with the bit for writes", run.ran, Ran::Finished)
        }),
    ]
}
