// SPDX-License-Identifier: GPL-2.0

//! The permission maps of ports and MSRs.

use anyhow::Result;
use selftests::guest::layout::{IO_MAP, MSR_MAP, REGISTERS};
use selftests::guest::machine::Stop;
use selftests::guest::vmcb::{self, exit};
use selftests::guest::GuestMemory;
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// OUT of a byte.
    l2_out_8: "out dx, al", "vmmcall";
    /// OUT of 2 bytes.
    l2_out_16: "out dx, ax", "vmmcall";
    /// OUT of 4 bytes.
    l2_out_32: "out dx, eax", "vmmcall";
    /// IN of a byte.
    l2_in_8: "in al, dx", "vmmcall";
    /// IN of 2 bytes.
    l2_in_16: "in ax, dx", "vmmcall";
    /// IN of 4 bytes.
    l2_in_32: "in eax, dx", "vmmcall";
    /// RDMSR.
    l2_rdmsr: "rdmsr", "vmmcall";
    /// WRMSR.
    l2_wrmsr: "wrmsr", "vmmcall";
}

/// A direction of ports.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    In,
    Out,
}

/// All accesses: code, direction, bytes.
const ACCESSES: [(Code, Direction, u16); 6] = [
    (l2_out_8, Direction::Out, 1),
    (l2_out_16, Direction::Out, 2),
    (l2_out_32, Direction::Out, 4),
    (l2_in_8, Direction::In, 1),
    (l2_in_16, Direction::In, 2),
    (l2_in_32, Direction::In, 4),
];

/// The MSR STAR.
const STAR: u32 = 0xc000_0081;

/// An MSR of the first range.
const SYSENTER_CS: u32 = 0x174;

/// An MSR in none of the ranges.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

fn set_bit(memory: &GuestMemory, map: u64, bit: u64) {
    let byte = map + bit / 8;
    memory.write(byte, memory.read::<u8>(byte) | 1 << (bit % 8));
}

fn set_rdx(memory: &GuestMemory, value: u64) {
    memory.write(REGISTERS + 16, value);
}

fn set_rcx(memory: &GuestMemory, value: u32) {
    memory.write(REGISTERS + 8, u64::from(value));
}

/// An access to a port, with some bits of the map set.
fn access(port: u16, bits: &[u64]) -> impl Fn(&GuestMemory) + '_ {
    move |memory| {
        vmcb::set_intercept(memory, exit::IOIO);
        set_rdx(memory, port.into());
        for bit in bits {
            set_bit(memory, IO_MAP, *bit);
        }
    }
}

/// Checks that an access exits, and what it says.
fn reflected(
    fixture: &Fixture,
    access_of: (Code, Direction, u16),
    port: u16,
    bits: &[u64],
) -> Result<()> {
    let (code, direction, size) = access_of;
    let info = fixture.exits(code, exit::IOIO, access(port, bits))?;
    // Segment and address size do not matter without a string.
    let seen = info.first & 0xffff_007f;
    let input = u64::from(direction == Direction::In);
    let expected = u64::from(port) << 16 | u64::from(size) << 4 | input;
    expect(
        format_args!("EXITINFO1 of {size} bytes at {port:#x}"),
        seen,
        expected,
    )?;
    let length = if size == 2 { 2 } else { 1 };
    expect("EXITINFO2", info.second, code as *const () as u64 + length)
}

/// Checks that an access goes to user space of L0.
fn passed(
    fixture: &Fixture,
    access_of: (Code, Direction, u16),
    port: u16,
    bits: &[u64],
) -> Result<()> {
    let (code, direction, size) = access_of;
    let (ran, stops) = fixture.run(code, access(port, bits))?;
    expect(
        format_args!("what L2 did with {size} bytes at {port:#x}"),
        ran,
        Ran::Finished,
    )?;
    let bytes = usize::from(size);
    let expected = match direction {
        Direction::Out => Stop::Out(port, vec![0; bytes]),
        Direction::In => Stop::In(port, bytes),
    };
    expect("what user space saw", stops, vec![expected])
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
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
            "an access beyond the last port is checked in the third page",
            |fixture| {
                reflected(fixture, ACCESSES[1], 0xffff, &[0x1_0000])?;
                reflected(fixture, ACCESSES[2], 0xffff, &[0x1_0002])?;
                reflected(fixture, ACCESSES[5], 0xfffe, &[0x1_0001])
            },
        ),
        Point::new(
            "an access beyond the last port does not wrap to port 0",
            |fixture| passed(fixture, ACCESSES[1], 0xffff, &[0, 1, 0x1_0001]),
        ),
        Point::new(
            "without the intercept the map of ports does not matter",
            |fixture| {
                let (ran, stops) = fixture.run(l2_out_8, |memory| {
                    access(0x3f8, &[0x3f8])(memory);
                    vmcb::clear_intercept(memory, exit::IOIO);
                })?;
                expect("what L2 did", ran, Ran::Finished)?;
                expect(
                    "what user space saw",
                    stops,
                    vec![Stop::Out(0x3f8, vec![0])],
                )
            },
        ),
        Point::new("reads of an MSR are reflected by their bit", |fixture| {
            [(STAR, 0x4000 + 2 * 0x81), (SYSENTER_CS, 2 * 0x174)]
                .into_iter()
                .try_for_each(|(msr, bit)| msr_bits(fixture, msr, bit))
        }),
        Point::new("an MSR in no range of the map is reflected", |fixture| {
            for (code, info) in [(l2_rdmsr as Code, 0), (l2_wrmsr as Code, 1)] {
                let seen = fixture.exits(code, exit::MSR, |memory| {
                    vmcb::set_intercept(memory, exit::MSR);
                    set_rcx(memory, SYSTEM_TIME);
                })?;
                expect("EXITINFO1", seen.first, info)?;
            }
            Ok(())
        }),
        Point::new(
            "without the intercept the map of MSRs does not matter",
            |fixture| {
                let (ran, _) = fixture.run(l2_rdmsr, |memory| {
                    set_rcx(memory, STAR);
                    memory.fill(MSR_MAP, 0x2000, u64::MAX);
                })?;
                expect("what L2 did", ran, Ran::Finished)
            },
        ),
    ]
}

/// Checks the bits of an MSR, of which the first is for reads and the second for writes.
fn msr_bits(fixture: &Fixture, msr: u32, bit: u64) -> Result<()> {
    for (code, own, other) in [(l2_rdmsr as Code, 0, 1), (l2_wrmsr as Code, 1, 0)] {
        let with = |offset| {
            move |memory: &GuestMemory| {
                vmcb::set_intercept(memory, exit::MSR);
                set_rcx(memory, msr);
                set_bit(memory, MSR_MAP, bit + offset);
            }
        };
        let info = fixture.exits(code, exit::MSR, with(own))?;
        expect(format_args!("EXITINFO1 of {msr:#x}"), info.first, own)?;
        let (ran, _) = fixture.run(code, with(other))?;
        expect(
            format_args!("what L2 did with {msr:#x}"),
            ran,
            Ran::Finished,
        )?;
    }
    Ok(())
}
