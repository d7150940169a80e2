// SPDX-License-Identifier: GPL-2.0

//! What an L1 does with SVM and with VMX, where it is the same for both.
//!
//! The test program prepares L2 by [`prepare`]; L1 calls [`Extension::begin`] once, then
//! [`Extension::run_l2`] as often as it likes.

use anyhow::Result;
use kvm_ioctls::Kvm;

use super::code::{self, peek, poke, stgi};
use super::layout::{
    OTHER_VMCS, REGISTERS, VMCB, VMCS, VMXON_REGION, VMX_OUTCOME, VMX_REGISTERS, VMX_REVISION,
};
use super::machine::RFLAGS_IF;
use super::vmx::code::{enter, outcome, vmread, vmwrite};
use super::vmx::control::{self, reason, Capabilities};
use super::vmx::{field, script, Fields};
use super::{vmcb, Machine, Vendor};

/// Bytes of VMCALL and of VMMCALL.
const CALL: u64 = 3;

/// An extension, as L1 uses it.
pub trait Extension {
    /// Makes what the test program has prepared the L2 that runs next; also after something odd.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn begin();

    /// Runs L2 until it exits.
    ///
    /// # Safety
    ///
    /// Only L1 may call this, after [`Self::begin`].
    unsafe fn run_l2();

    /// Returns the code of the exit, and more about it.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn exit() -> (u64, u64);

    /// Returns whether L2 has called L1.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn called() -> bool;

    /// Lets L2 go on after its call.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn skip_call();

    /// Changes L2's RAX by an exclusive or.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn change_rax(bits: u64);
}

/// AMD's extension.
pub enum Svm {}

/// Intel's extension.
pub enum Vmx {}

impl Extension for Svm {
    unsafe fn begin() {}

    unsafe fn run_l2() {
        // SAFETY: The caller is L1.
        unsafe {
            code::run_l2(VMCB, REGISTERS);
            stgi();
        }
    }

    unsafe fn exit() -> (u64, u64) {
        // SAFETY: The caller is L1.
        unsafe { (peek(vmcb::EXIT_CODE), peek(vmcb::EXIT_INFO_1)) }
    }

    unsafe fn called() -> bool {
        // SAFETY: The caller is L1.
        unsafe { peek(vmcb::EXIT_CODE) == vmcb::exit::VMMCALL }
    }

    unsafe fn skip_call() {
        // SAFETY: The caller is L1.
        unsafe { poke(vmcb::RIP, peek(vmcb::RIP).wrapping_add(CALL)) }
    }

    unsafe fn change_rax(bits: u64) {
        // SAFETY: The caller is L1.
        unsafe { poke(vmcb::RAX, peek(vmcb::RAX) ^ bits) }
    }
}

/// Whether the next entry is VMRESUME: the outcome of the last one, or that there was none.
const NOT_LAUNCHED: u64 = u64::MAX;

impl Extension for Vmx {
    unsafe fn begin() {
        // SAFETY: The caller is L1.
        unsafe {
            let revision = peek(VMX_REVISION);
            for region in [VMCS, OTHER_VMCS, VMXON_REGION] {
                poke(region, revision);
            }
            poke(VMX_OUTCOME, NOT_LAUNCHED);
            script::execute_all();
        }
    }

    unsafe fn run_l2() {
        // SAFETY: The caller is L1.
        unsafe {
            let resume = peek(VMX_OUTCOME) != NOT_LAUNCHED;
            let ended = enter(VMX_REGISTERS, resume.into());
            poke(VMX_OUTCOME, ended);
        }
    }

    unsafe fn exit() -> (u64, u64) {
        // SAFETY: The caller is L1.
        unsafe {
            match peek(VMX_OUTCOME) {
                outcome::DONE => (
                    vmread(field::EXIT_REASON.into()).1,
                    vmread(field::QUALIFICATION.into()).1,
                ),
                failed => (failed << 32, vmread(field::INSTRUCTION_ERROR.into()).1),
            }
        }
    }

    unsafe fn called() -> bool {
        // SAFETY: The caller is L1.
        unsafe {
            peek(VMX_OUTCOME) == outcome::DONE
                && vmread(field::EXIT_REASON.into()).1 == reason::VMCALL
        }
    }

    unsafe fn skip_call() {
        // SAFETY: The caller is L1.
        unsafe {
            let rip = field::GUEST_RIP.into();
            vmwrite(rip, vmread(rip).1.wrapping_add(CALL));
        }
    }

    unsafe fn change_rax(bits: u64) {
        let rax = VMX_REGISTERS + 14 * 8;
        // SAFETY: The caller is L1.
        unsafe { poke(rax, peek(rax) ^ bits) }
    }
}

/// Defines code of L2 for both extensions; `{call}` in it calls L1.
#[macro_export]
macro_rules! guest_code_for_both {
    ($($(#[$doc:meta])* $svm:ident, $vmx:ident: $($before:literal),* ; call $(; $after:literal)*
       $(; call $(; $last:literal)*)? .)*) => {$(
        $crate::guest_code! {
            $(#[$doc])*
            $svm: $($before,)* "vmmcall" $(, $after)* $(, "vmmcall" $(, $last)*)?;
            $(#[$doc])*
            $vmx: $($before,)* "vmcall" $(, $after)* $(, "vmcall" $(, $last)*)?;
        }
    )*};
}

/// Prepares L2, which starts at `rip` with registers in the order RBX, RCX, RDX, RSI, RDI, RBP, R8
/// to R15, RAX.
pub fn prepare(kvm: &Kvm, machine: &Machine, rip: u64, registers: &[u64; 15]) -> Result<()> {
    prepare_with(kvm, machine, rip, registers, |_, _| ())
}

/// Prepares L2, with changes to its VMCS; vmcb12 is in memory, and can be changed after this.
pub fn prepare_with(
    kvm: &Kvm,
    machine: &Machine,
    rip: u64,
    registers: &[u64; 15],
    change: impl FnOnce(&mut Fields, &Capabilities),
) -> Result<()> {
    let memory = &machine.memory;
    let [others @ .., rax] = registers;
    let start = match machine.vendor {
        Vendor::Svm => {
            vmcb::write(memory, &machine.tables, rip);
            memory.write(vmcb::RAX, *rax);
            REGISTERS
        }
        Vendor::Vmx => {
            let capabilities = Capabilities::read(kvm)?;
            memory.write(VMX_REVISION, u64::from(capabilities.revision()));
            memory.fill(VMCS, 0x1000, 0);
            memory.write(VMCS, capabilities.revision());
            let mut fields = control::fields(&capabilities, &machine.tables, 0, rip)?;
            // As for L1.
            fields.set(field::GUEST_RFLAGS, RFLAGS_IF);
            change(&mut fields, &capabilities);
            let mut operations = vec![
                // It fails if this is not the first time.
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
            memory.write(VMX_REGISTERS + 14 * 8, *rax);
            VMX_REGISTERS
        }
    };
    for (address, value) in (start..).step_by(8).zip(others) {
        memory.write(address, *value);
    }
    Ok(())
}
