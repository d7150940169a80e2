// SPDX-License-Identifier: GPL-2.0

//! The rules for the state of L2, but for its segments.

use selftests::guest::layout::{BUFFER, OTHER_VMCS, SHADOW_VMCS};
use selftests::guest::vmx::control::{entry, pin, primary, secondary};
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;

use crate::Fails::Guest;
use crate::{rules, Cpu, Fixture};

/// An address that is not canonical with 48 bits, nor with 57.
const NOT_CANONICAL: u64 = 1 << 62;

/// A canonical address of the upper half.
const UPPER: u64 = 0xffff_8000_0000_0000;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// RFLAGS.TF.
const TF: u64 = 1 << 8;

/// A valid page-attribute table.
const PAT: u64 = 0x0007_0406_0007_0406;

/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;

/// Blocking by STI.
const STI: u64 = 1;

/// Blocking by MOV SS.
const MOV_SS: u64 = 2;

/// Blocking by NMI.
const NMI: u64 = 8;

/// L2 exits before its first instruction.
pub fn at_once(fields: &mut Fields) {
    fields.set(field::PIN, pin::PREEMPTION_TIMER);
    fields.put(field::PREEMPTION_TIMER, 0);
}

fn as_it_is(_: &mut Fields, _: &Cpu<'_>) {}

fn inject(fields: &mut Fields, kind: u64, vector: u64) {
    fields.put(field::ENTRY_EVENT, 1 << 31 | kind << 8 | vector);
}

/// Makes L2 one in 32-bit mode with PAE, whose page-directory pointers are not present.
pub fn pae(fields: &mut Fields) {
    at_once(fields);
    fields.clear(field::ENTRY, entry::LONG_MODE);
    fields.put(field::GUEST_RIGHTS + field::segment::CS, 0xc09b);
    fields.put(field::GUEST_RIP, BUFFER);
    for pointer in 0..4 {
        fields.put(field::GUEST_PDPTE + 2 * pointer, 0);
    }
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = control_registers();
    points.extend(others());
    points.extend(flags());
    points.extend(activity());
    points.extend(blocking());
    points.extend(memory());
    points
}

fn control_registers() -> Vec<Point<Fixture>> {
    rules! {
        "L2 must have CR0.NE": Guest(0),
            |fields, _| fields.clear(field::GUEST_CR0, 1 << 5), as_it_is;
        "a restricted L2 must have CR0.PE": Guest(0),
            |fields, _| fields.clear(field::GUEST_CR0, 1), as_it_is;
        "a restricted L2 must have CR0.PG": Guest(0), |fields, _| {
            pae(fields);
            fields.clear(field::GUEST_CR0, 1 << 31);
        }, |fields, _| {
            pae(fields);
            fields.clear(field::GUEST_CR0, 1 << 31);
            fields.set(field::SECONDARY, secondary::UNRESTRICTED);
        };
        "CR0.PG needs CR0.PE": Guest(0), |fields, _| {
            pae(fields);
            fields.set(field::SECONDARY, secondary::UNRESTRICTED);
            fields.clear(field::GUEST_CR0, 1);
        }, |fields, _| {
            pae(fields);
            fields.set(field::SECONDARY, secondary::UNRESTRICTED);
        };
        "L2 must have CR4.VMXE": Guest(0),
            |fields, _| fields.clear(field::GUEST_CR4, 1 << 13), as_it_is;
        "L2 must have no reserved bit of CR4": Guest(0),
            |fields, _| fields.set(field::GUEST_CR4, 1 << 31),
            |fields, _| fields.set(field::GUEST_CR4, 1 << 7);
        "long mode needs CR4.PAE": Guest(0),
            |fields, _| fields.clear(field::GUEST_CR4, 1 << 5), as_it_is;
        "long mode needs CR0.PG": Guest(0), |fields, _| {
            fields.set(field::SECONDARY, secondary::UNRESTRICTED);
            fields.clear(field::GUEST_CR0, 1 << 31);
        }, |fields, _| fields.set(field::SECONDARY, secondary::UNRESTRICTED);
        "CR4.PCIDE needs long mode": Guest(0), |fields, _| {
            pae(fields);
            fields.set(field::GUEST_CR4, 1 << 17);
        }, |fields, _| fields.set(field::GUEST_CR4, 1 << 17);
        "L2's CR3 must be within the address width": Guest(0),
            |fields, cpu| fields.set(field::GUEST_CR3, cpu.end), as_it_is;
    }
}

fn others() -> Vec<Point<Fixture>> {
    rules! {
        "L2's DEBUGCTL must have no reserved bits": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_DEBUG);
            fields.put(field::GUEST_DEBUGCTL, 1 << 3);
        }, |fields, _| fields.set(field::ENTRY, entry::LOAD_DEBUG);
        "L2's DR7 must have no bit of the upper half": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_DEBUG);
            fields.put(field::GUEST_DR7, 1 << 32 | 0x400);
        }, |fields, _| fields.set(field::ENTRY, entry::LOAD_DEBUG);
        "L2's SYSENTER_ESP must be canonical": Guest(0),
            |fields, _| fields.put(field::GUEST_SYSENTER, NOT_CANONICAL),
            |fields, _| fields.put(field::GUEST_SYSENTER, UPPER);
        "L2's SYSENTER_EIP must be canonical": Guest(0),
            |fields, _| fields.put(field::GUEST_SYSENTER + 2, NOT_CANONICAL),
            |fields, _| fields.put(field::GUEST_SYSENTER + 2, UPPER);
        "L2's page-attribute table must have types that exist": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_PAT);
            fields.put(field::GUEST_PAT, PAT | 3 << 8);
            fields.clear(field::GUEST_PAT, 4 << 8);
        }, |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_PAT);
            fields.put(field::GUEST_PAT, PAT);
        };
        "L2's EFER must have no reserved bits": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER | 1 << 9);
        }, |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER);
        };
        "L2's EFER.LMA must be what the entry control says": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER & !(1 << 10));
        }, |fields, _| {
            pae(fields);
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER & !(5 << 8));
        };
        "L2's EFER.LME must be EFER.LMA with paging": Guest(0), |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER & !(1 << 8));
        }, |fields, _| {
            fields.set(field::ENTRY, entry::LOAD_EFER);
            fields.put(field::GUEST_EFER, EFER);
        };
    }
}

fn flags() -> Vec<Point<Fixture>> {
    rules! {
        "L2's RIP must be canonical": Guest(0),
            |fields, _| fields.put(field::GUEST_RIP, NOT_CANONICAL), as_it_is;
        "L2's RIP must have 32 bits outside of 64-bit mode": Guest(0), |fields, _| {
            pae(fields);
            fields.put(field::GUEST_RIP, 1 << 32);
        }, |fields, _| pae(fields);
        "bit 1 of L2's RFLAGS must be set": Guest(0),
            |fields, _| fields.clear(field::GUEST_RFLAGS, 2), as_it_is;
        "bit 3 of L2's RFLAGS must be clear": Guest(0),
            |fields, _| fields.set(field::GUEST_RFLAGS, 8),
            |fields, _| fields.set(field::GUEST_RFLAGS, 4);
        "bit 22 of L2's RFLAGS must be clear": Guest(0),
            |fields, _| fields.set(field::GUEST_RFLAGS, 1 << 22),
            |fields, _| fields.set(field::GUEST_RFLAGS, 1 << 21);
        "the highest bit of L2's RFLAGS must be clear": Guest(0),
            |fields, _| fields.set(field::GUEST_RFLAGS, 1 << 63), as_it_is;
        "RFLAGS.VM must be clear in long mode": Guest(0),
            |fields, _| fields.set(field::GUEST_RFLAGS, 1 << 17), as_it_is;
        "an interrupt to inject needs RFLAGS.IF": Guest(0),
            |fields, _| inject(fields, 0, 0x20), |fields, _| {
                at_once(fields);
                fields.set(field::GUEST_RFLAGS, IF);
                inject(fields, 0, 3);
            };
    }
}

fn activity() -> Vec<Point<Fixture>> {
    rules! {
        "L2's activity must be one that exists": Guest(0),
            |fields, _| fields.put(field::ACTIVITY, 4), as_it_is;
        "an L2 that halts must have the privilege": Guest(0), |fields, _| {
            at_once(fields);
            fields.put(field::ACTIVITY, 1);
            fields.put(field::GUEST_RIGHTS + field::segment::SS, 0xc0f3);
            fields.put(field::GUEST_SELECTOR + field::segment::SS, 0x23);
            fields.put(field::GUEST_RIGHTS + field::segment::CS, 0xa0fb);
            fields.put(field::GUEST_SELECTOR + field::segment::CS, 0x1b);
        }, |fields, _| {
            at_once(fields);
            fields.put(field::ACTIVITY, 1);
        };
        "an L2 that halts must not be blocked by STI": Guest(0), |fields, _| {
            at_once(fields);
            fields.put(field::ACTIVITY, 1);
            fields.set(field::GUEST_RFLAGS, IF);
            fields.put(field::INTERRUPTIBILITY, STI);
        }, |fields, _| {
            at_once(fields);
            fields.put(field::ACTIVITY, 0);
            fields.set(field::GUEST_RFLAGS, IF);
            fields.put(field::INTERRUPTIBILITY, STI);
        };
        "an L2 that halts must not be given a breakpoint": Guest(0), |fields, _| {
            fields.put(field::ACTIVITY, 1);
            inject(fields, 6, 3);
            fields.put(field::ENTRY_LENGTH, 1);
        }, |fields, _| {
            fields.put(field::ACTIVITY, 1);
            inject(fields, 3, 1);
        };
        "an L2 that is shut down must not be given an interrupt": Guest(0), |fields, _| {
            fields.put(field::ACTIVITY, 2);
            fields.set(field::GUEST_RFLAGS, IF);
            inject(fields, 0, 0x20);
        }, |fields, _| {
            fields.put(field::ACTIVITY, 2);
            inject(fields, 2, 2);
        };
        "an L2 that waits for SIPI must not be given an event": Guest(0), |fields, _| {
            fields.put(field::ACTIVITY, 3);
            inject(fields, 2, 2);
        }, |fields, _| inject(fields, 2, 2);
    }
}

fn blocking() -> Vec<Point<Fixture>> {
    rules! {
        "a reserved bit of interruptibility must be clear": Guest(0),
            |fields, _| fields.put(field::INTERRUPTIBILITY, 1 << 5),
            |fields, _| fields.put(field::INTERRUPTIBILITY, NMI);
        "STI and MOV SS do not block together": Guest(0), |fields, _| {
            fields.set(field::GUEST_RFLAGS, IF);
            fields.put(field::INTERRUPTIBILITY, STI | MOV_SS);
        }, |fields, _| fields.put(field::INTERRUPTIBILITY, MOV_SS);
        "STI does not block without RFLAGS.IF": Guest(0),
            |fields, _| fields.put(field::INTERRUPTIBILITY, STI), |fields, _| {
                fields.set(field::GUEST_RFLAGS, IF);
                fields.put(field::INTERRUPTIBILITY, STI);
            };
        "an interrupt must not be injected while STI blocks": Guest(0), |fields, _| {
            fields.set(field::GUEST_RFLAGS, IF);
            fields.put(field::INTERRUPTIBILITY, STI);
            inject(fields, 0, 3);
        }, |fields, _| {
            fields.set(field::GUEST_RFLAGS, IF);
            inject(fields, 0, 3);
        };
        "an NMI must not be injected while MOV SS blocks": Guest(0), |fields, _| {
            fields.put(field::INTERRUPTIBILITY, MOV_SS);
            inject(fields, 2, 2);
        }, |fields, _| inject(fields, 2, 2);
        "an NMI must not be injected while a virtual one blocks": Guest(0), |fields, _| {
            fields.set(field::PIN, pin::NMI | pin::VIRTUAL_NMI);
            fields.put(field::INTERRUPTIBILITY, NMI);
            inject(fields, 2, 2);
        }, |fields, _| {
            fields.set(field::PIN, pin::NMI | pin::VIRTUAL_NMI);
            inject(fields, 2, 2);
        };
        "SMI does not block outside of system-management mode": Guest(0),
            |fields, _| fields.put(field::INTERRUPTIBILITY, 1 << 2), as_it_is;
        "a reserved bit of pending debug exceptions must be clear": Guest(0),
            |fields, _| fields.put(field::PENDING_DEBUG, 1 << 4),
            |fields, _| fields.put(field::PENDING_DEBUG, 1 << 12 | 1);
        "the highest bit of pending debug exceptions must be clear": Guest(0),
            |fields, _| fields.put(field::PENDING_DEBUG, 1 << 63), as_it_is;
        "a single step is pending if L2 is blocked and steps": Guest(0), |fields, _| {
            fields.put(field::INTERRUPTIBILITY, MOV_SS);
            fields.set(field::GUEST_RFLAGS, TF);
        }, |fields, _| {
            fields.put(field::INTERRUPTIBILITY, MOV_SS);
            fields.set(field::GUEST_RFLAGS, TF);
            fields.put(field::PENDING_DEBUG, 1 << 14);
        };
        "no single step is pending if L2 is blocked and does not step": Guest(0), |fields, _| {
            fields.put(field::INTERRUPTIBILITY, MOV_SS);
            fields.put(field::PENDING_DEBUG, 1 << 14);
        }, |fields, _| fields.put(field::PENDING_DEBUG, 1 << 14);
    }
}

/// Makes a page that of a VMCS for L2's VMREAD and VMWRITE.
fn shadow(cpu: &Cpu<'_>, page: u64, revision: u32) {
    cpu.memory.write(page, revision);
}

fn shadowing(fields: &mut Fields) {
    fields.set(field::SECONDARY, secondary::SHADOW_VMCS);
    fields.put(field::VMREAD_BITMAP, BUFFER);
    fields.put(field::VMWRITE_BITMAP, BUFFER);
}

fn memory() -> Vec<Point<Fixture>> {
    rules! {
        "the link pointer must be a page": Guest(4),
            |fields, _| fields.put(field::LINK_POINTER, OTHER_VMCS + 8),
            |fields, _| fields.put(field::LINK_POINTER, OTHER_VMCS);
        "the link pointer must be within the address width": Guest(4),
            |fields, cpu| fields.put(field::LINK_POINTER, cpu.end),
            |fields, _| fields.put(field::LINK_POINTER, u64::MAX);
        "the VMCS of the link pointer must have the revision": Guest(4), |fields, cpu| {
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision() ^ 1);
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        }, |fields, cpu| {
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision());
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        };
        "the VMCS of the link pointer must be no shadow": Guest(4), |fields, cpu| {
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision() | 1 << 31);
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        }, |fields, cpu| {
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision());
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        };
        "the VMCS of the link pointer must be a shadow with shadowing": Guest(4), |fields, cpu| {
            shadowing(fields);
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision());
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        }, |fields, cpu| {
            shadowing(fields);
            shadow(cpu, SHADOW_VMCS, cpu.capabilities.revision() | 1 << 31);
            fields.put(field::LINK_POINTER, SHADOW_VMCS);
        };
        "page-directory pointers must have no reserved bits": Guest(2), |fields, _| {
            pae(fields);
            fields.put(field::GUEST_PDPTE, 1 | 1 << 1);
        }, |fields, _| {
            pae(fields);
            fields.put(field::GUEST_PDPTE, 1 << 1);
        };
        "the last page-directory pointer must be within the address width": Guest(2),
            |fields, cpu| {
                pae(fields);
                fields.put(field::GUEST_PDPTE + 6, cpu.end | 1);
            }, |fields, _| {
                pae(fields);
                fields.put(field::GUEST_PDPTE + 6, BUFFER | 1);
            };
        "a monitor trap may be pending while L2 halts, and not while it waits for SIPI": Guest(0), |fields, _| {
            fields.put(field::ACTIVITY, 3);
            inject(fields, 7, 0);
        }, |fields, _| {
            fields.set(field::PRIMARY, primary::MONITOR_TRAP);
            fields.put(field::ACTIVITY, 1);
            inject(fields, 7, 0);
        };
    }
}
