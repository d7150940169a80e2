// SPDX-License-Identifier: GPL-2.0

//! MSRs that exits store and load, and what goes wrong with that.

use anyhow::{ensure, Result};
use selftests::guest::layout::{MSR_LIST, NOWHERE, VMCS, VMXON_REGION};
use selftests::guest::machine::{run, Stop};
use selftests::guest::signal;
use selftests::guest::state::Nested;
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::script::{rdmsr, vmxon, wrmsr, Answer};
use selftests::guest::vmx::{field, Entered, Fields, VmxMachine};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{address, Fixture};

guest_code! {
    /// Calls L1.
    l2_call: "vmcall";
    /// Writes an MSR, and calls L1.
    l2_sets_msr: "wrmsr", "vmcall";
}

/// MSRs that may be stored and loaded: STAR, LSTAR, SFMASK.
const STAR: u64 = 0xc000_0081;
const LSTAR: u64 = 0xc000_0082;
const SFMASK: u64 = 0xc000_0084;

/// One that may be neither: the base of system-management memory.
const SMBASE: u64 = 0x9e;

/// One that no transition may load.
const FS_BASE: u64 = 0xc000_0100;

/// The time-stamp counter.
const TSC: u64 = 0x10;

/// An area: its fields, and where the test has it.
#[derive(Clone, Copy)]
struct Area {
    address: u32,
    count: u32,
    list: u64,
}

const ENTRY_LOAD: Area = Area {
    address: field::ENTRY_MSR_LOAD,
    count: field::ENTRY_MSR_LOAD_COUNT,
    list: MSR_LIST,
};

const EXIT_STORE: Area = Area {
    address: field::EXIT_MSR_STORE,
    count: field::EXIT_MSR_STORE_COUNT,
    list: MSR_LIST + 0x400,
};

const EXIT_LOAD: Area = Area {
    address: field::EXIT_MSR_LOAD,
    count: field::EXIT_MSR_LOAD_COUNT,
    list: MSR_LIST + 0x800,
};

impl Area {
    fn write(self, fields: &mut Fields, machine: &VmxMachine, entries: &[(u64, u64)]) {
        for (address, (index, value)) in (self.list..).step_by(16).zip(entries) {
            machine.memory().write(address, *index);
            machine.memory().write(address + 8, *value);
        }
        fields.put(self.address, self.list);
        fields.put(self.count, entries.len() as u64);
    }

    fn value(self, machine: &VmxMachine, index: u64) -> u64 {
        machine.memory().read(self.list + 16 * index + 8)
    }
}

/// Numbers of VMX aborts.
const STORE_FAILS: u32 = 1;
const LOAD_FAILS: u32 = 4;

/// Runs an L2 whose exit cannot be completed: the processor shuts down, and can be used again.
///
/// Returns what is written to the VMCS.
fn aborts(fixture: &Fixture, prepare: fn(&mut Fields, &mut VmxMachine)) -> Result<u32> {
    let result = fixture.with(|machine| {
        let mut fields = machine.fields(address(l2_call))?;
        prepare(&mut fields, machine);
        machine.launch(&fields)?;
        signal::after(std::time::Duration::from_millis(500))?;
        let stop = run(&mut machine.machine.vcpus[0]);
        signal::after(std::time::Duration::ZERO)?;
        expect("KVM_RUN", stop, Stop::Shutdown)?;
        let number = machine.memory().read(VMCS + 4);
        let vcpu = &machine.machine.vcpus[0];
        vcpu.set_nested_state(&Nested::read(vcpu)?.off().0)?;
        machine.reset()?;
        let on = machine.answer(vmxon(VMXON_REGION))?;
        expect("VMXON after the reset", on, Answer::Done(0))?;
        Ok(number)
    });
    fixture.renew();
    result
}

/// Checks that exits cannot be completed.
fn all_abort(fixture: &Fixture, all: &[fn(&mut Fields, &mut VmxMachine)]) -> Result<()> {
    all.iter()
        .try_for_each(|prepare| aborts(fixture, *prepare).map(|_| ()))
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = good();
    points.extend(bad());
    points
}

fn good() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an exit stores what L2 has in MSRs", |fixture| {
            fixture.with(|machine| {
                let mut fields = machine.fields(address(l2_sets_msr))?;
                ENTRY_LOAD.write(&mut fields, machine, &[(STAR, 0x11), (SFMASK, 0x22)]);
                let lists = [(SFMASK, 0), (STAR, 0), (LSTAR, 0)];
                EXIT_STORE.write(&mut fields, machine, &lists);
                machine.set_register(1, LSTAR);
                machine.set_register(2, 0);
                machine.set_register(crate::RAX, 0x33);
                // L2 may write MSRs without an exit.
                allow_msrs(&mut fields, machine);
                let exit = machine.enter(&fields)?.0.exit()?;
                expect("reason of the exit", exit.reason, reason::VMCALL)?;
                let seen = [0, 1, 2].map(|index| EXIT_STORE.value(machine, index));
                expect("SFMASK, STAR, LSTAR", seen, [0x22, 0x11, 0x33])
            })
        }),
        Point::new("an exit stores the time", |fixture| {
            fixture.with(|machine| {
                let mut fields = machine.fields(address(l2_call))?;
                EXIT_STORE.write(&mut fields, machine, &[(TSC, 0)]);
                let Answer::Done(before) = machine.answer(rdmsr(TSC))? else {
                    anyhow::bail!("L1 cannot read the TSC");
                };
                machine.enter(&fields)?.0.exit()?;
                let stored = EXIT_STORE.value(machine, 0);
                let Answer::Done(after) = machine.answer(rdmsr(TSC))? else {
                    anyhow::bail!("L1 cannot read the TSC");
                };
                ensure!(
                    before < stored && stored < after,
                    "{before}, {stored}, {after}"
                );
                Ok(())
            })
        }),
        Point::new("an exit loads what L1 wants in MSRs", |fixture| {
            fixture.with(|machine| {
                let mut fields = machine.fields(address(l2_call))?;
                ENTRY_LOAD.write(&mut fields, machine, &[(STAR, 1), (LSTAR, 2)]);
                EXIT_STORE.write(&mut fields, machine, &[(STAR, 0), (LSTAR, 0)]);
                EXIT_LOAD.write(&mut fields, machine, &[(LSTAR, 0x55), (STAR, 0x66)]);
                machine.enter(&fields)?.0.exit()?;
                let stored = [0, 1].map(|index| EXIT_STORE.value(machine, index));
                expect("what L2 had", stored, [1, 2])?;
                let seen = machine.execute(&[rdmsr(STAR), rdmsr(LSTAR)])?;
                expect(
                    "what L1 has",
                    seen,
                    vec![Answer::Done(0x66), Answer::Done(0x55)],
                )
            })
        }),
        Point::new("the last of equal entries counts", |fixture| {
            fixture.with(|machine| {
                let mut fields = machine.fields(address(l2_call))?;
                EXIT_LOAD.write(&mut fields, machine, &[(STAR, 1), (STAR, 2), (STAR, 3)]);
                machine.enter(&fields)?.0.exit()?;
                expect("STAR", machine.answer(rdmsr(STAR))?, Answer::Done(3))
            })
        }),
        Point::new(
            "an entry that fails by an MSR has loaded those before, and loads those of an exit",
            |fixture| {
                fixture.with(|machine| {
                    machine.execute(&[wrmsr(STAR, 0), wrmsr(LSTAR, 0), wrmsr(SFMASK, 0)])?;
                    let mut fields = machine.fields(address(l2_call))?;
                    let list = [(STAR, 7), (FS_BASE, 0), (SFMASK, 8)];
                    ENTRY_LOAD.write(&mut fields, machine, &list);
                    EXIT_LOAD.write(&mut fields, machine, &[(LSTAR, 9)]);
                    // Nothing is stored.
                    EXIT_STORE.write(&mut fields, machine, &[(STAR, 0x99)]);
                    let exit = machine.enter(&fields)?.0.exit()?;
                    expect("reason of the exit", exit.reason, reason::MSR_LOAD)?;
                    expect("qualification", exit.qualification, 2)?;
                    let stored = EXIT_STORE.value(machine, 0);
                    expect("what would have been stored", stored, 0x99)?;
                    let seen = machine.execute(&[rdmsr(STAR), rdmsr(LSTAR), rdmsr(SFMASK)])?;
                    let expected = [7, 9, 0].map(Answer::Done);
                    expect("STAR, LSTAR, SFMASK", seen, expected.to_vec())
                })
            },
        ),
        Point::new("an entry fails by a list without memory", |fixture| {
            fixture.with(|machine| {
                let mut fields = machine.fields(address(l2_call))?;
                fields.put(field::ENTRY_MSR_LOAD, NOWHERE);
                fields.put(field::ENTRY_MSR_LOAD_COUNT, 1);
                let exit = machine.enter(&fields)?.0.exit()?;
                expect("reason of the exit", exit.reason, reason::MSR_LOAD)?;
                expect("qualification", exit.qualification, 1)
            })
        }),
        Point::new("an entry that is refused loads no MSR", |fixture| {
            fixture.with(|machine| {
                machine.execute(&[wrmsr(STAR, 0x42), wrmsr(LSTAR, 0x43)])?;
                let mut fields = machine.fields(address(l2_call))?;
                ENTRY_LOAD.write(&mut fields, machine, &[(STAR, 7)]);
                EXIT_LOAD.write(&mut fields, machine, &[(LSTAR, 9)]);
                fields.put(field::HOST_SELECTOR + 2, 0);
                let entered = machine.enter(&fields)?.0;
                expect("the entry", entered, Entered::Valid(8))?;
                let seen = machine.execute(&[rdmsr(STAR), rdmsr(LSTAR)])?;
                let expected = [0x42, 0x43].map(Answer::Done);
                expect("STAR, LSTAR", seen, expected.to_vec())
            })
        }),
    ]
}

fn bad() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an exit that cannot store an MSR aborts", |fixture| {
            all_abort(
                fixture,
                &[
                    |fields, machine| EXIT_STORE.write(fields, machine, &[(SMBASE, 0)]),
                    |fields, machine| EXIT_STORE.write(fields, machine, &[(STAR | 1 << 32, 0)]),
                    |fields, machine| EXIT_STORE.write(fields, machine, &[(0x1234_5678, 0)]),
                    |fields, _| {
                        fields.put(field::EXIT_MSR_STORE, NOWHERE);
                        fields.put(field::EXIT_MSR_STORE_COUNT, 1);
                    },
                ],
            )
        }),
        Point::new("an exit that cannot load an MSR aborts", |fixture| {
            all_abort(
                fixture,
                &[
                    |fields, machine| EXIT_LOAD.write(fields, machine, &[(FS_BASE, 0)]),
                    |fields, machine| EXIT_LOAD.write(fields, machine, &[(STAR | 1 << 32, 0)]),
                    |fields, machine| EXIT_LOAD.write(fields, machine, &[(LSTAR, 1 << 62)]),
                    |fields, _| {
                        fields.put(field::EXIT_MSR_LOAD, NOWHERE);
                        fields.put(field::EXIT_MSR_LOAD_COUNT, 1);
                    },
                ],
            )
        }),
        // The manual's "VMX Aborts".
        Point::new("an abort leaves its number in the VMCS", |fixture| {
            let number = aborts(fixture, |fields, machine| {
                EXIT_STORE.write(fields, machine, &[(SMBASE, 0)]);
            })?;
            expect("of a store", number, STORE_FAILS)?;
            let number = aborts(fixture, |fields, machine| {
                EXIT_LOAD.write(fields, machine, &[(FS_BASE, 0)]);
            })?;
            expect("of a load", number, LOAD_FAILS)
        }),
    ]
}

/// Lets L2 read and write all MSRs without an exit to L1.
fn allow_msrs(fields: &mut Fields, machine: &VmxMachine) {
    use selftests::guest::layout::MSR_MAP;
    use selftests::guest::vmx::control::primary;

    machine.memory().fill(MSR_MAP, 0x1000, 0);
    fields.set(field::PRIMARY, primary::MSR_BITMAPS);
    fields.put(field::MSR_BITMAP, MSR_MAP);
}
