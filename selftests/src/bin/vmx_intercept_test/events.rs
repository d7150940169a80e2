// SPDX-License-Identifier: GPL-2.0

//! Exceptions, injected events, interrupts, NMIs, and what else ends L2 by itself.

use anyhow::{Context, Result};
use kvm_bindings::kvm_msi;
use selftests::guest::layout::{exception, EXCEPTIONS};
use selftests::guest::vmx::control::{exit, pin, primary, reason};
use selftests::guest::vmx::field::{self, segment};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::{Fields, VmxMachine};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{address, Code, Fixture, Ran};

guest_code! {
    /// An undefined instruction.
    l2_ud2: "ud2", "vmcall";
    /// A breakpoint.
    l2_int3: "int3", "vmcall";
    /// A division by zero.
    l2_div: "div rbx", "vmcall";
    /// A read of memory.
    l2_load: "mov rbx, [rax]", "vmcall";
    /// A write to memory.
    l2_store: "mov [rax], rbx", "vmcall";
    /// Nothing, for a while.
    l2_nop: "nop", "nop", "nop", "vmcall";
    /// Goes round without end.
    l2_loop: "2:", "inc rbx", "jmp 2b";
    /// STI, after which the next instruction is still not interrupted.
    l2_sti: "sti", "nop", "nop", "vmcall";
    /// Calls user space, and goes on.
    l2_call_user: "out 0x80, al", "nop", "nop", "vmcall";
    /// Calls user space with interrupts on.
    l2_call_user_sti: "sti", "out 0x80, al", "nop", "nop", "vmcall";
    /// Returns by IRET to the next instruction.
    l2_iret:
        "mov rax, rsp", "push 0x10", "push rax", "pushfq", "push 8", "lea rax, [rip + 2f]",
        "push rax", "iretq", "2:", "nop", "nop", "vmcall";
    /// Gets CR2.
    l2_read_cr2: "mov rbx, cr2", "vmcall";
}

/// An address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 62;

/// An address that L2's page tables do not map.
const NOT_MAPPED: u64 = 0x80_0000;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// An event that is valid.
const VALID: u64 = 1 << 31;

/// A hardware exception.
const HARDWARE: u64 = 3 << 8;

/// It has an error code.
const WITH_ERROR_CODE: u64 = 1 << 11;

/// Blocking by NMI.
const BLOCKED_BY_NMI: u64 = 8;

fn set_rax(machine: &VmxMachine, value: u64) {
    machine.set_register(RAX, value);
}

/// Checks that an exception exits if its bit is set, and else goes to L2.
fn exception(fixture: &Fixture, code: Code, vector: u64, event: u64, value: u64) -> Result<()> {
    let seen = fixture.exits(code, reason::EXCEPTION, &|fields, machine| {
        fields.put(field::EXCEPTION_BITMAP, 1 << vector);
        // All page faults exit, whatever their error code.
        set_rax(machine, value);
    })?;
    expect("event of the exit", seen.event, VALID | event | vector)?;
    let run = fixture.run(code, &|fields, machine| {
        fields.put(
            field::EXCEPTION_BITMAP,
            !(1 << vector) & !(1 << 14) & 0xffff_ffff,
        );
        set_rax(machine, value);
    })?;
    expect("without its bit", run.ran, Ran::Exception(vector))
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = exceptions();
    points.extend(injections());
    points.extend(ends());
    points.extend(windows());
    points.extend(outside());
    points
}

fn exceptions() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "exception UD is reflected if its bit is set, and only then",
            |fixture| exception(fixture, l2_ud2, 6, HARDWARE, 0),
        ),
        Point::new(
            "exception DE is reflected if its bit is set, and only then",
            |fixture| exception(fixture, l2_div, 0, HARDWARE, 0),
        ),
        Point::new(
            "exception BP is reflected if its bit is set, and only then",
            |fixture| exception(fixture, l2_int3, 3, 6 << 8, 0),
        ),
        Point::new(
            "exception GP is reflected if its bit is set, and only then",
            |fixture| {
                exception(
                    fixture,
                    l2_load,
                    13,
                    HARDWARE | WITH_ERROR_CODE,
                    NOT_CANONICAL,
                )
            },
        ),
        Point::new(
            "exception PF is reflected if its bit is set, and only then",
            |fixture| exception(fixture, l2_load, 14, HARDWARE | WITH_ERROR_CODE, NOT_MAPPED),
        ),
        Point::new("exception PF says its address and error code", |fixture| {
            for (code, error) in [(l2_load as Code, 0), (l2_store, 2)] {
                let exit = fixture.exits(code, reason::EXCEPTION, &|fields, machine| {
                    fields.put(field::EXCEPTION_BITMAP, 1 << 14);
                    set_rax(machine, NOT_MAPPED + 0x123);
                })?;
                expect("address", exit.qualification, NOT_MAPPED + 0x123)?;
                expect("error code", exit.error_code, error)?;
            }
            Ok(())
        }),
        Point::new(
            "the error code of a page fault decides by mask and match",
            |fixture| {
                for bit in [0, 1] {
                    for mask in [0, 2] {
                        for wanted in [0, 2] {
                            let reversed = (2 & mask) != wanted;
                            let exits = (bit == 1) != reversed;
                            let run = fixture.run(l2_store, &|fields, machine| {
                                fields.put(field::EXCEPTION_BITMAP, bit << 14);
                                fields.put(field::PFEC_MASK, mask);
                                fields.put(field::PFEC_MATCH, wanted);
                                set_rax(machine, NOT_MAPPED);
                            })?;
                            let expected = if exits {
                                Ran::Exit(reason::EXCEPTION)
                            } else {
                                Ran::Exception(14)
                            };
                            let what = format!("bit {bit}, mask {mask}, match {wanted}");
                            expect(what, run.ran, expected)?;
                        }
                    }
                }
                Ok(())
            },
        ),
        Point::new(
            "a page fault that L2 handles leaves its address in CR2",
            |fixture| {
                let run = fixture.run(l2_store, &|_, machine| {
                    set_rax(machine, NOT_MAPPED + 8);
                    machine.recover_l2(address(l2_read_cr2));
                })?;
                expect("what L2 did", run.ran, Ran::Exception(14))?;
                expect(
                    "CR2",
                    fixture.with(|machine| Ok(machine.register(0)))?,
                    NOT_MAPPED + 8,
                )
            },
        ),
        Point::new("a triple fault of L2 is reflected", |fixture| {
            let run = fixture.run(l2_ud2, &|fields, _| {
                fields.put(field::GUEST_LIMIT + segment::IDTR, 0);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::TRIPLE_FAULT))
        }),
        Point::new("a double fault is reflected by its own bit", |fixture| {
            let run = fixture.run(l2_ud2, &|fields, _| {
                // There is a gate for the double fault, and none for UD.
                fields.put(field::GUEST_LIMIT + segment::IDTR, 6 * 16 - 1);
                fields.put(field::EXCEPTION_BITMAP, 1 << 8);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
            expect(
                "event",
                run.exit.event,
                VALID | HARDWARE | WITH_ERROR_CODE | 8,
            )
        }),
        Point::new(
            "an exception during the delivery of another one tells which",
            |fixture| {
                let run = fixture.run(l2_ud2, &|fields, _| {
                    fields.put(field::GUEST_LIMIT + segment::IDTR, 6 * 16 - 1);
                    fields.put(field::EXCEPTION_BITMAP, 1 << 13);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
                expect(
                    "event",
                    run.exit.event,
                    VALID | HARDWARE | WITH_ERROR_CODE | 13,
                )?;
                expect(
                    "event in delivery",
                    run.exit.vectoring,
                    VALID | HARDWARE | 6,
                )
            },
        ),
    ]
}

/// Injects an event into L2, which must have that exception.
fn inject(fixture: &Fixture, event: u64, error_code: u64, length: u64) -> Result<()> {
    let run = fixture.run(l2_nop, &|fields, _| {
        fields.put(field::ENTRY_EVENT, VALID | event);
        fields.put(field::ENTRY_ERROR_CODE, error_code);
        fields.put(field::ENTRY_LENGTH, length);
        fields.set(field::GUEST_RFLAGS, IF);
    })?;
    expect("what L2 did", run.ran, Ran::Exception(event & 0xff))?;
    fixture.with(|machine| {
        let record = EXCEPTIONS + exception::SIZE;
        let (_, _, seen) = machine.l2_exceptions();
        expect("error code", seen, error_code)?;
        let rip = machine.memory().read::<u64>(record + exception::RIP);
        expect("RIP that L2 returns to", rip, address(l2_nop) + length)
    })?;
    expect("the event after the exit", run.exit.injected >> 31, 0)
}

fn injections() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an exception is injected", |fixture| {
            inject(fixture, HARDWARE | 6, 0, 0)
        }),
        Point::new("an exception is injected with its error code", |fixture| {
            inject(fixture, HARDWARE | WITH_ERROR_CODE | 13, 0x1234, 0)
        }),
        Point::new("an interrupt is injected", |fixture| {
            inject(fixture, 5, 0, 0)
        }),
        Point::new("an NMI is injected", |fixture| {
            inject(fixture, 2 << 8 | 2, 0, 0)
        }),
        Point::new(
            "a software interrupt is injected after its instruction",
            |fixture| inject(fixture, 4 << 8 | 7, 0, 2),
        ),
        Point::new(
            "a software exception is injected after its instruction",
            |fixture| inject(fixture, 6 << 8 | 3, 0, 1),
        ),
        Point::new(
            "an injected exception is not reflected by its bit",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.put(field::EXCEPTION_BITMAP, 1 << 6);
                    fields.put(field::ENTRY_EVENT, VALID | HARDWARE | 6);
                })?;
                expect("what L2 did", run.ran, Ran::Exception(6))
            },
        ),
        Point::new(
            "an event whose delivery fails is told by the exit",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.put(field::GUEST_BASE + segment::IDTR, NOT_MAPPED);
                    fields.put(field::EXCEPTION_BITMAP, 1 << 14);
                    fields.put(field::ENTRY_EVENT, VALID | HARDWARE | WITH_ERROR_CODE | 13);
                    fields.put(field::ENTRY_ERROR_CODE, 0x55);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
                let delivered = VALID | HARDWARE | WITH_ERROR_CODE | 13;
                expect("event in delivery", run.exit.vectoring, delivered)?;
                expect("its error code", run.exit.vectoring_error_code, 0x55)
            },
        ),
    ]
}

/// What ends L2 though it does nothing.
fn ends() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a timer of 0 ends L2 before its first instruction",
            |fixture| {
                fixture.exits(l2_nop, reason::PREEMPTION_TIMER, &|fields, _| {
                    fields.set(field::PIN, pin::PREEMPTION_TIMER);
                    fields.put(field::PREEMPTION_TIMER, 0);
                })?;
                Ok(())
            },
        ),
        Point::new(
            "the timer ends an L2 that goes round, and not one that is done",
            |fixture| {
                let run = fixture.run(l2_loop, &|fields, _| {
                    fields.set(field::PIN, pin::PREEMPTION_TIMER);
                    fields.put(field::PREEMPTION_TIMER, 20_000);
                    // Bochs would not interrupt it for L0's timer otherwise.
                    fields.set(field::GUEST_RFLAGS, IF);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::PREEMPTION_TIMER))?;
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.set(field::PIN, pin::PREEMPTION_TIMER);
                    fields.put(field::PREEMPTION_TIMER, 0xffff_ffff);
                })?;
                expect("what L2 did in time", run.ran, Ran::Finished)
            },
        ),
        Point::new(
            "the rest of the timer is stored if L1 wants that",
            |fixture| {
                for (save, changes) in [(0, false), (exit::SAVE_TIMER, true)] {
                    fixture.run(l2_nop, &|fields, _| {
                        fields.set(field::PIN, pin::PREEMPTION_TIMER);
                        fields.set(field::EXIT, save);
                        fields.put(field::PREEMPTION_TIMER, 0x7fff_ffff);
                    })?;
                    let rest = fixture.with(|machine| machine.read(field::PREEMPTION_TIMER))?;
                    expect("whether it has changed", rest != 0x7fff_ffff, changes)?;
                }
                Ok(())
            },
        ),
        Point::new(
            "the monitor trap ends L2 after each instruction",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.set(field::PRIMARY, primary::MONITOR_TRAP);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::MONITOR_TRAP))?;
                expect("RIP", run.exit.rip, address(l2_nop) + 1)?;
                fixture.with(|machine| {
                    let again = machine.resume(&[])?.0.exit()?;
                    expect("RIP after VMRESUME", again.rip, address(l2_nop) + 2)
                })
            },
        ),
        Point::new(
            "a monitor trap that is injected comes before the first instruction",
            |fixture| {
                fixture.exits(l2_nop, reason::MONITOR_TRAP, &|fields, _| {
                    fields.put(field::ENTRY_EVENT, VALID | 7 << 8);
                })?;
                Ok(())
            },
        ),
        Point::new(
            "a debug exception that is pending comes at once",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.put(field::PENDING_DEBUG, 1 << 14);
                    fields.put(field::EXCEPTION_BITMAP, 1 << 1);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
                expect("event", run.exit.event, VALID | HARDWARE | 1)?;
                expect("RIP", run.exit.rip, address(l2_nop))?;
                expect("qualification", run.exit.qualification, 1 << 14)
            },
        ),
        Point::new(
            "a single step of L2 is reflected with the next instruction",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.set(field::GUEST_RFLAGS, 1 << 8);
                    fields.put(field::EXCEPTION_BITMAP, 1 << 1);
                })?;
                expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
                expect("RIP", run.exit.rip, address(l2_nop) + 1)?;
                expect("qualification", run.exit.qualification, 1 << 14)
            },
        ),
    ]
}

fn windows() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "an interrupt window ends L2 at once if it is open",
            |fixture| {
                fixture.exits(l2_nop, reason::INTERRUPT_WINDOW, &|fields, _| {
                    fields.set(field::PRIMARY, primary::INTERRUPT_WINDOW);
                    fields.set(field::GUEST_RFLAGS, IF);
                })?;
                Ok(())
            },
        ),
        Point::new("an interrupt window ends L2 when it opens", |fixture| {
            let run = fixture.run(l2_sti, &|fields, _| {
                fields.set(field::PRIMARY, primary::INTERRUPT_WINDOW);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::INTERRUPT_WINDOW))?;
            expect("RIP", run.exit.rip, address(l2_sti) + 2)
        }),
        Point::new(
            "an interrupt window does not end L2 if it never opens",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    fields.set(field::PRIMARY, primary::INTERRUPT_WINDOW);
                })?;
                expect("what L2 did", run.ran, Ran::Finished)
            },
        ),
        Point::new("an NMI window ends L2 at once if it is open", |fixture| {
            fixture.exits(l2_nop, reason::NMI_WINDOW, &|fields, _| nmi_window(fields))?;
            Ok(())
        }),
        Point::new("an NMI window ends L2 when IRET opens it", |fixture| {
            let run = fixture.run(l2_iret, &|fields, _| {
                nmi_window(fields);
                fields.put(field::INTERRUPTIBILITY, BLOCKED_BY_NMI);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::NMI_WINDOW))?;
            expect(
                "blocking by NMI",
                run.exit.interruptibility & BLOCKED_BY_NMI,
                0,
            )
        }),
        Point::new(
            "an NMI window does not end L2 if it never opens",
            |fixture| {
                let run = fixture.run(l2_nop, &|fields, _| {
                    nmi_window(fields);
                    fields.put(field::INTERRUPTIBILITY, BLOCKED_BY_NMI);
                })?;
                expect("what L2 did", run.ran, Ran::Finished)?;
                let blocked = run.exit.interruptibility & BLOCKED_BY_NMI;
                expect("blocking by NMI", blocked, BLOCKED_BY_NMI)
            },
        ),
    ]
}

fn nmi_window(fields: &mut Fields) {
    fields.set(field::PIN, pin::NMI | pin::VIRTUAL_NMI);
    fields.set(field::PRIMARY, primary::NMI_WINDOW);
}

/// Sends an NMI.
pub fn nmi(machine: &mut VmxMachine) -> Result<()> {
    machine.machine.vcpus[0].nmi().context("KVM_NMI")
}

/// The vector of the interrupt that comes.
pub const VECTOR: u32 = 0x1e;

/// Delivers an interrupt to the local APIC.
pub fn interrupt(machine: &mut VmxMachine) -> Result<()> {
    let message = kvm_msi {
        address_lo: 0xfee0_0000,
        data: VECTOR,
        ..Default::default()
    };
    let delivered = machine.machine.vm.signal_msi(message);
    expect("KVM_SIGNAL_MSI", delivered.context("KVM_SIGNAL_MSI")?, 1)
}

/// Switches the local APIC on.
pub fn apic_is_on(machine: &VmxMachine) -> Result<()> {
    /// The register with the switch, and its value.
    const SPURIOUS: (usize, u32) = (0xf0, 0x1ff);

    let vcpu = &machine.machine.vcpus[0];
    let mut apic = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
    for (byte, value) in apic.regs[SPURIOUS.0..]
        .iter_mut()
        .zip(SPURIOUS.1.to_le_bytes())
    {
        *byte = value as _;
    }
    vcpu.set_lapic(&apic).context("KVM_SET_LAPIC")
}

/// Runs code of L2 on a processor with a local APIC that is switched on.
fn with_apic(code: Code, fixture: &Fixture, prepare: crate::Change<'_>) -> Result<crate::Run> {
    fixture.with_apic(|machine| {
        apic_is_on(machine)?;
        crate::run(machine, code, prepare)
    })
}

/// What comes from outside while L2 runs.
fn outside() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an NMI ends L2 if L1 wants that", |fixture| {
            let run = fixture.run(l2_call_user, &|fields, machine| {
                fields.set(field::PIN, pin::NMI);
                machine.at_stop = Some(nmi);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::EXCEPTION))?;
            expect("event", run.exit.event, VALID | 2 << 8 | 2)?;
            expect("RIP", run.exit.rip, address(l2_call_user) + 2)?;
            // NMIs are blocked in L1.
            fixture.renew();
            Ok(())
        }),
        Point::new(
            "an NMI is delivered to L2 if L1 does not want it",
            |fixture| {
                let run = fixture.run(l2_call_user, &|_, machine| machine.at_stop = Some(nmi))?;
                expect("what L2 did", run.ran, Ran::Exception(2))
            },
        ),
        Point::new(
            "an interrupt ends L2 if L1 wants that, and stays pending",
            |fixture| {
                let run = with_apic(l2_call_user_sti, fixture, &|fields, machine| {
                    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                    machine.at_stop = Some(interrupt);
                })?;
                expect(
                    "what L2 did",
                    run.ran,
                    Ran::Exit(reason::EXTERNAL_INTERRUPT),
                )?;
                expect("event", run.exit.event >> 31, 0)
            },
        ),
        Point::new(
            "an interrupt that ends L2 is taken with it if L1 wants that",
            |fixture| {
                let run = with_apic(l2_call_user_sti, fixture, &|fields, machine| {
                    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                    fields.set(field::EXIT, exit::ACKNOWLEDGE);
                    machine.at_stop = Some(interrupt);
                })?;
                expect(
                    "what L2 did",
                    run.ran,
                    Ran::Exit(reason::EXTERNAL_INTERRUPT),
                )?;
                expect("event", run.exit.event, VALID | u64::from(VECTOR))
            },
        ),
        Point::new(
            "an interrupt ends L2 whatever its RFLAGS.IF, if L1 wants that",
            |fixture| {
                let run = with_apic(l2_call_user, fixture, &|fields, machine| {
                    fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
                    fields.set(field::EXIT, exit::ACKNOWLEDGE);
                    machine.at_stop = Some(interrupt);
                })?;
                expect(
                    "what L2 did",
                    run.ran,
                    Ran::Exit(reason::EXTERNAL_INTERRUPT),
                )
            },
        ),
        Point::new(
            "an interrupt is delivered to L2 if L1 does not want it",
            |fixture| {
                let run = with_apic(l2_call_user_sti, fixture, &|_, machine| {
                    machine.at_stop = Some(interrupt);
                })?;
                expect("what L2 did", run.ran, Ran::Exception(VECTOR.into()))
            },
        ),
    ]
}
