// SPDX-License-Identifier: GPL-2.0

//! Pages of L1 that L2's processor uses, and that move in the memory of the host.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use selftests::guest::layout::{NOWHERE, OTHER_VMCS, SHADOW_VMCS, VMCB, VMCB_SLOT};
use selftests::guest::machine::SLOT_VMCB;
use selftests::guest::vmx::control::{primary, reason, secondary};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::{field, Entered, Fields, VmxMachine};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// Reads CR8.
    l2_moved_cr8: "mov rbx, cr8", "vmcall";
    /// Writes CR8.
    l2_moved_write_cr8: "mov cr8, rax", "vmcall";
    /// Reads memory.
    l2_moved_read: "mov ebx, [rax]", "vmcall";
    /// Reads an MSR.
    l2_moved_rdmsr: "rdmsr", "vmcall";
}

/// The virtual-APIC page: a page of the slot that moves.
const VIRTUAL_APIC: u64 = OTHER_VMCS;

/// The page of the APIC, or the MSR bitmap.
const PAGE: u64 = SHADOW_VMCS;

/// Where the priority is.
const TPR: u64 = VIRTUAL_APIC + 0x80;

/// The MSR that L2 reads: SYSENTER_CS.
const MSR: u64 = 0x174;

/// How often the pages move.
const ROUNDS: u32 = 8;

/// Gives L2 a virtual APIC.
fn virtual_apic(fields: &mut Fields) {
    fields.set(field::PRIMARY, primary::TPR_SHADOW);
    fields.put(field::VIRTUAL_APIC, VIRTUAL_APIC);
}

/// Puts other pages in the place of those in the slot.
fn replace(machine: &VmxMachine) -> Result<()> {
    machine.memory().vmcb.replace()
}

/// Takes the slot away, and gives it back.
fn reinsert(machine: &VmxMachine) -> Result<()> {
    set_slot(machine, 0, 0)?;
    set_slot(machine, VMCB_SLOT, 0)
}

fn set_slot(machine: &VmxMachine, size: u64, flags: u32) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: SLOT_VMCB,
        flags,
        guest_phys_addr: VMCB,
        memory_size: size,
        userspace_addr: machine.memory().vmcb.address(),
    };
    // SAFETY: The mapping lives as long as the machine.
    unsafe { machine.machine.vm.set_user_memory_region(region) }
        .context("KVM_SET_USER_MEMORY_REGION")
}

/// Runs code of L2 again and again, with pages that have moved each time.
fn moving(
    fixture: &Fixture,
    code: Code,
    prepare: fn(&mut Fields, &mut VmxMachine),
    check: fn(&Fixture, crate::Run, u32) -> Result<()>,
) -> Result<()> {
    for (number, move_pages) in (0..ROUNDS).zip([replace, reinsert].into_iter().cycle()) {
        let run = fixture.run(code, &|fields, machine| {
            prepare(fields, machine);
            machine.memory().write(TPR, (number + 1) << 4);
        })?;
        check(fixture, run, number).with_context(|| format!("in round {number}"))?;
        fixture.with(|machine| move_pages(machine))?;
    }
    Ok(())
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("L2 uses the virtual APIC where it is now", |fixture| {
            moving(
                fixture,
                l2_moved_cr8,
                |fields, _| virtual_apic(fields),
                |fixture, run, number| {
                    expect("what L2 did", run.ran, Ran::Finished)?;
                    let cr8 = fixture.with(|machine| Ok(machine.register(0)))?;
                    expect("CR8", cr8, u64::from(number) + 1)
                },
            )
        }),
        Point::new("L2 writes to the virtual APIC where it is now", |fixture| {
            moving(
                fixture,
                l2_moved_write_cr8,
                |fields, machine| {
                    virtual_apic(fields);
                    machine.set_register(RAX, 0xa);
                },
                |fixture, run, _| {
                    expect("what L2 did", run.ran, Ran::Finished)?;
                    let priority = fixture.with(|machine| Ok(machine.memory().read::<u32>(TPR)))?;
                    expect("TPR", priority, 0xa0)
                },
            )
        }),
        Point::new(
            "accesses to the APIC exit where its page is now",
            |fixture| {
                moving(
                    fixture,
                    l2_moved_read,
                    |fields, machine| {
                        virtual_apic(fields);
                        fields.set(field::SECONDARY, secondary::APIC_ACCESSES);
                        fields.put(field::APIC_ACCESS, PAGE);
                        machine.set_register(RAX, PAGE + 0x30);
                    },
                    |_, run, _| expect("what L2 did", run.ran, Ran::Exit(reason::APIC_ACCESS)),
                )
            },
        ),
        Point::new("the MSR bitmap counts that is there now", |fixture| {
            for bits in [0, u64::MAX, 0, u64::MAX] {
                let run = fixture.run(l2_moved_rdmsr, &|fields, machine| {
                    fields.set(field::PRIMARY, primary::MSR_BITMAPS);
                    fields.put(field::MSR_BITMAP, PAGE);
                    machine.set_register(1, MSR);
                    machine.memory().fill(PAGE, 0x1000, bits);
                })?;
                let expected = match bits {
                    0 => Ran::Finished,
                    _ => Ran::Exit(reason::RDMSR),
                };
                expect("what L2 did", run.ran, expected)?;
                fixture.with(|machine| replace(machine))?;
            }
            Ok(())
        }),
        Point::new("what L2 writes to its virtual APIC is logged", |fixture| {
            fixture.with(|machine| set_slot(machine, VMCB_SLOT, KVM_MEM_LOG_DIRTY_PAGES))?;
            let size = usize::try_from(VMCB_SLOT)?;
            let page = (VIRTUAL_APIC - VMCB) >> 12;
            for number in 0..3 {
                // The VMCS is in the same slot: what L1 itself writes is logged, too.
                let run = fixture.run(l2_moved_write_cr8, &|fields, machine| {
                    virtual_apic(fields);
                    machine.set_register(RAX, 0xb);
                    machine.memory().write(TPR, 0u32);
                })?;
                expect("what L2 did", run.ran, Ran::Finished)?;
                let log = fixture.with(|machine| {
                    let log = machine.machine.vm.get_dirty_log(SLOT_VMCB, size);
                    log.context("KVM_GET_DIRTY_LOG")
                })?;
                let logged = log.first().is_some_and(|bits| bits >> page & 1 == 1);
                expect(
                    format_args!("whether it is logged in round {number}"),
                    logged,
                    true,
                )?;
            }
            fixture.with(|machine| set_slot(machine, VMCB_SLOT, 0))
        }),
        Point::new(
            "L2 without memory for its virtual APIC is not entered, and with it is",
            |fixture| {
                fixture.with(|machine| {
                    let mut fields = machine.fields(l2_moved_cr8 as *const () as u64)?;
                    virtual_apic(&mut fields);
                    fields.put(field::VIRTUAL_APIC, NOWHERE);
                    expect("the entry", machine.enter(&fields)?.0, Entered::Valid(7))?;
                    fields.put(field::VIRTUAL_APIC, VIRTUAL_APIC);
                    machine.memory().write(TPR, 0x30u32);
                    let exit = machine.enter(&fields)?.0.exit()?;
                    expect("reason of the exit", exit.reason, reason::VMCALL)?;
                    expect("CR8", machine.register(0), 3)
                })
            },
        ),
    ]
}
