// SPDX-License-Identifier: GPL-2.0

//! Random programs of L1 and L2: what L1 observes must be the same with KVM's own nested code and
//! with our module.
//!
//! A case depends on the seed and its number only.

mod providers;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, Result};
use argh::FromArgs;
use kvm_ioctls::Kvm;
use selftests::expect;
use selftests::fuzz::allowed::{ALLOWED, FIELDS_OF_C, FIELDS_OF_OURS};
use selftests::fuzz::{corpus, generate, subject, Case};
use selftests::guest::{machine, Vendor};
use selftests::process;
use selftests::tap::{self, Point};

use providers::Providers;

/// Cases between two changes of the provider.
const BATCH: u64 = 64;

/// Differences after which nothing new is looked for.
const ENOUGH: usize = 6;

/// What the tests need.
pub struct Fixture {
    kvm: Kvm,
    vendor: Vendor,
    module: PathBuf,
    cases: u64,
    seed: u64,
    first: u64,
}

/// Compares what L1 can read.
fn fields(fixture: &Fixture) -> Result<()> {
    let [by_c, by_ours] = Providers::find(fixture)?.offers()?;
    let beyond = |some: &[u32], others: &[u32]| -> Vec<u32> {
        let missing = some.iter().filter(|field| !others.contains(field));
        missing.copied().collect()
    };
    let missing = beyond(&by_c, &by_ours);
    expect("fields that only C has", missing, FIELDS_OF_C.to_vec())?;
    let further = beyond(&by_ours, &by_c);
    expect(
        "fields that only ours has",
        further,
        FIELDS_OF_OURS.to_vec(),
    )
}

fn kept(fixture: &Fixture) -> Result<()> {
    let providers = Providers::find(fixture)?;
    let (names, cases): (Vec<String>, Vec<Case>) =
        corpus::cases(fixture.vendor)?.into_iter().unzip();
    let mut counts = vec![0; ALLOWED.len()];
    let found = providers.compare(&cases, &mut counts)?;
    for (index, difference) in &found {
        tap::note(format_args!("{}: {difference}", names[*index]));
    }
    tap::note(format_args!("{} cases are kept", cases.len()));
    if !found.is_empty() {
        bail!("{} kept cases differ", found.len());
    }
    Ok(())
}

fn random(fixture: &Fixture) -> Result<()> {
    let providers = Providers::find(fixture)?;
    let subject = subject(&fixture.kvm, fixture.vendor)?;
    let initial = |field| subject.initial(field);
    let case = |number| generate::case(fixture.vendor, fixture.seed, number, &initial);
    let end = fixture.first + fixture.cases;
    let batches: Vec<Vec<Case>> = (fixture.first..end)
        .step_by(BATCH as usize)
        .map(|start| (start..end.min(start + BATCH)).map(case).collect())
        .collect();
    // It is a machine, and our module cannot go while there is one.
    drop(subject);
    let mut counts = vec![0; ALLOWED.len()];
    let mut differ = 0;
    for (start, cases) in (fixture.first..).step_by(BATCH as usize).zip(batches) {
        let found = providers.compare(&cases, &mut counts)?;
        tap::note(format_args!(
            "cases from {start}: {} of {} differ",
            found.len(),
            cases.len()
        ));
        for (index, difference) in found {
            if differ > ENOUGH {
                break;
            }
            let number = start + index as u64;
            let what = format!("seed {} case {number}: {difference}", fixture.seed);
            tap::note(&what);
            match providers.confirm(&cases[index])? {
                None if difference.is_of_time() => {
                    tap::note("  it was only slow");
                    continue;
                }
                None if !providers.differs_again(&cases[..=index])? => {
                    // An interrupt of level 0 has come at another place.
                    tap::note("  not when it is repeated");
                    continue;
                }
                None => {
                    let by = providers.that_remember(&cases[..=index])?.join(" and ");
                    tap::note(format_args!("  only after the cases before it, by {by}"));
                }
                Some(difference) if differ < ENOUGH => {
                    let (small, difference) = providers.shrink(&cases[index], difference)?;
                    tap::note(format_args!("{small}# {difference}"));
                }
                Some(_) => {}
            }
            differ += 1;
        }
        if differ > ENOUGH {
            break;
        }
    }
    for (allowed, count) in ALLOWED.iter().zip(counts) {
        tap::note(format_args!("{count} times: {}", allowed.reason));
    }
    if differ > 0 {
        bail!("{differ} cases differ");
    }
    Ok(())
}

/// Runs cases with both providers, and compares them.
#[derive(FromArgs)]
struct Arguments {
    /// our module
    #[argh(positional)]
    module: PathBuf,
    /// how many random cases there are
    #[argh(option, default = "1024")]
    cases: u64,
    /// where the random numbers begin
    #[argh(option, default = "1")]
    seed: u64,
    /// the number of the first one
    #[argh(option, default = "0")]
    first: u64,
}

fn main() -> ExitCode {
    // An L2 on wrong tracks executes what it finds: tables with addresses of this program.
    if let Err(error) = process::fix_addresses() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let arguments: Arguments = argh::from_env();
    let (kvm, vendor) = match machine::open_any() {
        Ok(opened) => opened,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    let fixture = Fixture {
        kvm,
        vendor,
        module: arguments.module,
        cases: arguments.cases,
        seed: arguments.seed,
        first: arguments.first,
    };
    let mut points = vec![
        Point::new("the kept cases are the same with both providers", kept),
        Point::new("random cases are the same with both providers", random),
    ];
    if vendor == Vendor::Vmx {
        points.insert(
            0,
            Point::new("L1 can read the fields of its processor", fields),
        );
    }
    tap::run(&points, &fixture, |_| Ok(()))
}
