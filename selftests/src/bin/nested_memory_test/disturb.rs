// SPDX-License-Identifier: GPL-2.0

//! What the host and another processor do to vmcb12 or vmcs12 while L2 runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use kvm_ioctls::{VcpuFd, VmFd};
use selftests::guest::layout::{VMCB, VMCB_SLOT};
use selftests::guest::machine::{self, run, Interrupts, Stop, SLOT_VMCB};
use selftests::guest::signal::Thread;
use selftests::guest::state::Nested;
use selftests::guest::tables::Tables;
use selftests::guest::{GuestMemory, Random, Vendor};
use selftests::tap::{self, Point};

use crate::guests::{self, runner_of, writer, Kind, RUNS};
use crate::Fixture;

/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(150);

/// Something that the host does.
type Disturbance = fn(&VmFd, &GuestMemory, &mut Random) -> Result<()>;

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "another processor writes to L2's control structure while it is used",
            |fixture| disturbed(fixture, 2, |_, _, _| Ok(())),
        ),
        Point::new(
            "dirty logging of the control structure's memory comes and goes",
            |fixture| disturbed(fixture, 1, dirty_logging),
        ),
        Point::new(
            "the pages of the control structure's memory move",
            |fixture| disturbed(fixture, 1, moves),
        ),
        Point::new(
            "the host lets nobody write to the control structure's memory, and lets them again",
            |fixture| disturbed(fixture, 1, protects),
        ),
        Point::new(
            "the memory slot of the control structure goes and comes",
            |fixture| disturbed(fixture, 1, slot_goes),
        ),
        // Not the slot: KVM warns when one appears while another processor faults there.
        Point::new(
            "two processors, dirty logging and pages that move",
            |fixture| {
                disturbed(fixture, 2, |vm, memory, random| match random.below(2) {
                    0 => dirty_logging(vm, memory, random),
                    _ => moves(vm, memory, random),
                })
            },
        ),
    ]
}

fn set_slot(vm: &VmFd, memory: &GuestMemory, size: u64, flags: u32) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: SLOT_VMCB,
        flags,
        guest_phys_addr: VMCB,
        memory_size: size,
        userspace_addr: memory.vmcb.address(),
    };
    // SAFETY: The mapping lives as long as the machine.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

fn dirty_logging(vm: &VmFd, memory: &GuestMemory, _: &mut Random) -> Result<()> {
    set_slot(vm, memory, VMCB_SLOT, KVM_MEM_LOG_DIRTY_PAGES)?;
    let size = usize::try_from(VMCB_SLOT)?;
    for _ in 0..3 {
        vm.get_dirty_log(SLOT_VMCB, size)
            .context("KVM_GET_DIRTY_LOG")?;
    }
    set_slot(vm, memory, VMCB_SLOT, 0)
}

fn moves(_: &VmFd, memory: &GuestMemory, random: &mut Random) -> Result<()> {
    match random.below(3) {
        // Its own page: the structure is zeros, until L1 restores it.
        0 => memory.vmcb.discard(0),
        1 => memory.vmcb.discard(0x1000),
        _ => memory.vmcb.replace(),
    }
}

fn protects(_: &VmFd, memory: &GuestMemory, random: &mut Random) -> Result<()> {
    memory.vmcb.protect(false)?;
    thread::sleep(Duration::from_micros(random.below(500)));
    memory.vmcb.protect(true)
}

fn slot_goes(vm: &VmFd, memory: &GuestMemory, random: &mut Random) -> Result<()> {
    set_slot(vm, memory, 0, 0)?;
    thread::sleep(Duration::from_micros(random.below(500)));
    set_slot(vm, memory, VMCB_SLOT, 0)
}

/// How often a processor may be reset in a round.
const RESETS: u64 = 100;

/// Runs a vCPU until it is told to stop, and lets it begin again when L1 cannot go on; returns how
/// often it did that.
fn run_until(
    mut vcpu: VcpuFd,
    index: u64,
    (vendor, tables): (Vendor, &Tables),
    stop: &AtomicBool,
) -> Result<u64> {
    let l1 = if index == 0 {
        runner_of(vendor)
    } else {
        writer
    };
    let mut resets = 0;
    while !stop.load(Ordering::SeqCst) {
        match run(&mut vcpu) {
            // HLT may be L2's.
            Stop::Interrupted | Stop::Halt | Stop::Out(..) | Stop::In(..) => (),
            // An access of L1 to memory that is not there.
            Stop::Other(reason) if reason.starts_with("Mmio") => (),
            // What is not there now may be there again.
            Stop::Failed(_) | Stop::InternalError => thread::sleep(Duration::from_micros(200)),
            _ if resets == RESETS => break,
            _ => {
                let state = Nested::read(&vcpu)?.off();
                vcpu.set_nested_state(&state.0)
                    .context("KVM_SET_NESTED_STATE")?;
                machine::start(&vcpu, index, vendor, tables, l1)?;
                resets += 1;
            }
        }
    }
    Ok(resets)
}

fn disturbed(fixture: &Fixture, vcpus: u64, disturb: Disturbance) -> Result<()> {
    let mut random = Random::new(fixture.seed);
    let (mut runs, mut disturbances, mut resets) = (0, 0, 0);
    for round in 0..fixture.rounds {
        let seeded = Fixture {
            kvm: selftests::vm::open()?,
            seed: fixture.seed + round,
            ..*fixture
        };
        let mut machine = guests::machine(&seeded, Kind::Calling, vcpus, Interrupts::None)?;
        let processors = std::mem::take(&mut machine.vcpus);
        let (vm, memory, tables) = (&machine.vm, &machine.memory, &machine.tables);
        let vendor = machine.vendor;
        let stop = &AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let (sender, receiver) = std::sync::mpsc::channel();
            let mut threads = Vec::new();
            for (index, vcpu) in (0..).zip(processors) {
                let sender = sender.clone();
                threads.push(scope.spawn(move || {
                    let _ = sender.send(Thread::this());
                    run_until(vcpu, index, (vendor, tables), stop)
                }));
            }
            let ids: Vec<Thread> = threads
                .iter()
                .filter_map(|_| receiver.recv().ok())
                .collect();
            let start = Instant::now();
            let mut result = Ok(());
            while start.elapsed() < ROUND && result.is_ok() && !threads[0].is_finished() {
                thread::sleep(Duration::from_micros(random.below(2000)));
                result = disturb(vm, memory, &mut random);
                disturbances += 1;
            }
            stop.store(true, Ordering::SeqCst);
            while threads.iter().any(|thread| !thread.is_finished()) {
                for id in &ids {
                    id.interrupt()?;
                }
                thread::sleep(Duration::from_millis(1));
            }
            for thread in threads {
                let reset = thread.join();
                resets += reset.map_err(|_| anyhow!("a thread panicked"))??;
            }
            result
        })?;
        runs += machine.memory.read::<u64>(RUNS);
    }
    tap::note(format_args!(
        "{} rounds: L2 ran {runs} times, {disturbances} disturbances, {resets} resets of a processor",
        fixture.rounds
    ));
    ensure!(runs > fixture.rounds, "L2 ran {runs} times only");
    Ok(())
}
