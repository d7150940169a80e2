// SPDX-License-Identifier: GPL-2.0

//! A small virtual machine: one vCPU in real mode that counts.

use std::ptr::null_mut;

use anyhow::{bail, Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, CpuId};
use kvm_ioctls::{Error, Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{mmap_anonymous, munmap, MapFlags, ProtFlags};

use crate::expect;

/// Bytes of the guest's memory.
const SIZE: usize = 0x4000;

/// Where the code is.
const CODE: u16 = 0x1000;

/// Where the counter is.
const COUNTER: u16 = 0x2000;

/// The port to which the counter goes.
const PORT: u16 = 0x10;

/// The guest: increments the counter, shows it, halts, and starts again.
const PROGRAM: [u8; 12] = [
    0xff,
    0x06,
    COUNTER as u8,
    (COUNTER >> 8) as u8, // inc word [COUNTER]
    0xa1,
    COUNTER as u8,
    (COUNTER >> 8) as u8, // mov ax, [COUNTER]
    0xe7,
    PORT as u8, // out PORT, ax
    0xf4,       // hlt
    0xeb,
    0xf4, // jmp to the start
];

/// Anonymous memory of this process, for a guest.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: A new mapping where the kernel finds room touches no memory of this program.
        let base = unsafe { mmap_anonymous(null_mut(), SIZE, protection, MapFlags::SHARED) }?;
        Ok(Self(base.cast()))
    }

    /// Writes what a guest that has not run yet finds at `address`.
    fn write(&mut self, address: u16, bytes: &[u8]) {
        let start = usize::from(address);
        assert!(start + bytes.len() <= SIZE);
        // SAFETY: The range is in the mapping, which `bytes` is no part of: nobody has a reference
        // into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(start), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and the machine that used it is gone.
        let _ = unsafe { munmap(self.0.cast(), SIZE) };
    }
}

/// A virtual machine with a vCPU.
pub struct Vm {
    // Closed in this order; KVM destroys the machine when both are closed.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Memory,
    count: u16,
}

impl Vm {
    /// Creates a machine whose vCPU has all that KVM offers.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        Self::with(vm, &cpuid(kvm)?)
    }

    /// Gives a machine that was just created its memory and its vCPU.
    pub fn with(vm: VmFd, cpuid: &CpuId) -> Result<Self> {
        let mut memory = Memory::new()?;
        memory.write(CODE, &PROGRAM);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: SIZE as u64,
            userspace_addr: memory.0 as u64,
        };
        // SAFETY: The memory is a mapping of its own, kept until the machine is closed.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
        regs.rip = u64::from(CODE);
        vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
            count: 0,
        })
    }

    /// Lets the guest count on by one; what it has counted so far must still be there.
    pub fn work(&mut self) -> Result<()> {
        self.count = self.count.wrapping_add(1);
        match self.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(PORT, bytes) => {
                expect("the guest's counter", bytes, &self.count.to_le_bytes())?;
            }
            other => bail!("the guest stopped: expected a write to port {PORT:#x}, saw {other:?}"),
        }
        match self.vcpu.run().context("KVM_RUN")? {
            VcpuExit::Hlt => Ok(()),
            other => bail!("the guest stopped: expected HLT, saw {other:?}"),
        }
    }

    /// Returns whether the machine can use nested virtualization: KVM has a nested state for it.
    pub fn can_nest(&self) -> Result<bool> {
        let mut state = kvm_ioctls::KvmNestedStateBuffer::empty();
        match self.vcpu.nested_state(&mut state) {
            Ok(_) => Ok(true),
            Err(error) if error == Error::new(rustix::io::Errno::INVAL.raw_os_error()) => Ok(false),
            Err(error) => Err(error).context("KVM_GET_NESTED_STATE"),
        }
    }
}

/// Opens `/dev/kvm`.
pub fn open() -> Result<Kvm> {
    Kvm::new().context("opening /dev/kvm")
}

/// Returns the CPUID that KVM offers to guests.
pub fn cpuid(kvm: &Kvm) -> Result<CpuId> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")
}
