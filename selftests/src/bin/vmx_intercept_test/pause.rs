// SPDX-License-Identifier: GPL-2.0

//! Loops of PAUSE.

use anyhow::Result;
use selftests::expect;
use selftests::guest::vmx::control::{primary, reason, secondary};
use selftests::guest::vmx::{field, Fields};
use selftests::guest_code;
use selftests::tap::Point;

use crate::{address, Fixture, Ran};

guest_code! {
    /// A loop of PAUSE.
    l2_pause_loop: "mov ecx, 20000", "2:", "pause", "dec ecx", "jnz 2b", "vmcall";
    /// PAUSE now and then.
    l2_rare_pauses:
        "mov ecx, 200", "2:", "pause", "mov edx, 1000", "3:", "dec edx", "jnz 3b",
        "dec ecx", "jnz 2b", "vmcall";
}

/// PAUSE that follow one another in that time are a loop, which exits after some time.
fn detect(fields: &mut Fields, gap: u64, window: u64) {
    fields.set(field::SECONDARY, secondary::PAUSE_LOOP);
    fields.put(field::PLE_GAP, gap);
    fields.put(field::PLE_WINDOW, window);
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a loop of PAUSE is reflected if L1 asks for it",
            |fixture| {
                let run = fixture.run(l2_pause_loop, &|fields, _| detect(fields, 256, 4096))?;
                expect("what L2 did", run.ran, Ran::Exit(reason::PAUSE))?;
                // After the first instruction, at PAUSE.
                expect("RIP", run.exit.rip, address(l2_pause_loop) + 5)?;
                expect("length of the instruction", run.exit.length, 2)?;
                let left = fixture.with(|machine| Ok(machine.register(1)))?;
                anyhow::ensure!(
                    left < 20000,
                    "the first PAUSE exits, and not the loop: {left}"
                );
                Ok(())
            },
        ),
        Point::new("a loop of PAUSE goes on after its exit", |fixture| {
            let run = fixture.run(l2_pause_loop, &|fields, _| detect(fields, 256, 4096))?;
            expect("what L2 did", run.ran, Ran::Exit(reason::PAUSE))?;
            fixture.with(|machine| {
                let first = machine.register(1);
                let next = run.exit.rip + run.exit.length;
                let exit = machine.resume(&[(field::GUEST_RIP, next)])?.0.exit()?;
                expect("reason of the next exit", exit.reason, reason::PAUSE)?;
                let second = machine.register(1);
                anyhow::ensure!(second < first, "L2 does not go on: {first}, {second}");
                Ok(())
            })
        }),
        Point::new("a short loop of PAUSE is not reflected", |fixture| {
            not_reflected(fixture, l2_pause_loop, |fields| {
                detect(fields, 256, 0xffff_ffff);
            })
        }),
        Point::new("PAUSE now and then is not reflected", |fixture| {
            not_reflected(fixture, l2_rare_pauses, |fields| detect(fields, 256, 4096))
        }),
        Point::new(
            "a loop of PAUSE is not reflected if L1 does not ask for it",
            |fixture| {
                let run = fixture.run(l2_pause_loop, &|fields, _| detect(fields, 256, 4096))?;
                expect("what L2 did", run.ran, Ran::Exit(reason::PAUSE))?;
                // The fields are still there.
                not_reflected(fixture, l2_pause_loop, |_| ())
            },
        ),
        Point::new("PAUSE exiting makes each PAUSE exit", |fixture| {
            let run = fixture.run(l2_rare_pauses, &|fields, _| {
                detect(fields, 256, 0xffff_ffff);
                fields.set(field::PRIMARY, primary::PAUSE);
            })?;
            expect("what L2 did", run.ran, Ran::Exit(reason::PAUSE))?;
            expect("RIP", run.exit.rip, address(l2_rare_pauses) + 5)
        }),
    ]
}

fn not_reflected(fixture: &Fixture, code: crate::Code, change: fn(&mut Fields)) -> Result<()> {
    let run = fixture.run(code, &|fields, _| change(fields))?;
    expect("what L2 did", run.ran, Ran::Finished)
}
