// SPDX-License-Identifier: GPL-2.0

//! L1 on processors that run L2 with the same VMCB or VMCS, each as if it were alone.
//!
//! An exit loads what the other processor has put there, also L1's own stack pointer with VMX. The
//! only thing that is certainly a processor's own are registers that no exit loads: R15 has the
//! address of its [`area`].

use core::arch::{asm, global_asm};
use core::fmt::{self, Display, Formatter};

use anyhow::Result;
use kvm_ioctls::Kvm;
use selftests::guest::code::{peek, poke};
use selftests::guest::extension::{Extension, Vmx};
use selftests::guest::layout::{BUFFER, OTHER_VMCS, VMCB, VMCS, VMXON_REGION, VMX_REVISION};
use selftests::guest::machine::{Interrupts, RFLAGS_IF};
use selftests::guest::vmx::code::{outcome, vmclear, vmptrld, vmread, vmwrite};
use selftests::guest::vmx::control::{self, reason, Capabilities};
use selftests::guest::vmx::{field, script, Fields};
use selftests::guest::{vmcb, GuestMemory, Machine, Vendor};
use selftests::guest_code_for_both;

/// Distance of the areas of two processors.
const AREA_STEP: u64 = 0x1000;

/// What a processor has in its area.
mod area {
    /// The stack of L1 while L2 runs, with VMX.
    pub const STACK: u64 = 0;
    /// How often L2 has gone round.
    pub const LOOPS: u64 = 8;
    /// Where the random numbers begin.
    pub const SEED: u64 = 16;
    /// The last exit of another kind.
    pub const OTHER: u64 = 24;
    /// How often entries ended in each way.
    pub const COUNTS: u64 = 32;
}

/// L2 has called L1.
const CALLED: u64 = 0;

/// VMfail.
const FAILED: u64 = 1;

/// L2's state is not valid.
const INVALID: u64 = 2;

/// Something else.
const OTHER: u64 = 3;

/// How often L2 goes round before it calls L1.
const ROUNDS: u64 = 20;

guest_code_for_both! {
    /// L2: counts in the area of its processor, and calls L1.
    sharing_svm_l2, sharing_vmx_l2:
        "2:", "inc qword ptr [r15 + 8]", "dec rcx", "jg 2b";
        call;
        // L1 on the other processor may have moved RIP.
        "mov ecx, 20"; "jmp 2b".
}

const _: () = assert!(area::LOOPS == 8 && area::STACK == 0 && ROUNDS == 20);

global_asm!(
    // sharing_vmx_enter(rdi: area, rsi: not 0 for VMRESUME). Returns 0 after an exit, 1 after
    // VMfailInvalid, 2 after VMfailValid.
    ".global sharing_vmx_enter",
    "sharing_vmx_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov r15, rdi",
    "mov ecx, {rounds}",
    "test rsi, rsi",
    "jz 2f",
    "vmresume",
    "jmp 3f",
    "2:",
    "vmlaunch",
    "3:",
    "mov eax, 1",
    "jc 5f",
    "mov eax, 2",
    "jmp 5f",
    ".global sharing_vmx_exited",
    "sharing_vmx_exited:",
    "mov rsp, [r15]",
    "xor eax, eax",
    "5:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    rounds = const ROUNDS,
);

extern "C" {
    fn sharing_vmx_enter(area: u64, resume: u64) -> u64;
    fn sharing_vmx_exited();
}

/// Returns the next of L1's random numbers.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// # Safety
///
/// Only L1 may call this.
unsafe fn count(area: u64, kind: u64, code: u64) {
    let counter = area + area::COUNTS + 8 * kind;
    // SAFETY: As above.
    unsafe {
        poke(counter, peek(counter) + 1);
        if kind == OTHER {
            poke(area + area::OTHER, code);
        }
    }
}

/// L1 with SVM: runs L2, and makes its VMCB one that is not valid now and then.
extern "C" fn svm<const PROCESSOR: u64>() -> ! {
    let area = BUFFER + PROCESSOR * AREA_STEP;
    let asid = vmcb::ASID as *mut u32;
    // SAFETY: This is L1.
    unsafe {
        let mut random = peek(area + area::SEED);
        loop {
            let choice = next(&mut random);
            // An address-space identifier of 0 is illegal.
            asid.write_volatile(u32::from(choice & 31 != 0));
            if choice >> 8 & 3 != 0 {
                poke(vmcb::RIP, sharing_svm_l2 as *const () as u64);
            }
            asm!("vmrun rax", "stgi", inout("rax") VMCB => _, inout("rcx") ROUNDS => _,
                 in("r15") area, options(nostack));
            let code = peek(vmcb::EXIT_CODE);
            let kind = match code {
                vmcb::exit::VMMCALL => CALLED,
                vmcb::exit::INVALID => INVALID,
                _ => OTHER,
            };
            count(area, kind, code);
        }
    }
}

/// L1 with VMX: runs L2, and makes the VMCS current, clear and new now and then.
extern "C" fn vmx<const PROCESSOR: u64>() -> ! {
    let area = BUFFER + PROCESSOR * AREA_STEP;
    let (vmcs, other) = (VMCS, OTHER_VMCS);
    let (vmcs, other) = (&raw const vmcs as u64, &raw const other as u64);
    // SAFETY: This is L1.
    unsafe {
        let mut random = peek(area + area::SEED);
        let mut resume = false;
        Vmx::begin();
        loop {
            let choice = next(&mut random);
            match choice & 31 {
                0 => {
                    Vmx::begin();
                    resume = false;
                }
                1..=3 => {
                    vmclear(vmcs);
                    vmptrld(vmcs);
                    resume = false;
                }
                // The processor may keep a VMCS to itself as long as it is the current one.
                4..=11 => {
                    vmptrld(other);
                    vmptrld(vmcs);
                }
                _ => (),
            }
            if choice >> 8 & 3 != 0 {
                vmwrite(field::GUEST_RIP.into(), sharing_vmx_l2 as *const () as u64);
            }
            let (kind, code) = match sharing_vmx_enter(area, resume.into()) {
                outcome::DONE => match vmread(field::EXIT_REASON.into()).1 {
                    reason::VMCALL => (CALLED, 0),
                    code if code >> 31 & 1 == 1 => (INVALID, code),
                    code => (OTHER, code),
                },
                code => (FAILED, code),
            };
            // The other processor may have launched or cleared it.
            resume = match kind {
                FAILED => !resume,
                INVALID => resume,
                _ => true,
            };
            count(area, kind, code);
        }
    }
}

/// What became of the entries of a processor.
#[derive(Clone, Copy)]
pub struct Counts {
    /// L2 called L1.
    pub called: u64,
    /// VMfail.
    failed: u64,
    /// L2's state was not valid.
    invalid: u64,
    /// Something else.
    other: u64,
    /// The last of these.
    last_other: u64,
    /// How often L2 went round.
    pub loops: u64,
}

impl Counts {
    /// Reads what a processor has counted.
    pub fn read(memory: &GuestMemory, processor: u64) -> Self {
        let area = BUFFER + processor * AREA_STEP;
        let counter = |kind: u64| memory.read::<u64>(area + area::COUNTS + 8 * kind);
        Self {
            called: counter(CALLED),
            failed: counter(FAILED),
            invalid: counter(INVALID),
            other: counter(OTHER),
            last_other: memory.read(area + area::OTHER),
            loops: memory.read(area + area::LOOPS),
        }
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            called,
            failed,
            invalid,
            other,
            last_other,
            loops,
        } = self;
        write!(
            f,
            "{called} calls, {failed} times VMfail, {invalid} invalid states, {other} other exits \
             (the last one {last_other:#x}), {loops} rounds of L2"
        )
    }
}

/// Creates a machine whose two processors are about to run L2 with the same VMCB or VMCS.
pub fn machine(kvm: &Kvm, seed: u64) -> Result<Machine> {
    let machine = Machine::new(kvm, 2, Interrupts::None)?;
    let memory = &machine.memory;
    let l1: [extern "C" fn() -> !; 2] = match machine.vendor {
        Vendor::Svm => {
            vmcb::write(memory, &machine.tables, sharing_svm_l2 as *const () as u64);
            [svm::<0>, svm::<1>]
        }
        Vendor::Vmx => {
            let capabilities = Capabilities::read(kvm)?;
            memory.write(VMX_REVISION, u64::from(capabilities.revision()));
            let l2 = sharing_vmx_l2 as *const () as u64;
            let mut fields = control::fields(&capabilities, &machine.tables, 0, l2)?;
            // As for L1.
            fields.set(field::GUEST_RFLAGS, RFLAGS_IF);
            fields.put(field::HOST_RIP, sharing_vmx_exited as *const () as u64);
            let mut operations = vec![
                script::vmxon(VMXON_REGION),
                script::vmclear(VMCS),
                script::vmptrld(VMCS),
            ];
            operations.extend(
                fields
                    .beyond(&Fields::default())
                    .map(|(field, value)| script::vmwrite(field.into(), value)),
            );
            script::write(memory, &operations);
            [vmx::<0>, vmx::<1>]
        }
    };
    for (processor, l1) in (0..).zip(l1) {
        let area = BUFFER + processor * AREA_STEP;
        memory.fill(area, AREA_STEP, 0);
        memory.write(area + area::SEED, seed.wrapping_mul(2 * processor + 1) | 1);
        machine.start(usize::try_from(processor)?, l1)?;
    }
    Ok(machine)
}
