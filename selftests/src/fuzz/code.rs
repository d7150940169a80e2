// SPDX-License-Identifier: GPL-2.0

//! What L2 executes: instructions with what they need in registers, each in a slot of its own.

use super::{Action, Case};
use crate::guest::layout::{BUFFER, NOWHERE, OTHER_VMCS, SHARED, VMCB, VMCS};
use crate::guest::Vendor;

/// Where the code is.
pub const CODE: u64 = BUFFER;

/// Bytes of a slot.
pub const SLOT: u64 = 32;

/// The most instructions of a case; behind them, L2 calls L1 for ever.
pub const MOST: usize = 8;

/// The page that L2 reads and writes.
pub const DATA: u64 = BUFFER + 0x1000;

/// Where the operands in memory of L2's instructions are.
pub const OPERAND: u64 = SHARED + 0x80;

/// The port at which L2 asks the test program for an [`event`].
pub const EVENT_PORT: u16 = 0xf4;

/// Events that the test program can cause.
pub mod event {
    /// An NMI.
    pub const NMI: u64 = 1;
    /// An interrupt.
    pub const INTERRUPT: u64 = 2;
}

/// Values among which an operand is chosen.
pub type Values = &'static [u64];

/// An instruction: its name, the values of its operands, and how it is encoded.
pub struct Row {
    /// The verb.
    pub verb: &'static str,
    /// For each operand what it may be.
    pub operands: &'static [Values],
    /// Where it makes sense to execute it, if not everywhere.
    pub vendor: Option<Vendor>,
    encode: fn(&mut Bytes, [u64; 3]),
}

/// Bytes of an instruction.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn dword(&mut self, opcode: u8, value: u64) -> &mut Self {
        let [a, b, c, d, ..] = value.to_le_bytes();
        self.put(&[opcode, a, b, c, d])
    }

    /// MOV EAX.
    fn eax(&mut self, value: u64) -> &mut Self {
        self.dword(0xb8, value)
    }

    /// MOV ECX.
    fn ecx(&mut self, value: u64) -> &mut Self {
        self.dword(0xb9, value)
    }

    /// MOV EDX.
    fn edx(&mut self, value: u64) -> &mut Self {
        self.dword(0xba, value)
    }

    /// MOV RAX.
    fn rax(&mut self, value: u64) -> &mut Self {
        self.put(&[0x48, 0xb8]).put(&value.to_le_bytes())
    }

    /// What differs from run to run leaves EAX, EDX and ECX again, in code of 16 bits as well: there it is
    /// the second one of each two that clears more than half of the register.
    fn forget(&mut self) -> &mut Self {
        self.put(&[0x31, 0xc0, 0x66, 0x31, 0xc0])
            .put(&[0x31, 0xd2, 0x66, 0x31, 0xd2])
            .put(&[0x31, 0xc9, 0x66, 0x31, 0xc9])
    }
}

const SVM: Option<Vendor> = Some(Vendor::Svm);
const VMX: Option<Vendor> = Some(Vendor::Vmx);
const ANY: Option<Vendor> = None;

const LEAVES: Values = &[
    0,
    1,
    7,
    0xd,
    0x4000_0000,
    0x8000_0000,
    0x8000_0001,
    0x8000_000a,
];

/// MSRs; without those of clocks.
pub const MSRS: Values = &[
    0x1b,
    0x3a,
    0x48,
    0x49,
    0x8b,
    0xfe,
    0x10a,
    0x174,
    0x175,
    0x176,
    0x17a,
    0x1a0,
    0x1d9,
    0x200,
    0x277,
    0x2ff,
    0x345,
    0x480,
    0x482,
    0x48b,
    0x491,
    0x808,
    0x80b,
    0x830,
    0xda0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0102,
    0xc000_0103,
    0xc001_0015,
    0xc001_0114,
    0xc001_0117,
    0xc001_011f,
    0x1234_5678,
];

/// Values for registers.
pub const WORDS: Values = &[
    0,
    1,
    0x10,
    0x2ff,
    0x500,
    0xd01,
    0x1d01,
    0x1_0000,
    0xffff_ffff,
    0x0007_0406_0007_0406,
    0x0007_0106_0007_0406,
    0x8000_0000_0000,
    1 << 63,
    u64::MAX,
];

/// Ports of instructions.
pub const PORTS: Values = &[0, 0x10, 0x71, 0x80, 0x3f8, 0x7fff, 0x8000, 0xfffc, 0xffff];
const CR0: Values = &[
    0x8001_0033,
    0x8001_003b,
    0x8005_0033,
    0xe001_0033,
    0xa001_0033,
    0x8000_0033,
    0x33,
    0x8001_0032,
    0x1_8001_0033,
];
const CR4: Values = &[
    0x620,
    0x2620,
    0x4_0620,
    0x600,
    0x6a0,
    0x630,
    0x2_0620,
    0x1620,
    0x10_0620,
    1 << 32,
];
const SELECTORS: Values = &[0, 8, 0x10, 0x28, 0x33, 0xffff];
/// QEMU loads a null selector: there is no task after that, see Documentation/errata.rst.
const TASKS: Values = &[8, 0x10, 0x28, 0x33, 0xffff];
const DR7: Values = &[0x400, 0x455, 0x2400, 0x402, 1 << 32, 0x403];
const ADDRESSES: Values = &[
    DATA,
    DATA + 0xffc,
    NOWHERE,
    0xfee0_0000,
    VMCB,
    0x3f_f000,
    1 << 39,
    1 << 47,
    0x1000,
];
/// What is in the memory of a VMCB or VMCS is no code.
const JUMPS: Values = &[
    DATA,
    DATA + 0xffc,
    NOWHERE,
    0xfee0_0000,
    0x3f_f000,
    1 << 39,
    1 << 47,
    0x1000,
];
const FIELDS: Values = &[0, 0x2000, 0x4402, 0x681e, 0x6c16, 0x2802, 0xffff, 1 << 20];
const FLAGS: Values = &[
    2, 0x202, 0x102, 0x302, 0x4_0002, 0x2_0002, 0x20_0002, 0x3002,
];
const TYPES: Values = &[0, 1, 2, 3, 4, 1 << 40];
const VMCBS: Values = &[VMCB, OTHER_VMCS, VMCS + 8, NOWHERE, u64::MAX << 12];
/// QEMU takes any address for VMLOAD and VMSAVE, and may load a task from there that is none, which
/// ends QEMU itself: see Documentation/errata.rst.
pub const WHOLE_VMCBS: Values = &[VMCB, OTHER_VMCS];
const VECTORS: Values = &[0, 1, 3, 4, 13, 14, 0x20, 0x80];
const BITS: Values = &[0, 1, 8, 9, 0xe, 0xf];
const COUNTS: Values = &[0, 1, 3];
const EVENTS: Values = &[event::NMI, event::INTERRUPT];
const COUNTERS: Values = &[0, 1 << 30, 0xffff];
const XCRS: Values = &[0, 1];
const NUMBERS: Values = &[0, 1, 2, 3, 6, 7];

macro_rules! rows {
    ($($verb:literal $vendor:ident ($($operand:ident),*): |$bytes:ident, $with:pat_param| $encode:expr;)*) => {
        /// The instructions.
        pub const ROWS: &[Row] = &[$(Row {
            verb: $verb,
            operands: &[$($operand),*],
            vendor: $vendor,
            encode: |$bytes, $with| { $encode; },
        },)*];
    };
}

rows! {
    "nop" ANY (): |code, _| code.put(&[0x90]);
    "cpuid" ANY (LEAVES, COUNTS): |code, [leaf, index, _]| code.eax(leaf).ecx(index).put(&[0x0f, 0xa2]);
    "rdmsr" ANY (MSRS): |code, [index, ..]| code.ecx(index).put(&[0x0f, 0x32]);
    "wrmsr" ANY (MSRS, WORDS): |code, [index, value, _]|
        code.ecx(index).eax(value).edx(value >> 32).put(&[0x0f, 0x30]);
    "in8" ANY (PORTS): |code, [port, ..]| code.edx(port).put(&[0xec]);
    "in32" ANY (PORTS): |code, [port, ..]| code.edx(port).put(&[0xed]);
    "out8" ANY (PORTS): |code, [port, ..]| code.edx(port).put(&[0xee]);
    "out16" ANY (PORTS): |code, [port, ..]| code.edx(port).put(&[0x66, 0xef]);
    "ins" ANY (PORTS, COUNTS): |code, [port, count, _]|
        code.edx(port).ecx(count).dword(0xbf, DATA).put(&[0xf3, 0x6c]);
    "outs" ANY (PORTS, COUNTS): |code, [port, count, _]|
        code.edx(port).ecx(count).dword(0xbe, DATA).put(&[0xf3, 0x6e]);
    "mov_to_cr0" ANY (CR0): |code, [value, ..]| code.rax(value).put(&[0x0f, 0x22, 0xc0]);
    "mov_to_cr3" ANY (ADDRESSES): |code, [value, ..]| code.rax(value).put(&[0x0f, 0x22, 0xd8]);
    "mov_to_cr4" ANY (CR4): |code, [value, ..]| code.rax(value).put(&[0x0f, 0x22, 0xe0]);
    "mov_to_cr8" ANY (WORDS): |code, [value, ..]| code.rax(value).put(&[0x44, 0x0f, 0x22, 0xc0]);
    "mov_from_cr0" ANY (): |code, _| code.put(&[0x0f, 0x20, 0xc0]);
    "mov_from_cr2" ANY (): |code, _| code.put(&[0x0f, 0x20, 0xd0]);
    "mov_from_cr3" ANY (): |code, _| code.put(&[0x0f, 0x20, 0xd8]);
    "mov_from_cr4" ANY (): |code, _| code.put(&[0x0f, 0x20, 0xe0]);
    "mov_from_cr8" ANY (): |code, _| code.put(&[0x44, 0x0f, 0x20, 0xc0]);
    "mov_to_dr" ANY (NUMBERS, DR7): |code, [number, value, _]|
        code.rax(value).put(&[0x0f, 0x23, 0xc0 | (number as u8 & 7) << 3]);
    "mov_from_dr" ANY (NUMBERS): |code, [number, ..]|
        code.put(&[0x0f, 0x21, 0xc0 | (number as u8 & 7) << 3]);
    "clts" ANY (): |code, _| code.put(&[0x0f, 0x06]);
    "lmsw" ANY (BITS): |code, [value, ..]| code.eax(value).put(&[0x0f, 0x01, 0xf0]);
    "smsw" ANY (): |code, _| code.put(&[0x0f, 0x01, 0xe0]);
    "fninit" ANY (): |code, _| code.put(&[0xdb, 0xe3]);
    "hlt" ANY (): |code, _| code.put(&[0xf4]);
    "pause" ANY (): |code, _| code.put(&[0xf3, 0x90]);
    "rdtsc" ANY (): |code, _| code.put(&[0x0f, 0x31]).forget();
    "rdtscp" ANY (): |code, _| code.put(&[0x0f, 0x01, 0xf9]).forget();
    "rdpmc" ANY (COUNTERS): |code, [index, ..]| code.ecx(index).put(&[0x0f, 0x33]).forget();
    "rdrand" ANY (): |code, _| code.put(&[0x0f, 0xc7, 0xf0]).forget();
    "rdseed" ANY (): |code, _| code.put(&[0x0f, 0xc7, 0xf8]).forget();
    "invlpg" ANY (ADDRESSES): |code, [address, ..]| code.rax(address).put(&[0x0f, 0x01, 0x38]);
    "invpcid" ANY (TYPES): |code, [kind, ..]|
        code.rax(kind).ecx(OPERAND).put(&[0x66, 0x0f, 0x38, 0x82, 0x01]);
    "invd" ANY (): |code, _| code.put(&[0x0f, 0x08]);
    "wbinvd" ANY (): |code, _| code.put(&[0x0f, 0x09]);
    "xsetbv" ANY (XCRS, WORDS): |code, [index, value, _]|
        code.ecx(index).eax(value).edx(value >> 32).put(&[0x0f, 0x01, 0xd1]);
    "xgetbv" ANY (XCRS): |code, [index, ..]| code.ecx(index).put(&[0x0f, 0x01, 0xd0]);
    "monitor" ANY (ADDRESSES): |code, [address, ..]|
        code.rax(address).ecx(0).edx(0).put(&[0x0f, 0x01, 0xc8]);
    "mwait" ANY (): |code, _| code.eax(0).ecx(0).put(&[0x0f, 0x01, 0xc9]);
    "int" ANY (VECTORS): |code, [vector, ..]| code.put(&[0xcd, vector as u8]);
    "int3" VMX (): |code, _| code.put(&[0xcc]);
    "int1" ANY (): |code, _| code.put(&[0xf1]);
    "ud2" ANY (): |code, _| code.put(&[0x0f, 0x0b]);
    "divide" ANY (): |code, _| code.forget().put(&[0xf7, 0xf1]);
    "load" ANY (ADDRESSES): |code, [address, ..]| code.rax(address).put(&[0x48, 0x8b, 0x00]);
    "store" ANY (ADDRESSES): |code, [address, ..]|
        code.rax(address).put(&[0x48, 0xc7, 0x00]).put(&[0x55, 0, 0, 0]);
    "jump" ANY (JUMPS): |code, [address, ..]| code.rax(address).put(&[0xff, 0xe0]);
    "sti" ANY (): |code, _| code.put(&[0xfb]);
    "cli" ANY (): |code, _| code.put(&[0xfa]);
    "popf" ANY (FLAGS): |code, [flags, ..]| code.dword(0x68, flags).put(&[0x9d]);
    "pushf" ANY (): |code, _| code.put(&[0x9c, 0x58]);
    "mov_ss" ANY (): |code, _| code.put(&[0x8c, 0xd0, 0x8e, 0xd0]);
    "iret" ANY (): |code, _| code.put(&[0x48, 0xcf]);
    "syscall" ANY (): |code, _| code.put(&[0x0f, 0x05]);
    "sysenter" ANY (): |code, _| code.put(&[0x0f, 0x34]);
    "swapgs" ANY (): |code, _| code.put(&[0x0f, 0x01, 0xf8]);
    "rsm" ANY (): |code, _| code.put(&[0x0f, 0xaa]);
    "lgdt" ANY (): |code, _| code.eax(OPERAND).put(&[0x0f, 0x01, 0x10]);
    "lidt" ANY (): |code, _| code.eax(OPERAND).put(&[0x0f, 0x01, 0x18]);
    "sgdt" ANY (): |code, _| code.eax(DATA).put(&[0x0f, 0x01, 0x00]);
    "sidt" ANY (): |code, _| code.eax(DATA).put(&[0x0f, 0x01, 0x08]);
    "lldt" ANY (SELECTORS): |code, [value, ..]| code.eax(value).put(&[0x0f, 0x00, 0xd0]);
    "ltr" ANY (TASKS): |code, [value, ..]| code.eax(value).put(&[0x0f, 0x00, 0xd8]);
    "sldt" ANY (): |code, _| code.put(&[0x0f, 0x00, 0xc0]);
    "str" ANY (): |code, _| code.put(&[0x0f, 0x00, 0xc8]);
    "vmcall" ANY (): |code, _| code.put(&[0x0f, 0x01, 0xc1]);
    "vmmcall" ANY (): |code, _| code.put(&[0x0f, 0x01, 0xd9]);
    "vmxon" ANY (): |code, _| code.eax(OPERAND).put(&[0xf3, 0x0f, 0xc7, 0x30]);
    "vmclear" VMX (): |code, _| code.eax(OPERAND).put(&[0x66, 0x0f, 0xc7, 0x30]);
    "vmptrld" VMX (): |code, _| code.eax(OPERAND).put(&[0x0f, 0xc7, 0x30]);
    "vmptrst" VMX (): |code, _| code.eax(DATA).put(&[0x0f, 0xc7, 0x38]);
    "vmlaunch" VMX (): |code, _| code.put(&[0x0f, 0x01, 0xc2]);
    "vmresume" VMX (): |code, _| code.put(&[0x0f, 0x01, 0xc3]);
    "vmxoff" VMX (): |code, _| code.put(&[0x0f, 0x01, 0xc4]);
    "vmread" VMX (FIELDS): |code, [field, ..]| code.rax(field).put(&[0x0f, 0x78, 0xc1]);
    "vmwrite" VMX (FIELDS, WORDS): |code, [field, value, _]|
        code.rax(field).ecx(value).put(&[0x0f, 0x79, 0xc1]);
    "invept" VMX (TYPES): |code, [kind, ..]|
        code.rax(kind).ecx(OPERAND).put(&[0x66, 0x0f, 0x38, 0x80, 0x01]);
    "invvpid" VMX (TYPES): |code, [kind, ..]|
        code.rax(kind).ecx(OPERAND).put(&[0x66, 0x0f, 0x38, 0x81, 0x01]);
    "vmfunc" VMX (COUNTS, COUNTS): |code, [function, index, _]|
        code.eax(function).ecx(index).put(&[0x0f, 0x01, 0xd4]);
    "vmrun" ANY (VMCBS): |code, [vmcb, ..]| code.rax(vmcb).put(&[0x0f, 0x01, 0xd8]);
    "vmload" SVM (WHOLE_VMCBS): |code, [vmcb, ..]| code.rax(vmcb).put(&[0x0f, 0x01, 0xda]);
    "vmsave" SVM (WHOLE_VMCBS): |code, [vmcb, ..]| code.rax(vmcb).put(&[0x0f, 0x01, 0xdb]);
    "stgi" SVM (): |code, _| code.put(&[0x0f, 0x01, 0xdc]);
    "clgi" SVM (): |code, _| code.put(&[0x0f, 0x01, 0xdd]);
    "skinit" SVM (): |code, _| code.eax(DATA).put(&[0x0f, 0x01, 0xde]);
    "invlpga" SVM (ADDRESSES, COUNTS): |code, [address, asid, _]|
        code.rax(address).ecx(asid).put(&[0x0f, 0x01, 0xdf]);
    "event" ANY (EVENTS): |code, [kind, ..]|
        code.put(&[0xb0, kind as u8, 0xe6, EVENT_PORT as u8]);
}

/// Instructions whose results are other ones each time.
pub const TIMED: [&str; 5] = ["rdtsc", "rdtscp", "rdpmc", "rdrand", "rdseed"];

/// Returns the instruction with a name, and its number of operands.
pub fn find(verb: &str) -> Option<(&'static str, usize)> {
    let row = ROWS.iter().find(|row| row.verb == verb)?;
    Some((row.verb, row.operands.len()))
}

/// Returns where the instruction with a number is; that behind the last one calls L1.
pub fn address(number: usize) -> u64 {
    CODE + SLOT * number as u64
}

/// Returns the code of a case, from [`CODE`] on.
pub fn assemble(case: &Case) -> Vec<u8> {
    let mut all = Vec::new();
    for action in &case.code {
        let row = ROWS.iter().find(|row| row.verb == action.verb);
        let mut bytes = Bytes::default();
        if let Some(row) = row {
            (row.encode)(&mut bytes, action.operands);
        }
        assert!(
            bytes.0.len() <= SLOT as usize,
            "{} is too long",
            action.verb
        );
        bytes.0.resize(SLOT as usize, 0x90);
        all.extend(bytes.0);
    }
    all.extend(calls(case.vendor));
    all
}

/// Returns the code that calls L1 for ever.
pub fn calls(vendor: Vendor) -> [u8; 5] {
    // The last instruction goes back to the first one.
    match vendor {
        Vendor::Svm => [0x0f, 0x01, 0xd9, 0xeb, 0xfb],
        Vendor::Vmx => [0x0f, 0x01, 0xc1, 0xeb, 0xfb],
    }
}

/// Returns an instruction with chosen operands.
pub fn action(row: &Row, mut choose: impl FnMut(Values) -> u64) -> Action {
    let operands: Vec<u64> = row.operands.iter().map(|values| choose(values)).collect();
    Action::new(row.verb, &operands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instruction_has_a_slot() {
        for row in ROWS {
            let case = Case {
                vendor: Vendor::Vmx,
                code: vec![action(row, |values| values[values.len() - 1])],
                steps: Vec::new(),
            };
            assert_eq!(assemble(&case).len() as u64, SLOT + 5);
        }
    }

    #[test]
    fn names_are_unique() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.verb != row.verb));
        }
    }
}
