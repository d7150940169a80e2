// SPDX-License-Identifier: GPL-2.0

//! Floating point: registers that survive context switches, arithmetic that is exact everywhere.

use crate::{mix, sys, Sequence};
use std::arch::asm;

/// Loads all SSE registers and an x87 value, yields the CPU, and stores what is in them then.
fn through_a_switch(input: &[[u64; 2]; 16], output: &mut [[u64; 2]; 16], x87: f64) -> f64 {
    let mut result = 0f64;
    // SAFETY: `input` and `output` hold 16 registers of 16 bytes each; the system call is
    // sched_yield, which touches no memory; all registers that change are named.
    unsafe {
        asm!(
            "fld qword ptr [{x87}]",
            "movdqu xmm0, [{input}]", "movdqu xmm1, [{input} + 16]",
            "movdqu xmm2, [{input} + 32]", "movdqu xmm3, [{input} + 48]",
            "movdqu xmm4, [{input} + 64]", "movdqu xmm5, [{input} + 80]",
            "movdqu xmm6, [{input} + 96]", "movdqu xmm7, [{input} + 112]",
            "movdqu xmm8, [{input} + 128]", "movdqu xmm9, [{input} + 144]",
            "movdqu xmm10, [{input} + 160]", "movdqu xmm11, [{input} + 176]",
            "movdqu xmm12, [{input} + 192]", "movdqu xmm13, [{input} + 208]",
            "movdqu xmm14, [{input} + 224]", "movdqu xmm15, [{input} + 240]",
            "syscall",
            "movdqu [{output}], xmm0", "movdqu [{output} + 16], xmm1",
            "movdqu [{output} + 32], xmm2", "movdqu [{output} + 48], xmm3",
            "movdqu [{output} + 64], xmm4", "movdqu [{output} + 80], xmm5",
            "movdqu [{output} + 96], xmm6", "movdqu [{output} + 112], xmm7",
            "movdqu [{output} + 128], xmm8", "movdqu [{output} + 144], xmm9",
            "movdqu [{output} + 160], xmm10", "movdqu [{output} + 176], xmm11",
            "movdqu [{output} + 192], xmm12", "movdqu [{output} + 208], xmm13",
            "movdqu [{output} + 224], xmm14", "movdqu [{output} + 240], xmm15",
            "fstp qword ptr [{result}]",
            x87 = in(reg) &x87,
            input = in(reg) input.as_ptr(),
            output = in(reg) output.as_mut_ptr(),
            result = in(reg) &mut result,
            inout("rax") libc::SYS_sched_yield => _,
            out("rcx") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    result
}

/// Several processes keep their own values in the registers while they yield to each other.
pub fn registers(seed: u64) -> Result<u64, String> {
    let mut children = Vec::new();
    for process in 0..3u64 {
        children.push(sys::fork(|| {
            let mut sequence = Sequence::new(seed.wrapping_add(process));
            for _ in 0..100 {
                let input =
                    std::array::from_fn(|_| [sequence.next_number(), sequence.next_number()]);
                let mut output = [[0; 2]; 16];
                let number = (sequence.next_number() >> 12) as f64;
                let result = through_a_switch(&input, &mut output, number);
                if input != output || number.to_bits() != result.to_bits() {
                    return 1;
                }
            }
            0
        })?);
    }
    for child in children {
        if sys::wait(child)? != 0 {
            return Err("a register changed across a context switch".into());
        }
    }
    Ok(mix(seed, 300))
}

/// Additions, multiplications, divisions and square roots: IEEE 754 leaves no freedom in them.
pub fn arithmetic(seed: u64) -> Result<u64, String> {
    let mut sequence = Sequence::new(seed);
    let mut hash = seed;
    let mut value = 1.0f64;
    for _ in 0..4000 {
        let other = (sequence.next_number() >> 11) as f64 / 4096.0 + 0.5;
        value = (value * other + 3.0).abs().sqrt() / (other + 1.0) + (value - other) * 1e-9;
        let single = (value as f32 * 1.25).to_bits();
        hash = mix(hash, value.to_bits() ^ u64::from(single));
    }
    if value.is_finite() {
        Ok(hash)
    } else {
        Err(format!("the result is {value}"))
    }
}
