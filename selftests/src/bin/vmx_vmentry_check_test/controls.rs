// SPDX-License-Identifier: GPL-2.0

//! The rules for controls.

use anyhow::{Context, Result};
use selftests::guest::layout::{
    APIC_ACCESS, EPTP_LIST, IO_MAP, MSR_LIST, MSR_MAP, PML, VIRTUAL_APIC, VMREAD_BITMAP,
};
use selftests::guest::vmx::control::{entry, exit, pin, primary, secondary};
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;

use crate::Fails::{Controls, ErrorCode};
use crate::{rules, Fixture};

/// An event to inject is there.
const VALID: u64 = 1 << 31;

/// It has an error code.
const WITH_ERROR_CODE: u64 = 1 << 11;

fn event(fields: &mut Fields, event: u64) {
    fields.put(field::ENTRY_EVENT, event);
}

/// An event of software with the length of its instruction.
fn software(fields: &mut Fields, kind: u64, vector: u64, length: u64) {
    fields.put(field::ENTRY_EVENT, VALID | kind << 8 | vector);
    fields.put(field::ENTRY_LENGTH, length);
}

/// Gives L2 the TPR shadow, whose page says that the TPR is 0.
fn tpr_shadow(fields: &mut Fields) {
    fields.set(field::PRIMARY, primary::TPR_SHADOW);
    fields.put(field::VIRTUAL_APIC, VIRTUAL_APIC);
}

fn with_secondary(fields: &mut Fields, bits: u64) {
    fields.set(field::SECONDARY, bits);
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = words();
    points.extend(pages());
    points.extend(dependences());
    points.extend(events());
    points
}

/// All bits of the control words.
fn words() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "pin-based controls are as the capabilities say",
            |fixture| bits(fixture, field::PIN),
        ),
        Point::new("primary controls are as the capabilities say", |fixture| {
            bits(fixture, field::PRIMARY)
        }),
        Point::new(
            "secondary controls are as the capabilities say",
            |fixture| bits(fixture, field::SECONDARY),
        ),
        Point::new("exit controls are as the capabilities say", |fixture| {
            bits(fixture, field::EXIT)
        }),
        Point::new("entry controls are as the capabilities say", |fixture| {
            bits(fixture, field::ENTRY)
        }),
    ]
}

fn bits(fixture: &Fixture, word: u32) -> Result<()> {
    fixture.with(|machine| {
        let capabilities = machine.capabilities;
        let valid = machine.fields(crate::entry_test_l2 as *const () as u64)?;
        for bit in (0..32).map(|bit| 1 << bit) {
            let mut fields = valid.clone();
            if capabilities.required(word) & bit != 0 {
                fields.clear(word, bit);
            } else if capabilities.allowed(word) & bit == 0 {
                fields.set(word, bit);
            } else {
                continue;
            }
            let entered = machine.enter(&fields)?.0;
            Controls
                .check(entered)
                .with_context(|| format!("bit {bit:#x}"))?;
        }
        let entered = machine.enter(&valid)?.0;
        let exit = entered.exit()?;
        selftests::expect("reason of the exit", exit.reason, 18)
    })
}

/// Addresses of pages and areas.
fn pages() -> Vec<Point<Fixture>> {
    rules! {
        "the first bitmap of ports must be a page": Controls, |fields, _| {
            fields.set(field::PRIMARY, primary::IO_BITMAPS);
            fields.put(field::IO_BITMAP_A, IO_MAP + 8);
            fields.put(field::IO_BITMAP_B, IO_MAP);
        }, |fields, _| {
            fields.put(field::IO_BITMAP_A, IO_MAP + 8);
            fields.put(field::IO_BITMAP_B, IO_MAP + 8);
        };
        "the second bitmap of ports must be a page": Controls, |fields, _| {
            fields.set(field::PRIMARY, primary::IO_BITMAPS);
            fields.put(field::IO_BITMAP_A, IO_MAP);
            fields.put(field::IO_BITMAP_B, IO_MAP + 0x800);
        }, |fields, _| {
            fields.set(field::PRIMARY, primary::IO_BITMAPS);
            fields.put(field::IO_BITMAP_A, IO_MAP);
            fields.put(field::IO_BITMAP_B, IO_MAP);
        };
        "the bitmaps of ports must be within the address width": Controls, |fields, cpu| {
            fields.set(field::PRIMARY, primary::IO_BITMAPS);
            fields.put(field::IO_BITMAP_A, IO_MAP);
            fields.put(field::IO_BITMAP_B, cpu.end);
        }, |fields, _| {
            fields.set(field::PRIMARY, primary::IO_BITMAPS);
            fields.put(field::IO_BITMAP_A, IO_MAP);
            fields.put(field::IO_BITMAP_B, IO_MAP + 0x1000);
        };
        "the bitmap of MSRs must be a page": Controls, |fields, _| {
            fields.set(field::PRIMARY, primary::MSR_BITMAPS);
            fields.put(field::MSR_BITMAP, MSR_MAP + 0x10);
        }, |fields, _| {
            fields.set(field::PRIMARY, primary::MSR_BITMAPS);
            fields.put(field::MSR_BITMAP, MSR_MAP);
        };
        "the bitmap of MSRs must be within the address width": Controls, |fields, cpu| {
            fields.set(field::PRIMARY, primary::MSR_BITMAPS);
            fields.put(field::MSR_BITMAP, cpu.end);
        }, |fields, cpu| fields.put(field::MSR_BITMAP, cpu.end);
        "the virtual-APIC page must be a page": Controls, |fields, _| {
            tpr_shadow(fields);
            fields.put(field::VIRTUAL_APIC, VIRTUAL_APIC + 4);
        }, |fields, _| tpr_shadow(fields);
        "the virtual-APIC page must be within the address width": Controls, |fields, cpu| {
            tpr_shadow(fields);
            fields.put(field::VIRTUAL_APIC, cpu.end);
        }, |fields, cpu| fields.put(field::VIRTUAL_APIC, cpu.end);
        "the APIC-access page must be a page": Controls, |fields, _| {
            with_secondary(fields, secondary::APIC_ACCESSES);
            fields.put(field::APIC_ACCESS, APIC_ACCESS + 0x100);
        }, |fields, _| {
            with_secondary(fields, secondary::APIC_ACCESSES);
            fields.put(field::APIC_ACCESS, APIC_ACCESS);
        };
        "the page-modification log must be a page": Controls, |fields, _| {
            with_secondary(fields, secondary::PML);
            fields.put(field::PML_ADDRESS, PML + 8);
            fields.put(field::PML_INDEX, 511);
        }, |fields, _| {
            with_secondary(fields, secondary::PML);
            fields.put(field::PML_ADDRESS, PML);
            fields.put(field::PML_INDEX, 511);
        };
        "the page-modification log must be within the address width": Controls, |fields, cpu| {
            with_secondary(fields, secondary::PML);
            fields.put(field::PML_ADDRESS, cpu.end);
        }, |fields, cpu| fields.put(field::PML_ADDRESS, cpu.end);
        "the list of page tables must be a page": Controls, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.put(field::VMFUNC_CONTROLS, 1);
            fields.put(field::EPTP_LIST, EPTP_LIST + 8);
        }, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.put(field::VMFUNC_CONTROLS, 1);
            fields.put(field::EPTP_LIST, EPTP_LIST);
        };
        "functions for L2 must exist": Controls, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.put(field::VMFUNC_CONTROLS, 2);
        }, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.put(field::VMFUNC_CONTROLS, 0);
        };
        "the bitmap of fields to read must be a page": Controls, |fields, _| {
            with_secondary(fields, secondary::SHADOW_VMCS);
            fields.put(field::VMREAD_BITMAP, VMREAD_BITMAP + 1);
            fields.put(field::VMWRITE_BITMAP, VMREAD_BITMAP + 0x1000);
        }, |fields, _| {
            with_secondary(fields, secondary::SHADOW_VMCS);
            fields.put(field::VMREAD_BITMAP, VMREAD_BITMAP);
            fields.put(field::VMWRITE_BITMAP, VMREAD_BITMAP + 0x1000);
        };
        "the bitmap of fields to write must be within the address width": Controls, |fields, cpu| {
            with_secondary(fields, secondary::SHADOW_VMCS);
            fields.put(field::VMREAD_BITMAP, VMREAD_BITMAP);
            fields.put(field::VMWRITE_BITMAP, cpu.end);
        }, |fields, cpu| fields.put(field::VMWRITE_BITMAP, cpu.end);
        "MSRs to store must be aligned": Controls, |fields, _| {
            fields.put(field::EXIT_MSR_STORE, MSR_LIST + 8);
            fields.put(field::EXIT_MSR_STORE_COUNT, 1);
        }, |fields, _| fields.put(field::EXIT_MSR_STORE, MSR_LIST + 8);
        "MSRs to store must end within the address width": Controls, |fields, cpu| {
            fields.put(field::EXIT_MSR_STORE, cpu.end - 16);
            fields.put(field::EXIT_MSR_STORE_COUNT, 2);
        }, |fields, cpu| fields.put(field::EXIT_MSR_STORE, cpu.end - 16);
        "MSRs to load at an exit must be aligned": Controls, |fields, _| {
            fields.put(field::EXIT_MSR_LOAD, MSR_LIST + 1);
            fields.put(field::EXIT_MSR_LOAD_COUNT, 1);
        }, |fields, _| fields.put(field::EXIT_MSR_LOAD, MSR_LIST + 1);
        "MSRs to load at an exit must be within the address width": Controls, |fields, cpu| {
            fields.put(field::EXIT_MSR_LOAD, cpu.end);
            fields.put(field::EXIT_MSR_LOAD_COUNT, 1);
        }, |fields, cpu| fields.put(field::EXIT_MSR_LOAD, cpu.end);
        "MSRs to load at an entry must be aligned": Controls, |fields, _| {
            fields.put(field::ENTRY_MSR_LOAD, MSR_LIST + 4);
            fields.put(field::ENTRY_MSR_LOAD_COUNT, 1);
        }, |fields, _| fields.put(field::ENTRY_MSR_LOAD, MSR_LIST + 4);
        "MSRs to load at an entry must be within the address width": Controls, |fields, cpu| {
            fields.put(field::ENTRY_MSR_LOAD, cpu.end - 16);
            fields.put(field::ENTRY_MSR_LOAD_COUNT, 2);
        }, |fields, cpu| fields.put(field::ENTRY_MSR_LOAD, cpu.end - 16);
        "the page table of L2 must have a memory type that exists": Controls, |fields, _| {
            fields.set(field::EPTP, 1);
        }, |_, _| ();
        "the page table of L2 must have levels that exist": Controls, |fields, _| {
            fields.clear(field::EPTP, 7 << 3);
            fields.set(field::EPTP, 2 << 3);
        }, |_, _| ();
        "the page table of L2 must have no reserved bits": Controls, |fields, _| {
            fields.set(field::EPTP, 1 << 8);
        }, |_, _| ();
        "the page table of L2 must be within the address width": Controls, |fields, cpu| {
            fields.set(field::EPTP, cpu.end);
        }, |fields, cpu| {
            // Accessed and dirty bits, where they exist.
            fields.set(field::EPTP, (cpu.capabilities.ept_vpid >> 21 & 1) << 6);
        };
    }
}

/// Controls that need others, and numbers.
fn dependences() -> Vec<Point<Fixture>> {
    rules! {
        "there are at most four values of CR3 that do not exit": Controls, |fields, cpu| {
            fields.put(field::CR3_TARGET_COUNT, (cpu.capabilities.misc >> 16 & 0x1ff) + 1);
        }, |fields, cpu| {
            fields.put(field::CR3_TARGET_COUNT, cpu.capabilities.misc >> 16 & 0x1ff);
        };
        "virtual NMIs need exits of NMIs": Controls, |fields, _| {
            fields.set(field::PIN, pin::VIRTUAL_NMI);
        }, |fields, _| fields.set(field::PIN, pin::VIRTUAL_NMI | pin::NMI);
        "exits of NMI windows need virtual NMIs": Controls, |fields, _| {
            fields.set(field::PIN, pin::NMI);
            fields.set(field::PRIMARY, primary::NMI_WINDOW);
        }, |fields, _| {
            fields.set(field::PIN, pin::VIRTUAL_NMI | pin::NMI);
            fields.set(field::PRIMARY, primary::NMI_WINDOW);
        };
        "the threshold of the TPR has four bits": Controls, |fields, _| {
            tpr_shadow(fields);
            fields.put(field::TPR_THRESHOLD, 0x10);
        }, |fields, _| fields.put(field::TPR_THRESHOLD, 0x10);
        "the virtual MSRs of the APIC need the TPR shadow": Controls, |fields, _| {
            with_secondary(fields, secondary::X2APIC);
        }, |fields, _| {
            tpr_shadow(fields);
            with_secondary(fields, secondary::X2APIC);
        };
        "virtual MSRs of the APIC and virtual accesses exclude each other": Controls, |fields, _| {
            tpr_shadow(fields);
            with_secondary(fields, secondary::X2APIC | secondary::APIC_ACCESSES);
            fields.put(field::APIC_ACCESS, APIC_ACCESS);
        }, |fields, _| {
            tpr_shadow(fields);
            with_secondary(fields, secondary::APIC_ACCESSES);
            fields.put(field::APIC_ACCESS, APIC_ACCESS);
        };
        "virtual registers of the APIC need the TPR shadow": Controls, |fields, _| {
            with_secondary(fields, secondary::APIC_REGISTERS);
        }, |fields, _| {
            tpr_shadow(fields);
            with_secondary(fields, secondary::APIC_REGISTERS);
        };
        "delivery of virtual interrupts needs exits of interrupts": Controls, |fields, _| {
            tpr_shadow(fields);
            with_secondary(fields, secondary::INTERRUPT_DELIVERY);
        }, |fields, _| {
            tpr_shadow(fields);
            fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
            with_secondary(fields, secondary::INTERRUPT_DELIVERY);
        };
        "posted interrupts need the delivery of virtual interrupts": Controls, |fields, _| {
            fields.set(field::PIN, pin::POSTED_INTERRUPTS | pin::EXTERNAL_INTERRUPT);
            fields.set(field::EXIT, exit::ACKNOWLEDGE);
        }, |fields, _| {
            tpr_shadow(fields);
            fields.set(field::PIN, pin::POSTED_INTERRUPTS | pin::EXTERNAL_INTERRUPT);
            fields.set(field::EXIT, exit::ACKNOWLEDGE);
            with_secondary(fields, secondary::INTERRUPT_DELIVERY);
            fields.put(field::POSTED_VECTOR, 0xf2);
            fields.put(field::POSTED_DESCRIPTOR, PML);
        };
        "the tag of L2 must not be that of the host": Controls, |fields, _| {
            with_secondary(fields, secondary::VPID);
            fields.put(field::VPID, 0);
        }, |fields, _| {
            with_secondary(fields, secondary::VPID);
            fields.put(field::VPID, 1);
        };
        "an unrestricted L2 needs a page table of L1": Controls, |fields, _| {
            with_secondary(fields, secondary::UNRESTRICTED);
            fields.clear(field::SECONDARY, secondary::EPT);
        }, |fields, _| with_secondary(fields, secondary::UNRESTRICTED);
        "the page-modification log needs a page table of L1": Controls, |fields, _| {
            with_secondary(fields, secondary::PML);
            fields.clear(field::SECONDARY, secondary::EPT);
            fields.put(field::PML_ADDRESS, PML);
        }, |fields, _| {
            with_secondary(fields, secondary::PML);
            fields.put(field::PML_ADDRESS, PML);
        };
        "a right to execute by mode needs a page table of L1": Controls, |fields, _| {
            with_secondary(fields, secondary::MODE_BASED_EXECUTE);
            fields.clear(field::SECONDARY, secondary::EPT);
        }, |fields, _| with_secondary(fields, secondary::MODE_BASED_EXECUTE);
        "switching of page tables needs a page table of L1": Controls, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.clear(field::SECONDARY, secondary::EPT);
            fields.put(field::VMFUNC_CONTROLS, 1);
            fields.put(field::EPTP_LIST, EPTP_LIST);
        }, |fields, _| {
            with_secondary(fields, secondary::VMFUNC);
            fields.put(field::VMFUNC_CONTROLS, 1);
            fields.put(field::EPTP_LIST, EPTP_LIST);
        };
        "the TSC must not be multiplied by 0": Controls, |fields, _| {
            fields.set(field::PRIMARY, primary::TSC_OFFSETTING);
            with_secondary(fields, secondary::TSC_SCALING);
            fields.put(field::TSC_MULTIPLIER, 0);
        }, |fields, _| {
            fields.set(field::PRIMARY, primary::TSC_OFFSETTING);
            with_secondary(fields, secondary::TSC_SCALING);
            fields.put(field::TSC_MULTIPLIER, 1 << 48);
        };
        "secondary controls do not count unless they are there": Controls, |fields, _| {
            with_secondary(fields, secondary::VPID);
            fields.put(field::VPID, 0);
        }, |fields, _| {
            fields.clear(field::PRIMARY, primary::SECONDARY);
            with_secondary(fields, secondary::VPID);
            fields.put(field::VPID, 0);
        };
        "to store the timer there must be one": Controls, |fields, _| {
            fields.set(field::EXIT, exit::SAVE_TIMER);
        }, |fields, _| {
            fields.set(field::EXIT, exit::SAVE_TIMER);
            fields.set(field::PIN, pin::PREEMPTION_TIMER);
            fields.put(field::PREEMPTION_TIMER, 1_000_000);
        };
        "L2 is not in system-management mode": Controls, |fields, _| {
            fields.set(field::ENTRY, entry::SMM);
        }, |_, _| ();
        "there is no dual monitor to end": Controls, |fields, _| {
            fields.set(field::ENTRY, entry::DEACTIVATE_DUAL_MONITOR);
        }, |_, _| ();
    }
}

/// The event to inject.
fn events() -> Vec<Point<Fixture>> {
    rules! {
        "an event to inject must not have type 1": Controls,
            |fields, _| event(fields, VALID | 1 << 8), |fields, _| event(fields, 1 << 8);
        "another event to inject must have vector 0": Controls,
            |fields, _| event(fields, VALID | 7 << 8 | 1),
            |fields, _| event(fields, VALID | 7 << 8);
        "an NMI to inject must have vector 2": Controls,
            |fields, _| event(fields, VALID | 2 << 8 | 3),
            |fields, _| event(fields, 2 << 8 | 3);
        "an exception to inject must have a vector below 32": Controls,
            |fields, _| event(fields, VALID | 3 << 8 | 32),
            |fields, _| event(fields, VALID | 3 << 8 | 1);
        "a reserved bit of the event to inject must be clear": Controls,
            |fields, _| event(fields, VALID | 3 << 8 | 1 << 12 | 6),
            |fields, _| event(fields, 3 << 8 | 1 << 12 | 6);
        "the highest reserved bit of the event to inject must be clear": Controls,
            |fields, _| event(fields, VALID | 3 << 8 | 1 << 30 | 6),
            |fields, _| event(fields, 3 << 8 | 1 << 30 | 6);
        "an exception with an error code must be injected with it": ErrorCode,
            |fields, _| event(fields, VALID | 3 << 8 | 13),
            |fields, _| event(fields, VALID | 3 << 8 | 13 | WITH_ERROR_CODE);
        "an exception without an error code must be injected without one": ErrorCode,
            |fields, _| event(fields, VALID | 3 << 8 | 6 | WITH_ERROR_CODE),
            |fields, _| event(fields, VALID | 3 << 8 | 6);
        "an interrupt must be injected without an error code": Controls, |fields, _| {
            event(fields, VALID | 13 | WITH_ERROR_CODE);
            fields.set(field::GUEST_RFLAGS, 1 << 9);
        }, |fields, _| event(fields, 13 | WITH_ERROR_CODE);
        "an error code has 15 bits": Controls, |fields, _| {
            event(fields, VALID | 3 << 8 | 13 | WITH_ERROR_CODE);
            fields.put(field::ENTRY_ERROR_CODE, 0x1_0000);
        }, |fields, _| {
            event(fields, VALID | 3 << 8 | 13 | WITH_ERROR_CODE);
            fields.put(field::ENTRY_ERROR_CODE, 0x7fff);
        };
        "a software interrupt has an instruction of at most 15 bytes": Controls,
            |fields, _| software(fields, 4, 3, 16), |fields, _| software(fields, 4, 3, 15);
        "a software exception has an instruction of at most 15 bytes": Controls,
            |fields, _| software(fields, 6, 3, 16), |fields, _| software(fields, 6, 3, 1);
        "a privileged software exception has an instruction of at most 15 bytes": Controls,
            |fields, _| software(fields, 5, 1, 16), |fields, _| software(fields, 5, 1, 1);
        "the length of an instruction does not matter for an exception": Controls,
            |fields, _| software(fields, 6, 3, 0xffff_ffff), |fields, _| software(fields, 3, 6, 16);
    }
}
