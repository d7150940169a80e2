// SPDX-License-Identifier: GPL-2.0

//! Events that VMRUN injects.

use anyhow::{Context, Result};
use selftests::guest::layout::{exception, IDT};
use selftests::guest::machine::RFLAGS_IF;
use selftests::guest::tables::nested_entry;
use selftests::guest::vmcb::{self, exit};
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{l2, Fixture, Scene, Step, BY_L2, L2_WAS_AT, VECTOR};

guest_code! {
    /// L2: calls L1.
    l2_end: "vmmcall", "ud2";
    /// L2: has an instruction of two bytes to get past.
    l2_int: "int 0x40", "vmmcall", "ud2";
}

/// Types of events.
const INTERRUPT: u32 = 0 << 8;
const NMI: u32 = 2 << 8;
const EXCEPTION: u32 = 3 << 8;
const SOFTWARE: u32 = 4 << 8;

/// All bits of a type.
const TYPE: u32 = 7 << 8;

/// There is an event.
const VALID: u32 = 1 << 31;

/// The event has an error code.
const HAS_ERROR: u32 = 1 << 11;

/// An error code of no meaning.
const ERROR: u32 = 0x5a;

/// Exceptions that have an error code, of those that all processors have.
const WITH_ERROR: [u32; 7] = [8, 10, 11, 12, 13, 14, 17];

/// Exceptions that have none. Those of instructions, #BP and #OF, stand apart.
const WITHOUT_ERROR: [u32; 9] = [0, 1, 5, 6, 7, 16, 18, 19, 28];

/// The bit of CPUID 8000_000Ah:EDX of next-RIP save.
const NRIPS: u32 = 3;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new("an injected exception has its error code", |fixture| {
            for vector in WITH_ERROR {
                exception_reaches_l2(fixture, vector, Some(ERROR))?;
            }
            Ok(())
        }),
        Point::new("an injected exception without one has none", |fixture| {
            for vector in WITHOUT_ERROR {
                exception_reaches_l2(fixture, vector, None)?;
            }
            Ok(())
        }),
        Point::new("what is injected is not intercepted", not_intercepted),
        Point::new(
            "an interrupt is injected whatever RFLAGS.IF and GIF of L1 were",
            interrupt,
        ),
        Point::new("an NMI is injected through vector 2", nmi),
        Point::new(
            "a software interrupt returns to where the VMCB says",
            software,
        ),
        Point::new(
            "an event whose delivery exits is in EXITINTINFO",
            interrupted,
        ),
        Point::new("an event that is not valid is not injected", not_valid),
        Point::new("an event is injected once", once),
    ]
}

/// Makes VMRUN inject an event.
fn inject(scene: &Scene, event: u32, error: Option<u32>) {
    let memory = scene.memory();
    let bits = error.map_or(0, |_| HAS_ERROR);
    memory.write(vmcb::EVENT_INJ, VALID | bits | event);
    memory.write(vmcb::EVENT_INJ_ERROR, error.unwrap_or(0xdead));
}

/// Runs L2 to its call of L1, after an event; VMRUN must not have left it behind.
fn finish(scene: &mut Scene) -> Result<()> {
    scene.reach(Step::Ready)?;
    scene.reach(Step::Exited)?;
    expect("exit code", scene.word(vmcb::EXIT_CODE), exit::VMMCALL)?;
    expect("EVENTINJ after the exit", scene.half(vmcb::EVENT_INJ), 0)?;
    let pending = scene.half(vmcb::EXIT_INT_INFO) & VALID;
    expect("EXITINTINFO", pending, 0)
}

fn exception_reaches_l2(fixture: &Fixture, vector: u32, error: Option<u32>) -> Result<()> {
    let mut scene = Scene::new(fixture, l2_end)?;
    inject(&scene, EXCEPTION | vector, error);
    let what = || format!("exception {vector}");
    finish(&mut scene).with_context(what)?;
    let seen = [
        scene.word(l2(exception::COUNT)),
        scene.word(l2(exception::VECTOR)),
        scene.word(l2(exception::ERROR)),
        scene.offset(l2(exception::RIP)),
    ];
    let expected = [1, vector.into(), error.unwrap_or(0).into(), 0];
    expect(
        format_args!("count, vector, error, RIP of {}", what()),
        seen,
        expected,
    )
}

fn not_intercepted(fixture: &Fixture) -> Result<()> {
    for vector in [0, 6, 13, 14] {
        let mut scene = Scene::new(fixture, l2_end)?;
        vmcb::set_intercept(scene.memory(), exit::EXCEPTION + u64::from(vector));
        inject(&scene, EXCEPTION | vector, (vector > 8).then_some(ERROR));
        finish(&mut scene).with_context(|| format!("exception {vector}"))?;
        expect("exceptions of L2", scene.word(l2(exception::COUNT)), 1)?;
    }
    for (event, code) in [
        (INTERRUPT | VECTOR as u32, exit::INTR),
        (NMI | 2, exit::NMI),
    ] {
        let mut scene = Scene::new(fixture, l2_end)?;
        vmcb::set_intercept(scene.memory(), code);
        inject(&scene, event, None);
        finish(&mut scene).with_context(|| format!("event {event:#x}"))?;
    }
    Ok(())
}

/// Checks that L2 had one interrupt or NMI before its first instruction.
fn had_one(scene: &Scene, count: u64) -> Result<()> {
    let seen = (scene.word(BY_L2 + count), scene.offset(L2_WAS_AT));
    expect("count and offset of RIP", seen, (1, 0))
}

fn interrupt(fixture: &Fixture) -> Result<()> {
    for (l1_interrupts, l2_interrupts) in [(false, false), (false, true), (true, false)] {
        let mut scene = Scene::new(fixture, l2_end)?;
        scene.set_interrupts(l1_interrupts, l2_interrupts);
        inject(&scene, INTERRUPT | VECTOR as u32, None);
        finish(&mut scene)?;
        had_one(&scene, 0)?;
        let flags = scene.word(vmcb::RFLAGS) & RFLAGS_IF != 0;
        expect("RFLAGS.IF after IRET", flags, l2_interrupts)?;
    }
    Ok(())
}

fn nmi(fixture: &Fixture) -> Result<()> {
    let mut scene = Scene::new(fixture, l2_end)?;
    inject(&scene, NMI | 2, None);
    finish(&mut scene)?;
    had_one(&scene, 8)
}

fn software(fixture: &Fixture) -> Result<()> {
    let mut scene = Scene::new(fixture, l2_int)?;
    // Without next-RIP save L0 takes the instruction before RIP for the one that is to be skipped if
    // it has to inject the event again.
    scene
        .memory()
        .write(vmcb::RIP, l2_int as *const () as u64 + 2);
    scene.warm_up()?;
    let memory = scene.memory();
    memory.write(vmcb::RIP, l2_int as *const () as u64);
    // Without next-RIP save the hypervisor has advanced RIP itself.
    let next = l2_int as *const () as u64 + 2;
    if fixture.offers(NRIPS)? {
        memory.write(vmcb::NEXT_RIP, next);
    } else {
        memory.write(vmcb::RIP, next);
    }
    inject(&scene, SOFTWARE | VECTOR as u32, None);
    finish(&mut scene)?;
    let seen = (scene.word(BY_L2), scene.offset(L2_WAS_AT));
    expect("count and offset of RIP", seen, (1, 2))
}

fn interrupted(fixture: &Fixture) -> Result<()> {
    let events = [
        (INTERRUPT | VECTOR as u32, None),
        (NMI | 2, None),
        (EXCEPTION | 6, None),
        (EXCEPTION | 14, Some(ERROR)),
        (SOFTWARE | VECTOR as u32, None),
    ];
    for (event, error) in events {
        // L0 takes the instruction at RIP for that of the event if it cannot save the next one.
        if event & TYPE == SOFTWARE && !fixture.offers(NRIPS)? {
            continue;
        }
        let mut scene = Scene::new(fixture, l2_end)?;
        let memory = scene.memory();
        let page = IDT + 0x1000;
        let entry = nested_entry(memory, memory.read(vmcb::NESTED_CR3), page);
        let mapped: u64 = memory.read(entry);
        memory.write(entry, 0u64);
        memory.write(vmcb::NEXT_RIP, l2_end as *const () as u64);
        inject(&scene, event, error);
        scene.reach(Step::Ready)?;
        scene.reach(Step::Exited)?;
        let what = format_args!("event {event:#x}");
        expect("exit code", scene.word(vmcb::EXIT_CODE), exit::NPF)
            .with_context(|| what.to_string())?;
        let address = scene.word(vmcb::EXIT_INFO_2) & !0xfff;
        expect("address", address, page)?;
        let bits = error.map_or(0, |_| HAS_ERROR);
        let seen = scene.half(vmcb::EXIT_INT_INFO);
        // The vector of an NMI has no meaning.
        let vector = if event & TYPE == NMI { 0 } else { event & 0xff };
        expect(
            format_args!("EXITINTINFO of {what}"),
            (seen & !0xff, seen & vector),
            (VALID | bits | event & TYPE, vector),
        )?;
        if let Some(error) = error {
            let seen = scene.half(vmcb::EXIT_INT_INFO_ERROR);
            expect("its error code", seen, error)?;
        }
        expect("EVENTINJ after the exit", scene.half(vmcb::EVENT_INJ), 0)?;
        // As hypervisors do: map the page, and inject the same again.
        let memory = scene.memory();
        memory.write(entry, mapped);
        inject(&scene, event, error);
        scene.reach(Step::Set)?;
        finish(&mut scene).with_context(|| format!("{what} again"))?;
        let exceptions = scene.word(l2(exception::COUNT));
        let others = scene.word(BY_L2) + scene.word(BY_L2 + 8);
        expect("events of L2", exceptions + others, 1)?;
    }
    Ok(())
}

fn not_valid(fixture: &Fixture) -> Result<()> {
    for event in [
        INTERRUPT | VECTOR as u32,
        NMI | 2,
        EXCEPTION | 6,
        1 << 8,
        SOFTWARE | 3,
    ] {
        let mut scene = Scene::new(fixture, l2_end)?;
        scene.memory().write(vmcb::EVENT_INJ, event);
        scene.reach(Step::Ready)?;
        scene.exits(exit::VMMCALL, 0)?;
        expect("exceptions of L2", scene.word(l2(exception::COUNT)), 0)?;
        expect("interrupts of L2", scene.word(BY_L2), 0)?;
    }
    Ok(())
}

fn once(fixture: &Fixture) -> Result<()> {
    let mut scene = Scene::new(fixture, l2_end)?;
    inject(&scene, INTERRUPT | VECTOR as u32, None);
    finish(&mut scene)?;
    scene.reach(Step::Set)?;
    // The exit has cleared the field, and L1 leaves it alone.
    finish(&mut scene)?;
    expect("interrupts of L2", scene.word(BY_L2), 1)
}
