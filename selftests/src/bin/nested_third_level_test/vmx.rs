// SPDX-License-Identifier: GPL-2.0

//! L1 with VMX: it keeps the fields that L2 writes in a list, and runs L3 with a VMCS of its own.

use anyhow::Result;
use kvm_ioctls::Kvm;
use selftests::guest::code::{peek, poke, report, WRONG};
use selftests::guest::extension::{Extension, Vmx};
use selftests::guest::layout::{
    idt, BUFFER, OTHER_VMCS, SHADOW_VMCS, TSS, VMCS, VMREAD_BITMAP, VMXON_REGION, VMX_REGISTERS,
    VMX_REVISION,
};
use selftests::guest::machine::RFLAGS_IF;
use selftests::guest::vmx::code::{enter, outcome, vmclear, vmptrld, vmread, vmwrite};
use selftests::guest::vmx::control::{self, primary, reason, secondary, Capabilities};
use selftests::guest::vmx::field::segment;
use selftests::guest::vmx::{field, script, Fields};
use selftests::guest::{GuestMemory, Machine};
use selftests::tap::Skip;

use crate::vmx_l2;
use crate::world::{
    count, third_level_vmx_l3, HALT, L1_ENTRIES, L1_HALTS, L1_READS, L1_WRITES, L3_STACK, L3_TABLE,
    WITH_SHADOW,
};

/// L1's list of the fields of L2's VMCS: how many, then of each the encoding, the value, and whether
/// L3's VMCS has another one.
const LIST: u64 = BUFFER + 0x8000;

/// Bytes of an entry of the list.
const ENTRY: u64 = 24;

/// Whether L3 has been entered.
const LAUNCHED: u64 = BUFFER + 0x7000;

/// Whether L2 has entered L3.
const L2_LAUNCHED: u64 = BUFFER + 0x7008;

/// The bit of a revision that makes a VMCS a shadow VMCS.
const IS_SHADOW: u32 = 1 << 31;

/// VMWRITE may write all fields, also those of exits.
const WRITES_ALL: u64 = 1 << 29;

/// The flags that say how a VMX instruction ended.
const STATUS_FLAGS: u64 = 0x8d5;

/// What L3's exit changes of its VMCS and L2 looks at, which is in the shadow VMCS if there is one.
const SHARED_FIELDS: [u32; 8] = [
    field::ENTRY_EVENT,
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::EXIT_REASON,
    field::QUALIFICATION,
    field::EXIT_LENGTH,
    field::EXIT_INSTRUCTION,
];

/// Returns where the list has a field, which is added if it is not there.
///
/// # Safety
///
/// Only L1 may call this, as for the functions that follow.
unsafe fn entry(field: u64) -> u64 {
    // SAFETY: As above.
    unsafe {
        let number = peek(LIST);
        let end = LIST + 8 + number * ENTRY;
        let mut entry = LIST + 8;
        while entry < end {
            if peek(entry) == field {
                return entry;
            }
            entry += ENTRY;
        }
        poke(LIST, number + 1);
        poke(end, field);
        end
    }
}

unsafe fn get(field: u32) -> u64 {
    // SAFETY: As above.
    unsafe { peek(entry(field.into()) + 8) }
}

/// Changes a field for L2; L3's VMCS has the value if it is `known`.
unsafe fn set(field: u64, value: u64, known: bool) {
    // SAFETY: As above.
    unsafe {
        let entry = entry(field);
        if peek(entry + 8) != value || !known {
            poke(entry + 8, value);
            poke(entry + 16, u64::from(!known));
        }
    }
}

/// Makes a VMCS current.
unsafe fn load(vmcs: u64) {
    // SAFETY: As above.
    unsafe { vmptrld(&raw const vmcs as u64) };
}

/// Returns where the registers of L2 have the one with a number of an instruction.
fn register(number: u64) -> u64 {
    // The order is RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15, RAX; there is no RSP.
    let position = match number & 15 {
        0 => 14,
        1 | 2 => number,
        3 => 0,
        6 | 7 => number - 3,
        5 => 5,
        other => other.wrapping_sub(2),
    };
    VMX_REGISTERS + 8 * position
}

/// Returns the pointer that is the operand of L2's instruction, whose address is relative to a register;
/// see "VM-Exit Instruction-Information Field".
unsafe fn pointer() -> u64 {
    // SAFETY: As above.
    unsafe {
        let base = vmread(field::EXIT_INSTRUCTION.into()).1 >> 23 & 15;
        let displacement = vmread(field::QUALIFICATION.into()).1;
        peek(peek(register(base)).wrapping_add(displacement))
    }
}

/// L1: runs L2, does what its VMX instructions should do, and runs L3.
pub extern "C" fn l1() -> ! {
    // SAFETY: This is L1.
    unsafe {
        Vmx::begin();
        loop {
            Vmx::run_l2();
            let (code, info) = Vmx::exit();
            if !emulate(code) {
                report(WRONG, code, info);
            }
        }
    }
}

/// Does what L2 exited for; returns whether it is what it should do.
unsafe fn emulate(code: u64) -> bool {
    // SAFETY: As above.
    unsafe {
        let information = vmread(field::EXIT_INSTRUCTION.into()).1;
        let (first, second) = (information >> 3 & 15, information >> 28 & 15);
        match code {
            reason::VMXON if pointer() == vmx_l2::REGION => (),
            reason::VMPTRLD if pointer() == vmx_l2::VMCS => (),
            reason::VMCLEAR if pointer() == vmx_l2::VMCS => poke(L2_LAUNCHED, 0),
            reason::VMREAD => {
                count(L1_READS);
                poke(register(first), peek(entry(peek(register(second))) + 8));
            }
            reason::VMWRITE => {
                count(L1_WRITES);
                set(peek(register(second)), peek(register(first)), false);
            }
            reason::VMLAUNCH if peek(L2_LAUNCHED) == 0 => {
                run_l3();
                return true;
            }
            reason::VMRESUME if peek(L2_LAUNCHED) == 1 => {
                run_l3();
                return true;
            }
            _ => return false,
        }
        let (flags, rip) = (field::GUEST_RFLAGS.into(), field::GUEST_RIP.into());
        vmwrite(flags, vmread(flags).1 & !STATUS_FLAGS);
        let length = vmread(field::EXIT_LENGTH.into()).1;
        vmwrite(rip, vmread(rip).1 + length);
        true
    }
}

/// Runs L3 until it stops for L2, and makes L2 what its VMCS says that it is after an exit.
unsafe fn run_l3() {
    // SAFETY: As above.
    unsafe {
        let with_shadow = peek(WITH_SHADOW) != 0;
        if with_shadow {
            take_from_shadow();
        }
        load(OTHER_VMCS);
        give_to_l3();
        let mut code;
        loop {
            // L3 begins with L2's registers, and L2 goes on with those of L3.
            let ended = enter(VMX_REGISTERS, peek(LAUNCHED));
            if ended != outcome::DONE {
                report(WRONG, ended, vmread(field::INSTRUCTION_ERROR.into()).1);
            }
            code = vmread(field::EXIT_REASON.into()).1;
            if code == reason::INVALID_STATE {
                break;
            }
            poke(LAUNCHED, 1);
            poke(L2_LAUNCHED, 1);
            count(L1_ENTRIES);
            if code != reason::HLT {
                break;
            }
            let rip = field::GUEST_RIP.into();
            vmwrite(rip, vmread(rip).1 + HALT);
            count(L1_HALTS);
        }
        for shared in SHARED_FIELDS {
            set(shared.into(), vmread(shared.into()).1, true);
        }
        if with_shadow {
            give_to_shadow();
        }
        load(VMCS);
        vmwrite(field::GUEST_RIP.into(), get(field::HOST_RIP));
        vmwrite(field::GUEST_RSP.into(), get(field::HOST_RSP));
        vmwrite(field::GUEST_CR3.into(), get(field::HOST_CR3));
        vmwrite(field::GUEST_RFLAGS.into(), 2 | RFLAGS_IF);
    }
}

/// Writes what L2 has changed of L3's state, and what it injects, to the VMCS that is current.
unsafe fn give_to_l3() {
    // SAFETY: As above.
    unsafe {
        let mut entry = LIST + 8;
        for _ in 0..peek(LIST) {
            let field = peek(entry);
            let is_state = field >> 10 & 3 == 2 && field != u64::from(field::LINK_POINTER);
            let is_event = field == u64::from(field::ENTRY_EVENT);
            if (is_state || is_event) && peek(entry + 16) != 0 {
                vmwrite(field, peek(entry + 8));
                poke(entry + 16, 0);
            }
            entry += ENTRY;
        }
    }
}

/// Takes what L2 has written to the shadow VMCS.
unsafe fn take_from_shadow() {
    let shadow = SHADOW_VMCS;
    // SAFETY: As above.
    unsafe {
        load(SHADOW_VMCS);
        for shared in SHARED_FIELDS {
            let value = vmread(shared.into()).1;
            if get(shared) != value {
                set(shared.into(), value, false);
            }
        }
        vmclear(&raw const shadow as u64);
    }
}

/// Puts what L2 may look at into the shadow VMCS.
unsafe fn give_to_shadow() {
    let shadow = SHADOW_VMCS;
    // SAFETY: As above.
    unsafe {
        load(SHADOW_VMCS);
        for shared in SHARED_FIELDS {
            vmwrite(shared.into(), get(shared));
        }
        vmclear(&raw const shadow as u64);
    }
}

/// Makes VMREAD and VMWRITE of all but the shared fields exit.
fn write_bitmaps(memory: &GuestMemory) {
    for bitmap in [VMREAD_BITMAP, VMREAD_BITMAP + 0x1000] {
        memory.fill(bitmap, 0x1000, u64::MAX);
        for shared in SHARED_FIELDS {
            let byte = bitmap + u64::from(shared >> 3);
            let cleared = memory.read::<u8>(byte) & !(1 << (shared & 7));
            memory.write(byte, cleared);
        }
    }
}

/// Returns how many fields L2 writes to its VMCS at first, and how many of these are shared.
pub fn first_writes(memory: &GuestMemory) -> (u64, u64) {
    let number: u64 = memory.read(vmx_l2::FIELDS);
    let fields = (0..number).map(|index| memory.read::<u64>(vmx_l2::FIELDS + 8 + 16 * index));
    let is_shared = |field: &u64| {
        SHARED_FIELDS
            .iter()
            .any(|shared| u64::from(*shared) == *field)
    };
    (number, fields.filter(is_shared).count() as u64)
}

/// Prepares L2, and the fields that it writes to the VMCS of L3.
pub fn prepare(kvm: &Kvm, machine: &Machine, with_shadow: bool) -> Result<()> {
    let (memory, tables) = (&machine.memory, &machine.tables);
    let capabilities = Capabilities::read(kvm)?;
    let (l2, l3) = (
        vmx_l2::l2 as *const () as u64,
        third_level_vmx_l3 as *const () as u64,
    );
    let mut of_l2 = control::fields(&capabilities, tables, 0, l2)?;
    // As for L1.
    of_l2.set(field::GUEST_RFLAGS, RFLAGS_IF);
    if with_shadow {
        if capabilities.allowed(field::SECONDARY) & secondary::SHADOW_VMCS == 0
            || capabilities.misc & WRITES_ALL == 0
        {
            return Err(Skip("L1 is not offered VMCS shadowing".into()).into());
        }
        of_l2.set(field::SECONDARY, secondary::SHADOW_VMCS);
        of_l2.put(field::VMREAD_BITMAP, VMREAD_BITMAP);
        of_l2.put(field::VMWRITE_BITMAP, VMREAD_BITMAP + 0x1000);
        of_l2.put(field::LINK_POINTER, SHADOW_VMCS);
        write_bitmaps(memory);
    }
    // What L2 wants; and what L1 wants, which takes the state of L3 from that.
    let mut wanted = control::fields(&capabilities, tables, 1, l3)?;
    wanted.set(field::GUEST_RFLAGS, RFLAGS_IF);
    wanted.put(field::GUEST_RSP, L3_STACK);
    wanted.put(field::GUEST_BASE + segment::TR, TSS);
    wanted.put(field::GUEST_BASE + segment::IDTR, idt(2));
    wanted.put(field::HOST_BASE + 4, TSS);
    wanted.put(field::HOST_BASE + 8, idt(1));
    let mut of_l3 = control::fields(&capabilities, tables, 0, 0)?;
    of_l3.set(field::PRIMARY, primary::HLT);
    // Write-back, four levels.
    of_l3.put(field::EPTP, L3_TABLE | 0x1e);
    memory.write(VMX_REVISION, u64::from(capabilities.revision()));
    memory.fill(SHADOW_VMCS, 0x1000, 0);
    memory.write(SHADOW_VMCS, capabilities.revision() | IS_SHADOW);
    let writes = |fields: &Fields| -> Vec<script::Operation> {
        let write = |(field, value): (u32, u64)| script::vmwrite(field.into(), value);
        fields.all().map(write).collect()
    };
    let mut operations = vec![script::vmxon(VMXON_REGION)];
    if with_shadow {
        operations.push(script::vmclear(SHADOW_VMCS));
    }
    for (vmcs, fields) in [(OTHER_VMCS, &of_l3), (VMCS, &of_l2)] {
        operations.extend([script::vmclear(vmcs), script::vmptrld(vmcs)]);
        operations.extend(writes(fields));
    }
    script::write(memory, &operations);
    memory.fill(BUFFER, 0x1_0000, 0);
    memory.fill(VMX_REGISTERS, 0x200, 0);
    memory.write(vmx_l2::FIELDS, wanted.all().count() as u64);
    for (address, (field, value)) in (vmx_l2::FIELDS + 8..).step_by(16).zip(wanted.all()) {
        memory.write(address, u64::from(field));
        memory.write(address + 8, value);
    }
    Ok(())
}
