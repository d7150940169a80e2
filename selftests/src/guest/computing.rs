// SPDX-License-Identifier: GPL-2.0

//! An L2 that computes, and calls L1 now and then: what it has in its registers and in memory at
//! its end shows whether anything was lost or done twice.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use super::code::{peek, poke, report, DONE, WRONG};
use super::extension::{self, Extension, Svm, Vmx};
use super::layout::{BUFFER, SHARED};
use super::machine::Interrupts;
use super::vmx::field;
use super::{vmcb, GuestMemory, Machine, Random, Vendor};
use crate::{expect, guest_code_for_both};

/// The test program wants L2 to stop.
const STOP: u64 = SHARED;

/// L2 has stored its results.
const STORED: u64 = SHARED + 8;

/// How often L1 has changed RAX of L2.
const CHANGES: u64 = SHARED + 24;

/// RAX to R15 without RSP and RCX, RCX, and XMM0 of L2 at its end.
const RESULTS: u64 = SHARED + 0x40;

/// What L1 adds to RAX, times the number of the change.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

guest_code_for_both! {
    /// L2: mixes registers, memory and an XMM register; calls L1 after every 16 rounds.
    computing_svm_l2, computing_vmx_l2:
        "2:",
        "add rax, rbx", "rol rax, 7", "xor rbx, rax", "ror rbx, 13", "add rdx, rbx", "xor rsi, rdx",
        "rol rsi, 9", "add rdi, rsi", "xor rbp, rdi", "add r8, rbp", "rol r8, 17", "xor r9, r8",
        "add r10, r9", "xor r11, r10", "add r12, r11", "rol r12, 5", "xor r13, r12",
        "add r14, r13", "xor r15, r14", "xor rax, r15",
        "push rdi", "mov edi, ecx", "and edi, 63", "xor r8, [rdi * 8 + 0xa0000]",
        "add [rdi * 8 + 0xa0000], r15", "pop rdi",
        "movq xmm1, r14", "paddq xmm0, xmm1", "pshufd xmm0, xmm0, 0x39",
        "movq [0x6010], xmm0", "xor r9, [0x6010]",
        "inc rcx", "test cl, 15", "jnz 2b";
        call;
        "cmp qword ptr [0x6000], 0"; "je 2b";
        "mov [0x6040], rax"; "mov [0x6048], rbx"; "mov [0x6050], rdx"; "mov [0x6058], rsi";
        "mov [0x6060], rdi"; "mov [0x6068], rbp"; "mov [0x6070], r8"; "mov [0x6078], r9";
        "mov [0x6080], r10"; "mov [0x6088], r11"; "mov [0x6090], r12"; "mov [0x6098], r13";
        "mov [0x60a0], r14"; "mov [0x60a8], r15"; "mov [0x60b0], rcx"; "movdqu [0x60b8], xmm0";
        "mov qword ptr [0x6008], 1";
        call;
        "ud2".
}

const _: () = assert!(SHARED == 0x6000 && BUFFER == 0xa_0000);

/// L1: answers each call of L2 by a change of its RAX.
extern "C" fn l1<E: Extension>() -> ! {
    // SAFETY: This is L1.
    unsafe {
        E::begin();
        loop {
            E::run_l2();
            if !E::called() {
                let (code, info) = E::exit();
                report(WRONG, code, info);
            } else if peek(STORED) != 0 {
                report(DONE, 0, 0);
            } else {
                let change = peek(CHANGES) + 1;
                poke(CHANGES, change);
                E::change_rax(change.wrapping_mul(STEP));
            }
            E::skip_call();
        }
    }
}

/// The same as L1 and L2 do.
struct Model {
    /// RAX, RBX, RDX, RSI, RDI, RBP, R8 to R15.
    registers: [u64; 14],
    rounds: u64,
    xmm: u128,
    buffer: [u64; 64],
}

impl Model {
    fn new(random: &mut Random) -> Self {
        Self {
            registers: std::array::from_fn(|_| random.number()),
            rounds: 0,
            xmm: 0,
            buffer: std::array::from_fn(|_| random.number()),
        }
    }

    fn round(&mut self) {
        let [rax, rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15] =
            &mut self.registers;
        *rax = rax.wrapping_add(*rbx).rotate_left(7);
        *rbx = (*rbx ^ *rax).rotate_right(13);
        *rdx = rdx.wrapping_add(*rbx);
        *rsi = (*rsi ^ *rdx).rotate_left(9);
        *rdi = rdi.wrapping_add(*rsi);
        *rbp ^= *rdi;
        *r8 = r8.wrapping_add(*rbp).rotate_left(17);
        *r9 ^= *r8;
        *r10 = r10.wrapping_add(*r9);
        *r11 ^= *r10;
        *r12 = r12.wrapping_add(*r11).rotate_left(5);
        *r13 ^= *r12;
        *r14 = r14.wrapping_add(*r13);
        *r15 ^= *r14;
        *rax ^= *r15;
        let word = &mut self.buffer[(self.rounds % 64) as usize];
        *r8 ^= *word;
        *word = word.wrapping_add(*r15);
        let low = (self.xmm as u64).wrapping_add(*r14);
        let sum = self.xmm >> 64 << 64 | u128::from(low);
        self.xmm = sum.rotate_right(32);
        *r9 ^= self.xmm as u64;
        self.rounds += 1;
        if self.rounds & 15 == 0 {
            *rax ^= (self.rounds / 16).wrapping_mul(STEP);
        }
    }
}

/// Writes the state in which L2 begins.
fn prepare(kvm: &Kvm, machine: &Machine, model: &Model) -> Result<()> {
    let [rax, rbx, rdx, rest @ ..] = model.registers;
    let mut registers = [0; 15];
    (registers[0], registers[2], registers[14]) = (rbx, rdx, rax);
    registers[3..14].copy_from_slice(&rest);
    let l2 = match machine.vendor {
        Vendor::Svm => computing_svm_l2 as *const () as u64,
        Vendor::Vmx => computing_vmx_l2 as *const () as u64,
    };
    // None is expected: its exit says more than the shutdown that it would end in.
    extension::prepare_with(kvm, machine, l2, &registers, |fields, _| {
        fields.set(field::EXCEPTION_BITMAP, u32::MAX.into());
    })?;
    let memory = &machine.memory;
    if machine.vendor == Vendor::Svm {
        memory.write(vmcb::INTERCEPTS + vmcb::exit::EXCEPTION / 8, u32::MAX);
    }
    for (address, value) in (BUFFER..).step_by(8).zip(model.buffer) {
        memory.write(address, value);
    }
    memory.fill(SHARED, 0x100, 0);
    Ok(())
}

/// Creates a machine of which L2 computes until it is told to stop.
pub fn machine(kvm: &Kvm, seed: u64) -> Result<Machine> {
    let machine = Machine::new(kvm, 1, Interrupts::None)?;
    match machine.vendor {
        Vendor::Svm => machine.start(0, l1::<Svm>)?,
        Vendor::Vmx => machine.start(0, l1::<Vmx>)?,
    }
    prepare(kvm, &machine, &Model::new(&mut Random::new(seed)))?;
    Ok(machine)
}

/// Returns how often L2 has called L1.
pub fn calls(memory: &GuestMemory) -> u64 {
    memory.read(CHANGES)
}

/// Returns where L2 is and what its exit was, as far as L1's memory says so: with SVM.
fn place(machine: &Machine) -> String {
    if machine.vendor != Vendor::Svm {
        return String::new();
    }
    let read = |(name, at)| format!(" {name} {:#x}", machine.memory.read::<u64>(at));
    let all = [
        ("exit", vmcb::EXIT_CODE),
        ("info 1", vmcb::EXIT_INFO_1),
        ("info 2", vmcb::EXIT_INFO_2),
        ("event", vmcb::EXIT_INT_INFO),
        ("injected", vmcb::EVENT_INJ),
        ("RIP", vmcb::RIP),
        ("RSP", vmcb::RSP),
        ("CR0", vmcb::CR0),
        ("CR2", vmcb::CR2),
        ("CR3", vmcb::CR3),
        ("CR4", vmcb::CR4),
        ("EFER", vmcb::EFER),
    ];
    format!("L2:{}", all.map(read).concat())
}

/// Tells L2 to stop.
pub fn stop(memory: &GuestMemory) {
    memory.write(STOP, 1u64);
}

/// Runs the machine until L2 has stored its results.
pub fn hear(machine: &mut Machine) -> Result<()> {
    let message = machine.hear().with_context(|| place(machine))?;
    expect("the report of L1", message.kind, DONE)
}

/// Stops L2, and checks what it has computed.
pub fn finish(mut machine: Machine, seed: u64) -> Result<()> {
    stop(&machine.memory);
    hear(&mut machine)?;
    compare(&machine.memory, seed)
}

/// Compares what L2 has stored with the model.
pub fn compare(memory: &GuestMemory, seed: u64) -> Result<()> {
    let rounds: u64 = memory.read(RESULTS + 14 * 8);
    let mut model = Model::new(&mut Random::new(seed));
    while model.rounds < rounds {
        model.round();
    }
    let mut seen = [0u64; 14];
    for (address, value) in (RESULTS..).step_by(8).zip(&mut seen) {
        *value = memory.read(address);
    }
    expect("registers of L2", seen, model.registers)?;
    let xmm = [0, 8].map(|offset| memory.read::<u64>(RESULTS + 15 * 8 + offset));
    expect(
        "XMM0 of L2",
        xmm,
        [model.xmm as u64, (model.xmm >> 64) as u64],
    )?;
    for (index, value) in (0u64..).zip(model.buffer) {
        expect(
            format_args!("word {index} of the buffer"),
            memory.read(BUFFER + 8 * index),
            value,
        )?;
    }
    expect("changes by L1", memory.read(CHANGES), rounds / 16)
}
