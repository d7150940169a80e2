// SPDX-License-Identifier: GPL-2.0

//! Machines that run L1.

use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{
    kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region, CpuId,
    KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_READONLY,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::code::{DONE, EXCEPTION, PORT, SAYS, WRONG};
use super::driver;
use super::layout::{
    GDT, HOST_SAVE, IDT, IMAGE, KERNEL_CODE, KERNEL_DATA, MANAGEMENT, RAM, STACK, STACKS,
    STACKS_STEP, TASK, TSS, TSS_STEP, VMCB, VMCB_SLOT, VMRUN_ADDRESS,
};
use super::memory::{GuestMemory, Mapping};
use super::signal;
use super::tables::{self, Image, Tables};
use super::Vendor;
use crate::vm;

/// The slot of vmcb12's memory.
pub const SLOT_VMCB: u32 = 1;

/// The bit of EFER without which there is no SVM.
const SVME: u64 = 1 << 12;

/// The MSR with the address of the host-save area.
pub const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;

/// The MSR that allows VMXON.
pub const MSR_FEATURE_CONTROL: u32 = 0x3a;

/// RFLAGS.IF.
pub const RFLAGS_IF: u64 = 1 << 9;

/// The MSR with the base of the memory of system-management mode.
const MSR_SMBASE: u32 = 0x9e;

/// What a processor in system-management mode executes is so far behind that base.
const HANDLER: u64 = 0x8000;

/// A slot of the address space of system-management mode.
const SLOT_MANAGEMENT: u32 = 1 << 16;

/// Locked, VMXON outside of SMX.
pub const VMXON_ALLOWED: u64 = 5;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The guest.
    L1,
    /// The guest's guest.
    L2,
    /// The guest of that one.
    L3,
}

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub level: Level,
    /// The kind, see [`super::code`].
    pub kind: u64,
    /// A number.
    pub first: u64,
    /// Another one.
    pub second: u64,
}

/// Why KVM_RUN returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A guest reports.
    Said(Message),
    /// A signal came.
    Interrupted,
    /// A guest writes to another port.
    Out(u16, Vec<u8>),
    /// A guest reads from a port.
    In(u16, usize),
    /// HLT.
    Halt,
    /// A triple fault.
    Shutdown,
    /// KVM gives up.
    InternalError,
    /// Something else.
    Other(String),
    /// KVM_RUN fails.
    Failed(i32),
}

/// Runs a vCPU until it stops.
pub fn run(vcpu: &mut VcpuFd) -> Stop {
    signal::bind(vcpu);
    let stop = match vcpu.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => Stop::Out(port, bytes.to_vec()),
        Ok(VcpuExit::IoIn(port, bytes)) => {
            bytes.fill(0x5a);
            Stop::In(port, bytes.len())
        }
        Ok(VcpuExit::Hlt) => Stop::Halt,
        Ok(VcpuExit::Shutdown) => Stop::Shutdown,
        Ok(VcpuExit::InternalError) => Stop::InternalError,
        Ok(VcpuExit::Intr) => Stop::Interrupted,
        Ok(other) => Stop::Other(format!("{other:?}")),
        Err(error) if error.errno() == libc::EINTR => Stop::Interrupted,
        Err(error) => Stop::Failed(error.errno()),
    };
    signal::unbind();
    if stop == Stop::Interrupted {
        vcpu.set_kvm_immediate_exit(0);
    }
    let level = match stop {
        Stop::Out(PORT, _) => Level::L1,
        Stop::Out(port, _) if port == PORT + 1 => Level::L2,
        Stop::Out(port, _) if port == PORT + 2 => Level::L3,
        _ => return stop,
    };
    match vcpu.get_regs() {
        Ok(regs) => Stop::Said(Message {
            level,
            kind: regs.rdi,
            first: regs.rsi,
            second: regs.rdx,
        }),
        Err(error) => Stop::Failed(error.errno()),
    }
}

/// Whether a machine has interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// HLT goes to user space.
    None,
    /// There are local APICs.
    LocalApic,
}

/// A machine of which L1 is a function of this program.
pub struct Machine {
    // Closed before the machine.
    /// The processors.
    pub vcpus: Vec<VcpuFd>,
    /// The machine.
    pub vm: VmFd,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// What the control registers are to contain.
    pub tables: Tables,
    /// The extension that L1 uses.
    pub vendor: Vendor,
    /// Whether processors in system-management mode have memory.
    managed: bool,
}

impl Machine {
    /// Creates a machine with memory of its own.
    pub fn new(kvm: &Kvm, vcpus: u64, interrupts: Interrupts) -> Result<Self> {
        let memory = Arc::new(GuestMemory::new()?);
        let vendor = offered(kvm)?;
        let tables = tables::write(&memory, &Image::of_this_program(), vcpus, vendor)?;
        memory.write(VMRUN_ADDRESS, VMCB);
        Self::on(kvm, memory, tables, vcpus, interrupts)
    }

    /// Creates a machine with memory of its own whose processors are what CPUID says.
    pub fn like(kvm: &Kvm, cpuid: &CpuId, interrupts: Interrupts) -> Result<Self> {
        let memory = Arc::new(GuestMemory::new()?);
        let vendor = offered(kvm)?;
        let tables = tables::write(&memory, &Image::of_this_program(), 1, vendor)?;
        Self::with_cpuid(kvm, cpuid, memory, tables, 1, interrupts)
    }

    /// Creates a machine on the memory of another one.
    pub fn on(
        kvm: &Kvm,
        memory: Arc<GuestMemory>,
        tables: Tables,
        vcpus: u64,
        interrupts: Interrupts,
    ) -> Result<Self> {
        Self::with_cpuid(kvm, &vm::cpuid(kvm)?, memory, tables, vcpus, interrupts)
    }

    fn with_cpuid(
        kvm: &Kvm,
        cpuid: &CpuId,
        memory: Arc<GuestMemory>,
        mut tables: Tables,
        vcpus: u64,
        interrupts: Interrupts,
    ) -> Result<Self> {
        let vendor = extension(cpuid).context("KVM offers no nested virtualization to guests")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        if interrupts == Interrupts::LocalApic {
            let mut split = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            split.args[0] = 24;
            vm.enable_cap(&split).context("KVM_CAP_SPLIT_IRQCHIP")?;
        }
        let image = Image::of_this_program();
        set_slot(&vm, 0, 0, &memory.ram, RAM)?;
        set_slot(&vm, SLOT_VMCB, VMCB, &memory.vmcb, VMCB_SLOT)?;
        let region = kvm_userspace_memory_region {
            slot: 2,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: IMAGE,
            memory_size: image.size,
            userspace_addr: image.start,
        };
        // SAFETY: The image lives as long as the program.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        if xcr0(cpuid) != 0 {
            tables.cr4 |= 1 << 18;
        }
        let mut machine = Self {
            vcpus: Vec::new(),
            vm,
            memory,
            tables,
            vendor,
            managed: false,
        };
        for index in 0..vcpus {
            let vcpu = machine.vm.create_vcpu(index).context("KVM_CREATE_VCPU")?;
            vcpu.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
            if xcr0(cpuid) != 0 {
                let mut xcrs = vcpu.get_xcrs().context("KVM_GET_XCRS")?;
                xcrs.nr_xcrs = 1;
                xcrs.xcrs[0].value = xcr0(cpuid);
                vcpu.set_xcrs(&xcrs).context("KVM_SET_XCRS")?;
            }
            machine.vcpus.push(vcpu);
        }
        Ok(machine)
    }

    /// Gives processors in system-management mode the memory at address 0, and what they execute.
    pub fn manage(&mut self, handler: &[u8]) -> Result<()> {
        set_slot(&self.vm, SLOT_MANAGEMENT, 0, &self.memory.ram, RAM)?;
        for (address, byte) in (MANAGEMENT + HANDLER..).zip(handler) {
            self.memory.write(address, *byte);
        }
        self.managed = true;
        self.vcpus
            .iter()
            .try_for_each(|vcpu| set_msr(vcpu, MSR_SMBASE, MANAGEMENT))
    }

    /// Creates a machine like this one, on its memory, in which nothing has run yet.
    pub fn again(&self, kvm: &Kvm, interrupts: Interrupts) -> Result<Self> {
        let vcpus = self.vcpus.len().try_into()?;
        let mut next = Self::on(kvm, self.memory.clone(), self.tables, vcpus, interrupts)?;
        if self.managed {
            next.manage(&[])?;
        }
        Ok(next)
    }

    /// Makes a vCPU begin with L1.
    pub fn start(&self, vcpu: usize, l1: extern "C" fn() -> !) -> Result<()> {
        let index = u64::try_from(vcpu)?;
        start(&self.vcpus[vcpu], index, self.vendor, &self.tables, l1)
    }

    /// Runs the first vCPU until a guest says something that is no failure.
    pub fn hear(&mut self) -> Result<Message> {
        match run(&mut self.vcpus[0]) {
            Stop::Said(message) => heard(message),
            other => bail!("the guest stopped: expected a report, saw {other:?}"),
        }
    }

    /// Lets the driver execute VMRUN once; the prepared state is that of its vmcb12.
    ///
    /// It must be about to report that it is ready, as it is at first and after this.
    pub fn vmrun(&mut self) -> Result<()> {
        self.ready()?;
        self.exited()
    }

    /// Waits until the driver is about to execute VMRUN.
    pub fn ready(&mut self) -> Result<()> {
        let message = self.hear()?;
        ensure!(
            (message.kind, message.first) == (SAYS, driver::READY),
            "expected L1 to be ready, saw {message:?}"
        );
        Ok(())
    }

    /// Takes away the memory of vmcb12.
    pub fn remove_vmcb(&self) -> Result<()> {
        set_slot(&self.vm, SLOT_VMCB, VMCB, &self.memory.vmcb, 0)
    }

    /// Takes the memory at address 0 away and gives it again: KVM forgets the page tables there.
    ///
    /// KVM need not notice that user space writes to them.
    pub fn forget_translations(&self) -> Result<()> {
        [0, RAM]
            .into_iter()
            .try_for_each(|size| set_slot(&self.vm, 0, 0, &self.memory.ram, size))
    }

    /// Waits until L2 has exited.
    pub fn exited(&mut self) -> Result<()> {
        let message = self.hear()?;
        ensure!(
            (message.kind, message.first) == (SAYS, driver::EXITED),
            "expected an exit of L2, saw {message:?}"
        );
        Ok(())
    }
}

/// Gives a machine a memory slot, or takes it away with a size of 0.
///
/// The mapping is one of the machine's memory.
fn set_slot(vm: &VmFd, slot: u32, address: u64, from: &Mapping, size: u64) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: address,
        memory_size: size,
        userspace_addr: from.address(),
    };
    // SAFETY: The mapping lives as long as the machine.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
}

/// Makes the vCPU with a number begin with L1.
pub fn start(
    vcpu: &VcpuFd,
    index: u64,
    vendor: Vendor,
    tables: &Tables,
    l1: extern "C" fn() -> !,
) -> Result<()> {
    if vendor == Vendor::Vmx {
        set_msr(vcpu, MSR_FEATURE_CONTROL, VMXON_ALLOWED)?;
    }
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: KERNEL_DATA,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: KERNEL_CODE,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS + index * TSS_STEP,
        limit: 0x67,
        selector: TASK,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0xfff);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    sregs.cr0 = tables.cr0;
    sregs.cr3 = tables.root;
    sregs.cr4 = tables.cr4;
    sregs.efer = tables.efer;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: l1 as *const () as u64,
        rsp: STACKS + index * STACKS_STEP + STACK - 8,
        rflags: match vendor {
            Vendor::Svm => 2,
            // Bochs does not interrupt guests with VMX that have switched interrupts off.
            Vendor::Vmx => 2 | RFLAGS_IF,
        },
        ..Default::default()
    };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    // Where L1 is not allowed to be a hypervisor, there is no such MSR.
    if vendor == Vendor::Svm && tables.efer & SVME != 0 {
        set_msr(vcpu, MSR_VM_HSAVE_PA, HOST_SAVE + 0x1000 * index)?;
    }
    Ok(())
}

/// Fails if what a guest says is that something is wrong.
pub fn heard(message: Message) -> Result<Message> {
    let Message {
        level,
        kind,
        first,
        second,
    } = message;
    match kind {
        DONE | SAYS => Ok(message),
        WRONG => bail!("{level:?} found something wrong: {first:#x}, {second:#x}"),
        EXCEPTION => bail!(
            "{level:?} had an unexpected exception {first} at {}",
            place(second)
        ),
        _ => bail!("{level:?} says {kind:#x}: {first:#x}, {second:#x}"),
    }
}

/// Returns an address, relative to the program if it is in it.
fn place(address: u64) -> String {
    let image = Image::of_this_program();
    match address.checked_sub(image.start) {
        Some(offset) if offset < image.size => format!("the program + {offset:#x}"),
        _ => format!("{address:#x}"),
    }
}

/// Reads an MSR.
pub fn get_msr(vcpu: &VcpuFd, index: u32) -> Result<u64> {
    let entry = kvm_bindings::kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut msrs = kvm_bindings::Msrs::from_entries(&[entry])?;
    let read = vcpu.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
    ensure!(read == 1, "KVM_GET_MSRS refuses {index:#x}");
    Ok(msrs.as_slice()[0].data)
}

/// Writes an MSR.
pub fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<()> {
    let entry = kvm_bindings::kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = kvm_bindings::Msrs::from_entries(&[entry])?;
    let written = vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")?;
    ensure!(written == 1, "KVM_SET_MSRS refuses {index:#x}");
    Ok(())
}

/// Returns the components of state to enable: those up to AVX, 0 if there is no XSAVE.
fn xcr0(cpuid: &CpuId) -> u64 {
    let find = |function| {
        let mut entries = cpuid.as_slice().iter();
        entries.find(|entry| entry.function == function && entry.index == 0)
    };
    let has = find(1).is_some_and(|entry| entry.ecx >> 26 & 1 == 1);
    let components = find(0xd).map_or(0, |entry| u64::from(entry.eax) & 7);
    if has {
        components
    } else {
        0
    }
}

/// Returns the extension that KVM offers to guests.
pub fn offered(kvm: &Kvm) -> Result<Vendor> {
    extension(&vm::cpuid(kvm)?).context("KVM offers no nested virtualization to guests")
}

/// Returns the extension that a processor has.
fn extension(cpuid: &CpuId) -> Option<Vendor> {
    let ecx = |function| {
        let mut entries = cpuid.as_slice().iter();
        let entry = entries.find(|entry| entry.function == function);
        entry.map_or(0, |entry| entry.ecx)
    };
    if ecx(0x8000_0001) >> 2 & 1 == 1 {
        Some(Vendor::Svm)
    } else if ecx(1) >> 5 & 1 == 1 {
        Some(Vendor::Vmx)
    } else {
        None
    }
}

/// Opens `/dev/kvm` and returns the extension that guests can use; fails with the reason to skip.
pub fn open_any() -> Result<(Kvm, Vendor)> {
    let kvm = vm::open()?;
    let offered = offered(&kvm)?;
    Ok((kvm, offered))
}

/// Opens `/dev/kvm` and checks that guests can use an extension; fails with the reason to skip.
pub fn open(vendor: Vendor) -> Result<Kvm> {
    let (kvm, offered) = open_any()?;
    ensure!(
        offered == vendor,
        "KVM offers {offered:?} to guests, and not {vendor:?}"
    );
    Ok(kvm)
}
