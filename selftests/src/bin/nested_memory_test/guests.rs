// SPDX-License-Identifier: GPL-2.0

//! The guests: an L1 that runs L2 without end, and one that writes to vmcb12 or vmcs12.

use anyhow::Result;
use selftests::guest::code::{peek, poke};
use selftests::guest::extension::{self, Extension, Svm, Vmx};
use selftests::guest::layout::{exception, BUFFER, EXCEPTIONS, SHARED, VMCB};
use selftests::guest::machine::Interrupts;
use selftests::guest::{Machine, Vendor};
use selftests::{guest_code, guest_code_for_both};

use crate::Fixture;

/// How often L1 has run L2.
pub const RUNS: u64 = SHARED;

/// How often L2 has gone round.
pub const LOOPS: u64 = SHARED + 8;

/// Where the random numbers of the writer begin.
pub const SEED: u64 = SHARED + 16;

/// A copy of vmcb12 or the VMCSs as they should be.
pub const TEMPLATE: u64 = BUFFER;

/// Bytes of it.
const TEMPLATE_SIZE: u64 = 0x1000;

/// VMRUN that raised an exception.
const FAULTS: u64 = SHARED + 24;

guest_code_for_both! {
    /// L2: counts, and calls L1 now and then.
    memory_test_svm_l2, memory_test_vmx_l2:
        "2:", "inc qword ptr [0x6008]", "test dword ptr [0x6008], 0x3f", "jnz 2b";
        call;
        // L1 has not moved RIP if it is that of another VMCB.
        "jmp 2b".
}

guest_code! {
    /// L2: counts, and never calls L1.
    memory_test_endless_l2: "2:", "inc qword ptr [0x6008]", "jmp 2b";
}

const _: () = assert!(LOOPS == 0x6008);

/// How often L1 runs L2 before it makes it anew.
const RUNS_BEFORE_NEW: u64 = 16;

/// L1: runs L2 again and again, from its beginning if anything is odd, and now and then.
pub extern "C" fn runner<E: Extension>() -> ! {
    // SAFETY: This is L1.
    unsafe {
        E::begin();
        loop {
            E::run_l2();
            let runs = peek(RUNS) + 1;
            poke(RUNS, runs);
            if peek(EXCEPTIONS + exception::COUNT) != 0 {
                poke(FAULTS, peek(FAULTS) + 1);
                poke(EXCEPTIONS + exception::COUNT, 0);
            }
            if E::called() && runs % RUNS_BEFORE_NEW != 0 {
                E::skip_call();
            } else {
                // It would stop in the same way again.
                restore();
                E::begin();
            }
        }
    }
}

/// Returns the program of L1 for an extension.
pub fn runner_of(vendor: Vendor) -> extern "C" fn() -> ! {
    match vendor {
        Vendor::Svm => runner::<Svm>,
        Vendor::Vmx => runner::<Vmx>,
    }
}

/// Makes the pages of vmcb12, or those of the VMCSs, what they should be.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn restore() {
    for offset in (0..TEMPLATE_SIZE).step_by(8) {
        // SAFETY: This is L1.
        unsafe { poke(VMCB + offset, peek(TEMPLATE + offset)) };
    }
}

/// L1 on the other processor: writes to vmcb12 or vmcs12 at random.
pub extern "C" fn writer() -> ! {
    // SAFETY: This is L1.
    unsafe {
        let mut state = peek(SEED) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        loop {
            let area = if next() & 3 == 0 { 0x400 } else { 0 };
            let offset = area + (next() & 0xf8);
            let address = VMCB + offset;
            let value = match next() & 3 {
                0 => next(),
                1 => peek(address) ^ 1 << (next() & 63),
                // Fields that have the size of a word in the lower half.
                2 => next() & 0xffff_ffff,
                _ => peek(TEMPLATE + offset),
            };
            poke(address, value);
            if next() & 15 == 0 {
                restore();
            }
        }
    }
}

/// Which L2 runs.
#[derive(Clone, Copy)]
pub enum Kind {
    /// One that calls L1.
    Calling,
    /// One that does not.
    Endless,
}

/// Creates a machine that is ready to run L2.
pub fn machine(
    fixture: &Fixture,
    kind: Kind,
    vcpus: u64,
    interrupts: Interrupts,
) -> Result<Machine> {
    build(&fixture.kvm, kind, vcpus, interrupts, fixture.seed)
}

/// Creates a machine that is ready to run L2.
pub fn build(
    kvm: &kvm_ioctls::Kvm,
    kind: Kind,
    vcpus: u64,
    interrupts: Interrupts,
    seed: u64,
) -> Result<Machine> {
    let machine = Machine::new(kvm, vcpus, interrupts)?;
    machine.start(0, runner_of(machine.vendor))?;
    if vcpus > 1 {
        machine.start(1, writer)?;
    }
    let memory = &machine.memory;
    let l2 = match (kind, machine.vendor) {
        (Kind::Calling, Vendor::Svm) => memory_test_svm_l2,
        (Kind::Calling, Vendor::Vmx) => memory_test_vmx_l2,
        (Kind::Endless, _) => memory_test_endless_l2,
    };
    let rip = l2 as unsafe extern "C" fn() as *const () as u64;
    extension::prepare(kvm, &machine, rip, &[0; 15])?;
    for offset in (0..TEMPLATE_SIZE).step_by(8) {
        memory.write(TEMPLATE + offset, memory.read::<u64>(VMCB + offset));
    }
    memory.fill(SHARED, 0x100, 0);
    memory.write(SEED, seed);
    Ok(machine)
}
