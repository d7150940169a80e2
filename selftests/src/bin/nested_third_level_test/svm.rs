// SPDX-License-Identifier: GPL-2.0

//! The levels with SVM: L1 runs L3 with a VMCB that it makes of the one that L2 gives to VMRUN.

use anyhow::Result;
use kvm_ioctls::Kvm;
use selftests::guest::code::{peek, poke, report, run_l2, stgi, WRONG};
use selftests::guest::extension;
use selftests::guest::layout::{idt, REGISTERS, VMCB};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::Machine;

use crate::world::{
    complain, count, end, third_level_svm_l3, wrong, Expected, CALL, HALT, L1_ENTRIES, L1_HALTS,
    L3_STACK, L3_TABLE, VECTOR,
};

/// From L1's VMCB of L2 to L2's VMCB of L3.
const WANTED: u64 = 0x1000;

/// From L1's VMCB of L2 to L1's VMCB of L3.
const USED: u64 = 0x2000;

/// Where L1 keeps the VMCB of L3.
pub const OF_L3: u64 = VMCB + USED;

/// L2's registers of L3.
const L3_REGISTERS: u64 = REGISTERS + 0x80;

/// CR0.NW, which is illegal without CR0.CD.
const NW: u64 = 1 << 29;

/// From a VMCB to its guest's state, and to its end.
const STATE: (u64, u64) = (0x400, 0x700);

/// An event that is valid: an external interrupt.
const VALID: u64 = 1 << 31;

/// What the processor may have kept of a VMCB: all but the last branches and what is newer.
const CLEAN: u32 = 0x3ff;

/// That of it which has the control registers.
const CLEAN_CONTROL_REGISTERS: u32 = 1 << 5;

/// L1's address-space identifier for L3.
const ASID: u32 = 2;

/// L2: runs L3 as often as it should, and checks how it stops.
pub extern "C" fn l2() -> ! {
    let vmcb = |field: u64| field + WANTED;
    // SAFETY: This is L2.
    unsafe {
        let mut expected = Expected::START;
        while expected.another() {
            if expected.round & 15 == 0 {
                refused();
            }
            poke(vmcb(vmcb::RAX), expected.rax);
            poke(L3_REGISTERS, expected.rbx);
            let event = if expected.injects() {
                VALID | VECTOR
            } else {
                0
            };
            poke(vmcb(vmcb::EVENT_INJ), event);
            run_l2(VMCB + WANTED, L3_REGISTERS);
            let code = peek(vmcb(vmcb::EXIT_CODE));
            if code != exit::VMMCALL {
                complain(wrong::EXIT, code);
            }
            let event = peek(vmcb(vmcb::EXIT_INT_INFO));
            if event & VALID != 0 {
                complain(wrong::EVENT, event);
            }
            expected.check(peek(vmcb(vmcb::RAX)), peek(L3_REGISTERS));
            let stack = peek(vmcb(vmcb::RSP));
            if stack != L3_STACK {
                complain(wrong::RSP, stack);
            }
            let rip = peek(vmcb(vmcb::RIP));
            // The call is the end of L3's code but for the jump back.
            let start = third_level_svm_l3 as *const () as u64;
            if rip.wrapping_sub(start) > 0x80 {
                complain(wrong::RIP, rip);
            }
            poke(vmcb(vmcb::RIP), rip + CALL);
        }
        end()
    }
}

/// Gives VMRUN a state of L3 that is not valid.
///
/// # Safety
///
/// Only L2 may call this.
unsafe fn refused() {
    let cr0 = vmcb::CR0 + WANTED;
    // SAFETY: As above.
    unsafe {
        let before = peek(cr0);
        poke(cr0, before | NW);
        run_l2(VMCB + WANTED, L3_REGISTERS);
        let code = peek(vmcb::EXIT_CODE + WANTED);
        if code != exit::INVALID {
            complain(wrong::NOT_REFUSED, code);
        }
        poke(cr0, before);
    }
}

/// L1: runs L2, and L3 when L2 executes VMRUN.
pub extern "C" fn l1() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            run_l2(VMCB, REGISTERS);
            stgi();
            let (code, given) = (peek(vmcb::EXIT_CODE), peek(vmcb::RAX));
            if code != exit::VMRUN || given != VMCB + WANTED {
                report(WRONG, code, given);
                continue;
            }
            (vmcb::CLEAN as *mut u32).write_volatile(CLEAN);
            merge();
            loop {
                // L3 begins with L2's registers, and L2 goes on with those of L3.
                run_l2(OF_L3, REGISTERS);
                stgi();
                if peek(vmcb::EXIT_CODE + USED) == exit::INVALID {
                    break;
                }
                count(L1_ENTRIES);
                if peek(vmcb::EXIT_CODE + USED) != exit::HLT {
                    break;
                }
                let rip = vmcb::RIP + USED;
                poke(rip, peek(rip) + HALT);
                poke(vmcb::EVENT_INJ + USED, 0);
                count(L1_HALTS);
            }
            give_back();
            poke(vmcb::RIP, peek(vmcb::RIP) + CALL);
        }
    }
}

/// Makes the VMCB of L3 of what L2 wants.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn merge() {
    let copy = |from: u64, to: u64| {
        for offset in (from..to).step_by(8) {
            // SAFETY: As above.
            unsafe { poke(OF_L3 + offset, peek(VMCB + WANTED + offset)) };
        }
    };
    // SAFETY: As above.
    unsafe {
        let clean = match peek(L1_ENTRIES) {
            0 => 0,
            _ if peek(vmcb::CR0 + USED) != peek(vmcb::CR0 + WANTED) => {
                CLEAN & !CLEAN_CONTROL_REGISTERS
            }
            _ => CLEAN,
        };
        copy(0, vmcb::NESTED_CR3 - VMCB);
        copy(STATE.0, STATE.1);
        ((vmcb::CLEAN + USED) as *mut u32).write_volatile(clean);
        let halts = (vmcb::INTERCEPTS + USED + exit::HLT / 32 * 4) as *mut u32;
        halts.write_volatile(halts.read_volatile() | 1 << (exit::HLT % 32));
        for own in [vmcb::IOPM, vmcb::MSRPM] {
            poke(own + USED, peek(own));
        }
        poke(vmcb::NESTED_CR3 + USED, L3_TABLE);
        ((vmcb::ASID + USED) as *mut u32).write_volatile(ASID);
    }
}

/// Gives L3's exit to L2.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn give_back() {
    let copy = |from: u64, to: u64| {
        for offset in (from..to).step_by(8) {
            // SAFETY: As above.
            unsafe { poke(VMCB + WANTED + offset, peek(OF_L3 + offset)) };
        }
    };
    copy(vmcb::INT_STATE - VMCB, vmcb::MISC_CTL - VMCB);
    copy(vmcb::NEXT_RIP - VMCB, vmcb::NEXT_RIP - VMCB + 8);
    copy(STATE.0, STATE.1);
}

/// Prepares L2, and the VMCB that it begins with.
pub fn prepare(kvm: &Kvm, machine: &Machine) -> Result<()> {
    let memory = &machine.memory;
    let l2 = l2 as *const () as u64;
    extension::prepare(kvm, machine, l2, &[0; 15])?;
    for offset in (0..0x1000).step_by(8) {
        memory.write(VMCB + WANTED + offset, memory.read::<u64>(VMCB + offset));
    }
    memory.write(vmcb::RIP + WANTED, third_level_svm_l3 as *const () as u64);
    memory.write(vmcb::RSP + WANTED, L3_STACK);
    memory.write(vmcb::SEGMENTS + WANTED + 16 * 8 + 8, idt(2));
    memory.fill(L3_REGISTERS, 0x70, 0);
    memory.fill(OF_L3, 0x1000, 0);
    Ok(())
}
