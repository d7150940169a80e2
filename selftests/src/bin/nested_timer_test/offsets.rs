// SPDX-License-Identifier: GPL-2.0

//! The offset of L2's TSC, on top of that which user space gives L1.

use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_device_attr, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET};
use kvm_ioctls::{Kvm, VcpuFd};
use selftests::tap::Point;

use crate::world::{
    in_order, Code, Exit, Scene, Wish, AFTER, BEFORE, BY_RDMSR, FAR, FIRST, SECOND,
};

/// Offsets that L1 gives L2: positive ones, and negative ones.
const OFFSETS: [u64; 4] = [FAR, 3 * FAR + 12345, FAR.wrapping_neg(), 1 << 63];

/// The tests.
pub fn points() -> Vec<Point<Kvm>> {
    vec![
        Point::new("RDTSC of L2 has the offset of L1", |kvm| {
            read(kvm, Code::Rdtsc)
        }),
        Point::new("RDMSR of L2 has the offset of L1", |kvm| {
            read(kvm, Code::Rdmsr)
        }),
        Point::new(
            "an offset that L1 changes counts from the next entry",
            changed,
        ),
        Point::new("an offset that L1 has itself counts for L2, too", |kvm| {
            stacked(kvm, When::Before)
        }),
        Point::new(
            "user space writes IA32_TSC of L1 while L2 is active",
            |kvm| stacked(kvm, When::Written),
        ),
        Point::new(
            "user space writes the offset of L1 while L2 is active",
            |kvm| stacked(kvm, When::Moved),
        ),
        Point::new("L2 has both offsets in a new machine", |kvm| {
            stacked(kvm, When::NewMachine)
        }),
        Point::new(
            "user space writes IA32_TSC of L1 when it has restored L2",
            |kvm| stacked(kvm, When::NewMachineWritten),
        ),
    ]
}

/// The tests of VMX.
pub fn points_of_vmx() -> Vec<Point<Kvm>> {
    vec![Point::new(
        "without its control the offset does not count",
        |kvm| {
            for code in [Code::Rdtsc, Code::Rdmsr] {
                let mut scene = Scene::new(
                    kvm,
                    &Wish {
                        vmcs: |_| (),
                        ..Wish::new(code, FAR)
                    },
                )?;
                round(&mut scene, 0)?;
                // L0 has an offset of its own to change.
                let now = scene.time()?;
                scene.until_l2_calls()?;
                scene.set_time(now.wrapping_add(5 * FAR))?;
                finish(&mut scene, 0)?;
            }
            Ok(())
        },
    )]
}

/// Lets L2 run from an entry to its call of L1, with an offset.
fn round(scene: &mut Scene, offset: u64) -> Result<()> {
    let start = scene.time()?;
    scene.until_l2_calls()?;
    let between = scene.time()?;
    in_order(&[
        ("the time before L1", start),
        ("L1 before the entry", scene.noted(BEFORE)),
        ("L2", scene.noted(FIRST).wrapping_sub(offset)),
        ("user space", between),
    ])?;
    finish(scene, offset)
}

/// Lets L2, which has called user space, go on to its call of L1.
fn finish(scene: &mut Scene, offset: u64) -> Result<()> {
    let start = scene.time()?;
    scene.until_exit(Exit::Call)?;
    in_order(&[
        ("user space", start),
        (
            "L2 after its call",
            scene.noted(SECOND).wrapping_sub(offset),
        ),
        ("L1 after the exit", scene.noted(AFTER)),
        ("L1 by RDMSR", scene.noted(BY_RDMSR)),
        ("the time after L1", scene.time()?),
    ])
}

fn read(kvm: &Kvm, code: Code) -> Result<()> {
    for offset in OFFSETS {
        let mut scene = Scene::new(kvm, &Wish::new(code, offset))?;
        for entry in 0..2 {
            round(&mut scene, offset)
                .with_context(|| format!("offset {offset:#x}, entry {entry}"))?;
        }
    }
    Ok(())
}

fn changed(kvm: &Kvm) -> Result<()> {
    let mut scene = Scene::new(kvm, &Wish::new(Code::Rdtsc, FAR))?;
    round(&mut scene, FAR)?;
    for offset in [2 * FAR, FAR.wrapping_neg(), 0] {
        scene.let_l1_offset(offset);
        round(&mut scene, offset).with_context(|| format!("offset {offset:#x}"))?;
    }
    Ok(())
}

/// When L1 gets another time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before L2 has run.
    Before,
    /// While L2 is active, by its MSR.
    Written,
    /// While L2 is active, by its offset.
    Moved,
    /// With a new machine while L2 is active.
    NewMachine,
    /// After that.
    NewMachineWritten,
}

fn stacked(kvm: &Kvm, when: When) -> Result<()> {
    for (step, offset) in [
        (8 * FAR, FAR),
        (8 * FAR, FAR.wrapping_neg()),
        (FAR, 7 * FAR),
    ] {
        one_stacked(kvm, when, step, offset)
            .with_context(|| format!("step of L1 {step:#x}, offset of L2 {offset:#x}"))?;
    }
    Ok(())
}

fn one_stacked(kvm: &Kvm, when: When, step: u64, offset: u64) -> Result<()> {
    let mut scene = Scene::new(kvm, &Wish::new(Code::Rdtsc, offset))?;
    if when == When::Before {
        let wanted = scene.time()?.wrapping_add(step);
        scene.set_time(wanted)?;
        in_order(&[("as written", wanted), ("as read", scene.time()?)])?;
        return (0..2).try_for_each(|_| round(&mut scene, offset));
    }
    // What is done while L2 is active must last for L1, and for the next entry.
    for _ in 0..2 {
        scene.until_l2_calls()?;
        let mut time = scene.time()?;
        if matches!(when, When::NewMachine | When::NewMachineWritten) {
            time = scene.move_in_l2(kvm)?;
        }
        let wanted = time.wrapping_add(step);
        match when {
            When::Moved => {
                let own = l1_offset(scene.vcpu())?;
                set_l1_offset(scene.vcpu(), own.wrapping_add(step))?;
                in_order(&[("as wanted", wanted), ("as read", scene.time()?)])?;
            }
            When::Written | When::NewMachineWritten => {
                scene.set_time(wanted)?;
                in_order(&[("as written", wanted), ("as read", scene.time()?)])?;
            }
            When::NewMachine | When::Before => {
                in_order(&[("as saved", time), ("as restored", scene.time()?)])?;
            }
        }
        finish(&mut scene, offset)?;
    }
    round(&mut scene, offset)
}

/// Returns what L1's TSC is ahead of L0's.
fn l1_offset(vcpu: &VcpuFd) -> Result<u64> {
    const KVM_GET_DEVICE_ATTR: u64 = REQUEST | 0xe2;

    let mut offset = 0u64;
    let attribute = attribute(&raw mut offset);
    // SAFETY: The request writes a word of 64 bits where the attribute says.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &raw const attribute) };
    ensure!(result == 0, "KVM_GET_DEVICE_ATTR fails");
    Ok(offset)
}

/// Sets what L1's TSC is ahead of L0's.
fn set_l1_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<()> {
    const KVM_SET_DEVICE_ATTR: u64 = REQUEST | 0xe1;

    let attribute = attribute(&raw mut offset);
    // SAFETY: The request reads a word of 64 bits where the attribute says.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) };
    ensure!(result == 0, "KVM_SET_DEVICE_ATTR fails");
    Ok(())
}

/// The part that requests for attributes have in common.
const REQUEST: u64 = 1 << 30 | (size_of::<kvm_device_attr>() as u64) << 16 | 0xae00;

fn attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset as u64,
        flags: 0,
    }
}
