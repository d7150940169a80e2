// SPDX-License-Identifier: GPL-2.0

//! The bitmaps of ports and MSRs.

use anyhow::Result;
use selftests::guest::layout::{IO_MAP, MSR_MAP};
use selftests::guest::machine::Stop;
use selftests::guest::vmx::control::{primary, reason};
use selftests::guest::vmx::VmxMachine;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// OUT of a byte.
    l2_out_8: "out dx, al", "vmcall";
    /// OUT of 2 bytes.
    l2_out_16: "out dx, ax", "vmcall";
    /// OUT of 4 bytes.
    l2_out_32: "out dx, eax", "vmcall";
    /// IN of a byte.
    l2_in_8: "in al, dx", "vmcall";
    /// IN of 2 bytes.
    l2_in_16: "in ax, dx", "vmcall";
    /// IN of 4 bytes.
    l2_in_32: "in eax, dx", "vmcall";
    /// OUT of a byte to a port that the instruction names.
    l2_out_immediate: "out 0x80, al", "vmcall";
    /// OUTS of a byte.
    l2_outs: "outsb", "vmcall";
    /// RDMSR.
    l2_rdmsr: "rdmsr", "vmcall";
    /// WRMSR.
    l2_wrmsr: "wrmsr", "vmcall";
}

/// All accesses: code, whether it is IN, bytes.
const ACCESSES: [(Code, bool, u16); 6] = [
    (l2_out_8, false, 1),
    (l2_out_16, false, 2),
    (l2_out_32, false, 4),
    (l2_in_8, true, 1),
    (l2_in_16, true, 2),
    (l2_in_32, true, 4),
];

/// The MSR STAR.
const STAR: u32 = 0xc000_0081;

/// An MSR of the first range.
const SYSENTER_CS: u32 = 0x174;

/// An MSR in none of the ranges.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

fn set_bit(machine: &VmxMachine, map: u64, bit: u64) {
    let byte = map + bit / 8;
    let memory = machine.memory();
    memory.write(byte, memory.read::<u8>(byte) | 1 << (bit % 8));
}

/// An access to a port, with some bits of the bitmaps set.
fn access<'a>(port: u16, bits: &'a [u64]) -> impl Fn(&mut Fields, &mut VmxMachine) + 'a {
    move |fields, machine| {
        fields.set(field::PRIMARY, primary::IO_BITMAPS);
        fields.put(field::IO_BITMAP_A, IO_MAP);
        fields.put(field::IO_BITMAP_B, IO_MAP + 0x1000);
        machine.set_register(2, port.into());
        bits.iter().for_each(|bit| set_bit(machine, IO_MAP, *bit));
    }
}

/// Checks that an access exits, and what it says.
fn reflected(
    fixture: &Fixture,
    access_of: (Code, bool, u16),
    port: u16,
    bits: &[u64],
) -> Result<()> {
    let (code, input, size) = access_of;
    let exit = fixture.exits(code, reason::IO, &access(port, bits))?;
    let expected = u64::from(port) << 16 | u64::from(input) << 3 | u64::from(size - 1);
    expect(
        format_args!("qualification of {size} bytes at {port:#x}"),
        exit.qualification,
        expected,
    )?;
    expect("length", exit.length, if size == 2 { 2 } else { 1 })
}

/// Checks that an access goes to user space of L0.
fn passed(fixture: &Fixture, access_of: (Code, bool, u16), port: u16, bits: &[u64]) -> Result<()> {
    let (code, input, size) = access_of;
    let run = fixture.run(code, &access(port, bits))?;
    expect(
        format_args!("what L2 did with {size} bytes at {port:#x}"),
        run.ran,
        Ran::Finished,
    )?;
    let bytes = usize::from(size);
    let expected = if input {
        Stop::In(port, bytes)
    } else {
        Stop::Out(port, vec![0; bytes])
    };
    expect("what user space saw", run.stops, vec![expected])
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = ports();
    points.extend(msrs());
    points
}

fn ports() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "ports whose bit is set are reflected, with size and direction",
            |fixture| {
                ACCESSES
                    .into_iter()
                    .try_for_each(|access| reflected(fixture, access, 0x3f8, &[0x3f8]))
            },
        ),
        Point::new("ports whose bits are clear are not reflected", |fixture| {
            ACCESSES
                .into_iter()
                .try_for_each(|access| passed(fixture, access, 0x3f8, &[]))
        }),
        Point::new("the bit of the last byte of an access counts", |fixture| {
            ACCESSES.into_iter().try_for_each(|access| {
                reflected(fixture, access, 0x3f6, &[0x3f6 + u64::from(access.2) - 1])
            })
        }),
        Point::new("the bits around an access do not count", |fixture| {
            ACCESSES.into_iter().try_for_each(|access| {
                passed(
                    fixture,
                    access,
                    0x3f6,
                    &[0x3f5, 0x3f6 + u64::from(access.2)],
                )
            })
        }),
        Point::new(
            "ports of the upper half are in the second bitmap",
            |fixture| {
                reflected(fixture, ACCESSES[0], 0x8000, &[0x8000])?;
                reflected(fixture, ACCESSES[2], 0x7ffe, &[0x8000])?;
                passed(fixture, ACCESSES[0], 0x8000, &[0, 0x7fff, 0x8001])?;
                reflected(fixture, ACCESSES[3], 0xffff, &[0xffff])
            },
        ),
        Point::new("an access beyond the last port is reflected", |fixture| {
            reflected(fixture, ACCESSES[1], 0xffff, &[])?;
            reflected(fixture, ACCESSES[5], 0xfffe, &[])
        }),
        Point::new(
            "without bitmaps all ports are reflected, or none",
            |fixture| {
                let exit = fixture.exits(l2_out_8, reason::IO, &|fields, machine| {
                    fields.set(field::PRIMARY, primary::IO);
                    machine.set_register(2, 0x3f8);
                })?;
                expect("qualification", exit.qualification, 0x3f8 << 16)?;
                let run = fixture.run(l2_out_8, &|_, machine| machine.set_register(2, 0x3f8))?;
                expect("what L2 did", run.ran, Ran::Finished)
            },
        ),
        Point::new(
            "bitmaps count more than the control for all ports",
            |fixture| {
                let run = fixture.run(l2_out_8, &|fields, machine| {
                    access(0x3f8, &[])(fields, machine);
                    fields.set(field::PRIMARY, primary::IO);
                })?;
                expect("what L2 did", run.ran, Ran::Finished)
            },
        ),
        Point::new(
            "an exit of OUT and OUTS says how the port was given",
            |fixture| {
                let exit = fixture.exits(l2_out_immediate, reason::IO, &|fields, _| {
                    fields.set(field::PRIMARY, primary::IO);
                })?;
                expect(
                    "qualification of an immediate",
                    exit.qualification,
                    0x80 << 16 | 1 << 6,
                )?;
                let exit = fixture.exits(l2_outs, reason::IO, &|fields, machine| {
                    fields.set(field::PRIMARY, primary::IO);
                    machine.set_register(2, 0x3f8);
                    machine.set_register(3, selftests::guest::layout::BUFFER);
                })?;
                expect(
                    "qualification of a string",
                    exit.qualification,
                    0x3f8 << 16 | 1 << 4,
                )?;
                expect("address", exit.linear, selftests::guest::layout::BUFFER)
            },
        ),
    ]
}

fn msrs() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "reads and writes of an MSR are reflected by their bits",
            |fixture| {
                for (msr, read, write) in [
                    (SYSENTER_CS, 0x174, 0x4000 + 0x174),
                    (STAR, 0x2000 + 0x81, 0x6000 + 0x81),
                ] {
                    for (code, reason, own, other) in [
                        (l2_rdmsr as Code, reason::RDMSR, read, write),
                        (l2_wrmsr as Code, reason::WRMSR, write, read),
                    ] {
                        fixture.exits(code, reason, &msr_with(msr, own))?;
                        let run = fixture.run(code, &msr_with(msr, other))?;
                        expect(
                            format_args!("what L2 did with {msr:#x}"),
                            run.ran,
                            Ran::Finished,
                        )?;
                    }
                }
                Ok(())
            },
        ),
        Point::new("an MSR in no range of the bitmap is reflected", |fixture| {
            for (code, reason) in [(l2_rdmsr as Code, reason::RDMSR), (l2_wrmsr, reason::WRMSR)] {
                fixture.exits(code, reason, &msr_with(SYSTEM_TIME, 0))?;
            }
            Ok(())
        }),
        Point::new("without a bitmap all MSRs are reflected", |fixture| {
            for (code, reason) in [(l2_rdmsr as Code, reason::RDMSR), (l2_wrmsr, reason::WRMSR)] {
                fixture.exits(code, reason, &|_, machine| {
                    machine.set_register(1, STAR.into())
                })?;
            }
            Ok(())
        }),
        Point::new("what L2 writes to MSRs it reads, and L1 does", |fixture| {
            let run = fixture.run(l2_wrmsr, &|fields, machine| {
                msr_with(0xc000_0083, 0)(fields, machine);
                machine.set_register(14, 0x1234);
            })?;
            expect("what L2 did", run.ran, Ran::Finished)?;
            fixture.with(|machine| {
                let read = selftests::guest::vmx::script::rdmsr(0xc000_0083);
                let value = machine.answer(read)?;
                expect("CSTAR", value, selftests::guest::vmx::Answer::Done(0x1234))
            })
        }),
    ]
}

/// An access to an MSR, with a bit of the bitmap set.
fn msr_with(msr: u32, bit: u64) -> impl Fn(&mut Fields, &mut VmxMachine) {
    move |fields, machine| {
        fields.set(field::PRIMARY, primary::MSR_BITMAPS);
        fields.put(field::MSR_BITMAP, MSR_MAP);
        machine.set_register(1, msr.into());
        set_bit(machine, MSR_MAP, bit);
    }
}
