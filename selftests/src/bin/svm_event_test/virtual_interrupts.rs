// SPDX-License-Identifier: GPL-2.0

//! Virtual interrupts, the virtual task priority and the virtual global interrupt flag.

use anyhow::Result;
use selftests::guest::machine::RFLAGS_IF;
use selftests::guest::vmcb::{self, exit};
use selftests::tap::{Point, Skip};
use selftests::{expect, guest_code};

use crate::{l2_calls, Code, Event, Fixture, Scene, Step, BY_L1, BY_L2, L2_WAS_AT, VECTOR};

guest_code! {
    /// L2: switches interrupts on.
    l2_sti: "sti", "nop", "nop", "vmmcall", "ud2";
    /// L2: exits in the shadow of STI.
    l2_in_shadow: "sti", "cpuid", "vmmcall", "ud2";
    /// L2: exits in no shadow.
    l2_in_no_shadow: "nop", "cpuid", "vmmcall", "ud2";
    /// L2: does nothing.
    l2_nothing: "nop", "nop", "vmmcall", "ud2";
    /// L2: writes its task priority, and reads it.
    l2_priority: "mov cr8, rax", "xor eax, eax", "mov rbx, cr8", "vmmcall", "ud2";
    /// L2: clears its global interrupt flag.
    l2_clear: "clgi", "nop", "vmmcall", "ud2";
    /// L2: sets its global interrupt flag.
    l2_set: "nop", "stgi", "nop", "nop", "vmmcall", "ud2";
}

/// Bits of `int_ctl`.
mod bits {
    /// There is a virtual interrupt.
    pub const IRQ: u32 = 1 << 8;
    /// The virtual global interrupt flag.
    pub const GIF: u32 = 1 << 9;
    /// Where the priority of the virtual interrupt is.
    pub const PRIORITY: u32 = 16;
    /// The virtual interrupt does not look at the task priority.
    pub const IGNORE_PRIORITY: u32 = 1 << 20;
    /// RFLAGS.IF and CR8 of L2 are for virtual interrupts only.
    pub const MASKING: u32 = 1 << 24;
    /// There is a virtual global interrupt flag.
    pub const GIF_ENABLE: u32 = 1 << 25;
}

/// The bit of CPUID 8000_000Ah:EDX of the virtual global interrupt flag.
const VGIF: u32 = 16;

/// An interrupt with a priority of 4.
const INTERRUPT: u32 = bits::IRQ | 4 << bits::PRIORITY;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("a virtual interrupt comes if RFLAGS.IF is set", |fixture| {
            let scene = delivered(fixture, INTERRUPT | bits::IGNORE_PRIORITY, true, 0)?;
            expect("V_IRQ", scene.half(vmcb::INT_CTL) & bits::IRQ, 0)
        }),
        Point::new(
            "a virtual interrupt waits until RFLAGS.IF is set",
            waits_for_flag,
        ),
        Point::new(
            "a virtual interrupt that waits is there after the exit",
            stays,
        ),
        Point::new(
            "a virtual interrupt that is intercepted ends L2 before it comes",
            intercepted,
        ),
        Point::new("an exit tells of the interrupt shadow of L2", |fixture| {
            shadow_at_exit(fixture, l2_in_shadow, 1)?;
            shadow_at_exit(fixture, l2_in_no_shadow, 0)
        }),
        Point::new(
            "the interrupt shadow that L1 gives L2 lasts for an instruction",
            |fixture| {
                shadow_at_vmrun(fixture, 0, 0)?;
                shadow_at_vmrun(fixture, 1, 1)
            },
        ),
        Point::new(
            "the virtual task priority masks interrupts below it",
            |fixture| {
                let cases = [
                    (0, 0, true),
                    (3, 0, true),
                    (5, 0, false),
                    (15, 0, false),
                    (15, bits::IGNORE_PRIORITY, true),
                ];
                cases
                    .into_iter()
                    .try_for_each(|case| priority(fixture, case))
            },
        ),
        Point::new(
            "the virtual task priority masks an interrupt of the same priority",
            |fixture| priority(fixture, (4, 0, false)),
        ),
        Point::new("CR8 of L2 is the virtual task priority, and not L1's", cr8),
        Point::new(
            "L0 waits for an interrupt window beside L1's virtual interrupt",
            window,
        ),
        Point::new(
            "CLGI and STGI of L2 change its virtual global interrupt flag",
            virtual_flag,
        ),
        Point::new(
            "a virtual interrupt waits for the virtual global interrupt flag",
            waits_for_virtual_flag,
        ),
        Point::new(
            "CLGI and STGI of L2 are reflected if they are intercepted",
            flag_intercepted,
        ),
    ]
}

/// Makes a machine of which L2 begins with a virtual interrupt.
fn with_interrupt(fixture: &Fixture, code: Code, int_ctl: u32, interrupts: bool) -> Result<Scene> {
    let mut scene = Scene::new(fixture, code)?;
    scene.warm_up()?;
    let memory = scene.memory();
    memory.write(vmcb::INT_CTL, int_ctl);
    memory.write(vmcb::INT_VECTOR, VECTOR as u32);
    scene.set_interrupts(false, interrupts);
    Ok(scene)
}

/// Runs L2 to its call of L1: it must have had an interrupt at an offset of its code.
fn delivered(fixture: &Fixture, int_ctl: u32, interrupts: bool, offset: u64) -> Result<Scene> {
    let code = if interrupts { l2_calls } else { l2_sti };
    let mut scene = with_interrupt(fixture, code, int_ctl, interrupts)?;
    scene.reach(Step::Ready)?;
    if interrupts {
        scene.reach(Step::InL2)?;
    }
    scene.reach(Step::Exited)?;
    expect("exit code", scene.word(vmcb::EXIT_CODE), exit::VMMCALL)?;
    let seen = (scene.word(BY_L2), scene.offset(L2_WAS_AT));
    expect("count and offset of interrupts", seen, (1, offset))?;
    Ok(scene)
}

/// Checks what an exit of L2 one byte behind its beginning says of the interrupt shadow.
fn shadow_at_exit(fixture: &Fixture, code: Code, shadow: u32) -> Result<()> {
    let mut scene = Scene::new(fixture, code)?;
    vmcb::set_intercept(scene.memory(), exit::CPUID);
    scene.reach(Step::Ready)?;
    scene.exits(exit::CPUID, 1)?;
    expect("interrupt shadow", scene.half(vmcb::INT_STATE) & 1, shadow)
}

/// Checks where a virtual interrupt comes, for an interrupt shadow at VMRUN.
fn shadow_at_vmrun(fixture: &Fixture, shadow: u32, offset: u64) -> Result<()> {
    let int_ctl = INTERRUPT | bits::IGNORE_PRIORITY;
    let mut scene = with_interrupt(fixture, l2_nothing, int_ctl, true)?;
    scene.memory().write(vmcb::INT_STATE, shadow);
    scene.reach(Step::Ready)?;
    scene.exits(exit::VMMCALL, 2)?;
    let seen = (scene.word(BY_L2), scene.offset(L2_WAS_AT));
    expect("count and offset of interrupts", seen, (1, offset))
}

fn waits_for_flag(fixture: &Fixture) -> Result<()> {
    // After the instruction behind STI.
    let int_ctl = INTERRUPT | bits::IGNORE_PRIORITY;
    let scene = delivered(fixture, int_ctl, false, 2)?;
    expect("V_IRQ", scene.half(vmcb::INT_CTL) & bits::IRQ, 0)
}

fn stays(fixture: &Fixture) -> Result<()> {
    for masking in [0, bits::MASKING] {
        let int_ctl = INTERRUPT | bits::IGNORE_PRIORITY | masking;
        let mut scene = with_interrupt(fixture, l2_calls, int_ctl, false)?;
        scene.reach(Step::Ready)?;
        scene.reach(Step::InL2)?;
        scene.exits(exit::VMMCALL, 4)?;
        expect("interrupts of L2", scene.word(BY_L2), 0)?;
        expect("int_ctl", scene.half(vmcb::INT_CTL) & !0xff, int_ctl)?;
    }
    Ok(())
}

fn intercepted(fixture: &Fixture) -> Result<()> {
    let mut scene = with_interrupt(fixture, l2_calls, INTERRUPT | bits::IGNORE_PRIORITY, true)?;
    vmcb::set_intercept(scene.memory(), exit::VINTR);
    scene.reach(Step::Ready)?;
    scene.exits(exit::VINTR, 0)?;
    expect("interrupts of L2", scene.word(BY_L2), 0)
}

/// Tries an interrupt of priority 4 with a virtual task priority, and whether it is ignored.
fn priority(fixture: &Fixture, (priority, ignored, comes): (u32, u32, bool)) -> Result<()> {
    let int_ctl = INTERRUPT | bits::MASKING | ignored | priority;
    let mut scene = with_interrupt(fixture, l2_calls, int_ctl, true)?;
    scene.reach(Step::Ready)?;
    scene.reach(Step::InL2)?;
    scene.exits(exit::VMMCALL, 4)?;
    let what = format_args!("interrupts of L2 with priority {priority}, {ignored:#x}");
    expect(what, scene.word(BY_L2), u64::from(comes))
}

fn cr8(fixture: &Fixture) -> Result<()> {
    let mut scene = with_interrupt(fixture, l2_priority, bits::MASKING | 2, false)?;
    scene.memory().write(vmcb::RAX, 9u64);
    scene.reach(Step::Ready)?;
    scene.reach(Step::Exited)?;
    expect("exit code", scene.word(vmcb::EXIT_CODE), exit::VMMCALL)?;
    let rbx = scene.word(selftests::guest::layout::REGISTERS);
    expect("CR8 that L2 has read", rbx, 9)?;
    expect("V_TPR", scene.half(vmcb::INT_CTL) & 0xf, 9)?;
    let l1 = scene.machine.vcpus[0].get_sregs()?.cr8;
    expect("CR8 of L1", l1, 0)
}

fn window(fixture: &Fixture) -> Result<()> {
    // L2 has interrupts off, and they are its own: L0 has to wait for a window.
    for virtual_interrupt in [0, INTERRUPT | bits::IGNORE_PRIORITY] {
        let mut scene = with_interrupt(fixture, l2_calls, virtual_interrupt, false)?;
        scene.reach(Step::Ready)?;
        scene.reach(Step::InL2)?;
        scene.raise(Event::Interrupt)?;
        scene.exits(exit::VMMCALL, 4)?;
        expect("interrupts of L2", scene.word(BY_L2), 0)?;
        let int_ctl = scene.half(vmcb::INT_CTL) & !0xff;
        expect("int_ctl", int_ctl, virtual_interrupt)?;
        expect("vector", scene.half(vmcb::INT_VECTOR), VECTOR as u32)?;
        // L1 has interrupts off, too.
        scene.reach(Step::Set)?;
        expect("interrupts of L1", scene.word(BY_L1), 0)?;
        // Now L2 has them on.
        scene.set_interrupts(false, true);
        let memory = scene.memory();
        memory.write(vmcb::RIP, l2_calls as *const () as u64);
        memory.write(vmcb::INT_CTL, 0u32);
        scene.reach(Step::Ready)?;
        scene.reach(Step::InL2)?;
        expect("interrupts of L2", scene.word(BY_L2), 1)?;
    }
    Ok(())
}

/// Skips a test if the processor has no virtual global interrupt flag.
fn need_virtual_flag(fixture: &Fixture) -> Result<()> {
    if fixture.offers(VGIF)? {
        return Ok(());
    }
    Err(Skip("the processor has no virtual global interrupt flag".into()).into())
}

fn virtual_flag(fixture: &Fixture) -> Result<()> {
    need_virtual_flag(fixture)?;
    for (code, end, before, after) in [
        (l2_clear as Code, 4, bits::GIF, 0),
        (l2_clear, 4, 0, 0),
        (l2_set, 6, 0, bits::GIF),
        (l2_set, 6, bits::GIF, bits::GIF),
    ] {
        let mut scene = with_interrupt(fixture, code, bits::GIF_ENABLE | before, false)?;
        scene.reach(Step::Ready)?;
        scene.exits(exit::VMMCALL, end)?;
        let int_ctl = scene.half(vmcb::INT_CTL) & (bits::GIF | bits::GIF_ENABLE);
        expect("int_ctl", int_ctl, bits::GIF_ENABLE | after)?;
    }
    Ok(())
}

fn waits_for_virtual_flag(fixture: &Fixture) -> Result<()> {
    need_virtual_flag(fixture)?;
    let mut scene = with_interrupt(
        fixture,
        l2_set,
        bits::GIF_ENABLE | INTERRUPT | bits::IGNORE_PRIORITY,
        true,
    )?;
    scene.reach(Step::Ready)?;
    scene.reach(Step::Exited)?;
    let seen = (scene.word(BY_L2), scene.word(vmcb::EXIT_CODE));
    expect("interrupts of L2, exit", seen, (1, exit::VMMCALL))?;
    let offset = scene.offset(L2_WAS_AT);
    anyhow::ensure!(offset >= 4, "the interrupt came at {offset}, before STGI");
    expect("RFLAGS.IF", scene.word(vmcb::RFLAGS) & RFLAGS_IF, RFLAGS_IF)
}

fn flag_intercepted(fixture: &Fixture) -> Result<()> {
    need_virtual_flag(fixture)?;
    for (code, intercept, offset) in [(l2_clear as Code, exit::CLGI, 0), (l2_set, exit::STGI, 1)] {
        let mut scene = with_interrupt(fixture, code, bits::GIF_ENABLE | bits::GIF, false)?;
        vmcb::set_intercept(scene.memory(), intercept);
        scene.reach(Step::Ready)?;
        scene.exits(intercept, offset)?;
    }
    Ok(())
}
