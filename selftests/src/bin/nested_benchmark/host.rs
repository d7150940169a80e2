// SPDX-License-Identifier: GPL-2.0

//! The host of the guest: what it does at exits, and with the guest's memory.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{channel, Sender};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_mp_state, kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd};
use selftests::guest::code::{DONE, PORT};
use selftests::guest::layout::{IDT, KERNEL_CODE};
use selftests::guest::machine::{self, heard, Interrupts};
use selftests::guest::memory::Mapping;
use selftests::guest::{Level, Machine, Message};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{
    self, COUNT, DIRECTORY, KERNEL_PORT, MESSAGE, MOST, PAGES, REGION, SAMPLES, SERVICE_PORT,
    USER_PORT, VECTOR,
};

/// The slot of [`REGION`].
const SLOT: u32 = 3;

/// Bytes of [`REGION`].
const SIZE: u64 = PAGES * 0x1000;

/// Present, writable, accessed, dirty.
const ENTRY: u64 = 0x63;

/// The entry is a large page.
const LARGE: u64 = 1 << 7;

/// What the host does when the guest asks for its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Nothing: the guest needs none.
    None,
    /// Maps all pages, as far as this host's tables go.
    Map,
    /// Takes the first page away, and gives another one.
    Replace,
    /// Asks which pages are dirty.
    DirtyLog,
}

/// A guest with what it needs.
pub struct Guest {
    machine: Machine,
    region: Mapping,
    service: Service,
    // Its events are counted by the kernel, and read by nobody.
    _device: EventFd,
}

/// The argument of `KVM_PRE_FAULT_MEMORY`.
#[repr(C)]
struct PreFault {
    address: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// `KVM_PRE_FAULT_MEMORY`.
const PRE_FAULT: u64 = 3 << 30 | (size_of::<PreFault>() as u64) << 16 | 0xaed5;

impl Guest {
    /// Creates a machine with one or two processors.
    pub fn new(kvm: &Kvm, processors: u64, service: Service) -> Result<Self> {
        let mut machine = Machine::new(kvm, processors, Interrupts::LocalApic)?;
        // No nested virtualization: SCE, LME, LMA, NXE.
        machine.tables.efer = 0xd01;
        let device = EventFd::new(0)?;
        machine
            .vm
            .register_ioevent(
                &device,
                &IoEventAddress::Pio(KERNEL_PORT.into()),
                NoDatamatch,
            )
            .context("KVM_IOEVENTFD")?;
        let region = Mapping::new(SIZE)?;
        // Each page is a fault of its own, and is there before the guest touches it.
        region.split()?;
        for page in (0..SIZE).step_by(0x1000) {
            region.touch(page);
        }
        let guest = Self {
            machine,
            region,
            service,
            _device: device,
        };
        guest.map_region()?;
        guest.gate(VECTOR, guest::benchmark_interrupt);
        guest.gate(MESSAGE, guest::benchmark_message);
        Ok(guest)
    }

    /// Gives the guest its further memory.
    fn map_region(&self) -> Result<()> {
        let flags = match self.service {
            Service::DirtyLog => KVM_MEM_LOG_DIRTY_PAGES,
            Service::None | Service::Map | Service::Replace => 0,
        };
        let slot = kvm_userspace_memory_region {
            slot: SLOT,
            flags,
            guest_phys_addr: REGION,
            memory_size: SIZE,
            userspace_addr: self.region.address(),
        };
        // SAFETY: The mapping lives as long as the machine.
        unsafe { self.machine.vm.set_user_memory_region(slot) }
            .context("KVM_SET_USER_MEMORY_REGION")?;
        let memory = &self.machine.memory;
        let pointers = memory.read::<u64>(self.machine.tables.root) & !0xfff;
        memory.write(pointers + 8 * (REGION >> 30), DIRECTORY | ENTRY);
        for (index, address) in (REGION..REGION + SIZE).step_by(0x20_0000).enumerate() {
            memory.write(DIRECTORY + 8 * index as u64, address | LARGE | ENTRY);
        }
        Ok(())
    }

    /// Sets the handler of an interrupt, which has a stack of its own.
    fn gate(&self, vector: u8, handler: unsafe extern "C" fn()) {
        let handler = handler as *const () as u64;
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | 0x8e01 << 32
            | (handler >> 16 & 0xffff) << 48;
        let gate = IDT + 16 * u64::from(vector);
        self.machine.memory.write(gate, low);
        self.machine.memory.write(gate + 8, handler >> 32);
    }

    /// Runs a program on the first processor, and that of [`guest::answer`] on the second one if
    /// there is one; returns the samples.
    pub fn run(&mut self, program: extern "C" fn() -> !, count: u64) -> Result<Vec<u64>> {
        ensure!(count <= MOST, "no room for {count} samples");
        self.machine.memory.write(COUNT, count);
        self.machine.start(0, program)?;
        let mut vcpus = std::mem::take(&mut self.machine.vcpus).into_iter();
        let mut first = vcpus.next().context("a machine without a processor")?;
        thread::scope(|scope| -> Result<()> {
            let mut others = Vec::new();
            for (index, mut vcpu) in (1..).zip(vcpus) {
                let Machine { vendor, tables, .. } = &self.machine;
                machine::start(&vcpu, index, *vendor, tables, guest::answer)?;
                vcpu.set_mp_state(kvm_mp_state::default())
                    .context("KVM_SET_MP_STATE")?;
                let (ready, wait) = channel();
                let guest = &*self;
                others.push(scope.spawn(move || guest.serve(&mut vcpu, Some(&ready))));
                // Until its APIC is enabled, messages to it would be lost.
                let _ = wait.recv();
            }
            self.serve(&mut first, None)?;
            for other in others {
                other
                    .join()
                    .unwrap_or_else(|_| bail!("the thread of a processor panicked"))?;
            }
            Ok(())
        })?;
        let samples = (0..count).map(|number| self.machine.memory.read(SAMPLES + 8 * number));
        Ok(samples.collect())
    }

    /// Runs a processor until its program is done; `ready` hears of it when it asks for a service.
    fn serve(&self, vcpu: &mut VcpuFd, ready: Option<&Sender<()>>) -> Result<()> {
        loop {
            match vcpu.run().context("KVM_RUN")? {
                VcpuExit::IoOut(USER_PORT, _) => (),
                VcpuExit::IoOut(SERVICE_PORT, _) => match ready {
                    Some(ready) => ready.send(())?,
                    None => self.help(vcpu)?,
                },
                VcpuExit::IoOut(port, _) if [PORT, PORT + 1].contains(&port) => {
                    let regs = vcpu.get_regs().context("KVM_GET_REGS")?;
                    let message = Message {
                        level: Level::L1,
                        kind: regs.rdi,
                        first: regs.rsi,
                        second: regs.rdx,
                    };
                    if heard(message)?.kind == DONE {
                        return Ok(());
                    }
                }
                other => bail!("the guest stopped: {other:?}"),
            }
        }
    }

    /// Does what belongs to the operation.
    fn help(&self, vcpu: &VcpuFd) -> Result<()> {
        match self.service {
            Service::None => Ok(()),
            Service::Map => pre_fault(vcpu),
            Service::Replace => {
                self.region.discard(0)?;
                self.region.touch(0);
                Ok(())
            }
            Service::DirtyLog => {
                let vm = &self.machine.vm;
                let log = vm.get_dirty_log(SLOT, usize::try_from(SIZE)?);
                let log = log.context("KVM_GET_DIRTY_LOG")?;
                let dirty: u32 = log.iter().map(|word| word.count_ones()).sum();
                ensure!(
                    u64::from(dirty) == PAGES,
                    "{dirty} pages are dirty of {PAGES}"
                );
                Ok(())
            }
        }
    }
}

/// Maps all pages of [`REGION`] for the guest, as if it had touched them.
fn pre_fault(vcpu: &VcpuFd) -> Result<()> {
    let mut range = PreFault {
        address: REGION,
        size: SIZE,
        flags: 0,
        padding: [0; 5],
    };
    while range.size > 0 {
        // SAFETY: The request reads and writes the structure only.
        let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), PRE_FAULT, &raw mut range) };
        let error = std::io::Error::last_os_error();
        ensure!(
            result == 0 || error.raw_os_error() == Some(libc::EINTR),
            "KVM_PRE_FAULT_MEMORY: {error}"
        );
    }
    Ok(())
}
