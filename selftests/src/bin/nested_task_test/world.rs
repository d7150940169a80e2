// SPDX-License-Identifier: GPL-2.0

//! Two tasks of an L2 with 32-bit paging, and the ways from the first one to the second one.

use anyhow::Result;
use selftests::expect;
use selftests::guest::layout::{BUFFER, KERNEL_CODE, KERNEL_DATA};
use selftests::guest::{GuestMemory, Vendor};

/// The descriptors of L2, and their limit.
pub const DESCRIPTORS: (u64, u64) = (BUFFER, 0x2f);

/// The interrupt descriptors of L2, and their limit.
pub const INTERRUPTS: (u64, u64) = (BUFFER + 0x400, 0x1ff);

/// The task-state segments, and the last byte of one.
pub const TASKS: [u64; 2] = [BUFFER + 0x800, BUFFER + 0x900];

/// The limit of a task-state segment.
pub const TASK_LIMIT: u64 = 0x67;

/// The selectors of the tasks.
pub const SELECTORS: [u16; 2] = [0x18, 0x20];

/// The selector of a task gate for the second task.
const GATE: u16 = 0x28;

/// Where the first task begins.
pub const CODE: u64 = BUFFER + 0x1000;

/// Where the second task begins, by an address that only its page table has.
pub const SECOND_CODE: u64 = SECOND + BUFFER + 0x1800;

/// The page tables of the tasks.
pub const PAGE_TABLES: [u64; 2] = [BUFFER + 0x4000, BUFFER + 0x5000];

/// The second task sees the memory at this address, too.
pub const SECOND: u64 = 0x40_0000;

/// The stacks.
pub const STACKS: [u64; 2] = [BUFFER + 0x2ff0, SECOND + BUFFER + 0x3ff0];

/// The general-purpose registers of the second task: EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
pub const SECOND_REGISTERS: [u64; 8] = [
    0xa0a0_a0a0,
    0xc1c1_c1c1,
    0xd2d2_d2d2,
    0xb3b3_b3b3,
    STACKS[1],
    0x5555_5555,
    0x6666_6666,
    0x7777_7777,
];

/// EAX of the first task: a selector beyond the descriptors.
pub const BAD_SELECTOR: u64 = 0x1238;

/// CR4: large pages, SSE.
pub const CR4: u64 = 0x610;

/// CR0: a task switch has left the state of the FPU behind.
pub const CR0_TS: u64 = 1 << 3;

/// RFLAGS: this task is nested in another one.
pub const NESTED: u64 = 1 << 14;

/// Offsets in a task-state segment.
pub mod tss {
    /// The selector of the task to return to.
    pub const LINK: u64 = 0x00;
    /// CR3.
    pub const CR3: u64 = 0x1c;
    /// EIP.
    pub const EIP: u64 = 0x20;
    /// EFLAGS.
    pub const EFLAGS: u64 = 0x24;
    /// The first general-purpose register.
    pub const REGISTERS: u64 = 0x28;
    /// ES; the others follow in steps of 4: CS, SS, DS, FS, GS.
    pub const SEGMENTS: u64 = 0x48;
    /// LDTR.
    pub const LDTR: u64 = 0x60;
}

/// Bytes of VMCALL and of VMMCALL.
pub const CALL: u64 = 3;

/// A way from the first task to the second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A far jump to the task.
    Jump,
    /// A far jump to a gate.
    JumpToGate,
    /// A far call of the task.
    Call,
    /// A far call of a gate.
    CallOfGate,
    /// A return from a nested task.
    Return,
    /// An INT whose interrupt descriptor is a gate.
    Interrupt,
    /// An exception without an error code whose interrupt descriptor is a gate.
    Undefined,
    /// An exception with an error code.
    Protection,
    /// An exception with an error code that L1 injects.
    Injected,
}

/// The error code that L1 injects.
const INJECTED_ERROR: u64 = 0x765;

impl Way {
    /// The instruction of the first task.
    pub fn code(self) -> &'static [u8] {
        const TASK: u8 = SELECTORS[1] as u8;
        match self {
            Self::Jump => &[0xea, 0, 0, 0, 0, TASK, 0],
            Self::JumpToGate => &[0xea, 0, 0, 0, 0, GATE as u8, 0],
            Self::Call => &[0x9a, 0, 0, 0, 0, TASK, 0],
            Self::CallOfGate => &[0x9a, 0, 0, 0, 0, GATE as u8, 0],
            Self::Return => &[0xcf],
            Self::Interrupt => &[0xcd, 0x30],
            Self::Undefined => &[0x0f, 0x0b],
            // MOV DS, AX.
            Self::Protection => &[0x8e, 0xd8],
            Self::Injected => &[0x90],
        }
    }

    /// The event that is delivered through a gate: its type, as in the VMCS, its vector, and its
    /// error code.
    pub fn event(self) -> Option<(u64, u64, Option<u64>)> {
        match self {
            Self::Interrupt => Some((4, 0x30, None)),
            Self::Undefined => Some((3, 6, None)),
            Self::Protection => Some((3, 13, Some(BAD_SELECTOR))),
            Self::Injected => Some((3, 13, Some(INJECTED_ERROR))),
            _ => None,
        }
    }

    /// Whether the second task is nested in the first one.
    pub fn nests(self) -> bool {
        !matches!(self, Self::Jump | Self::JumpToGate | Self::Return)
    }

    /// Where the first task goes on when it is returned to.
    pub fn saved_eip(self) -> u64 {
        match self {
            Self::Undefined | Self::Protection | Self::Injected => CODE,
            _ => self.next_eip(),
        }
    }

    /// Where the next instruction of the first task is.
    pub fn next_eip(self) -> u64 {
        CODE + self.code().len() as u64
    }

    /// RFLAGS of the first task.
    pub fn first_flags(self) -> u64 {
        match self {
            Self::Return => 2 | NESTED,
            _ => 2,
        }
    }
}

/// The bits of a descriptor that say that a task is present, in 32-bit format, and not busy.
const AVAILABLE: u64 = 0x89;

/// The bit that says that it is busy.
const BUSY: u64 = 2;

fn descriptor(selector: u16) -> u64 {
    DESCRIPTORS.0 + u64::from(selector)
}

/// Writes the two tasks, and what leads from one to the other.
pub fn write(memory: &GuestMemory, way: Way, vendor: Vendor) {
    let (call, byte) = match vendor {
        Vendor::Svm => ([0x0f, 0x01, 0xd9], 0xd9),
        Vendor::Vmx => ([0x0f, 0x01, 0xc1], 0xc1),
    };
    memory.fill(BUFFER, 0x6000, 0);
    let put = |address: u64, bytes: &[u8]| {
        for (address, byte) in (address..).zip(bytes) {
            memory.write(address, *byte);
        }
    };
    put(CODE, way.code());
    put(way.next_eip(), &call);
    // The second task calls L1, returns if it is nested, and calls L1 again.
    put(
        SECOND_CODE - SECOND,
        &[0x0f, 0x01, byte, 0xcf, 0x0f, 0x01, byte],
    );
    memory.write(descriptor(KERNEL_CODE), 0x00cf_9b00_0000_ffffu64);
    memory.write(descriptor(KERNEL_DATA), 0x00cf_9300_0000_ffffu64);
    let second_is_busy = if way == Way::Return { BUSY } else { 0 };
    for ((task, selector), busy) in TASKS.into_iter().zip(SELECTORS).zip([BUSY, second_is_busy]) {
        let kind = AVAILABLE | busy;
        let low = TASK_LIMIT | (task & 0xff_ffff) << 16 | kind << 40 | (task >> 24) << 56;
        memory.write(descriptor(selector), low);
    }
    let gate = u64::from(SELECTORS[1]) << 16 | 0x85 << 40;
    memory.write(descriptor(GATE), gate);
    for vector in [6, 13, 0x30] {
        memory.write(INTERRUPTS.0 + 8 * vector, gate);
    }
    for (root, entries) in PAGE_TABLES.into_iter().zip([1, 2]) {
        for entry in 0..entries {
            // Present, writable, accessed, dirty, 4 MiB.
            memory.write(root + 4 * entry, 0xe3u32);
        }
    }
    write_second(memory);
    if way == Way::Return {
        memory.write(TASKS[0] + tss::LINK, SELECTORS[1]);
    }
    // What a processor may save must not look saved before.
    memory.write(TASKS[0] + tss::CR3, PAGE_TABLES[0] as u32);
    memory.write(TASKS[0] + tss::EIP, 0xdead_beefu32);
}

fn write_second(memory: &GuestMemory) {
    let put = |offset: u64, value: u64| {
        memory.write(TASKS[1] + offset, u32::try_from(value).unwrap());
    };
    put(tss::CR3, PAGE_TABLES[1]);
    put(tss::EIP, SECOND_CODE);
    put(tss::EFLAGS, 2);
    for (index, value) in (0..).zip(SECOND_REGISTERS) {
        put(tss::REGISTERS + 4 * index, value);
    }
    for index in 0..6 {
        let selector = if index == 1 { KERNEL_CODE } else { KERNEL_DATA };
        put(tss::SEGMENTS + 4 * index, selector.into());
    }
    put(tss::LDTR, 0);
}

/// What a processor has of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// The selector of the task.
    pub task: u16,
    /// Its base.
    pub base: u64,
    /// The page table.
    pub cr3: u64,
    /// Whether the state of the FPU is that of another task.
    pub switched: bool,
    /// The instruction.
    pub rip: u64,
    /// The stack.
    pub rsp: u64,
    /// RFLAGS without the status of the last operation.
    pub flags: u64,
    /// The selectors of CS and SS.
    pub selectors: [u16; 2],
}

/// Bits of RFLAGS that instructions leave as the tasks have set them.
pub const LASTING_FLAGS: u64 = 0x2_7702;

/// Returns whether a task is busy.
pub fn is_busy(memory: &GuestMemory, task: usize) -> bool {
    let address = descriptor(SELECTORS[task]) + 5;
    u64::from(memory.read::<u8>(address)) & BUSY != 0
}

/// Checks that no task has been left.
pub fn is_untouched(memory: &GuestMemory, way: Way) -> Result<()> {
    expect("the first task is busy", is_busy(memory, 0), true)?;
    expect(
        "the second task is busy",
        is_busy(memory, 1),
        way == Way::Return,
    )?;
    expect(
        "EIP of the first task in memory",
        memory.read::<u32>(TASKS[0] + tss::EIP),
        0xdead_beef,
    )?;
    expect(
        "the link of the second task",
        memory.read::<u16>(TASKS[1] + tss::LINK),
        0,
    )
}

/// Returns what the processor should have when the second task has begun.
pub fn second(way: Way) -> Processor {
    let pushed = way.event().and_then(|(_, _, error)| error).map_or(0, |_| 4);
    Processor {
        task: SELECTORS[1],
        base: TASKS[1],
        cr3: PAGE_TABLES[1],
        switched: true,
        rip: SECOND_CODE,
        rsp: STACKS[1] - pushed,
        flags: if way.nests() { 2 | NESTED } else { 2 },
        selectors: [KERNEL_CODE, KERNEL_DATA],
    }
}

/// Returns what the processor should have when the first task has been returned to.
pub fn first_again(way: Way) -> Processor {
    Processor {
        task: SELECTORS[0],
        base: TASKS[0],
        cr3: PAGE_TABLES[0],
        switched: true,
        rip: way.next_eip(),
        rsp: STACKS[0],
        flags: 2,
        selectors: [KERNEL_CODE, KERNEL_DATA],
    }
}

/// Checks the memory after a switch to the second task.
pub fn has_switched(memory: &GuestMemory, way: Way) -> Result<()> {
    expect("the first task is busy", is_busy(memory, 0), way.nests())?;
    expect("the second task is busy", is_busy(memory, 1), true)?;
    let link = if way.nests() { SELECTORS[0] } else { 0 };
    expect(
        "the link of the second task",
        memory.read::<u16>(TASKS[1] + tss::LINK),
        link,
    )?;
    let saved = |offset| u64::from(memory.read::<u32>(TASKS[0] + offset));
    expect("saved EIP", saved(tss::EIP), way.saved_eip())?;
    // A return leaves no nested task behind.
    expect("saved EFLAGS", saved(tss::EFLAGS) & LASTING_FLAGS, 2)?;
    expect("saved EAX", saved(tss::REGISTERS), BAD_SELECTOR)?;
    expect("saved ESP", saved(tss::REGISTERS + 16), STACKS[0])?;
    expect(
        "saved CS",
        saved(tss::SEGMENTS + 4) & 0xffff,
        KERNEL_CODE.into(),
    )?;
    if let Some((_, _, Some(error))) = way.event() {
        let pushed = memory.read::<u32>(STACKS[1] - SECOND - 4);
        expect("error code on the stack", u64::from(pushed), error)?;
    }
    Ok(())
}
