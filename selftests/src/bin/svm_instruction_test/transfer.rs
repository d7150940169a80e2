// SPDX-License-Identifier: GPL-2.0

//! VMLOAD and VMSAVE.

use anyhow::{Context, Result};
use kvm_bindings::{kvm_msr_entry, Msrs};
use selftests::expect;
use selftests::guest::layout::{BUFFER, NOWHERE};
use selftests::guest::machine::Stop;
use selftests::guest::{GuestMemory, Machine};
use selftests::tap::Point;

use crate::{execute, l1_vmload, l1_vmsave, Code, Fixture, Outcome, GP};

/// Where VMSAVE writes.
const OTHER: u64 = BUFFER + 0x1000;

/// Offsets of segments: FS, GS, LDTR, TR.
const SEGMENTS: [u64; 4] = [0x440, 0x450, 0x470, 0x490];

/// Offsets of words and the MSRs that they are for.
const MSRS: [(u64, u32); 8] = [
    (0x600, 0xc000_0081), // STAR
    (0x608, 0xc000_0082), // LSTAR
    (0x610, 0xc000_0083), // CSTAR
    (0x618, 0xc000_0084), // SFMASK
    (0x620, 0xc000_0102), // KernelGSBase
    (0x628, 0x174),       // SYSENTER_CS
    (0x630, 0x175),       // SYSENTER_ESP
    (0x638, 0x176),       // SYSENTER_EIP
];

/// The byte that VMSAVE must leave where it has nothing to write.
const UNTOUCHED: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("VMLOAD loads what VMSAVE is for", load),
        Point::new(
            "VMSAVE writes what VMLOAD has loaded, and nothing else",
            save,
        ),
        Point::new("VMLOAD and VMSAVE check their address", addresses),
        Point::new(
            "VMLOAD and VMSAVE with no memory at their address do not go on",
            nowhere,
        ),
    ]
}

/// Writes a VMCB with values of its own in each field, and loads it.
fn loaded(fixture: &Fixture) -> Result<Machine> {
    let mut machine = fixture.machine()?;
    let memory = machine.memory.clone();
    memory.fill(BUFFER, 0x2000, UNTOUCHED);
    for (index, offset) in (1..).zip(SEGMENTS) {
        memory.write(BUFFER + offset, 0x28u16);
        // LDTR, a busy TSS, or data.
        let attributes = match offset {
            0x470 => 0x82u16,
            0x490 => 0x8b,
            _ => 0xc93,
        };
        memory.write(BUFFER + offset + 2, attributes);
        memory.write(BUFFER + offset + 4, 0x1_0000u32 * index + 0xffff);
        memory.write(BUFFER + offset + 8, 0x1000_0000_1000u64 * u64::from(index));
    }
    for (index, (offset, _)) in (1u64..).zip(MSRS) {
        let value = match offset {
            // Of these the upper half is reserved, or not that of the MSR.
            0x618 | 0x628.. => 0x4000 + index,
            _ => 0x1111_1111_1110 * index,
        };
        memory.write(BUFFER + offset, value);
    }
    let outcome = execute(&mut machine, l1_vmload, [BUFFER, 0, 0])?;
    expect("VMLOAD", outcome, Outcome::Done)?;
    Ok(machine)
}

fn load(fixture: &Fixture) -> Result<()> {
    let machine = loaded(fixture)?;
    let memory = &machine.memory;
    let sregs = machine.vcpus[0].get_sregs().context("KVM_GET_SREGS")?;
    let segments = [sregs.fs, sregs.gs, sregs.ldt, sregs.tr];
    for (offset, segment) in SEGMENTS.into_iter().zip(segments) {
        let seen = (segment.selector, segment.limit, segment.base);
        let at = BUFFER + offset;
        let expected = (memory.read(at), memory.read(at + 4), memory.read(at + 8));
        let what = format_args!("selector, limit, base of the segment at {offset:#x}");
        expect(what, seen, expected)?;
    }
    for (offset, index) in MSRS {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry])?;
        let read = machine.vcpus[0].get_msrs(&mut msrs);
        expect("KVM_GET_MSRS", read.context("KVM_GET_MSRS")?, 1)?;
        let expected = memory.read::<u64>(BUFFER + offset);
        let what = format_args!("MSR {index:#x}");
        expect(what, msrs.as_slice()[0].data, expected)?;
    }
    Ok(())
}

fn save(fixture: &Fixture) -> Result<()> {
    let mut machine = loaded(fixture)?;
    let outcome = execute(&mut machine, l1_vmsave, [OTHER, 0, 0])?;
    expect("VMSAVE", outcome, Outcome::Done)?;
    let memory = &machine.memory;
    for offset in (0..0x1000).step_by(8) {
        let seen = memory.read::<u64>(OTHER + offset);
        let what = format_args!("the word at {offset:#x}");
        expect(what, seen, memory.read::<u64>(BUFFER + offset))?;
    }
    Ok(())
}

/// Both instructions.
const BOTH: [(&str, Code); 2] = [("VMLOAD", l1_vmload), ("VMSAVE", l1_vmsave)];

fn addresses(fixture: &Fixture) -> Result<()> {
    let mut machine = fixture.machine()?;
    untouched(&machine.memory);
    for (name, code) in BOTH {
        for address in [BUFFER + 1, BUFFER + 0x800, 1 << 52, !0xfff, u64::MAX] {
            let outcome = execute(&mut machine, code, [address, 0, 0])?;
            let what = format_args!("{name} of {address:#x}");
            expect(what, outcome, Outcome::Fault(GP, 0))?;
        }
    }
    for address in (BUFFER..BUFFER + 0x2000).step_by(8) {
        expect("memory", machine.memory.read::<u64>(address), UNTOUCHED)?;
    }
    Ok(())
}

fn untouched(memory: &GuestMemory) {
    memory.fill(BUFFER, 0x2000, UNTOUCHED);
}

fn nowhere(fixture: &Fixture) -> Result<()> {
    for (name, code) in BOTH {
        let mut machine = fixture.machine()?;
        let outcome = execute(&mut machine, code, [NOWHERE, 0, 0])?;
        // The processor may execute it without L0: then it is an access to a device.
        let stopped = match &outcome {
            Outcome::Stopped(Stop::InternalError) => true,
            Outcome::Stopped(Stop::Other(stop)) => stop.starts_with("Mmio"),
            _ => false,
        };
        anyhow::ensure!(stopped, "{name}: {outcome:?}");
    }
    Ok(())
}
