// SPDX-License-Identifier: GPL-2.0

//! Instructions, registers and exceptions with an intercept of their own.

use anyhow::{ensure, Result};
use selftests::guest::driver::driver;
use selftests::guest::layout::{exception, BUFFER, EXCEPTIONS, MSR_MAP, REGISTERS};
use selftests::guest::machine::{run, Stop};
use selftests::guest::state::{Nested, GUEST_MODE};
use selftests::guest::tables::nested_entry;
use selftests::guest::vmcb::{self, exit};
use selftests::guest::GuestMemory;
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// CPUID.
    l2_cpuid: "cpuid", "vmmcall";
    /// HLT.
    l2_hlt: "hlt", "vmmcall";
    /// RDTSC.
    l2_rdtsc: "rdtsc", "vmmcall";
    /// RDTSCP.
    l2_rdtscp: "rdtscp", "vmmcall";
    /// RDPMC.
    l2_rdpmc: "rdpmc", "vmmcall";
    /// INVD.
    l2_invd: "invd", "vmmcall";
    /// WBINVD.
    l2_wbinvd: "wbinvd", "vmmcall";
    /// PAUSE.
    l2_pause: "pause", "vmmcall";
    /// INVLPG.
    l2_invlpg: "invlpg [rax]", "vmmcall";
    /// XSETBV.
    l2_xsetbv: "xsetbv", "vmmcall";
    /// VMMCALL.
    l2_vmmcall: "vmmcall", "ud2";
    /// VMLOAD.
    l2_vmload: "vmload", "vmmcall";
    /// VMSAVE.
    l2_vmsave: "vmsave", "vmmcall";
    /// VMRUN.
    l2_vmrun: "vmrun", "vmmcall";
    /// STGI.
    l2_stgi: "stgi", "vmmcall";
    /// CLGI.
    l2_clgi: "clgi", "vmmcall";
    /// A write to CR0.
    l2_write_cr0: "mov cr0, rax", "vmmcall";
    /// A write to CR3.
    l2_write_cr3: "mov cr3, rax", "vmmcall";
    /// A write to CR4.
    l2_write_cr4: "mov cr4, rax", "vmmcall";
    /// A read of CR0.
    l2_read_cr0: "mov rbx, cr0", "vmmcall";
    /// A read of CR3.
    l2_read_cr3: "mov rbx, cr3", "vmmcall";
    /// A read of CR4.
    l2_read_cr4: "mov rbx, cr4", "vmmcall";
    /// A write to DR0.
    l2_write_dr0: "mov dr0, rax", "vmmcall";
    /// A write to DR7.
    l2_write_dr7: "mov dr7, rax", "vmmcall";
    /// A read of DR0.
    l2_read_dr0: "mov rbx, dr0", "vmmcall";
    /// A read of DR7.
    l2_read_dr7: "mov rbx, dr7", "vmmcall";
    /// An undefined instruction.
    l2_ud2: "ud2", "vmmcall";
    /// A breakpoint.
    l2_int3: "int3", "vmmcall";
    /// A division by zero.
    l2_div: "div rbx", "vmmcall";
    /// PAUSE, again and again.
    l2_pauses: "inc rbx", "pause", "jmp l2_pauses";
    /// Clears EFER.SVME.
    l2_clear_svme: "mov ecx, 0xc0000080", "rdmsr", "and eax, 0xffffefff", "wrmsr", "vmmcall";
    /// A read of memory.
    l2_load: "mov rbx, [rax]", "vmmcall";
}

/// The bit of CPUID function 8000_000Ah, EDX, for the filter of PAUSE.
const PAUSE_FILTER: u32 = 10;

/// An address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 62;

/// An address that L2's page tables do not map.
const NOT_MAPPED: u64 = 0x80_0000;

/// Something that has an intercept.
struct Case {
    code: Code,
    intercept: u64,
    prepare: fn(&GuestMemory),
    /// What it may do if it is not intercepted.
    otherwise: &'static [Ran],
    /// Whether user space sees a HLT then.
    halts: usize,
}

/// Intercepts that QEMU does not check, and the one that it checks instead: a processor that does
/// this proves that the intercept is not lost on the way to it.
const MISTAKEN: [(u64, u64); 3] = [
    (exit::RDTSCP, exit::RDTSC),
    (exit::READ_CR0 + 3, exit::READ_CR0),
    (exit::READ_CR0 + 4, exit::READ_CR0),
];

/// Skips a case if the processor takes its intercept for another one.
fn skip_mistaken(fixture: &Fixture, case: &Case) -> Result<()> {
    let mistaken = MISTAKEN.iter().find(|(right, _)| *right == case.intercept);
    if let Some(&(right, checked)) = mistaken {
        let (ran, _) = fixture.run(case.code, |memory| {
            (case.prepare)(memory);
            vmcb::set_intercept(memory, checked);
        })?;
        if ran == Ran::Exit(checked) {
            let reason =
                format!("the processor checks intercept {checked:#x} instead of {right:#x}");
            return Err(Skip(reason).into());
        }
    }
    Ok(())
}

fn both(fixture: &Fixture, case: &Case) -> Result<()> {
    skip_mistaken(fixture, case)?;
    let Case {
        code,
        intercept,
        prepare,
        ..
    } = *case;
    fixture.exits(code, intercept, |memory| {
        prepare(memory);
        vmcb::set_intercept(memory, intercept);
    })?;
    if case.otherwise.is_empty() {
        return Ok(());
    }
    let (ran, stops) = fixture.run(code, |memory| {
        prepare(memory);
        vmcb::clear_intercept(memory, intercept);
    })?;
    ensure!(
        case.otherwise.contains(&ran),
        "without the intercept: expected {:?}, saw {ran:?}",
        case.otherwise
    );
    let halts = vec![Stop::Halt; case.halts];
    expect("what user space saw without the intercept", stops, halts)
}

macro_rules! cases {
    ($($name:literal: $code:ident, $intercept:expr, $prepare:expr, $otherwise:expr
       $(, halts $halts:literal)?;)*) => {
        vec![$(
            Point::new(concat!($name, " is reflected if it is intercepted, and only then"),
                |fixture: &Fixture| both(fixture, &Case {
                    code: $code,
                    intercept: $intercept,
                    prepare: $prepare,
                    otherwise: &$otherwise,
                    halts: 0 $(+ $halts)?,
                })),
        )*]
    };
}

fn set_rax(memory: &GuestMemory, value: u64) {
    memory.write(vmcb::RAX, value);
}

/// RAX becomes the value that a register has.
fn same_as(memory: &GuestMemory, register: u64) {
    set_rax(memory, memory.read(register));
}

/// L2 ends by HLT after an exception, and not by VMMCALL.
fn after_vmmcall(memory: &GuestMemory) {
    let record = EXCEPTIONS + exception::SIZE;
    memory.write(record + exception::RECOVERY, l2_hlt as *const () as u64);
    vmcb::set_intercept(memory, exit::HLT);
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    use Ran::{Exception, Finished};

    let mut points = cases! {
        "CPUID": l2_cpuid, exit::CPUID, |_| (), [Finished];
        "HLT": l2_hlt, exit::HLT, |_| (), [Finished], halts 1;
        "RDTSC": l2_rdtsc, exit::RDTSC, |_| (), [Finished];
        "RDTSCP": l2_rdtscp, exit::RDTSCP, |_| (), [Finished];
        "RDPMC": l2_rdpmc, exit::RDPMC, |_| (), [Finished, Exception(13)];
        "INVD": l2_invd, exit::INVD, |_| (), [Finished];
        "WBINVD": l2_wbinvd, exit::WBINVD, |_| (), [Finished];
        "PAUSE": l2_pause, exit::PAUSE, |_| (), [Finished];
        "INVLPG": l2_invlpg, exit::INVLPG, |memory| set_rax(memory, BUFFER), [Finished];
        "XSETBV": l2_xsetbv, exit::XSETBV, |memory| set_rax(memory, 1), [Finished, Exception(6)];
        "VMMCALL": l2_vmmcall, exit::VMMCALL, after_vmmcall, [Exception(6)];
        "VMLOAD": l2_vmload, exit::VMLOAD, |memory| set_rax(memory, BUFFER), [];
        "VMSAVE": l2_vmsave, exit::VMSAVE, |memory| set_rax(memory, BUFFER), [];
        "VMRUN": l2_vmrun, exit::VMRUN, |memory| set_rax(memory, BUFFER), [];
        "STGI": l2_stgi, exit::STGI, |_| (), [];
        "CLGI": l2_clgi, exit::CLGI, |_| (), [];
        "a write to CR0": l2_write_cr0, exit::WRITE_CR0,
            |memory| same_as(memory, vmcb::CR0), [Finished];
        "a write to CR3": l2_write_cr3, exit::WRITE_CR0 + 3,
            |memory| same_as(memory, vmcb::CR3), [Finished];
        "a write to CR4": l2_write_cr4, exit::WRITE_CR0 + 4,
            |memory| same_as(memory, vmcb::CR4), [Finished];
        "a read of CR0": l2_read_cr0, exit::READ_CR0, |_| (), [Finished];
        "a read of CR3": l2_read_cr3, exit::READ_CR0 + 3, |_| (), [Finished];
        "a read of CR4": l2_read_cr4, exit::READ_CR0 + 4, |_| (), [Finished];
        "a write to DR0": l2_write_dr0, exit::WRITE_DR0, |_| (), [Finished];
        "a write to DR7": l2_write_dr7, exit::WRITE_DR0 + 7,
            |memory| set_rax(memory, 0x400), [Finished];
        "a read of DR0": l2_read_dr0, exit::READ_DR0, |_| (), [Finished];
        "a read of DR7": l2_read_dr7, exit::READ_DR0 + 7, |_| (), [Finished];
        "exception UD": l2_ud2, exit::EXCEPTION + 6, |_| (), [Exception(6)];
        "exception BP": l2_int3, exit::EXCEPTION + 3, |_| (), [Exception(3)];
        "exception DE": l2_div, exit::EXCEPTION, |_| (), [Exception(0)];
        "exception GP": l2_load, exit::EXCEPTION + 13,
            |memory| set_rax(memory, NOT_CANONICAL), [Exception(13)];
        "exception PF": l2_load, exit::EXCEPTION + 14,
            |memory| set_rax(memory, NOT_MAPPED), [Exception(14)];
    };
    points.push(Point::new(
        "exception PF that is intercepted tells its address and error",
        |fixture| {
            let info = fixture.exits(l2_load, exit::EXCEPTION + 14, |memory| {
                set_rax(memory, NOT_MAPPED);
                vmcb::set_intercept(memory, exit::EXCEPTION + 14);
            })?;
            expect(
                "error code and address",
                (info.first, info.second),
                (0, NOT_MAPPED),
            )
        },
    ));
    points.push(Point::new(
        "a triple fault of L2 is a shutdown of L2",
        |fixture| {
            let (ran, _) = fixture.run(l2_ud2, |memory| {
                memory.write(vmcb::SEGMENTS + 8 * 16 + 4, 0u32)
            })?;
            expect("what L2 did", ran, Ran::Exit(exit::SHUTDOWN))
        },
    ));
    points.push(Point::new(
        "PAUSE that is intercepted exits when the filter has let so many pass",
        filters_pauses,
    ));
    points.push(Point::new(
        "L2 that clears EFER.SVME shuts the machine down, and does not run as L1",
        clears_svme,
    ));
    points.push(Point::new(
        "an access that L1's nested page table lacks is reflected",
        |fixture| {
            let page = BUFFER + 0x8000;
            let info = fixture.exits(l2_load, exit::NPF, |memory| {
                set_rax(memory, page);
                let table = memory.read(vmcb::NESTED_CR3);
                memory.write(nested_entry(memory, table, page), 0u64);
            })?;
            expect("address", info.second, page)?;
            expect(
                "a read by a user of a page that is absent",
                info.first & 0x1f,
                4,
            )
        },
    ));
    points.push(Point::new(
        "CR2 of L2 is what L1 gave it, and comes back",
        |fixture| {
            const CR2: u64 = 0x1_2345_6000;
            let (ran, _) = fixture.run(l2_vmmcall, |memory| memory.write(vmcb::CR2, CR2))?;
            expect("what L2 did", ran, Ran::Exit(exit::VMMCALL))?;
            let machine = fixture.machine.borrow();
            let memory = &machine.as_ref().unwrap().memory;
            expect("CR2", memory.read(vmcb::CR2), CR2)
        },
    ));
    points.push(Point::new(
        "registers of L2 are those that L1 gave it, and come back",
        |fixture| {
            let (ran, _) = fixture.run(l2_vmmcall, |memory| {
                for (address, value) in (REGISTERS..).step_by(8).zip(1..=14u64) {
                    memory.write(address, value * 0x0101_0101_0101_0101);
                }
                set_rax(memory, 0xfeed);
            })?;
            expect("what L2 did", ran, Ran::Exit(exit::VMMCALL))?;
            let machine = fixture.machine.borrow();
            let memory = &machine.as_ref().unwrap().memory;
            for (address, value) in (REGISTERS..).step_by(8).zip(1..=14u64) {
                expect(
                    "register",
                    memory.read::<u64>(address),
                    value * 0x0101_0101_0101_0101,
                )?;
            }
            expect("RAX", memory.read::<u64>(vmcb::RAX), 0xfeed)
        },
    ));
    points
}

fn filters_pauses(fixture: &Fixture) -> Result<()> {
    if !fixture.offers(PAUSE_FILTER)? {
        return Err(Skip("the processor has no filter of PAUSE".into()).into());
    }
    for count in [0, 1, 1000u16] {
        let (ran, _) = fixture.run(l2_pauses, |memory| {
            vmcb::set_intercept(memory, exit::PAUSE);
            memory.write(vmcb::PAUSE_COUNT, count);
        })?;
        expect("what L2 did", ran, Ran::Exit(exit::PAUSE))?;
        let pauses = fixture.with(|machine| Ok(machine.memory.read::<u64>(REGISTERS)))?;
        let count = u64::from(count);
        // The processor counts anew after each exit to L0.
        ensure!(
            (count + 1..=100 * (count + 1)).contains(&pauses),
            "with a count of {count}, PAUSE number {pauses} exits"
        );
    }
    Ok(())
}

/// What happens is not defined for a processor. L2 must not get what is L1's, and L1 must be able to
/// begin again.
fn clears_svme(fixture: &Fixture) -> Result<()> {
    fixture.with(|machine| {
        machine.ready()?;
        let memory = machine.memory.clone();
        vmcb::write(&memory, &machine.tables, l2_clear_svme as *const () as u64);
        memory.fill(MSR_MAP, 0x2000, 0);
        expect("KVM_RUN", run(&mut machine.vcpus[0]), Stop::Shutdown)?;
        let state = Nested::read(&machine.vcpus[0])?;
        ensure!(!state.has(GUEST_MODE), "L2 is still active");
        machine.start(0, driver)?;
        vmcb::write(&memory, &machine.tables, l2_vmmcall as *const () as u64);
        machine.vmrun()?;
        expect(
            "exit code",
            memory.read::<u64>(vmcb::EXIT_CODE),
            exit::VMMCALL,
        )
    })
}
