// SPDX-License-Identifier: GPL-2.0

//! Instructions with a control of their own, and those that always exit.

use anyhow::{ensure, Result};
use selftests::guest::layout::{BUFFER, VMCS};
use selftests::guest::machine::Stop;
use selftests::guest::vmx::control::{primary, reason, secondary};
use selftests::guest::vmx::guest::RAX;
use selftests::guest::vmx::VmxMachine;
use selftests::guest::vmx::{field, Fields};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// CPUID.
    l2_cpuid: "cpuid", "vmcall";
    /// INVD.
    l2_invd: "invd", "vmcall";
    /// XSETBV.
    l2_xsetbv: "xsetbv", "vmcall";
    /// VMCALL.
    l2_vmcall: "vmcall", "ud2";
    /// VMCLEAR.
    l2_vmclear: "vmclear qword ptr [rax]", "vmcall";
    /// VMLAUNCH.
    l2_vmlaunch: "vmlaunch", "vmcall";
    /// VMPTRLD.
    l2_vmptrld: "vmptrld qword ptr [rax]", "vmcall";
    /// VMPTRST.
    l2_vmptrst: "vmptrst qword ptr [rax]", "vmcall";
    /// VMREAD.
    l2_vmread: "vmread rbx, rax", "vmcall";
    /// VMRESUME.
    l2_vmresume: "vmresume", "vmcall";
    /// VMWRITE.
    l2_vmwrite: "vmwrite rax, rbx", "vmcall";
    /// VMXOFF.
    l2_vmxoff: "vmxoff", "vmcall";
    /// VMXON.
    l2_vmxon: "vmxon qword ptr [rax]", "vmcall";
    /// INVEPT.
    l2_invept: "invept rbx, xmmword ptr [rax]", "vmcall";
    /// INVVPID.
    l2_invvpid: "invvpid rbx, xmmword ptr [rax]", "vmcall";
    /// HLT.
    l2_hlt: "hlt", "vmcall";
    /// INVLPG.
    l2_invlpg: "invlpg [rax]", "vmcall";
    /// MONITOR.
    l2_monitor: "monitor", "vmcall";
    /// MWAIT.
    l2_mwait: "mwait", "vmcall";
    /// RDPMC.
    l2_rdpmc: "rdpmc", "vmcall";
    /// RDTSC.
    l2_rdtsc: "rdtsc", "vmcall";
    /// RDTSCP.
    l2_rdtscp: "rdtscp", "vmcall";
    /// PAUSE.
    l2_pause: "pause", "vmcall";
    /// WBINVD.
    l2_wbinvd: "wbinvd", "vmcall";
    /// RDRAND.
    l2_rdrand: "rdrand rax", "vmcall";
    /// RDSEED.
    l2_rdseed: "rdseed rax", "vmcall";
    /// INVPCID.
    l2_invpcid: "invpcid rbx, xmmword ptr [rax]", "vmcall";
    /// SGDT.
    l2_sgdt: "sgdt [rax]", "vmcall";
    /// SIDT.
    l2_sidt: "sidt [rax]", "vmcall";
    /// SLDT.
    l2_sldt: "sldt ax", "vmcall";
    /// STR.
    l2_str: "str ax", "vmcall";
    /// A load of CR3.
    l2_load_cr3: "mov cr3, rax", "vmcall";
    /// A store of CR3.
    l2_store_cr3: "mov rbx, cr3", "vmcall";
    /// A load of CR8.
    l2_load_cr8: "mov cr8, rax", "vmcall";
    /// A store of CR8.
    l2_store_cr8: "mov rbx, cr8", "vmcall";
    /// A write to DR0.
    l2_write_dr0: "mov dr0, rax", "vmcall";
    /// A read of DR7.
    l2_read_dr7: "mov rbx, dr7", "vmcall";
}

/// A preparation of L2.
type Prepare = fn(&mut Fields, &mut VmxMachine);

/// Something with a control.
struct Case {
    code: Code,
    control: (u32, u64),
    reason: u64,
    length: u64,
    prepare: Prepare,
    /// What it may do without the control.
    otherwise: &'static [Ran],
    /// Whether user space sees a HLT then.
    halts: usize,
}

fn both(fixture: &Fixture, case: &Case) -> Result<()> {
    let (word, bit) = case.control;
    let exit = fixture.exits(case.code, case.reason, &|fields, machine| {
        (case.prepare)(fields, machine);
        fields.set(word, bit);
    })?;
    expect("length of the instruction", exit.length, case.length)?;
    if case.otherwise.is_empty() {
        return Ok(());
    }
    let run = fixture.run(case.code, &|fields, machine| {
        (case.prepare)(fields, machine);
        fields.clear(word, bit);
    })?;
    ensure!(
        case.otherwise.contains(&run.ran),
        "without the control: expected {:?}, saw {:?}",
        case.otherwise,
        run.ran
    );
    let halts = vec![Stop::Halt; case.halts];
    expect("what user space saw without the control", run.stops, halts)
}

macro_rules! cases {
    ($($name:literal: $code:ident, $word:ident $bit:expr, $reason:expr, $length:literal,
       $prepare:expr, $otherwise:expr $(, halts $halts:literal)?;)*) => {
        vec![$(
            Point::new(concat!($name, " is reflected if its control is set, and only then"),
                |fixture: &Fixture| both(fixture, &Case {
                    code: $code,
                    control: (field::$word, $bit),
                    reason: $reason,
                    length: $length,
                    prepare: $prepare,
                    otherwise: &$otherwise,
                    halts: 0 $(+ $halts)?,
                })),
        )*]
    };
}

macro_rules! always {
    ($($name:literal: $code:ident, $reason:expr, $length:literal, $prepare:expr;)*) => {
        vec![$(
            Point::new(concat!($name, " is always reflected"), |fixture: &Fixture| {
                let prepare: Prepare = $prepare;
                let exit = fixture.exits($code, $reason, &|fields, machine| prepare(fields, machine))?;
                expect("length of the instruction", exit.length, $length)
            }),
        )*]
    };
}

fn rax(machine: &VmxMachine, value: u64) {
    machine.set_register(RAX, value);
}

fn buffer(_: &mut Fields, machine: &mut VmxMachine) {
    rax(machine, BUFFER);
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    let mut points = controlled();
    points.extend(unconditional());
    points.push(Point::new(
        "RDTSCP exits for itself, and is undefined where L1 says so",
        |fixture| {
            let exit = fixture.exits(l2_rdtscp, reason::RDTSCP, &|fields, _| {
                fields.set(field::SECONDARY, secondary::RDTSCP);
                fields.set(field::PRIMARY, primary::RDTSC);
            })?;
            expect("length of the instruction", exit.length, 3)?;
            let run = fixture.run(l2_rdtscp, &|fields, _| {
                fields.clear(field::SECONDARY, secondary::RDTSCP);
            })?;
            expect("without its control", run.ran, Ran::Exception(6))
        },
    ));
    points.push(Point::new(
        "INVPCID exits by INVLPG's control, and is undefined where L1 says so",
        |fixture| {
            let exit = fixture.exits(l2_invpcid, reason::INVPCID, &|fields, machine| {
                buffer(fields, machine);
                machine.set_register(0, 2);
                fields.set(field::SECONDARY, secondary::INVPCID);
                fields.set(field::PRIMARY, primary::INVLPG);
            })?;
            expect("length of the instruction", exit.length, 5)?;
            let run = fixture.run(l2_invpcid, &|fields, machine| {
                buffer(fields, machine);
                machine.set_register(0, 2);
                fields.set(field::SECONDARY, secondary::INVPCID);
            })?;
            expect("without INVLPG's control", run.ran, Ran::Finished)?;
            let run = fixture.run(l2_invpcid, &|fields, machine| {
                buffer(fields, machine);
                fields.clear(field::SECONDARY, secondary::INVPCID);
            })?;
            expect("without its control", run.ran, Ran::Exception(6))
        },
    ));
    points.push(Point::new(
        "registers of L2 are those that L1 gave it, and come back",
        |fixture| {
            let value = |index: usize| (index as u64 + 1) * 0x0101_0101_0101_0101;
            fixture.exits(l2_vmcall, reason::VMCALL, &|_, machine| {
                (0..15).for_each(|index| machine.set_register(index, value(index)));
            })?;
            fixture.with(|machine| {
                (0..15).try_for_each(|index| {
                    expect(
                        format_args!("register {index}"),
                        machine.register(index),
                        value(index),
                    )
                })
            })
        },
    ));
    points
}

fn controlled() -> Vec<Point<Fixture>> {
    use Ran::{Exception, Finished};

    cases! {
        "HLT": l2_hlt, PRIMARY primary::HLT, reason::HLT, 1, |_, _| (), [Finished], halts 1;
        "INVLPG": l2_invlpg, PRIMARY primary::INVLPG, reason::INVLPG, 3, buffer, [Finished];
        "MWAIT": l2_mwait, PRIMARY primary::MWAIT, reason::MWAIT, 3, |_, _| (),
            [Finished, Exception(6)];
        "MONITOR": l2_monitor, PRIMARY primary::MONITOR, reason::MONITOR, 3, buffer,
            [Finished, Exception(6)];
        "RDPMC": l2_rdpmc, PRIMARY primary::RDPMC, reason::RDPMC, 2, |_, _| (),
            [Finished, Exception(13)];
        "RDTSC": l2_rdtsc, PRIMARY primary::RDTSC, reason::RDTSC, 2, |_, _| (), [Finished];
        "PAUSE": l2_pause, PRIMARY primary::PAUSE, reason::PAUSE, 2, |_, _| (), [Finished];
        "WBINVD": l2_wbinvd, SECONDARY secondary::WBINVD, reason::WBINVD, 2, |_, _| (),
            [Finished];
        "RDRAND": l2_rdrand, SECONDARY secondary::RDRAND, reason::RDRAND, 4, |_, _| (),
            [Finished];
        "RDSEED": l2_rdseed, SECONDARY secondary::RDSEED, reason::RDSEED, 4, |_, _| (),
            [Finished];
        "SGDT": l2_sgdt, SECONDARY secondary::DESCRIPTOR_TABLE, reason::GDTR_IDTR, 3, buffer,
            [Finished];
        "SIDT": l2_sidt, SECONDARY secondary::DESCRIPTOR_TABLE, reason::GDTR_IDTR, 3, buffer,
            [Finished];
        "SLDT": l2_sldt, SECONDARY secondary::DESCRIPTOR_TABLE, reason::LDTR_TR, 4, |_, _| (),
            [Finished];
        "STR": l2_str, SECONDARY secondary::DESCRIPTOR_TABLE, reason::LDTR_TR, 4, |_, _| (),
            [Finished];
        "a load of CR3": l2_load_cr3, PRIMARY primary::CR3_LOAD, reason::CONTROL_REGISTER, 3,
            |fields, machine| rax(machine, fields.get(field::GUEST_CR3)), [Finished];
        "a store of CR3": l2_store_cr3, PRIMARY primary::CR3_STORE, reason::CONTROL_REGISTER, 3,
            |_, _| (), [Finished];
        "a load of CR8": l2_load_cr8, PRIMARY primary::CR8_LOAD, reason::CONTROL_REGISTER, 4,
            |_, _| (), [];
        "a store of CR8": l2_store_cr8, PRIMARY primary::CR8_STORE, reason::CONTROL_REGISTER, 4,
            |_, _| (), [];
        "a write to DR0": l2_write_dr0, PRIMARY primary::MOV_DR, reason::MOV_DR, 3, |_, _| (),
            [Finished];
        "a read of DR7": l2_read_dr7, PRIMARY primary::MOV_DR, reason::MOV_DR, 3, |_, _| (),
            [Finished];
    }
}

fn unconditional() -> Vec<Point<Fixture>> {
    always! {
        "CPUID": l2_cpuid, reason::CPUID, 2, |_, _| ();
        "INVD": l2_invd, reason::INVD, 2, |_, _| ();
        "XSETBV": l2_xsetbv, reason::XSETBV, 3, |_, machine| rax(machine, 1);
        "VMCALL": l2_vmcall, reason::VMCALL, 3, |_, _| ();
        "VMCLEAR": l2_vmclear, reason::VMCLEAR, 4, buffer;
        "VMLAUNCH": l2_vmlaunch, reason::VMCLEAR + 1, 3, |_, _| ();
        "VMPTRLD": l2_vmptrld, reason::VMCLEAR + 2, 3, buffer;
        "VMPTRST": l2_vmptrst, reason::VMCLEAR + 3, 3, buffer;
        "VMREAD": l2_vmread, reason::VMCLEAR + 4, 3, |_, machine| rax(machine, 0x681e);
        "VMRESUME": l2_vmresume, reason::VMCLEAR + 5, 3, |_, _| ();
        "VMWRITE": l2_vmwrite, reason::VMCLEAR + 6, 3, |_, machine| rax(machine, 0x681e);
        "VMXOFF": l2_vmxoff, reason::VMCLEAR + 7, 3, |_, _| ();
        "VMXON": l2_vmxon, reason::VMCLEAR + 8, 4, |_, machine| rax(machine, VMCS);
        "INVEPT": l2_invept, reason::INVEPT, 5, buffer;
        "INVVPID": l2_invvpid, reason::INVVPID, 5, buffer;
    }
}
