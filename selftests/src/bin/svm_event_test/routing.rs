// SPDX-License-Identifier: GPL-2.0

//! Who gets an interrupt, an NMI and an SMI, and when.

use anyhow::{bail, Context, Result};
use selftests::expect;
use selftests::guest::vmcb::{self, exit};
use selftests::tap::Point;

use crate::{l2_calls, Event, Fixture, Scene, Step, BY_L1, BY_L2, L2_WAS_AT};

/// `int_ctl`: L2's RFLAGS.IF is for virtual interrupts only.
const V_INTR_MASKING: u32 = 1 << 24;

/// Where L2's code goes on after its call of user space.
const AFTER_CALL: u64 = 2;

/// Where L2's code calls L1.
const CALL: u64 = 4;

/// When an event comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The global interrupt flag is clear, VMRUN is next.
    BeforeVmrun,
    /// L2 has executed an instruction.
    InL2,
    /// L2 has exited, the flag is clear.
    AfterExit,
}

/// One of all cases.
#[derive(Clone, Copy, Debug)]
struct Case {
    event: Event,
    when: When,
    intercepted: bool,
    masking: bool,
    l1_interrupts: bool,
    l2_interrupts: bool,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Exit code of L2.
    exit: u64,
    /// Where it exited.
    rip: u64,
    /// Where it got the event, if it did.
    by_l2: Option<u64>,
    /// L1 got it while the global interrupt flag was clear.
    early: bool,
    /// L1 got it after that.
    by_l1: bool,
}

impl Case {
    /// Returns what the architecture says.
    fn expected(self) -> Seen {
        let maskable = self.event == Event::Interrupt;
        let by_l1 = !maskable || self.l1_interrupts;
        let in_l2 = match (maskable, self.masking) {
            (true, true) => self.l1_interrupts,
            (true, false) => self.l2_interrupts,
            (false, _) => true,
        };
        let place = match self.when {
            When::BeforeVmrun => 0,
            When::InL2 => AFTER_CALL,
            When::AfterExit => return Seen::finished(None, by_l1),
        };
        match (in_l2, self.intercepted) {
            (false, _) => Seen::finished(None, by_l1),
            (true, false) => Seen::finished(Some(place), false),
            (true, true) => Seen {
                exit: intercept(self.event),
                rip: place,
                by_l2: None,
                early: false,
                by_l1,
            },
        }
    }

    /// Tries it.
    fn seen(self, fixture: &Fixture) -> Result<Seen> {
        let mut scene = Scene::new(fixture, l2_calls)?;
        scene.give_smram()?;
        scene.set_interrupts(self.l1_interrupts, self.l2_interrupts);
        let memory = scene.memory();
        if self.masking {
            memory.write(vmcb::INT_CTL, V_INTR_MASKING);
        }
        if self.intercepted {
            vmcb::set_intercept(memory, intercept(self.event));
        }
        let which = if self.event == Event::Nmi { 8 } else { 0 };
        let (mut smm_at, mut exited) = (None, None);
        let (mut early, mut smm_after) = (false, false);
        // An L2 that calls user space is not beyond the call before it runs again.
        let mut place = 0;
        loop {
            let step = scene.next()?;
            let now = match step {
                Step::Ready => Some(When::BeforeVmrun),
                Step::InL2 => Some(When::InL2),
                Step::Exited => Some(When::AfterExit),
                _ => None,
            };
            match step {
                Step::InL2 => place = AFTER_CALL,
                Step::InSmm if exited.is_none() => smm_at = Some(place),
                Step::InSmm => smm_after = true,
                Step::Exited => {
                    early = scene.word(BY_L1 + which) != 0;
                    exited = Some((scene.word(vmcb::EXIT_CODE), scene.offset(vmcb::RIP)));
                }
                Step::Set => break,
                Step::Shutdown => bail!("the machine shut down"),
                Step::Ready => (),
            }
            if now == Some(self.when) {
                scene.raise(self.event)?;
            }
        }
        let (exit, rip) = exited.context("L1 saw no exit")?;
        let by_l2 = match scene.word(BY_L2 + which) {
            0 => smm_at,
            1 => Some(scene.offset(L2_WAS_AT)),
            more => bail!("L2 got the event {more} times"),
        };
        Ok(Seen {
            exit,
            rip,
            by_l2,
            early,
            by_l1: smm_after || scene.word(BY_L1 + which) == 1,
        })
    }
}

impl Seen {
    /// L2 gets to its call of L1.
    fn finished(by_l2: Option<u64>, by_l1: bool) -> Self {
        Self {
            exit: exit::VMMCALL,
            rip: CALL,
            by_l2,
            early: false,
            by_l1,
        }
    }
}

/// Returns the intercept of an event, which is its exit code.
fn intercept(event: Event) -> u64 {
    match event {
        Event::Interrupt => exit::INTR,
        Event::Nmi => exit::NMI,
        Event::Smi => exit::SMI,
    }
}

/// Tries an event with all that matters to it.
fn all(fixture: &Fixture, event: Event, when: When) -> Result<()> {
    for bits in 0..16u32 {
        let bit = |number: u32| bits >> number & 1 == 1;
        let case = Case {
            event,
            when,
            intercepted: bit(0),
            masking: bit(1),
            l1_interrupts: bit(2),
            l2_interrupts: bit(3),
        };
        let seen = case.seen(fixture).with_context(|| format!("{case:?}"))?;
        expect(format_args!("{case:?}"), seen, case.expected())?;
    }
    Ok(())
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    use Event::{Interrupt, Nmi, Smi};
    use When::{AfterExit, BeforeVmrun, InL2};

    vec![
        Point::new(
            "an interrupt that waits for GIF is recognized at VMRUN",
            |fixture| all(fixture, Interrupt, BeforeVmrun),
        ),
        Point::new(
            "an interrupt while L2 runs goes where its masks and intercept say",
            |fixture| all(fixture, Interrupt, InL2),
        ),
        Point::new("an interrupt after an exit waits for GIF", |fixture| {
            all(fixture, Interrupt, AfterExit)
        }),
        Point::new(
            "an NMI that waits for GIF is recognized at VMRUN",
            |fixture| all(fixture, Nmi, BeforeVmrun),
        ),
        Point::new(
            "an NMI while L2 runs goes where its intercept says",
            |fixture| all(fixture, Nmi, InL2),
        ),
        Point::new("an NMI after an exit waits for GIF", |fixture| {
            all(fixture, Nmi, AfterExit)
        }),
        Point::new(
            "an SMI that waits for GIF is recognized at VMRUN",
            |fixture| all(fixture, Smi, BeforeVmrun),
        ),
        Point::new(
            "an SMI while L2 runs goes where its intercept says",
            |fixture| all(fixture, Smi, InL2),
        ),
        Point::new("an SMI after an exit waits for GIF", |fixture| {
            all(fixture, Smi, AfterExit)
        }),
    ]
}
