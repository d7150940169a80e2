// SPDX-License-Identifier: GPL-2.0

//! The virtual APIC of L2: its priority, its registers, and the interrupts that it delivers.

use anyhow::Result;
use selftests::guest::layout::{APIC_ACCESS, MSR_MAP, VIRTUAL_APIC};
use selftests::guest::vmx::control::{pin, primary, reason, secondary};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::{field, Fields, VmxMachine};
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::{address, Code, Fixture, Ran, Run};

guest_code! {
    /// Writes CR8, and reads it.
    l2_cr8: "mov cr8, rax", "mov rbx, cr8", "vmcall";
    /// Reads memory.
    l2_apic_read: "mov ebx, [rax]", "vmcall";
    /// Writes memory.
    l2_apic_write: "mov [rax], ebx", "vmcall";
    /// Writes an MSR, and reads it.
    l2_apic_msr: "wrmsr", "rdmsr", "vmcall";
    /// Reads an MSR.
    l2_apic_rdmsr: "rdmsr", "vmcall";
    /// Nothing, for a while.
    l2_apic_nothing: "nop", "nop", "nop", "vmcall";
    /// Sends itself an interrupt.
    l2_apic_self: "wrmsr", "nop", "nop", "vmcall";
    /// Ends an interrupt.
    l2_apic_end: "mov ecx, 0x80b", "xor eax, eax", "xor edx, edx", "wrmsr", "vmcall";
    /// Has an exception.
    l2_apic_ud2: "ud2";
    /// Lets interrupts come.
    l2_apic_sti: "sti", "nop", "nop", "vmcall";
}

/// Registers in the page.
mod register {
    pub const VERSION: u64 = 0x30;
    pub const TPR: u64 = 0x80;
    pub const IN_SERVICE: u64 = 0x100;
    pub const REQUESTED: u64 = 0x200;
    pub const TIMER: u64 = 0x320;
}

/// The MSRs of an APIC begin there.
const MSRS: u64 = 0x800;

/// The MSR by which a processor interrupts itself.
const SELF: u64 = 0x83f;

/// The vector of virtual interrupts: L2 has no others.
const VECTOR: u64 = 0x1e;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// Where the status of interrupts has the vector that is in service.
const SERVICE_SHIFT: u32 = 8;

/// Gives L2 a virtual APIC of zeros.
fn virtual_apic(fields: &mut Fields, machine: &VmxMachine) {
    machine.memory().fill(VIRTUAL_APIC, 0x1000, 0);
    machine.memory().fill(MSR_MAP, 0x1000, 0);
    fields.set(field::PRIMARY, primary::TPR_SHADOW | primary::MSR_BITMAPS);
    fields.put(field::VIRTUAL_APIC, VIRTUAL_APIC);
    fields.put(field::MSR_BITMAP, MSR_MAP);
}

/// Makes accesses to a page those to the APIC.
fn access_page(fields: &mut Fields, machine: &VmxMachine) {
    virtual_apic(fields, machine);
    fields.set(field::SECONDARY, secondary::APIC_ACCESSES);
    fields.put(field::APIC_ACCESS, APIC_ACCESS);
}

/// Delivers interrupts to L2 by its virtual APIC, of which one is requested.
fn delivers(fields: &mut Fields, machine: &VmxMachine) {
    virtual_apic(fields, machine);
    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
    fields.set(
        field::SECONDARY,
        secondary::INTERRUPT_DELIVERY | secondary::X2APIC | secondary::APIC_REGISTERS,
    );
    for bitmap in 0..4 {
        fields.put(field::EOI_EXIT + 2 * bitmap, 0);
    }
    fields.put(field::INTERRUPT_STATUS, 0);
    fields.set(field::GUEST_RFLAGS, IF);
}

/// Requests the interrupt.
fn request(fields: &mut Fields, machine: &VmxMachine) {
    delivers(fields, machine);
    fields.put(field::INTERRUPT_STATUS, VECTOR);
    machine
        .memory()
        .write(VIRTUAL_APIC + register::REQUESTED, 1u32 << VECTOR);
}

/// Runs an L2 that has an exception: what its delivery needs is mapped after that.
///
/// Of a virtual interrupt whose delivery has an EPT violation, Bochs says that it was another event.
fn warm(fixture: &Fixture) -> Result<()> {
    let run = fixture.run(l2_apic_ud2, &|_, _| ())?;
    expect("what L2 did before", run.ran, Ran::Exception(6))
}

/// Runs code that must get to its end.
fn finished(fixture: &Fixture, code: Code, prepare: crate::Change<'_>) -> Result<Run> {
    let run = fixture.run(code, prepare)?;
    expect("what L2 did", run.ran.clone(), Ran::Finished)?;
    Ok(run)
}

fn page(fixture: &Fixture, register: u64) -> Result<u32> {
    fixture.with(|machine| Ok(machine.memory().read(VIRTUAL_APIC + register)))
}

fn rbx(fixture: &Fixture) -> Result<u64> {
    fixture.with(|machine| Ok(machine.register(0)))
}

fn status(fixture: &Fixture) -> Result<u64> {
    fixture.with(|machine| machine.read(field::INTERRUPT_STATUS))
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = priority();
    points.extend(registers());
    points.extend(interrupts());
    points
}

fn priority() -> Vec<Point<Fixture>> {
    vec![
        Point::new("CR8 of L2 is in its virtual APIC", |fixture| {
            finished(fixture, l2_cr8, &|fields, machine| {
                virtual_apic(fields, machine);
                machine.set_register(RAX, 5);
            })?;
            expect("CR8", rbx(fixture)?, 5)?;
            expect("TPR", page(fixture, register::TPR)?, 0x50)
        }),
        Point::new("a priority below the threshold ends L2", |fixture| {
            let run = fixture.run(l2_cr8, &|fields, machine| {
                virtual_apic(fields, machine);
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::TPR, 0x70u32);
                fields.put(field::TPR_THRESHOLD, 6);
                machine.set_register(RAX, 5);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::TPR))?;
            expect("RIP", run.exit.rip, address(l2_cr8) + 4)?;
            expect("TPR", page(fixture, register::TPR)?, 0x50)
        }),
        Point::new("a priority at the threshold does not end L2", |fixture| {
            finished(fixture, l2_cr8, &|fields, machine| {
                virtual_apic(fields, machine);
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::TPR, 0x70u32);
                fields.put(field::TPR_THRESHOLD, 5);
                machine.set_register(RAX, 5);
            })?;
            Ok(())
        }),
        Point::new(
            "a priority that is below the threshold already ends L2 at once",
            |fixture| {
                fixture.exits(l2_apic_nothing, reason::TPR, &|fields, machine| {
                    access_page(fields, machine);
                    fields.put(field::TPR_THRESHOLD, 1);
                })?;
                Ok(())
            },
        ),
    ]
}

fn registers() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an access to the APIC's page is reflected", |fixture| {
            for (code, kind) in [(l2_apic_read as Code, 0), (l2_apic_write, 1)] {
                let exit = fixture.exits(code, reason::APIC_ACCESS, &|fields, machine| {
                    access_page(fields, machine);
                    machine.set_register(RAX, APIC_ACCESS + register::VERSION);
                })?;
                expect(
                    "qualification",
                    exit.qualification,
                    kind << 12 | register::VERSION,
                )?;
            }
            Ok(())
        }),
        Point::new("the priority on the APIC's page is virtual", |fixture| {
            finished(fixture, l2_apic_write, &|fields, machine| {
                access_page(fields, machine);
                machine.set_register(RAX, APIC_ACCESS + register::TPR);
                machine.set_register(0, 0x40);
            })?;
            expect("TPR", page(fixture, register::TPR)?, 0x40)?;
            finished(fixture, l2_apic_read, &|fields, machine| {
                access_page(fields, machine);
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::TPR, 0x30u32);
                machine.set_register(RAX, APIC_ACCESS + register::TPR);
            })?;
            expect("what L2 read", rbx(fixture)?, 0x30)
        }),
        Point::new("registers are read from the virtual APIC", |fixture| {
            finished(fixture, l2_apic_read, &|fields, machine| {
                access_page(fields, machine);
                fields.set(field::SECONDARY, secondary::APIC_REGISTERS);
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::VERSION, 0x1234u32);
                machine.set_register(RAX, APIC_ACCESS + register::VERSION);
            })?;
            expect("what L2 read", rbx(fixture)?, 0x1234)
        }),
        Point::new(
            "a write to a register is reflected when it is done",
            |fixture| {
                let run = fixture.run(l2_apic_write, &|fields, machine| {
                    access_page(fields, machine);
                    fields.set(field::SECONDARY, secondary::APIC_REGISTERS);
                    machine.set_register(RAX, APIC_ACCESS + register::TIMER);
                    machine.set_register(0, 0x4321);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::APIC_WRITE))?;
                expect("RIP", run.exit.rip, address(l2_apic_write) + 2)?;
                expect("qualification", run.exit.qualification, register::TIMER)?;
                expect("the register", page(fixture, register::TIMER)?, 0x4321)
            },
        ),
        Point::new("the priority is virtual as an MSR", |fixture| {
            finished(fixture, l2_apic_msr, &|fields, machine| {
                virtual_apic(fields, machine);
                fields.set(field::SECONDARY, secondary::X2APIC);
                machine.set_register(1, MSRS + register::TPR / 16);
                machine.set_register(RAX, 0x60);
            })?;
            let rax = fixture.with(|machine| Ok(machine.register(RAX)))?;
            expect("what L2 read", rax, 0x60)?;
            expect("TPR", page(fixture, register::TPR)?, 0x60)
        }),
        Point::new("registers are virtual as MSRs", |fixture| {
            finished(fixture, l2_apic_rdmsr, &|fields, machine| {
                virtual_apic(fields, machine);
                fields.set(
                    field::SECONDARY,
                    secondary::X2APIC | secondary::APIC_REGISTERS,
                );
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::VERSION, 0x5678u32);
                machine.set_register(1, MSRS + register::VERSION / 16);
            })?;
            let rax = fixture.with(|machine| Ok(machine.register(RAX)))?;
            expect("what L2 read", rax, 0x5678)
        }),
        Point::new(
            "MSRs of the APIC are reflected if their bit is set",
            |fixture| {
                let exit = fixture.exits(l2_apic_rdmsr, reason::RDMSR, &|fields, machine| {
                    virtual_apic(fields, machine);
                    fields.set(
                        field::SECONDARY,
                        secondary::X2APIC | secondary::APIC_REGISTERS,
                    );
                    let msr = MSRS + register::VERSION / 16;
                    let byte = MSR_MAP + msr / 8;
                    machine.memory().write(byte, 1u8 << (msr % 8));
                    machine.set_register(1, msr);
                })?;
                expect("length of the instruction", exit.length, 2)
            },
        ),
    ]
}

fn interrupts() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a requested interrupt is delivered", |fixture| {
            warm(fixture)?;
            let run = fixture.run(l2_apic_nothing, &|fields, machine| request(fields, machine))?;
            expect("what L2 did", run.ran, Ran::Exception(VECTOR))?;
            expect("status", status(fixture)?, VECTOR << SERVICE_SHIFT)?;
            expect("requested", page(fixture, register::REQUESTED)?, 0)?;
            expect(
                "in service",
                page(fixture, register::IN_SERVICE)?,
                1 << VECTOR,
            )
        }),
        Point::new("a requested interrupt waits for RFLAGS.IF", |fixture| {
            warm(fixture)?;
            let prepare: crate::Change<'_> = &|fields, machine| {
                request(fields, machine);
                fields.clear(field::GUEST_RFLAGS, IF);
            };
            finished(fixture, l2_apic_nothing, prepare)?;
            expect("status", status(fixture)?, VECTOR)?;
            let run = fixture.run(l2_apic_sti, prepare)?;
            expect("what L2 did", run.ran, Ran::Exception(VECTOR))
        }),
        Point::new("a requested interrupt waits for the priority", |fixture| {
            warm(fixture)?;
            finished(fixture, l2_apic_nothing, &|fields, machine| {
                request(fields, machine);
                machine
                    .memory()
                    .write(VIRTUAL_APIC + register::TPR, 0x10u32);
            })?;
            expect("status", status(fixture)?, VECTOR)
        }),
        Point::new("L2 can interrupt itself", |fixture| {
            warm(fixture)?;
            let run = fixture.run(l2_apic_self, &|fields, machine| {
                delivers(fields, machine);
                machine.set_register(1, SELF);
                machine.set_register(RAX, VECTOR);
            })?;
            expect("what L2 did", run.ran, Ran::Exception(VECTOR))?;
            expect("status", status(fixture)?, VECTOR << SERVICE_SHIFT)
        }),
        Point::new("L2 ends an interrupt", |fixture| {
            warm(fixture)?;
            let run = fixture.run(l2_apic_nothing, &|fields, machine| {
                request(fields, machine);
                machine.recover_l2(address(l2_apic_end));
            })?;
            expect("what L2 did", run.ran, Ran::Exception(VECTOR))?;
            expect("status", status(fixture)?, 0)?;
            expect("in service", page(fixture, register::IN_SERVICE)?, 0)
        }),
        Point::new(
            "the end of an interrupt is reflected if L1 asks for it",
            |fixture| {
                warm(fixture)?;
                fixture.with(|machine| {
                    let run = crate::run(machine, l2_apic_nothing, &|fields, machine| {
                        request(fields, machine);
                        fields.put(field::EOI_EXIT, 1 << VECTOR);
                        machine.recover_l2(address(l2_apic_end));
                    });
                    if run.as_ref().is_err_and(|error| error.is::<Skip>()) {
                        return run.map(|_| ());
                    }
                    // It exits after it has handled the interrupt, which is an error elsewhere.
                    expect("reason", machine.read(field::EXIT_REASON)?, reason::EOI)?;
                    expect("qualification", machine.read(field::QUALIFICATION)?, VECTOR)
                })
            },
        ),
    ]
}
