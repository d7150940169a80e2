// SPDX-License-Identifier: GPL-2.0

//! L1 and L2 write IA32_TSC and IA32_TSC_ADJUST.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use selftests::expect;
use selftests::guest::machine::get_msr;
use selftests::tap::{Point, Skip};
use selftests::vm;

use crate::world::{
    in_order, Code, Exit, Scene, Wish, AFTER, BEFORE, BY_RDMSR, FAR, FIRST, SECOND, TSC,
};

/// IA32_TSC_ADJUST.
const ADJUST: u32 = 0x3b;

/// Values that are written.
const VALUES: [u64; 3] = [9 * FAR, 1 << 63, 0x1234];

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    vec![
        Point::new("L1 writes IA32_TSC between two entries", |kvm| {
            by_l1(kvm, TSC)
        }),
        Point::new("L1 writes IA32_TSC_ADJUST between two entries", |kvm| {
            has_adjust(kvm)?;
            by_l1(kvm, ADJUST)
        }),
        Point::new("IA32_TSC that L2 writes is that of L1", |kvm| {
            by_l2(kvm, TSC)
        }),
        Point::new("IA32_TSC_ADJUST that L2 writes is that of L1", |kvm| {
            has_adjust(kvm)?;
            by_l2(kvm, ADJUST)
        }),
        Point::new(
            "a write of IA32_TSC that L1 intercepts does nothing",
            |kvm| intercepted(kvm, TSC),
        ),
        Point::new(
            "a write of IA32_TSC_ADJUST that L1 intercepts does nothing",
            |kvm| {
                has_adjust(kvm)?;
                intercepted(kvm, ADJUST)
            },
        ),
    ]
}

/// Skips the point if guests have no IA32_TSC_ADJUST.
fn has_adjust(kvm: &Kvm) -> Result<()> {
    let cpuid = vm::cpuid(kvm)?;
    let mut entries = cpuid.as_slice().iter();
    let entry = entries.find(|entry| entry.function == 7 && entry.index == 0);
    if entry.is_some_and(|entry| entry.ebx >> 1 & 1 == 1) {
        return Ok(());
    }
    Err(Skip("KVM offers no IA32_TSC_ADJUST".into()).into())
}

/// Returns what L1's time is when `value` has just been written to an MSR at a time.
fn written(index: u32, value: u64, time: u64, adjusted: u64) -> u64 {
    match index {
        TSC => value,
        _ => time.wrapping_add(value).wrapping_sub(adjusted),
    }
}

fn by_l1(kvm: &Kvm, index: u32) -> Result<()> {
    for offset in [FAR, FAR.wrapping_neg()] {
        let mut scene = Scene::new(kvm, &Wish::new(Code::Rdtsc, offset))?;
        scene.until_l2_calls()?;
        scene.until_exit(Exit::Call)?;
        for value in VALUES {
            let adjusted = get_msr(scene.vcpu(), ADJUST)?;
            let start = written(index, value, scene.time()?, adjusted);
            scene.let_l1_write(index, value);
            scene.until_l2_calls()?;
            scene.until_exit(Exit::Call)?;
            in_order(&[
                ("L1 when it writes", start),
                ("L1 before the entry", scene.noted(BEFORE)),
                ("L2", scene.noted(FIRST).wrapping_sub(offset)),
                (
                    "L2 after its call",
                    scene.noted(SECOND).wrapping_sub(offset),
                ),
                ("L1 after the exit", scene.noted(AFTER)),
                ("user space", scene.time()?),
            ])
            .with_context(|| format!("value {value:#x}, offset of L2 {offset:#x}"))?;
        }
    }
    Ok(())
}

/// L1's offset for L2 has no part in what L2 writes: it is the processor's TSC, as L1 sees it.
fn by_l2(kvm: &Kvm, index: u32) -> Result<()> {
    for offset in [FAR, FAR.wrapping_neg()] {
        let mut scene = Scene::new(kvm, &Wish::new(Code::Wrmsr, offset))?;
        for value in VALUES {
            let adjusted = get_msr(scene.vcpu(), ADJUST)?;
            scene.let_l2_write(index, value);
            scene.until_l2_calls()?;
            let first = scene.noted(FIRST).wrapping_sub(offset);
            let between = scene.time()?;
            in_order(&[("L1 before the entry", scene.noted(BEFORE)), ("L2", first)])
                .and_then(|()| {
                    in_order(&[
                        ("L2 when it writes", written(index, value, first, adjusted)),
                        ("L2 then", scene.noted(SECOND).wrapping_sub(offset)),
                        ("user space", between),
                    ])
                })
                .with_context(|| format!("value {value:#x}, offset of L2 {offset:#x}"))?;
            scene.until_exit(Exit::Call)?;
            in_order(&[
                ("user space", between),
                ("L1 after the exit", scene.noted(AFTER)),
                ("L1 by RDMSR", scene.noted(BY_RDMSR)),
                ("the time after L1", scene.time()?),
            ])?;
            if index == ADJUST {
                expect("IA32_TSC_ADJUST", get_msr(scene.vcpu(), ADJUST)?, value)?;
            }
        }
    }
    Ok(())
}

fn intercepted(kvm: &Kvm, index: u32) -> Result<()> {
    let wish = Wish {
        intercepted: Some(index),
        ..Wish::new(Code::Wrmsr, FAR)
    };
    let mut scene = Scene::new(kvm, &wish)?;
    let adjusted = get_msr(scene.vcpu(), ADJUST)?;
    let start = scene.time()?;
    scene.let_l2_write(index, 9 * FAR);
    scene.until_exit(Exit::WriteMsr)?;
    in_order(&[
        ("the time before L1", start),
        ("L1 before the entry", scene.noted(BEFORE)),
        ("L2", scene.noted(FIRST).wrapping_sub(FAR)),
        ("L1 after the exit", scene.noted(AFTER)),
        ("the time after L1", scene.time()?),
    ])?;
    expect("IA32_TSC_ADJUST", get_msr(scene.vcpu(), ADJUST)?, adjusted)
}
