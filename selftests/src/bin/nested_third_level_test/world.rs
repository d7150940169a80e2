// SPDX-License-Identifier: GPL-2.0

//! What the levels share: L3, where things are in memory, and what L2 checks after each round.

use core::arch::asm;

use selftests::guest::code::{peek, poke, report_of, DONE, WRONG};
use selftests::guest::layout::{idt, SHARED, STACK, STACKS, STACKS_STEP};
use selftests::guest::{tables, GuestMemory};
use selftests::{guest_code, guest_code_for_both};

/// How often L3 has gone round: L3 counts.
pub const L3_ROUNDS: u64 = SHARED;

/// How often L2 has got L3's call: L2 counts.
pub const L2_ROUNDS: u64 = SHARED + 8;

/// How often L1 has entered L3: L1 counts.
pub const L1_ENTRIES: u64 = SHARED + 0x10;

/// How often L3 has halted: L1 counts.
pub const L1_HALTS: u64 = SHARED + 0x18;

/// How often L2 has exited to execute VMREAD, then VMWRITE: L1 counts.
pub const L1_READS: u64 = SHARED + 0x20;

/// See [`L1_READS`].
pub const L1_WRITES: u64 = SHARED + 0x28;

/// How many rounds L2 does; the test program writes it.
pub const LIMIT: u64 = SHARED + 0x30;

/// Whether L2's VMREAD and VMWRITE are for a shadow VMCS; the test program writes it.
pub const WITH_SHADOW: u64 = SHARED + 0x38;

/// How many interrupts L3 has had: L3 counts.
pub const L3_INTERRUPTS: u64 = SHARED + 0x40;

/// The vector of these, which L2 injects in every third round.
pub const VECTOR: u64 = 0x50;

/// The page table that L1 has for L3.
pub const L3_TABLE: u64 = 0x20_0000;

/// A word that L1's page table for L3 has at another address than that for L2.
pub const PROBE: u64 = 0x20_8000;

/// Where L3 has that word.
const PROBE_OF_L3: u64 = 0x20_9000;

/// The word for L2, and for L3.
const PROBES: [u64; 2] = [0x5555_0000_aaaa_2222, 0x5555_0000_aaaa_3333];

/// L3's stack pointer; its interrupts have a stack of their own.
pub const L3_STACK: u64 = STACKS + STACKS_STEP + STACK - 8;

/// Bytes of VMCALL, VMMCALL and VMRUN.
pub const CALL: u64 = 3;

/// Bytes of HLT.
pub const HALT: u64 = 1;

guest_code_for_both! {
    /// L3: mixes RAX, RBX and a word of memory, halts in every fourth round, and calls L2. It takes some
    /// time, as the other levels do.
    third_level_svm_l3, third_level_vmx_l3:
        "2:",
        "inc qword ptr [0x6000]",
        "mov ecx, 50000", "4:", "dec ecx", "jnz 4b",
        "xor rax, [0x208000]",
        "add rax, rbx", "rol rax, 7", "xor rbx, rax", "ror rbx, 13", "movq xmm0, rbx",
        "test dword ptr [0x6000], 3", "jnz 3f",
        "hlt",
        "3:",
        "movq rbx, xmm0";
        call;
        "jmp 2b".
}

guest_code! {
    /// L3: counts an interrupt.
    third_level_interrupt: "inc qword ptr [0x6040]", "iretq";
}

const _: () = assert!(L3_ROUNDS == 0x6000 && L3_INTERRUPTS == 0x6040 && PROBE == 0x20_8000);

/// Where L2 finds something wrong.
pub mod wrong {
    /// L3 stopped in an unexpected way.
    pub const EXIT: u64 = 0x100;
    /// RAX of L3.
    pub const RAX: u64 = 0x101;
    /// RBX of L3.
    pub const RBX: u64 = 0x102;
    /// How often L3 has gone round.
    pub const COUNT: u64 = 0x103;
    /// Where L3 stopped.
    pub const RIP: u64 = 0x104;
    /// L3's stack pointer.
    pub const RSP: u64 = 0x105;
    /// An instruction of L2 failed.
    pub const FAILED: u64 = 0x106;
    /// An entry of L3 with a state that is not valid did not fail as it should.
    pub const NOT_REFUSED: u64 = 0x107;
    /// L2 reads memory of L3.
    pub const PROBE: u64 = 0x108;
    /// How many interrupts L3 has had.
    pub const INTERRUPTS: u64 = 0x109;
    /// L3 has stopped, and an event is still to be injected.
    pub const EVENT: u64 = 0x10a;
    /// L2 has another interrupt-descriptor table.
    pub const DESCRIPTORS: u64 = 0x10b;
}

/// L2: says that something is wrong, for ever.
///
/// # Safety
///
/// Only L2 may call this.
pub unsafe fn complain(what: u64, seen: u64) -> ! {
    loop {
        // SAFETY: As above.
        unsafe { report_of::<1>(WRONG, what, seen) };
    }
}

/// What L2 knows of L3.
pub struct Expected {
    /// The number of the round.
    pub round: u64,
    /// RAX of L3.
    pub rax: u64,
    /// RBX of L3.
    pub rbx: u64,
}

impl Expected {
    /// The state in which L3 begins.
    pub const START: Self = Self {
        round: 0,
        rax: 0x0123_4567_89ab_cdef,
        rbx: 0xfedc_ba98_7654_3210,
    };

    /// Returns whether there is one more round, and changes RAX for it.
    ///
    /// # Safety
    ///
    /// Only L2 may call this.
    pub unsafe fn another(&mut self) -> bool {
        // SAFETY: As above.
        if self.round >= unsafe { peek(LIMIT) } {
            return false;
        }
        self.round += 1;
        self.rax ^= self.round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        true
    }

    /// Returns whether L2 injects an interrupt in this round.
    pub fn injects(&self) -> bool {
        self.round % 3 == 1
    }

    /// Does what L3 does, and checks what it has done.
    ///
    /// # Safety
    ///
    /// Only L2 may call this.
    pub unsafe fn check(&mut self, rax: u64, rbx: u64) {
        let [of_l2, of_l3] = PROBES;
        self.rax = (self.rax ^ of_l3).wrapping_add(self.rbx).rotate_left(7);
        self.rbx = (self.rbx ^ self.rax).rotate_right(13);
        // SAFETY: As above.
        unsafe {
            if rax != self.rax {
                complain(wrong::RAX, rax);
            }
            if rbx != self.rbx {
                complain(wrong::RBX, rbx);
            }
            let probe = peek(PROBE);
            if probe != of_l2 {
                complain(wrong::PROBE, probe);
            }
            let count = peek(L3_ROUNDS);
            if count != self.round {
                complain(wrong::COUNT, count);
            }
            let descriptors = descriptors();
            if descriptors != idt(1) {
                complain(wrong::DESCRIPTORS, descriptors);
            }
            let interrupts = peek(L3_INTERRUPTS);
            if interrupts != self.round.div_ceil(3) {
                complain(wrong::INTERRUPTS, interrupts);
            }
            poke(L2_ROUNDS, self.round);
        }
    }
}

/// Returns the base of the interrupt-descriptor table.
fn descriptors() -> u64 {
    // A limit of 16 bits, and the base in four parts.
    let mut table = [0u16; 5];
    // SAFETY: It writes ten bytes.
    unsafe { asm!("sidt [{}]", in(reg) table.as_mut_ptr(), options(nostack)) };
    let [_, parts @ ..] = table;
    parts
        .iter()
        .rev()
        .fold(0, |base, part| base << 16 | u64::from(*part))
}

/// L2: says that all rounds are done.
///
/// # Safety
///
/// Only L2 may call this.
pub unsafe fn end() -> ! {
    loop {
        // SAFETY: As above.
        unsafe { report_of::<1>(DONE, 0, 0) };
    }
}

/// Writes L1's page table for L3, the words that tell it from that for L2, and the descriptor of
/// L3's interrupt.
pub fn prepare(memory: &GuestMemory, nested: u64) {
    let [of_l2, of_l3] = PROBES;
    memory.write(PROBE, of_l2);
    memory.write(PROBE_OF_L3, of_l3);
    tables::gate(memory, 2, VECTOR, third_level_interrupt as *const () as u64);
    tables::with_page_at(memory, nested, PROBE, PROBE_OF_L3, L3_TABLE);
}

/// L1: counts something.
///
/// # Safety
///
/// Only L1 may call this.
pub unsafe fn count(counter: u64) {
    // SAFETY: As above.
    unsafe { poke(counter, peek(counter) + 1) }
}
