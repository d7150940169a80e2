// SPDX-License-Identifier: GPL-2.0

//! VMs that are created while the module comes and goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;
use selftests::module;
use selftests::tap::{note, Point};
use selftests::vm::{self, Vm};

use crate::host::{counted_vms, pin, Host};

/// VMs that are created at least.
const VMS: u32 = 100;

/// VMs after which the test gives up waiting for one of each implementation.
const MOST_VMS: u32 = 1000;

/// What happened to insmod and rmmod.
#[derive(Debug, Default)]
struct Changes {
    attached: u32,
    attach_refused: u32,
    detached: u32,
    detach_refused: u32,
}

/// What happened to VMs.
#[derive(Debug, Default)]
struct Vms {
    with_ours: u32,
    with_builtin: u32,
    without: u32,
    refused: u32,
}

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let ours = host.names().ours_file;
    vec![Point::new(
        format!("VMs work that are created while {ours} comes and goes"),
        race,
    )]
}

fn race(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let builtin = host.offer()?;
    let stop = AtomicBool::new(false);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let (changes, vms) = thread::scope(|scope| {
        let other = scope.spawn(|| {
            // The scheduler's choice where there is one CPU only.
            pin(cpus - 1)?;
            come_and_go(host, &stop)
        });
        let vms = create_vms(|| other.is_finished());
        stop.store(true, Ordering::Relaxed);
        let changes = other
            .join()
            .map_err(|_| anyhow::anyhow!("the other thread panicked"))?;
        anyhow::Ok((changes?, vms?))
    })?;
    note(format_args!("{changes:?}, {vms:?}"));
    host.nothing_of(host.vendor)?;
    host.offer()?.same_as(&builtin)?;
    host.vm_runs()?;
    // Otherwise there was no race to see.
    ensure!(
        changes.attached > 0 && vms.with_ours > 0 && vms.with_builtin > 0,
        "expected VMs of both implementations, saw {vms:?}, {changes:?}"
    );
    Ok(())
}

/// Inserts and removes the module in a loop; it is removed at the end.
fn come_and_go(host: &Host, stop: &AtomicBool) -> Result<Changes> {
    let mut changes = Changes::default();
    while !stop.load(Ordering::Relaxed) {
        match host.insert_ours()? {
            Ok(()) => changes.attached += 1,
            Err(Errno::BUSY) => {
                changes.attach_refused += 1;
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(errno) => bail!("insmod: expected 0 or EBUSY, saw {errno:?}"),
        }
        // At once, or late enough for a VM to come.
        thread::sleep(Duration::from_millis(u64::from(changes.attached % 4) * 10));
        loop {
            match module::remove(host.names().ours)? {
                Ok(()) => break,
                Err(Errno::AGAIN) => changes.detach_refused += 1,
                Err(errno) => bail!("rmmod: expected 0 or EAGAIN, saw {errno:?}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
        changes.detached += 1;
    }
    Ok(changes)
}

/// Creates VMs, until each kind was seen; each must work or be refused.
fn create_vms(stopped: impl Fn() -> bool) -> Result<Vms> {
    let kvm = vm::open()?;
    // While the offer changes it is incomplete for a moment; the guests here need none of it.
    let cpuid = vm::cpuid(&kvm)?;
    let mut seen = Vms::default();
    for number in 1..=MOST_VMS {
        if stopped() || number > VMS && seen.with_ours > 0 && seen.with_builtin > 0 {
            break;
        }
        let machine = match kvm.create_vm() {
            Ok(machine) => machine,
            Err(error) => {
                let clean = [Errno::BUSY, Errno::AGAIN, Errno::NODEV];
                let errno = Errno::from_raw_os_error(error.errno());
                ensure!(
                    clean.contains(&errno),
                    "KVM_CREATE_VM: expected 0 or one of {clean:?}, saw {errno:?}"
                );
                seen.refused += 1;
                continue;
            }
        };
        let mut vm = Vm::with(machine, &cpuid).with_context(|| format!("VM {number}"))?;
        vm.work().with_context(|| format!("VM {number}"))?;
        // It is the only one.
        let counted = !counted_vms()?.is_empty();
        match (vm.can_nest()?, counted) {
            (true, true) => seen.with_ours += 1,
            (true, false) => seen.with_builtin += 1,
            (false, false) => seen.without += 1,
            (false, true) => bail!("VM {number} is counted by the module, but cannot nest"),
        }
        vm.work().with_context(|| format!("VM {number}"))?;
        drop(vm);
        // Moments without a VM, in which the module can come.
        thread::sleep(Duration::from_millis(u64::from(number % 8) * 10));
        if number % 25 == 0 {
            note(format_args!("{number} VMs"));
        }
    }
    Ok(seen)
}
