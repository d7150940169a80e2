// SPDX-License-Identifier: GPL-2.0

//! The rules for the MSRs that an entry loads.

use selftests::guest::layout::MSR_LIST;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;

use crate::Fails::Msr;
use crate::{rules, Cpu, Fixture};

/// An MSR that an entry may load: STAR.
const STAR: (u64, u64) = (0xc000_0081, 0x0023_0010_0000_0000);

/// Lists MSRs to load: the number, with anything in its upper half, and the value.
fn load(fields: &mut Fields, cpu: &Cpu<'_>, msrs: &[(u64, u64)]) {
    for (address, (index, value)) in (MSR_LIST..).step_by(16).zip(msrs) {
        cpu.memory.write(address, *index);
        cpu.memory.write(address + 8, *value);
    }
    fields.put(field::ENTRY_MSR_LOAD, MSR_LIST);
    fields.put(field::ENTRY_MSR_LOAD_COUNT, msrs.len() as u64);
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    rules! {
        "an entry must not load FS_BASE": Msr(1),
            |fields, cpu| load(fields, cpu, &[(0xc000_0100, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR]);
        "an entry must not load GS_BASE": Msr(2),
            |fields, cpu| load(fields, cpu, &[STAR, (0xc000_0101, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR, STAR]);
        "an entry must not load an MSR of the APIC": Msr(1),
            |fields, cpu| load(fields, cpu, &[(0x808, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR]);
        "an entry must not load an MSR of system management": Msr(1),
            |fields, cpu| load(fields, cpu, &[(0x9b, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR]);
        "an entry must not load the MSR of microcode": Msr(1),
            |fields, cpu| load(fields, cpu, &[(0x79, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR]);
        "an entry must not load an MSR with reserved bits": Msr(3),
            |fields, cpu| load(fields, cpu, &[STAR, STAR, (STAR.0 | 1 << 32, STAR.1)]),
            |fields, cpu| load(fields, cpu, &[STAR, STAR, STAR]);
        "an entry must not load an MSR that does not exist": Msr(2),
            |fields, cpu| load(fields, cpu, &[STAR, (0x1234_5678, 0)]),
            |fields, cpu| load(fields, cpu, &[STAR]);
        "an entry must not load a value that WRMSR refuses": Msr(1),
            |fields, cpu| load(fields, cpu, &[(0xc000_0082, 1 << 62)]),
            |fields, cpu| load(fields, cpu, &[(0xc000_0082, 1 << 46)]);
    }
}
