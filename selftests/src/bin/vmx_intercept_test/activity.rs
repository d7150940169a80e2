// SPDX-License-Identifier: GPL-2.0

//! States in which L2 executes nothing, and what ends them; INIT and SIPI.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_msi, KVM_VCPUEVENT_VALID_NMI_PENDING};
use selftests::guest::layout::VMXON_REGION;
use selftests::guest::machine::{self, Stop};
use selftests::guest::state::{Nested, HEADER};
use selftests::guest::vmx::control::{exit, pin, primary, reason};
use selftests::guest::vmx::script::{self, vmptrst, vmxoff, vmxon, Answer};
use selftests::guest::vmx::{field, Exit, Fields, VmxMachine};
use selftests::guest::{signal, Vendor};
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::events::{apic_is_on, interrupt, nmi, VECTOR};
use crate::{address, Code, Fixture, Ran, Run};

guest_code! {
    /// Halts.
    l2_halt: "hlt", "nop", "vmcall";
    /// Nothing.
    l2_nothing: "nop", "vmcall";
    /// Calls user space, and goes on.
    l2_ask_user: "out 0x80, al", "nop", "vmcall";
}

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// An event that is valid.
const VALID: u64 = 1 << 31;

/// Activities.
const ACTIVE: u64 = 0;
const HALTED: u64 = 1;
const WAITING: u64 = 3;

/// The vector of the SIPI.
const START: u64 = 0x12;

/// Sends a message to the local APIC.
fn send(machine: &VmxMachine, data: u32) -> Result<()> {
    let message = kvm_msi {
        address_lo: 0xfee0_0000,
        data,
        ..Default::default()
    };
    let delivered = machine.machine.vm.signal_msi(message);
    expect("KVM_SIGNAL_MSI", delivered.context("KVM_SIGNAL_MSI")?, 1)
}

fn init(machine: &mut VmxMachine) -> Result<()> {
    send(machine, 1 << 14 | 5 << 8)
}

fn sipi(machine: &mut VmxMachine) -> Result<()> {
    send(machine, 1 << 14 | 6 << 8 | START as u32)
}

/// Takes an NMI back, which L1 could not handle just after the exit, and sends SIPI.
fn sipi_instead(machine: &mut VmxMachine) -> Result<()> {
    let vcpu = &machine.machine.vcpus[0];
    let mut events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
    events.nmi.pending = 0;
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
    vcpu.set_vcpu_events(&events)
        .context("KVM_SET_VCPU_EVENTS")?;
    sipi(machine)
}

/// Runs code of L2, which begins in a state; something happens when it has come to rest.
fn resting(
    fixture: &Fixture,
    code: Code,
    activity: u64,
    change: fn(&mut Fields),
    at_rest: fn(&mut VmxMachine) -> Result<()>,
) -> Result<(Run, u64)> {
    fixture.with_apic(|machine| {
        if activity != ACTIVE && machine.capabilities.misc >> (5 + activity) & 1 == 0 {
            return Err(Skip(format!("L1's processor lacks activity {activity}")).into());
        }
        apic_is_on(machine)?;
        let run = crate::run(machine, code, &|fields, machine| {
            fields.put(field::ACTIVITY, activity);
            fields.put(field::GUEST_RFLAGS, 2 | IF);
            change(fields);
            machine.at_rest = Some(at_rest);
        })?;
        ensure!(machine.at_rest.is_none(), "L2 did not come to rest");
        Ok((run, machine.read(field::ACTIVITY)?))
    })
}

/// Checks that an L2 that executes nothing exits by what happens.
fn ends(
    fixture: &Fixture,
    activity: u64,
    change: fn(&mut Fields),
    at_rest: fn(&mut VmxMachine) -> Result<()>,
    reason: u64,
) -> Result<(Exit, u64)> {
    let (run, then) = resting(fixture, l2_nothing, activity, change, at_rest)?;
    expect("what L2 did", run.ran, Ran::Exit(reason))?;
    expect("RIP", run.exit.rip, address(l2_nothing))?;
    Ok((run.exit, then))
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = halted();
    points.extend(waiting());
    points.extend(active());
    points
}

fn halted() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "an interrupt that L1 wants ends an L2 that halts",
            |fixture| {
                let change: fn(&mut Fields) = |fields| {
                    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                    fields.set(field::EXIT, exit::ACKNOWLEDGE);
                };
                let (exit, then) = ends(
                    fixture,
                    HALTED,
                    change,
                    interrupt,
                    reason::EXTERNAL_INTERRUPT,
                )?;
                expect("activity at the exit", then, HALTED)?;
                expect("event", exit.event, VALID | u64::from(VECTOR))
            },
        ),
        Point::new(
            "an interrupt that L1 wants ends an L2 that halts with interrupts off",
            |fixture| {
                let change: fn(&mut Fields) = |fields| {
                    fields.clear(field::GUEST_RFLAGS, IF);
                    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                };
                ends(
                    fixture,
                    HALTED,
                    change,
                    interrupt,
                    reason::EXTERNAL_INTERRUPT,
                )?;
                Ok(())
            },
        ),
        Point::new("an NMI that L1 wants ends an L2 that halts", |fixture| {
            let change: fn(&mut Fields) = |fields| fields.set(field::PIN, pin::NMI);
            let (exit, _) = ends(fixture, HALTED, change, nmi, reason::EXCEPTION)?;
            expect("event", exit.event, VALID | 2 << 8 | 2)
        }),
        // The manual's "Architectural State Before a VM Exit".
        Point::new(
            "an NMI that ends an L2 that halts finds it halted",
            |fixture| {
                let change: fn(&mut Fields) = |fields| fields.set(field::PIN, pin::NMI);
                let (_, then) = ends(fixture, HALTED, change, nmi, reason::EXCEPTION)?;
                expect("activity at the exit", then, HALTED)
            },
        ),
        Point::new("INIT ends an L2 that halts", |fixture| {
            let (_, then) = ends(fixture, HALTED, |_| (), init, reason::INIT)?;
            expect("activity at the exit", then, HALTED)
        }),
        Point::new("SIPI does not end an L2 that halts", |fixture| {
            let change: fn(&mut Fields) = |fields| fields.set(field::PIN, pin::NMI);
            let at_rest: fn(&mut VmxMachine) -> Result<()> = |machine| {
                machine.at_rest = Some(nmi);
                sipi(machine)
            };
            ends(fixture, HALTED, change, at_rest, reason::EXCEPTION)?;
            Ok(())
        }),
        Point::new("an interrupt that is L2's wakes it", |fixture| {
            let (run, _) = resting(fixture, l2_nothing, HALTED, |_| (), interrupt)?;
            expect("what L2 did", run.ran, Ran::Exception(VECTOR.into()))
        }),
        Point::new(
            "an interrupt that is L2's does not wake it with interrupts off",
            |fixture| {
                let change: fn(&mut Fields) = |fields| {
                    fields.clear(field::GUEST_RFLAGS, IF);
                    fields.set(field::PIN, pin::NMI);
                };
                let at_rest: fn(&mut VmxMachine) -> Result<()> = |machine| {
                    machine.at_rest = Some(nmi);
                    interrupt(machine)
                };
                ends(fixture, HALTED, change, at_rest, reason::EXCEPTION)?;
                Ok(())
            },
        ),
        Point::new("an L2 that has executed HLT has that activity", |fixture| {
            let change: fn(&mut Fields) = |fields| fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
            let (run, then) = resting(fixture, l2_halt, ACTIVE, change, interrupt)?;
            expect(
                "what L2 did",
                run.ran,
                Ran::Exit(reason::EXTERNAL_INTERRUPT),
            )?;
            expect("RIP", run.exit.rip, address(l2_halt) + 1)?;
            expect("activity at the exit", then, HALTED)
        }),
        Point::new("the timer ends an L2 that halts", |fixture| {
            let run = fixture.run(l2_nothing, &|fields, _| {
                fields.put(field::ACTIVITY, HALTED);
                fields.set(field::PIN, pin::PREEMPTION_TIMER);
                fields.put(field::PREEMPTION_TIMER, 0);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::PREEMPTION_TIMER))
        }),
        Point::new(
            "an event that is injected wakes an L2 that halts",
            |fixture| {
                let run = fixture.run(l2_nothing, &|fields, _| {
                    fields.put(field::ACTIVITY, HALTED);
                    fields.put(field::ENTRY_EVENT, VALID | 2 << 8 | 2);
                })?;
                expect("what L2 did", run.ran, Ran::Exception(2))
            },
        ),
        Point::new(
            "an open interrupt window ends an L2 that halts",
            |fixture| {
                fixture.exits(l2_nothing, reason::INTERRUPT_WINDOW, &|fields, _| {
                    fields.put(field::ACTIVITY, HALTED);
                    fields.set(field::GUEST_RFLAGS, IF);
                    fields.set(field::PRIMARY, primary::INTERRUPT_WINDOW);
                })?;
                Ok(())
            },
        ),
        Point::new("an open NMI window ends an L2 that halts", |fixture| {
            fixture.exits(l2_nothing, reason::NMI_WINDOW, &|fields, _| {
                fields.put(field::ACTIVITY, HALTED);
                fields.set(field::PIN, pin::NMI | pin::VIRTUAL_NMI);
                fields.set(field::PRIMARY, primary::NMI_WINDOW);
            })?;
            Ok(())
        }),
    ]
}

/// Checks that something does not end an L2 that waits for SIPI.
fn ignored(
    fixture: &Fixture,
    change: fn(&mut Fields),
    at_rest: fn(&mut VmxMachine) -> Result<()>,
) -> Result<()> {
    let (exit, then) = ends(fixture, WAITING, change, at_rest, reason::SIPI)?;
    expect("activity at the exit", then, WAITING)?;
    expect("qualification", exit.qualification, START)
}

fn waiting() -> Vec<Point<Fixture>> {
    vec![
        Point::new("SIPI ends an L2 that waits for it", |fixture| {
            ignored(fixture, |_| (), sipi)
        }),
        // What follows is the manual's "Activity State" in "Special Features of VM Entry".
        Point::new("INIT does not end an L2 that waits for SIPI", |fixture| {
            ignored(
                fixture,
                |_| (),
                |machine| {
                    machine.at_rest = Some(sipi);
                    init(machine)
                },
            )
        }),
        Point::new("an NMI does not end an L2 that waits for SIPI", |fixture| {
            let change: fn(&mut Fields) = |fields| fields.set(field::PIN, pin::NMI);
            ignored(fixture, change, |machine| {
                machine.at_rest = Some(sipi_instead);
                nmi(machine)
            })
        }),
        Point::new(
            "an interrupt does not end an L2 that waits for SIPI",
            |fixture| {
                let change: fn(&mut Fields) =
                    |fields| fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                ignored(fixture, change, |machine| {
                    machine.at_rest = Some(sipi);
                    interrupt(machine)
                })
            },
        ),
        // The manual's "VMX-Preemption Timer".
        Point::new(
            "the timer does not end an L2 that waits for SIPI",
            |fixture| {
                let change: fn(&mut Fields) = |fields| {
                    fields.set(field::PIN, pin::PREEMPTION_TIMER);
                    fields.put(field::PREEMPTION_TIMER, 0);
                };
                ignored(fixture, change, sipi)
            },
        ),
    ]
}

fn active() -> Vec<Point<Fixture>> {
    vec![
        Point::new("INIT ends an L2 that is active", |fixture| {
            let run = asked(fixture, init)?;
            expect("what L2 did", run.ran, Ran::Exit(reason::INIT))?;
            expect("RIP", run.exit.rip, address(l2_ask_user) + 2)
        }),
        Point::new("SIPI does not end an L2 that is active", |fixture| {
            let run = asked(fixture, sipi)?;
            expect("what L2 did", run.ran, Ran::Finished)
        }),
        Point::new("INIT waits until L1 leaves VMX operation", |fixture| {
            fixture.with_apic(|machine| {
                apic_is_on(machine)?;
                init(machine)?;
                for _ in 0..3 {
                    let done = machine.answer(vmptrst())?;
                    ensure!(matches!(done, Answer::Done(_)), "VMPTRST: {done:x?}");
                }
                script::write(machine.memory(), &[vmxoff(), vmptrst()]);
                signal::after(std::time::Duration::from_millis(100))?;
                let vcpu = &mut machine.machine.vcpus[0];
                // There is nothing to execute after the reset.
                let stop = machine::run(vcpu);
                signal::after(std::time::Duration::ZERO)?;
                ensure!(!matches!(stop, Stop::Said(_)), "L1 goes on");
                let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
                expect("EFER", sregs.efer, 0)?;
                expect("base of CS", sregs.cs.base, 0xffff_0000)?;
                let state = Nested::read(vcpu)?;
                expect("bytes of the nested state", state.bytes().len(), HEADER)?;
                // It can start again.
                machine::start(
                    vcpu,
                    0,
                    Vendor::Vmx,
                    &machine.machine.tables,
                    script::interpreter,
                )?;
                machine.reset()?;
                let on = machine.answer(vmxon(VMXON_REGION))?;
                expect("VMXON", on, Answer::Done(0))
            })
        }),
    ]
}

/// Runs an L2 that calls user space, when something happens.
fn asked(fixture: &Fixture, action: fn(&mut VmxMachine) -> Result<()>) -> Result<Run> {
    fixture.with_apic(|machine| {
        apic_is_on(machine)?;
        crate::run(machine, l2_ask_user, &|_, machine| {
            machine.at_stop = Some(action);
        })
    })
}
