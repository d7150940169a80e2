// SPDX-License-Identifier: GPL-2.0

//! What an L1 with SVM does in cases.

use super::vocabulary::{Place, Verb, Vocabulary, ANY, CR0, MSRS};
use super::{code, Action};
use crate::guest::layout::{IO_MAP, MSR_MAP, NOWHERE, OTHER_VMCS, STACK, STACKS, VMCB};
use crate::guest::vmcb;
use crate::guest::vmx::near_valid::Change::{self, Flip, Set};
use crate::guest::vmx::near_valid::{PAT, WIDE};

const VMCBS: &[u64] = &[VMCB, OTHER_VMCS, VMCB + 8, NOWHERE, 1 << 52, !0xfff];
const ASIDS: &[u64] = &[0, 1, 2, 0xffff_ffff];
const CR4: &[u64] = &[0x620, 0x4_0620, 0x2_0620, 0x1620];

/// What L1 does.
pub const VERBS: &[Verb] = &[
    verb("set", &[ANY, ANY, ANY], 0),
    verb("map", &[MAPS, code::WORDS], 4),
    verb("vmrun", &[VMCBS], 2),
    verb("vmload", &[code::WHOLE_VMCBS], 3),
    verb("vmsave", &[code::WHOLE_VMCBS], 3),
    verb("stgi", &[], 2),
    verb("clgi", &[], 2),
    verb("skinit", &[VMCBS], 1),
    verb("invlpga", &[VMCBS, ASIDS], 1),
    verb("vmmcall", &[], 1),
    verb("rdmsr", &[MSRS], 2),
    verb("wrmsr", &[MSRS, code::WORDS], 2),
    verb("cr0", &[CR0], 1),
    verb("cr4", &[CR4], 1),
];

/// Words of the permission maps.
const MAPS: &[u64] = &[
    IO_MAP,
    IO_MAP + 8,
    IO_MAP + 0xff8,
    IO_MAP + 0x2000,
    MSR_MAP,
    MSR_MAP + 0x58,
    MSR_MAP + 0x800,
    MSR_MAP + 0x840,
    MSR_MAP + 0x1040,
];

const fn verb(name: &'static str, operands: &'static [&'static [u64]], weight: u64) -> Verb {
    Verb {
        name,
        operands,
        weight,
    }
}

/// Segment attributes.
const RIGHTS: Change = Flip(0xfff);

const LIMITS: Change = Set(&[0, 0x67, 0xffff, 0xf_ffff, 0x10_0000, 0xffff_ffff]);

const BASES: Change = Set(&[0, 0x1000, 1 << 31, 1 << 32, 1 << 47, 0xffff_8000_0000_0000]);

/// The state save area and the control area, as far as they are changed.
const PLACES: &[(u64, u32, Change)] = &[
    (vmcb::INTERCEPTS, 32, Flip(0xffff_ffff)),
    (vmcb::INTERCEPTS + 4, 32, Flip(0xffff_ffff)),
    (vmcb::INTERCEPTS + 8, 32, Flip(0x2_745b)),
    (vmcb::INTERCEPTS + 12, 32, Flip(0xffff_ffff)),
    (vmcb::INTERCEPTS + 12, 32, Flip(0xffff_ffff)),
    (vmcb::INTERCEPTS + 16, 32, Flip(0x3_ffff)),
    (vmcb::INTERCEPTS + 16, 32, Flip(0x3_ffff)),
    (vmcb::INTERCEPTS + 20, 32, Flip(0x1f)),
    // The filter and threshold of PAUSE.
    (VMCB + 0x3c, 16, Set(&[0, 1, 0xffff])),
    (VMCB + 0x3e, 16, Set(&[0, 1, 0xffff])),
    (vmcb::IOPM, 64, Set(&[IO_MAP, IO_MAP + 8, NOWHERE, WIDE])),
    (vmcb::MSRPM, 64, Set(&[MSR_MAP, MSR_MAP + 8, NOWHERE, WIDE])),
    // The TSC offset.
    (VMCB + 0x50, 64, Set(&[0, 1 << 40])),
    (vmcb::ASID, 32, Set(&[0, 1, 2, 0xffff_ffff])),
    // TLB_CONTROL.
    (VMCB + 0x5c, 8, Set(&[0, 1, 2, 3, 7, 0xff])),
    (vmcb::INT_CTL, 32, Flip(0x911f_1f0f)),
    (vmcb::INT_CTL, 32, Flip(0x0600_0100)),
    // The vector of a virtual interrupt.
    (VMCB + 0x64, 32, Set(&[0, 0x20, 0x51, 0xff])),
    (vmcb::INT_STATE, 32, Flip(3)),
    (vmcb::MISC_CTL, 64, Flip(0xff)),
    (
        vmcb::EVENT_INJ,
        32,
        Set(&[
            0x8000_0020,
            0x8000_0051,
            0x8000_0202,
            0x8000_0300,
            0x8000_0301,
            0x8000_0303,
            0x8000_0306,
            0x8000_0b0d,
            0x8000_0b0e,
            0x8000_030d,
            0x8000_0308,
            0x8000_0402,
            0x8000_0403,
            0x8000_0480,
            0x8000_0500,
            0x8000_0302,
            0x8000_0320,
            0xffff_ffff,
            0x0000_0306,
        ]),
    ),
    // The error code of the event.
    (vmcb::EVENT_INJ + 4, 32, Set(&[0, 4, 0xffff_ffff])),
    (vmcb::NESTED_CR3, 64, Set(&[0, NOWHERE, 1 << 40, WIDE])),
    // LBRs, and virtual VMLOAD and VMSAVE.
    (VMCB + 0xb8, 64, Flip(7)),
    (vmcb::CLEAN, 32, Set(&[0, 0xffff_ffff, 0xfff])),
    (vmcb::NEXT_RIP, 64, Set(&[0, code::CODE, 1 << 62])),
    (VMCB + 0x98, 64, Set(&[0, code::DATA, WIDE])),
    (vmcb::CPL, 8, Set(&[0, 1, 2, 3, 4, 0xff])),
    (vmcb::EFER, 64, Flip(0x1_fd01)),
    (vmcb::CR4, 64, Flip(0x1_0037_27ff)),
    (vmcb::CR3, 64, Set(&[0, NOWHERE, 0xfff, 1 << 40, WIDE])),
    (vmcb::CR0, 64, Flip(0x1_e005_003f)),
    (vmcb::DR7, 64, Flip(0x1_0000_e7ff)),
    (vmcb::DR6, 64, Flip(0x1_0001_f00f)),
    (vmcb::RFLAGS, 64, Flip(0x1_003f_7fd7)),
    (vmcb::RFLAGS, 64, Set(&[2, 0x202, 0x102, 0x302, 0x2_0002])),
    (vmcb::RIP, 64, Set(&[0, 1 << 47, 1 << 62, 0x7fff_ffff_ffff])),
    (
        vmcb::RSP,
        64,
        Set(&[STACKS + STACK, 0, 8, NOWHERE, 1 << 47]),
    ),
    (vmcb::RAX, 64, Set(&[0, VMCB, u64::MAX])),
    (vmcb::CR2, 64, Set(&[0, 0x1234, u64::MAX])),
    (vmcb::G_PAT, 64, Set(&[PAT, PAT | 2, PAT | 8 << 56])),
    // S_CET, SSP, ISST_ADDR; STAR to SYSENTER_EIP; DEBUGCTL.
    (VMCB + 0x5e0, 64, Set(&[0, 1, u64::MAX])),
    (VMCB + 0x600, 64, Set(&[0, 1, u64::MAX])),
    (VMCB + 0x608, 64, Set(&[0, 1, 1 << 62])),
    (VMCB + 0x620, 64, Set(&[0, 1 << 47, 1 << 62])),
    (VMCB + 0x628, 64, Set(&[0, 8, u64::MAX])),
    (VMCB + 0x638, 64, Set(&[0, 1 << 47, u64::MAX])),
    (VMCB + 0x670, 64, Set(&[0, 1, 2, 3, u64::MAX])),
    // What nobody defines.
    (VMCB + 0x3f8, 64, Set(&[0, u64::MAX])),
    (VMCB + 0xff8, 64, Set(&[0, u64::MAX])),
];

/// The attributes of the task register.
pub const TASK_ATTRIBUTES: u64 = vmcb::SEGMENTS + 16 * 9 + 2;

/// How the parts of a segment register are changed, by their offsets.
const OF_SEGMENT: [(u64, u32, Change); 4] = [
    (0, 16, Flip(0xf)),
    (2, 16, RIGHTS),
    (4, 32, LIMITS),
    (8, 64, BASES),
];

/// Real mode, protected mode without paging, 32-bit mode with paging, virtual-8086 mode.
const MODES: &[&[(u64, u32, u64)]] = &[
    &[
        (vmcb::CR0, 64, 0x10),
        (vmcb::EFER, 64, 0x1000),
        (vmcb::SEGMENTS + 16, 16, 0xa000),
        (vmcb::SEGMENTS + 18, 16, 0x9b),
        (vmcb::SEGMENTS + 20, 32, 0xffff),
        (vmcb::SEGMENTS + 24, 64, 0xa_0000),
        (vmcb::RIP, 64, 0),
    ],
    &[
        (vmcb::CR0, 64, 0x31),
        (vmcb::EFER, 64, 0x1000),
        (vmcb::SEGMENTS + 18, 16, 0xc9b),
    ],
    &[(vmcb::EFER, 64, 0x1000), (vmcb::SEGMENTS + 18, 16, 0xc9b)],
    &[(vmcb::SEGMENTS + 18, 16, 0xc9b)],
    &[
        (vmcb::RFLAGS, 64, 0x2_0002),
        (vmcb::EFER, 64, 0x1000),
        (vmcb::CPL, 8, 3),
        (vmcb::SEGMENTS + 16, 16, 0xa000),
        (vmcb::SEGMENTS + 18, 16, 0xfb),
        (vmcb::SEGMENTS + 20, 32, 0xffff),
        (vmcb::SEGMENTS + 24, 64, 0xa_0000),
        (vmcb::RIP, 64, 0),
    ],
];

/// All intercepts: control and debug registers, exceptions, instructions.
const EXITS: &[(u64, u32, u64)] = &[
    (vmcb::INTERCEPTS, 32, 0xffff_ffff),
    (vmcb::INTERCEPTS + 4, 32, 0xffff_ffff),
    (vmcb::INTERCEPTS + 8, 32, 0xffff_ffff),
    (vmcb::INTERCEPTS + 12, 32, 0xffff_ffff),
    (vmcb::INTERCEPTS + 16, 32, 0x3_ffff),
    (vmcb::INTERCEPTS + 20, 32, 0x1f),
];

/// Returns what L1 can do.
pub fn vocabulary() -> Vocabulary {
    let of_segments = (0..10).flat_map(|register| {
        OF_SEGMENT
            .map(move |(at, bits, change)| (vmcb::SEGMENTS + 16 * register + at, bits, change))
    });
    // QEMU itself ends at an exception if there is no task: see Documentation/errata.rst.
    let of_segments = of_segments.filter(|(at, ..)| *at != TASK_ATTRIBUTES);
    let all = PLACES.iter().copied().chain(of_segments);
    Vocabulary {
        verbs: VERBS,
        places: all
            .map(|(at, bits, change)| Place { at, bits, change })
            .collect(),
        modes: MODES,
        exits: EXITS,
        set,
        rip: vmcb::RIP,
        enter: ("vmrun", VMCB),
        again: ("vmrun", VMCB),
    }
}

/// Returns the bits of a place within its word: how far to the left, and which.
fn bits_of(at: u64, bits: u32) -> (u64, u64) {
    let shift = at % 8 * 8;
    (shift, (u64::MAX >> (64 - bits)) << shift)
}

fn set(at: u64, bits: u32, value: u64) -> Action {
    let (shift, mask) = bits_of(at, bits);
    Action::new("set", &[at & !7, mask, (value << shift) & mask])
}
