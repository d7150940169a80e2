// SPDX-License-Identifier: GPL-2.0

//! L2 with VMX: it makes the VMCS of L3 by the instructions of VMX, all of which exit to L1.

use core::arch::asm;

use selftests::guest::code::{peek, poke};
use selftests::guest::layout::{BUFFER, VMX_REGISTERS, VMX_REGISTERS_STEP};
use selftests::guest::vmx::code::{enter, outcome};
use selftests::guest::vmx::control::reason;
use selftests::guest::vmx::field;

use crate::world::{complain, end, third_level_vmx_l3, wrong, Expected, CALL, L3_STACK, VECTOR};

/// L2's region of VMXON.
pub const REGION: u64 = BUFFER;

/// L2's VMCS of L3.
pub const VMCS: u64 = BUFFER + 0x1000;

/// The fields of it: how many, then the encoding and the value of each; the test program writes them.
pub const FIELDS: u64 = BUFFER + 0x4000;

/// L2's registers of L3; see [`enter`].
pub const L3_REGISTERS: u64 = VMX_REGISTERS + VMX_REGISTERS_STEP;

/// RBX among these.
const RBX: u64 = L3_REGISTERS;

/// RAX among these.
const RAX: u64 = L3_REGISTERS + 14 * 8;

/// RFLAGS of L3 whose bit 1, which is always set, is not.
const ILLEGAL_RFLAGS: u64 = 0;

/// An event that is valid: an external interrupt.
const VALID: u64 = 1 << 31;

/// Defines instructions of L2 that complain if they fail: L2 expects no exception.
macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident($($operand:ident),*): $code:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// Only L2 may call this.
        unsafe fn $name($($operand: u64),*) {
            let failed: u8;
            // SAFETY: As above.
            unsafe {
                asm!($code, "setbe {failed}", failed = out(reg_byte) failed,
                     $($operand = in(reg) $operand),*);
                if failed != 0 {
                    complain(wrong::FAILED, 0);
                }
            }
        }
    )*};
}

instructions! {
    /// VMXON; the operand is the address of the pointer, as for the others.
    vmxon(operand): "vmxon qword ptr [{operand}]";
    /// VMCLEAR.
    vmclear(operand): "vmclear qword ptr [{operand}]";
    /// VMPTRLD.
    vmptrld(operand): "vmptrld qword ptr [{operand}]";
    /// VMWRITE.
    vmwrite(field, value): "vmwrite {field}, {value}";
}

/// VMREAD.
///
/// # Safety
///
/// Only L2 may call this.
unsafe fn vmread(field: u32) -> u64 {
    let (value, failed): (u64, u8);
    // SAFETY: As above.
    unsafe {
        asm!("vmread {value}, {field}", "setbe {failed}", failed = out(reg_byte) failed,
             value = out(reg) value, field = in(reg) u64::from(field));
        if failed != 0 {
            complain(wrong::FAILED, field.into());
        }
    }
    value
}

/// L2: runs L3 as often as it should, and checks how it stops.
pub extern "C" fn l2() -> ! {
    let (region, vmcs) = (REGION, VMCS);
    // SAFETY: This is L2.
    unsafe {
        vmxon(&raw const region as u64);
        vmclear(&raw const vmcs as u64);
        vmptrld(&raw const vmcs as u64);
        for index in 0..peek(FIELDS) {
            let field = FIELDS + 8 + 16 * index;
            vmwrite(peek(field), peek(field + 8));
        }
        let mut expected = Expected::START;
        while expected.another() {
            if expected.round & 15 == 0 {
                refused();
            }
            poke(RAX, expected.rax);
            poke(RBX, expected.rbx);
            if expected.injects() {
                vmwrite(field::ENTRY_EVENT.into(), VALID | VECTOR);
            }
            let ended = enter(L3_REGISTERS, u64::from(expected.round != 1));
            if ended != outcome::DONE {
                complain(wrong::FAILED, ended);
            }
            let code = vmread(field::EXIT_REASON);
            if code != reason::VMCALL {
                complain(wrong::EXIT, code);
            }
            let event = vmread(field::ENTRY_EVENT);
            if event & VALID != 0 {
                complain(wrong::EVENT, event);
            }
            expected.check(peek(RAX), peek(RBX));
            let stack = vmread(field::GUEST_RSP);
            if stack != L3_STACK {
                complain(wrong::RSP, stack);
            }
            let rip = vmread(field::GUEST_RIP);
            let start = third_level_vmx_l3 as *const () as u64;
            // The call is the end of L3's code but for the jump back.
            if rip.wrapping_sub(start) > 0x80 || vmread(field::EXIT_LENGTH) != CALL {
                complain(wrong::RIP, rip);
            }
            vmwrite(field::GUEST_RIP.into(), rip + CALL);
        }
        end()
    }
}

/// Enters a state of L3 that is not valid.
///
/// # Safety
///
/// Only L2 may call this, when it has entered L3 before.
unsafe fn refused() {
    // SAFETY: As above.
    unsafe {
        let before = vmread(field::GUEST_RFLAGS);
        vmwrite(field::GUEST_RFLAGS.into(), ILLEGAL_RFLAGS);
        let ended = enter(L3_REGISTERS, 1);
        let code = vmread(field::EXIT_REASON);
        if ended != outcome::DONE || code != reason::INVALID_STATE {
            complain(wrong::NOT_REFUSED, code);
        }
        vmwrite(field::GUEST_RFLAGS.into(), before);
    }
}
