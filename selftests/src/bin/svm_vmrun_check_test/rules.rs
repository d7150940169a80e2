// SPDX-License-Identifier: GPL-2.0

//! The rules for a VMCB.

use anyhow::{Context, Result};
use selftests::expect;
use selftests::guest::vmcb::{self, exit};
use selftests::guest::GuestMemory;
use selftests::tap::{Point, Skip};
use selftests::vm;

use crate::Fixture;

/// A change of a valid VMCB.
type Change = fn(&GuestMemory, &Cpu);

/// What a rule depends on.
struct Cpu {
    /// The first address that is too wide.
    end: u64,
    svm_features: u32,
}

impl Cpu {
    fn read(fixture: &Fixture) -> Result<Self> {
        let cpuid = vm::cpuid(&fixture.kvm)?;
        let find = |function| {
            let mut entries = cpuid.as_slice().iter();
            let entry = entries.find(|entry| entry.function == function);
            entry.with_context(|| format!("CPUID {function:#x} is missing"))
        };
        Ok(Self {
            end: 1 << (find(0x8000_0008)?.eax & 0xff),
            svm_features: find(0x8000_000a)?.edx,
        })
    }
}

/// Checks that VMRUN fails with the first change and not with the second one.
fn rule(fixture: &Fixture, wrong: Change, right: Change) -> Result<()> {
    let cpu = Cpu::read(fixture)?;
    let code = fixture
        .vmrun(|memory| wrong(memory, &cpu))
        .context("the violation")?;
    expect("exit code of the violation", code, exit::INVALID)?;
    let code = fixture
        .vmrun(|memory| right(memory, &cpu))
        .context("the valid neighbour")?;
    expect("exit code of the valid neighbour", code, exit::VMMCALL)
}

macro_rules! rules {
    ($($name:literal: $wrong:expr, $right:expr;)*) => {
        vec![$(Point::new($name, |fixture: &Fixture| rule(fixture, $wrong, $right)),)*]
    };
}

/// Bit 29 of CR0.
const NW: u64 = 1 << 29;

/// Bit 30 of CR0.
const CD: u64 = 1 << 30;

/// Bit 5 of CR4.
const PAE: u64 = 1 << 5;

/// The attributes of CS.
const CS_ATTRIBUTES: u64 = vmcb::SEGMENTS + 16 + 2;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = rules! {
        "EFER.SVME must be set":
            |memory, _| memory.clear(vmcb::EFER, 1 << 12), |_, _| ();
        "CR0.NW must not be set without CR0.CD":
            |memory, _| memory.set(vmcb::CR0, NW), |memory, _| memory.set(vmcb::CR0, NW | CD);
        "the lowest bit of the upper half of CR0 must be clear":
            |memory, _| memory.set(vmcb::CR0, 1 << 32), |_, _| ();
        "the highest bit of CR0 must be clear":
            |memory, _| memory.set(vmcb::CR0, 1 << 63), |_, _| ();
        "the lowest bit of the upper half of DR6 must be clear":
            |memory, _| memory.set(vmcb::DR6, 1 << 32), |_, _| ();
        "the highest bit of DR6 must be clear":
            |memory, _| memory.set(vmcb::DR6, 1 << 63), |memory, _| memory.set(vmcb::DR6, 1 << 31);
        "the lowest bit of the upper half of DR7 must be clear":
            |memory, _| memory.set(vmcb::DR7, 1 << 32), |_, _| ();
        "the highest bit of DR7 must be clear":
            |memory, _| memory.set(vmcb::DR7, 1 << 63), |_, _| ();
        "long mode needs CR4.PAE":
            |memory, _| memory.clear(vmcb::CR4, PAE), |_, _| ();
        "long mode needs CR0.PE":
            |memory, _| memory.clear(vmcb::CR0, 1), |_, _| ();
        "CR3 must be within the address width":
            |memory, cpu| memory.set(vmcb::CR3, cpu.end), |_, _| ();
        "CS.L and CS.D must not both be set":
            |memory, _| memory.write(CS_ATTRIBUTES, 0xe9bu16), |_, _| ();
        "the lowest bit of the upper half of CR4 must be clear":
            |memory, _| memory.set(vmcb::CR4, 1 << 32), |_, _| ();
        "a reserved bit of the lower half of CR4 must be clear":
            |memory, _| memory.set(vmcb::CR4, 1 << 31), |memory, _| memory.set(vmcb::CR4, 1 << 3);
        "a reserved bit of EFER must be clear":
            |memory, _| memory.set(vmcb::EFER, 1 << 16), |_, _| ();
        "the highest bit of EFER must be clear":
            |memory, _| memory.set(vmcb::EFER, 1 << 63), |_, _| ();
        "VMRUN must be intercepted":
            |memory, _| vmcb::clear_intercept(memory, exit::VMRUN), |_, _| ();
        "the ASID must not be that of the host":
            |memory, _| memory.write(vmcb::ASID, 0u32), |memory, _| memory.write(vmcb::ASID, 2u32);
        "the nested page table must be within the address width":
            |memory, cpu| memory.write(vmcb::NESTED_CR3, cpu.end), |_, _| ();
        "the MSR permission map must end within the address width":
            |memory, cpu| memory.write(vmcb::MSRPM, cpu.end - 0x1000),
            |memory, cpu| memory.write(vmcb::MSRPM, cpu.end - 0x2000);
        "the I/O permission map must end within the address width":
            |memory, cpu| memory.write(vmcb::IOPM, cpu.end - 0x2000),
            |memory, cpu| memory.write(vmcb::IOPM, cpu.end - 0x3000);
        "an event to inject must not have type 1":
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x8000_0100u32),
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x0000_0100u32);
        "an event to inject must not have type 5":
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x8000_0500u32),
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x0000_0500u32);
        "an exception to inject must not be vector 2":
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x8000_0302u32),
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x0000_0302u32);
        "an exception to inject must not be vector 31":
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x8000_031fu32), |_, _| ();
        "an exception to inject must not have a vector above those of exceptions":
            |memory, _| memory.write(vmcb::EVENT_INJ, 0x8000_0320u32), |_, _| ();
    };
    points.push(Point::new(
        "the page-attribute table must have types that exist",
        pat,
    ));
    points.push(Point::new(
        "virtual NMIs need the intercept of NMIs",
        virtual_nmi,
    ));
    points.push(Point::new(
        "a nested page table is not looked at without nested paging",
        without_nested_paging,
    ));
    points.push(Point::new(
        "all bits above CR0's lower half are checked",
        |fixture| upper_bits(fixture, vmcb::CR0),
    ));
    points.push(Point::new(
        "all bits above DR6's lower half are checked",
        |fixture| upper_bits(fixture, vmcb::DR6),
    ));
    points.push(Point::new(
        "all bits above DR7's lower half are checked",
        |fixture| upper_bits(fixture, vmcb::DR7),
    ));
    points
}

fn upper_bits(fixture: &Fixture, register: u64) -> Result<()> {
    for bit in 32..64 {
        let code = fixture.vmrun(|memory| memory.set(register, 1 << bit))?;
        expect(
            format_args!("exit code with bit {bit}"),
            code,
            exit::INVALID,
        )?;
    }
    Ok(())
}

fn pat(fixture: &Fixture) -> Result<()> {
    let all = fixture
        .kvm
        .check_extension_raw(u64::from(kvm_bindings::KVM_CAP_DISABLE_QUIRKS2));
    if u64::try_from(all).unwrap_or(0) & crate::QUIRK_SHARED_PAT == 0 {
        return Err(Skip("KVM cannot give L2 a page-attribute table of its own".into()).into());
    }
    rule(
        fixture,
        |memory, _| memory.write(vmcb::G_PAT, 0x0207_0406_0007_0406u64),
        |memory, _| memory.write(vmcb::G_PAT, 0x0507_0406_0007_0406u64),
    )
}

fn virtual_nmi(fixture: &Fixture) -> Result<()> {
    if Cpu::read(fixture)?.svm_features >> 25 & 1 == 0 {
        return Err(Skip("the processor has no virtual NMIs".into()).into());
    }
    rule(
        fixture,
        |memory, _| memory.write(vmcb::INT_CTL, 1u32 << 26),
        |memory, _| {
            memory.write(vmcb::INT_CTL, 1u32 << 26);
            vmcb::set_intercept(memory, 0x61);
        },
    )
}

fn without_nested_paging(fixture: &Fixture) -> Result<()> {
    let code = fixture.vmrun(|memory| {
        memory.write(vmcb::MISC_CTL, 0u64);
        memory.write(vmcb::NESTED_CR3, u64::MAX);
    })?;
    expect("exit code", code, exit::VMMCALL)
}
