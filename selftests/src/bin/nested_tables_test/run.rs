// SPDX-License-Identifier: GPL-2.0

//! Running the processors, each in a thread of its own, while the host disturbs them.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use kvm_ioctls::VcpuFd;
use selftests::guest::machine::{heard, run, Stop};
use selftests::guest::signal::Thread;
use selftests::guest::Random;
use selftests::tap;

use crate::host::Host;
use crate::slice::{Batch, Slice};
use crate::world::World;
use selftests::guest::paging::program;

/// What a processor does with a slice.
pub type Work = fn(&mut Slice, &mut Batch, &mut Random);

/// A test.
#[derive(Clone, Copy)]
pub struct Plan {
    /// How often each processor takes a slice.
    pub batches: u64,
    /// Where the random numbers begin.
    pub seed: u64,
    /// What it does with it.
    pub work: Work,
    /// What the host does meanwhile.
    pub host: fn(&mut Host<'_>, &mut Random) -> Result<()>,
}

impl World {
    /// Executes what a processor is to do, and checks it.
    pub fn execute(
        &self,
        vcpu: &mut VcpuFd,
        processor: usize,
        slice: &mut Slice,
        batch: &Batch,
    ) -> Result<()> {
        program::write(&self.memory, processor, &batch.operations);
        let log = self.log.lock().unwrap();
        let before = (log.active, log.epoch);
        drop(log);
        loop {
            while self.closing.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let gate = self.gate.read().unwrap();
            let stop = run(vcpu);
            drop(gate);
            match stop {
                Stop::Interrupted => (),
                Stop::Said(message) => {
                    heard(message)?;
                    break;
                }
                other => bail!("processor {processor} stopped: {other:?}"),
            }
        }
        let mut log = self.log.lock().unwrap();
        if log.active.is_some() && log.active == before.0 {
            log.due.extend(batch.written().map(|page| (page, before.1)));
        }
        drop(log);
        slice.check(self, batch, |number| {
            program::stopped(&self.memory, processor, number)
        })
    }

    /// Lets a processor work on slices.
    fn work(&self, vcpu: &mut VcpuFd, processor: usize, plan: Plan) -> Result<()> {
        let mut random = Random::new(plan.seed ^ (processor as u64 + 1) << 32);
        for number in 0..plan.batches {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            // There are more slices than processors.
            let mut slice = loop {
                let index = random.below(self.slices.len() as u64);
                if let Ok(slice) = self.slices[usize::try_from(index)?].try_lock() {
                    break slice;
                }
            };
            slice.use_by(processor);
            let mut batch = Batch::default();
            (plan.work)(&mut slice, &mut batch, &mut random);
            self.execute(vcpu, processor, &mut slice, &batch)
                .with_context(|| {
                    format!("seed {}, processor {processor}, round {number}", plan.seed)
                })?;
        }
        Ok(())
    }

    /// Carries out a test.
    pub fn carry_out(&self, vcpus: &mut [VcpuFd], plan: Plan) -> Result<()> {
        let mut host = Host::new(self);
        let mut random = Random::new(plan.seed ^ 0x1057);
        let result = thread::scope(|scope| -> Result<()> {
            let (sender, receiver) = mpsc::channel();
            let mut threads = Vec::new();
            for (processor, vcpu) in vcpus.iter_mut().enumerate() {
                let sender = sender.clone();
                threads.push(scope.spawn(move || {
                    let _ = sender.send(Thread::this());
                    let result = self.work(vcpu, processor, plan);
                    if result.is_err() {
                        self.stop.store(true, Ordering::SeqCst);
                    }
                    result
                }));
            }
            for _ in &threads {
                host.threads.push(receiver.recv()?);
            }
            let mut disturbed = Ok(());
            while threads.iter().any(|thread| !thread.is_finished()) {
                thread::sleep(Duration::from_micros(2000 + random.below(20_000)));
                if disturbed.is_ok() {
                    disturbed = (plan.host)(&mut host, &mut random);
                }
                if disturbed.is_err() {
                    self.stop.store(true, Ordering::SeqCst);
                }
            }
            for thread in threads {
                thread.join().map_err(|_| anyhow!("a thread panicked"))??;
            }
            disturbed
        });
        host.end()?;
        result?;
        self.read_log()?;
        for slice in &self.slices {
            slice.lock().unwrap().check_all(self)?;
        }
        tap::note(format_args!("{:?}", self.counts));
        tap::note(format_args!("the host: {}", host.story()));
        Ok(())
    }
}
