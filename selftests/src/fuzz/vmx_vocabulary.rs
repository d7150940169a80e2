// SPDX-License-Identifier: GPL-2.0

//! What an L1 with VMX does in cases.

use super::vocabulary::{Place, Verb, Vocabulary, CR0, MSRS};
use super::{code, Action};
use crate::guest::layout::{
    APIC_ACCESS, EPTP_LIST, MSR_LIST, NOWHERE, OTHER_VMCS, PML, SHADOW_VMCS, STACK, STACKS,
    VIRTUAL_APIC, VMCS, VMREAD_BITMAP, VMXON_REGION,
};
use crate::guest::vmx::bits::{entry, exit, pin, primary, secondary};
use crate::guest::vmx::field;
use crate::guest::vmx::near_valid::Change::{Flip, Set};
use crate::guest::vmx::near_valid::{self, PAGE, WIDE};

const REGIONS: &[u64] = &[
    VMCS,
    OTHER_VMCS,
    SHADOW_VMCS,
    VMXON_REGION,
    VMCS + 8,
    NOWHERE,
    1 << 52,
];
const FIELDS: &[u64] = &[
    0, 0x2000, 0x2001, 0x201a, 0x2800, 0x4400, 0x4402, 0x6400, 0x681e, 0x6c16, 0x1_0000, 0x2c,
    0x6836, 0x7fff,
];
const VALUES: &[u64] = &[0, 1, 0x1e, 1 << 31, 1 << 63, u64::MAX];
const TYPES: &[u64] = &[0, 1, 2, 3, 4, 1 << 32];
const TAGS: &[u64] = &[0, 1, 0xffff, 0x1_0000];
const EPTPS: &[u64] = &[0x1e, 0x1_001e, 0x5e, 1 << 52 | 0x1e];
const LINEARS: &[u64] = &[0, 0x1000, 1 << 62];
const CR4: &[u64] = &[0x2620, 0x4_2620, 0x620, 0x2_2620];
const POKED: &[u64] = &[
    MSR_LIST,
    MSR_LIST + 8,
    MSR_LIST + 16,
    VIRTUAL_APIC + 0x80,
    VMREAD_BITMAP,
    VMREAD_BITMAP + 0x1000,
    EPTP_LIST,
    PML,
];
const POKES: &[u64] = &[
    0,
    u64::MAX,
    0x174,
    0x277,
    0xc000_0080,
    0xc000_0100,
    0x480,
    0x808,
    0xd01,
    0x0007_0406_0007_0406,
    1 << 32 | 0x277,
    0x20,
    0x1_0000_001e,
];

/// What L1 does.
pub const VERBS: &[Verb] = &[
    verb("vmwrite", &[FIELDS, VALUES], 4),
    verb("vmread", &[FIELDS], 4),
    verb("vmlaunch", &[&[0]], 1),
    verb("vmresume", &[&[0]], 1),
    verb("vmxon", &[REGIONS], 2),
    verb("vmxoff", &[], 1),
    verb("vmclear", &[REGIONS], 2),
    verb("vmptrld", &[REGIONS], 2),
    verb("vmptrst", &[], 1),
    verb("invept", &[EPTPS, VALUES, TYPES], 2),
    verb("invvpid", &[TAGS, LINEARS, TYPES], 2),
    verb("vmcall", &[], 1),
    verb("vmfunc", &[VALUES, VALUES], 1),
    verb("rdmsr", &[MSRS], 2),
    verb("wrmsr", &[MSRS, code::WORDS], 2),
    verb("cr0", &[CR0], 1),
    verb("cr4", &[CR4], 1),
    verb("poke", &[POKED, POKES], 6),
    verb("link", &[], 1),
];

const fn verb(name: &'static str, operands: &'static [&'static [u64]], weight: u64) -> Verb {
    Verb {
        name,
        operands,
        weight,
    }
}

/// The controls that make instructions exit, but for HLT.
const INSTRUCTIONS: u64 = primary::INVLPG
    | primary::MWAIT
    | primary::RDPMC
    | primary::RDTSC
    | primary::CR3_LOAD
    | primary::CR3_STORE
    | primary::CR8_LOAD
    | primary::CR8_STORE
    | primary::MOV_DR
    | primary::IO
    | primary::MONITOR
    | primary::PAUSE;

/// What is changed beyond the near-valid states that the processor itself is compared with.
///
/// PAUSE-loop exiting is left out: our module offers it, and KVM's own code does not.
const FURTHER: &[(u32, near_valid::Change)] = &[
    (
        field::PIN,
        Flip(pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS | 1 << 1),
    ),
    (
        field::PRIMARY,
        Flip(INSTRUCTIONS | primary::MONITOR_TRAP | primary::SECONDARY),
    ),
    (
        field::SECONDARY,
        Flip(
            secondary::APIC_ACCESSES
                | secondary::EPT
                | secondary::RDTSCP
                | secondary::APIC_REGISTERS
                | secondary::INTERRUPT_DELIVERY
                | secondary::RDRAND
                | secondary::INVPCID
                | secondary::VMFUNC
                | secondary::SHADOW_VMCS
                | secondary::RDSEED
                | secondary::XSAVES
                | secondary::MODE_BASED_EXECUTE
                | secondary::TSC_SCALING,
        ),
    ),
    (
        field::EXIT,
        Flip(exit::SAVE_DEBUG | exit::HOST_64_BIT | 1 << 12),
    ),
    (
        field::ENTRY,
        Flip(entry::SMM | entry::DEACTIVATE_DUAL_MONITOR),
    ),
    (field::EXCEPTION_BITMAP, Flip(0x2_715b)),
    (field::PFEC_MASK, Set(&[0, 1, 2, 0x1f])),
    (field::PFEC_MATCH, Set(&[0, 1, 2, 0x1f])),
    (field::CR0_MASK, Flip(0xe005_003f)),
    (field::CR4_MASK, Flip(0x2_67ff)),
    (field::CR0_SHADOW, Flip(0xe005_003f)),
    (field::CR4_SHADOW, Flip(0x2_67ff)),
    (field::CR3_TARGET_COUNT, Set(&[0, 1, 4, 5])),
    (field::CR3_TARGET, Set(&[0, code::DATA, 0x1_0000])),
    (
        field::EXIT_MSR_STORE,
        Set(&[MSR_LIST, MSR_LIST + 8, WIDE, NOWHERE]),
    ),
    (field::EXIT_MSR_STORE_COUNT, Set(&[0, 1, 2, 513])),
    (
        field::EXIT_MSR_LOAD,
        Set(&[MSR_LIST, MSR_LIST + 8, WIDE, NOWHERE]),
    ),
    (field::EXIT_MSR_LOAD_COUNT, Set(&[0, 1, 2, 513])),
    (
        field::ENTRY_MSR_LOAD,
        Set(&[MSR_LIST, MSR_LIST + 8, WIDE, NOWHERE]),
    ),
    (field::ENTRY_MSR_LOAD_COUNT, Set(&[0, 1, 2, 513])),
    (field::TSC_OFFSET, Set(&[0, 1 << 40])),
    (field::TSC_MULTIPLIER, Set(&[0, 1 << 48, 1 << 49])),
    (field::APIC_ACCESS, Set(&[APIC_ACCESS, PAGE + 1, WIDE])),
    (field::VMFUNC_CONTROLS, Set(&[0, 1, 2])),
    (field::EPTP_LIST, Set(&[EPTP_LIST, PAGE + 1, WIDE])),
    (field::VMREAD_BITMAP, Set(&[VMREAD_BITMAP, PAGE + 1, WIDE])),
    (
        field::VMWRITE_BITMAP,
        Set(&[VMREAD_BITMAP + 0x1000, PAGE + 1, WIDE]),
    ),
    (field::LINK_POINTER, Set(&[SHADOW_VMCS, VMCS, OTHER_VMCS])),
    (field::PML_INDEX, Set(&[0, 511, 512, 0xffff])),
    // Either it has run out, or it never does.
    (field::PREEMPTION_TIMER, Set(&[0, 0xffff_ffff])),
    (field::ACTIVITY, Set(&[0, 1, 2, 3, 4])),
    (field::INTERRUPTIBILITY, Flip(0x1f)),
    (field::PENDING_DEBUG, Flip(0x1_700f)),
    (field::GUEST_DEBUGCTL, Set(&[0, 1, 2, 1 << 14, 1 << 63])),
    (
        field::GUEST_RIP,
        Set(&[0, 0x7fff_ffff_ffff, 1 << 47, 1 << 62]),
    ),
    (
        field::GUEST_RSP,
        Set(&[STACKS + STACK, 0, 8, NOWHERE, 1 << 47]),
    ),
    (field::GUEST_CR3, Set(&[0, NOWHERE, 0xfff, 1 << 40])),
    (
        field::GUEST_RFLAGS,
        Set(&[2, 0x202, 0x102, 0x302, 0x2_0002, 0]),
    ),
    (field::GUEST_SYSENTER_CS, Set(&[0, 8, 0xffff_ffff])),
    (field::HOST_CR0, Flip(0xe005_003f)),
    (field::HOST_CR4, Flip(0x1_67ff)),
    (field::HOST_EFER, Flip(0xd01)),
    (field::HOST_RIP, Set(&[1 << 47, 0])),
    (field::VIRTUAL_APIC, Set(&[PAGE, NOWHERE])),
];

/// Real mode, protected mode without paging, 32-bit mode with paging, virtual-8086 mode.
const MODES: &[&[(u64, u32, u64)]] = &[
    &[
        (
            field::SECONDARY as u64,
            64,
            secondary::EPT | secondary::UNRESTRICTED,
        ),
        (field::GUEST_CR0 as u64, 64, 0x30),
        (field::GUEST_CR4 as u64, 64, 0x2000),
        (field::GUEST_EFER as u64, 64, 0),
        (field::ENTRY as u64, 64, 0x11fb),
        (field::GUEST_SELECTOR as u64 + 2, 64, 0xa000),
        (field::GUEST_BASE as u64 + 2, 64, 0xa_0000),
        (field::GUEST_LIMIT as u64 + 2, 64, 0xffff),
        (field::GUEST_RIGHTS as u64 + 2, 64, 0x9b),
        (field::GUEST_RIP as u64, 64, 0),
    ],
    &[
        (
            field::SECONDARY as u64,
            64,
            secondary::EPT | secondary::UNRESTRICTED,
        ),
        (field::GUEST_CR0 as u64, 64, 0x31),
        (field::GUEST_CR4 as u64, 64, 0x2000),
        (field::GUEST_EFER as u64, 64, 0),
        (field::ENTRY as u64, 64, 0x11fb),
        (field::GUEST_RIGHTS as u64 + 2, 64, 0xc09b),
    ],
    &[
        (field::GUEST_EFER as u64, 64, 0),
        (field::ENTRY as u64, 64, 0x11fb),
        (field::GUEST_RIGHTS as u64 + 2, 64, 0xc09b),
    ],
    &[
        (field::GUEST_RFLAGS as u64, 64, 0x2_0002),
        (field::GUEST_EFER as u64, 64, 0),
        (field::ENTRY as u64, 64, 0x11fb),
        (field::GUEST_SELECTOR as u64, 64, 0),
        (field::GUEST_SELECTOR as u64 + 2, 64, 0xa000),
        (field::GUEST_BASE as u64 + 2, 64, 0xa_0000),
        (field::GUEST_LIMIT as u64 + 2, 64, 0xffff),
        (field::GUEST_RIGHTS as u64 + 2, 64, 0xf3),
    ],
];

/// Instructions, exceptions, and accesses to control registers.
const EXITS: &[(u64, u32, u64)] = &[
    (field::PRIMARY as u64, 64, primary::HLT | INSTRUCTIONS),
    (
        field::SECONDARY as u64,
        64,
        secondary::DESCRIPTOR_TABLE | secondary::WBINVD | secondary::RDRAND | secondary::RDSEED,
    ),
    (field::EXCEPTION_BITMAP as u64, 64, 0xffff_ffff),
    (field::CR0_MASK as u64, 64, u64::MAX),
    (field::CR4_MASK as u64, 64, u64::MAX),
];

/// Returns what L1 can do.
pub fn vocabulary() -> Vocabulary {
    let of_segments = (0..8u32).flat_map(|register| {
        near_valid::OF_SEGMENT.map(move |(first, change)| (first + 2 * register, change))
    });
    let all = near_valid::CHANGES.iter().chain(FURTHER).copied();
    let place = |(field, change): (u32, near_valid::Change)| Place {
        at: field.into(),
        bits: 64,
        change,
    };
    Vocabulary {
        verbs: VERBS,
        places: all.chain(of_segments).map(place).collect(),
        modes: MODES,
        exits: EXITS,
        set: |at, _, value| Action::new("vmwrite", &[at, value]),
        rip: field::GUEST_RIP.into(),
        enter: ("vmlaunch", 0),
        again: ("vmresume", 0),
    }
}
