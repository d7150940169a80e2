// SPDX-License-Identifier: GPL-2.0

//! L1 edits its page tables for L2 at random, and L2 must see memory as they say.
//!
//! A failure names the seed.
//!
//! The test program has a model of all memory that L1's tables can refer to, and walks the tables
//! there: it knows what each access of L2 must read, or with which fault it must stop.

mod escapes;
mod host;
mod run;
mod shrink;
mod slice;
mod trace;
mod world;

use std::process::ExitCode;

use anyhow::{ensure, Result};
use argh::FromArgs;
use selftests::guest::{machine, signal, Random, Vendor};
use selftests::module;
use selftests::tap::{self, Point};

use host::Host;
use run::{Plan, Work};
use slice::{Batch, Slice};
use world::World;

/// Roots from which the slices can be reached.
const ROOTS: u64 = 2;

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
    rounds: u64,
    seed: u64,
    /// Whether L1's entries may be anything.
    all_rights: bool,
}

/// L1 edits tables, and L2 looks.
fn edit(slice: &mut Slice, batch: &mut Batch, random: &mut Random) {
    for _ in 0..16 {
        for _ in 0..random.below(3) {
            slice.edit(batch, random);
        }
        for _ in 0..random.below(5) {
            slice.visit(batch, random);
        }
    }
}

/// Carries out a test on a number of processors.
fn on(fixture: &Fixture, processors: u64, work: Work, host: DoneByHost) -> Result<()> {
    let (world, mut vcpus) = World::new(&fixture.kvm, processors, processors + 2, ROOTS)?;
    if !fixture.all_rights {
        for slice in &world.slices {
            slice.lock().unwrap().limit_rights();
        }
    }
    let plan = Plan {
        batches: fixture.rounds / processors,
        seed: fixture.seed,
        work,
        host,
    };
    world.carry_out(&mut vcpus, plan)?;
    let count =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    let (finished, refused) = (count(&world.counts.accesses), count(&world.counts.refused));
    ensure!(
        finished > fixture.rounds && refused > fixture.rounds,
        "L2 finished {finished} accesses only, and did not finish {refused}"
    );
    Ok(())
}

/// What the host does.
pub type DoneByHost = fn(&mut Host<'_>, &mut Random) -> Result<()>;

fn points() -> Vec<Point<Fixture>> {
    let mut points = vec![
        Point::new("L2 sees what L1 has made of its tables", |fixture| {
            on(fixture, 1, edit, |_, _| Ok(()))
        }),
        Point::new("it does while L0 changes the memory below", |fixture| {
            on(fixture, 1, edit, |host, random| host.disturb(random))
        }),
        Point::new("it does on two processors", |fixture| {
            on(fixture, 2, edit, |host, random| host.disturb(random))
        }),
        Point::new("it does on four processors", |fixture| {
            on(fixture, 4, edit, |host, random| host.disturb(random))
        }),
        Point::new("what L2 writes is in L0's log", |fixture| {
            on(fixture, 2, edit, |host, random| match random.below(64) {
                0 => host.toggle_log(),
                _ => host.log(),
            })
        }),
    ];
    points.extend(shrink::points());
    points.extend(trace::points());
    points.extend(escapes::points());
    points
}

/// Lets L1 edit its page tables for L2 at random.
#[derive(FromArgs)]
struct Arguments {
    /// how often each point does something
    #[argh(option, default = "200")]
    rounds: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let (kvm, vendor) = match machine::open_any() {
        Ok(opened) => opened,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    // KVM's own code warns of entries of EPT that together permit nothing.
    let ours = module::find("nested_vmx").is_ok_and(|module| module.is_some());
    let fixture = Fixture {
        kvm,
        all_rights: ours || vendor == Vendor::Svm,
        rounds: arguments.rounds,
        seed: arguments.seed,
    };
    tap::note(format_args!("seed {}", fixture.seed));
    tap::run(&points(), &fixture, |_| Ok(()))
}
