// SPDX-License-Identifier: GPL-2.0

//! The ratio of L2's TSC to L1's, alone and on top of that of L1's to L0's.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use selftests::guest::machine::{offered, set_msr};
use selftests::guest::vmx::control::{primary, secondary};
use selftests::guest::vmx::{field, Capabilities, Fields};
use selftests::guest::Vendor;
use selftests::offer::Offer;
use selftests::tap::{Point, Skip};

use crate::world::{in_order, Code, Exit, Scene, Wish, AFTER, BEFORE, FAR, FIRST, SECOND};

/// The MSR with the ratio, with SVM.
const TSC_RATIO: u32 = 0xc000_0104;

/// The bit of CPUID that says that there is one.
const TSC_RATE: u64 = 1 << 4;

/// A ratio by what L1's time is shifted: left, or right.
#[derive(Clone, Copy, Debug)]
enum Ratio {
    /// L2's time is faster.
    Times8,
    /// L2's time is slower.
    By4,
}

impl Ratio {
    /// Returns the time of L2 without its offset.
    fn of(self, time: u64) -> u64 {
        match self {
            Self::Times8 => time << 3,
            Self::By4 => time >> 2,
        }
    }

    /// Returns the ratio as a number with so many binary digits.
    fn fixed(self, digits: u32) -> u64 {
        self.of(1 << digits)
    }
}

/// Steps of time by which results of several products may be wrong.
const ROUNDING: u64 = 16;

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    vec![
        Point::new("L2's TSC is L1's by the ratio of L1", |kvm| {
            each(kvm, L1::Usual)
        }),
        Point::new("L2's ratio is that to L1, which has an offset", |kvm| {
            each(kvm, L1::Ahead)
        }),
        Point::new("L2's ratio is that to L1, which has a ratio", |kvm| {
            if kvm.check_extension_raw(kvm_bindings::KVM_CAP_TSC_CONTROL.into()) <= 0 {
                return Err(Skip("KVM cannot scale the TSC".into()).into());
            }
            each(kvm, L1::Faster)
        }),
    ]
}

/// What L1's time is to L0's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum L1 {
    /// What it is at first.
    Usual,
    /// It gets an offset, before L2 runs and while it is active.
    Ahead,
    /// It gets another frequency.
    Faster,
}

/// Skips the point if L1 cannot scale L2's TSC.
fn can_scale(kvm: &Kvm) -> Result<()> {
    let (can, name) = match offered(kvm)? {
        Vendor::Svm => (
            Offer::read(kvm)?.svm_features() & TSC_RATE != 0,
            "TSC ratio",
        ),
        Vendor::Vmx => (
            Capabilities::read(kvm)?.allowed(field::SECONDARY) & secondary::TSC_SCALING != 0,
            "TSC scaling",
        ),
    };
    if can {
        return Ok(());
    }
    Err(Skip(format!("KVM offers no {name} to guests")).into())
}

fn scaled(fields: &mut Fields, ratio: Ratio) {
    fields.set(field::PRIMARY, primary::TSC_OFFSETTING);
    fields.set(field::SECONDARY, secondary::TSC_SCALING);
    fields.put(field::TSC_MULTIPLIER, ratio.fixed(48));
}

fn each(kvm: &Kvm, l1: L1) -> Result<()> {
    can_scale(kvm)?;
    for ratio in [Ratio::Times8, Ratio::By4] {
        for offset in [FAR, FAR.wrapping_neg()] {
            one(kvm, l1, ratio, offset)
                .with_context(|| format!("ratio {ratio:?}, offset of L2 {offset:#x}"))?;
        }
    }
    Ok(())
}

fn one(kvm: &Kvm, l1: L1, ratio: Ratio, offset: u64) -> Result<()> {
    let wish = Wish {
        vmcs: match ratio {
            Ratio::Times8 => |fields| scaled(fields, Ratio::Times8),
            Ratio::By4 => |fields| scaled(fields, Ratio::By4),
        },
        ..Wish::new(Code::Rdtsc, offset)
    };
    let mut scene = Scene::with(kvm, &wish, |vcpu| {
        if l1 == L1::Faster {
            let usual = vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
            vcpu.set_tsc_khz(usual * 3).context("KVM_SET_TSC_KHZ")?;
        }
        Ok(())
    })?;
    if scene.vendor() == Vendor::Svm {
        // For all of its guests.
        set_msr(scene.vcpu(), TSC_RATIO, ratio.fixed(32))?;
    }
    for _ in 0..2 {
        if l1 == L1::Ahead {
            scene.set_time(scene.time()?.wrapping_add(FAR))?;
        }
        scene.until_l2_calls()?;
        in_order(&[
            ("L1 before the entry", ratio.of(scene.noted(BEFORE))),
            ("L2", own(&scene, FIRST, offset)),
            ("user space", later(ratio, scene.time()?)),
        ])?;
        if l1 == L1::Ahead {
            scene.set_time(scene.time()?.wrapping_add(FAR))?;
        }
        let between = scene.time()?;
        scene.until_exit(Exit::Call)?;
        in_order(&[
            ("user space", ratio.of(between)),
            ("L2 after its call", own(&scene, SECOND, offset)),
            ("L1 after the exit", later(ratio, scene.noted(AFTER))),
        ])?;
        in_order(&[
            ("user space", between),
            ("L1 after the exit", scene.noted(AFTER)),
            ("the time after L1", scene.time()?),
        ])?;
    }
    Ok(())
}

/// Returns what L2 has read, without its offset, and not less because of rounding.
fn own(scene: &Scene, address: u64, offset: u64) -> u64 {
    let read = scene.noted(address).wrapping_sub(offset);
    read.wrapping_add(ROUNDING)
}

/// Returns the time of L2 at a time of L1, and not less than [`own`] because of rounding.
fn later(ratio: Ratio, time: u64) -> u64 {
    ratio.of(time).wrapping_add(2 * ROUNDING)
}
