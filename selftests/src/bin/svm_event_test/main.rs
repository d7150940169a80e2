// SPDX-License-Identifier: GPL-2.0

//! Events: which of them end L2, which it gets, and which wait for L1.

mod halted;
mod inject;
mod routing;
mod smm;
mod virtual_interrupts;

use std::arch::asm;
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use kvm_bindings::{kvm_msi, kvm_userspace_memory_region};
use selftests::guest::code::{peek, report, run_l2, SAYS};
use selftests::guest::layout::{exception, BUFFER, EXCEPTIONS, RAM, REGISTERS, SHARED, VMCB};
use selftests::guest::machine::{self, heard, run, set_msr, Interrupts, Stop, RFLAGS_IF};
use selftests::guest::state::{self, Saved};
use selftests::guest::tables::gate;
use selftests::guest::vmcb;
use selftests::guest::{signal, GuestMemory, Level, Machine, Vendor};
use selftests::{expect, guest_code, tap};

/// Whether L1 has interrupts on when it executes VMRUN.
const L1_INTERRUPTS: u64 = SHARED;

/// How many interrupts L1 had, and NMIs.
const BY_L1: u64 = SHARED + 0x10;

/// How many interrupts L2 had, and NMIs.
const BY_L2: u64 = SHARED + 0x20;

/// Where L2 was when it had the last one.
const L2_WAS_AT: u64 = SHARED + 0x30;

/// The vector of interrupts.
const VECTOR: u64 = 0x40;

/// The vector of NMIs.
const NMI_VECTOR: u64 = 2;

/// System-management mode writes to this port.
const SMM_PORT: u16 = 0xf3;

/// Where system-management mode has its memory.
const SMBASE: u64 = BUFFER;

/// The memory slots of system-management mode, of which the first is used.
const SMM_SLOTS: u32 = 1 << 16;

/// The MSR with that address, which only user space can write.
const MSR_SMBASE: u32 = 0x9e;

/// Bytes of the handler of SMIs: OUT to [`SMM_PORT`], RSM.
const SMM_HANDLER: u32 = 0xaa0f_f3e6;

/// The second register of a local APIC that matters, for spurious interrupts, and its bit that
/// enables the APIC.
const SPURIOUS: (usize, u8) = (0xf1, 1);

guest_code! {
    /// L1: has an interrupt.
    event_test_l1_interrupt: "inc qword ptr [0x6010]", "iretq";
    /// L1: has an NMI.
    event_test_l1_nmi: "inc qword ptr [0x6018]", "iretq";
    /// L2: has an interrupt.
    event_test_l2_interrupt: "inc qword ptr [0x6020]", "jmp event_test_l2_note";
    /// L2: has an NMI.
    event_test_l2_nmi: "inc qword ptr [0x6028]", "jmp event_test_l2_note";
    /// L2: notes where it was.
    event_test_l2_note: "push rax", "mov rax, [rsp + 8]", "mov [0x6030], rax", "pop rax", "iretq";
    /// L2: calls L0's user space, then L1.
    l2_calls: "out 0xf2, eax", "nop", "nop", "vmmcall", "ud2";
    /// L2: goes on here after an exception of its own.
    event_test_recovery: "vmmcall", "ud2";
}

const _: () = assert!(SHARED == 0x6000 && VECTOR * 16 < 0x1000);

/// Code of L2.
type Code = unsafe extern "C" fn();

/// L1 has cleared the global interrupt flag, and is about to execute VMRUN.
const READY: u64 = 1;

/// L2 has exited; the flag is still clear.
const EXITED: u64 = 2;

/// L1 has set the flag.
const SET: u64 = 3;

/// L1: runs L2, and reports on its way.
extern "C" fn l1() -> ! {
    // SAFETY: This is L1.
    unsafe {
        loop {
            asm!("clgi", options(nostack));
            report(SAYS, READY, 0);
            if peek(L1_INTERRUPTS) != 0 {
                asm!("sti", options(nostack));
            }
            run_l2(VMCB, REGISTERS);
            report(SAYS, EXITED, 0);
            asm!("stgi", "nop", "nop", "nop", options(nostack));
            report(SAYS, SET, 0);
            asm!("cli", options(nostack));
        }
    }
}

/// A place that a machine has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// L1 is about to execute VMRUN, with the flag clear.
    Ready,
    /// L2 has executed the first instruction of [`l2_calls`].
    InL2,
    /// The handler of SMIs has written to its port.
    InSmm,
    /// L2 has exited, the flag is clear.
    Exited,
    /// L1 has set the flag.
    Set,
    /// The machine has shut down.
    Shutdown,
}

/// An event from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Interrupt,
    Nmi,
    Smi,
}

/// A machine of which L1 is about to clear the global interrupt flag.
struct Scene {
    machine: Machine,
    code: Code,
}

impl Scene {
    /// Creates a machine in which L2 executes `code`.
    fn new(fixture: &Fixture, code: Code) -> Result<Self> {
        let machine = Machine::new(&fixture.kvm, 1, Interrupts::LocalApic)?;
        let vcpu = &machine.vcpus[0];
        let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
        lapic.regs[SPURIOUS.0] |= SPURIOUS.1 as std::ffi::c_char;
        vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC")?;
        machine.start(0, l1)?;
        let memory = &machine.memory;
        vmcb::write(memory, &machine.tables, code as *const () as u64);
        memory.fill(REGISTERS, 14 * 8, 0);
        // RDI: what L2 has for L0's user space.
        memory.write(REGISTERS + 4 * 8, SAYS);
        memory.fill(SHARED, 0x100, 0);
        memory.write(SMBASE + 0x8000, SMM_HANDLER);
        let handlers = [
            [event_test_l1_interrupt as Code, event_test_l1_nmi],
            [event_test_l2_interrupt as Code, event_test_l2_nmi],
        ];
        for (level, [interrupt, nmi]) in (0..).zip(handlers) {
            gate(memory, level, VECTOR, interrupt as *const () as u64);
            gate(memory, level, NMI_VECTOR, nmi as *const () as u64);
        }
        let recovery = event_test_recovery as *const () as u64;
        memory.write(l2(exception::RECOVERY), recovery);
        Ok(Self { machine, code })
    }

    fn memory(&self) -> &GuestMemory {
        &self.machine.memory
    }

    /// Gives the machine memory in system-management mode, where it has memory slots of its own.
    fn give_smram(&self) -> Result<()> {
        set_msr(&self.machine.vcpus[0], MSR_SMBASE, SMBASE)?;
        let region = kvm_userspace_memory_region {
            slot: SMM_SLOTS,
            memory_size: RAM,
            userspace_addr: self.machine.memory.ram.address(),
            ..Default::default()
        };
        // SAFETY: The mapping lives as long as the machine.
        unsafe { self.machine.vm.set_user_memory_region(region) }
            .context("KVM_SET_USER_MEMORY_REGION")
    }

    /// Lets L2 have an event once, and run to its call of L1, so that L0 maps what that needs: QEMU
    /// takes an interrupt whose delivery is interrupted by a fault for an exception.
    fn warm_up(&mut self) -> Result<()> {
        let saved = [vmcb::RIP, vmcb::RSP, vmcb::RFLAGS].map(|field| (field, self.word(field)));
        let memory = self.memory();
        memory.write(vmcb::EVENT_INJ, 1u32 << 31 | VECTOR as u32);
        self.reach(Step::Ready)?;
        loop {
            match self.next()? {
                Step::InL2 | Step::Exited => (),
                Step::Set => break,
                other => bail!("the machine came to {other:?}"),
            }
        }
        expect("exit code", self.word(vmcb::EXIT_CODE), vmcb::exit::VMMCALL)?;
        expect("interrupts of L2", self.word(BY_L2), 1)?;
        let memory = self.memory();
        memory.fill(SHARED, 0x100, 0);
        for (field, value) in saved {
            memory.write(field, value);
        }
        Ok(())
    }

    /// Reads a word of 64 bits.
    fn word(&self, address: u64) -> u64 {
        self.memory().read(address)
    }

    /// Reads a word of 32 bits.
    fn half(&self, address: u64) -> u32 {
        self.memory().read(address)
    }

    /// Sets RFLAGS.IF of L2, and whether L1 has interrupts on.
    fn set_interrupts(&self, l1: bool, l2: bool) {
        let memory = self.memory();
        memory.write(L1_INTERRUPTS, u64::from(l1));
        memory.write(vmcb::RFLAGS, 2 | if l2 { RFLAGS_IF } else { 0 });
    }

    /// Raises an event.
    fn raise(&self, event: Event) -> Result<()> {
        let vcpu = &self.machine.vcpus[0];
        match event {
            Event::Interrupt => {
                let message = kvm_msi {
                    address_lo: 0xfee0_0000,
                    data: VECTOR as u32,
                    ..Default::default()
                };
                let delivered = self.machine.vm.signal_msi(message);
                expect("KVM_SIGNAL_MSI", delivered.context("KVM_SIGNAL_MSI")?, 1)
            }
            Event::Nmi => vcpu.nmi().context("KVM_NMI"),
            Event::Smi => vcpu.smi().context("KVM_SMI"),
        }
    }

    /// Saves the processor, and restores it in a new machine on the same memory.
    fn move_to_new_machine(&mut self, fixture: &Fixture) -> Result<()> {
        let machine = &self.machine;
        let indices = state::msrs(&fixture.kvm, &machine.vcpus[0])?;
        let saved = Saved::read(&machine.vcpus[0], &indices)?;
        let (memory, tables) = (machine.memory.clone(), machine.tables);
        let next = Machine::on(&fixture.kvm, memory, tables, 1, Interrupts::LocalApic)?;
        saved.restore(&next.vcpus[0])?;
        self.machine = next;
        Ok(())
    }

    /// Runs until the next place.
    fn next(&mut self) -> Result<Step> {
        let message = match run(&mut self.machine.vcpus[0]) {
            Stop::Said(message) => heard(message)?,
            Stop::Out(SMM_PORT, _) => return Ok(Step::InSmm),
            Stop::Shutdown => return Ok(Step::Shutdown),
            other => bail!("the guest stopped: {other:?}"),
        };
        match (message.level, message.first) {
            (Level::L2, _) => Ok(Step::InL2),
            (Level::L1, READY) => Ok(Step::Ready),
            (Level::L1, EXITED) => {
                let faults = self.word(EXCEPTIONS + exception::COUNT);
                expect("exceptions of L1", faults, 0)?;
                Ok(Step::Exited)
            }
            (Level::L1, SET) => Ok(Step::Set),
            _ => bail!("L1 says {message:?}"),
        }
    }

    /// Runs until the next place, which must be this one.
    fn reach(&mut self, step: Step) -> Result<()> {
        let reached = self.next()?;
        expect("the place that the machine came to", reached, step)
    }

    /// Runs L2, which must exit with a code and `offset` bytes behind its beginning.
    fn exits(&mut self, code: u64, offset: u64) -> Result<()> {
        self.reach(Step::Exited)?;
        self.exited(code, offset)
    }

    /// Checks the exit that L1 has got.
    fn exited(&self, code: u64, offset: u64) -> Result<()> {
        let seen = (self.word(vmcb::EXIT_CODE), self.offset(vmcb::RIP));
        expect("exit code and offset of RIP", seen, (code, offset))
    }

    /// Returns how far behind the beginning of L2's code an address is that is kept somewhere.
    fn offset(&self, address: u64) -> u64 {
        self.word(address)
            .wrapping_sub(self.code as *const () as u64)
    }
}

/// Returns the address of a word in the record of L2's exceptions.
fn l2(offset: u64) -> u64 {
    EXCEPTIONS + exception::SIZE + offset
}

/// What the tests need.
pub struct Fixture {
    kvm: kvm_ioctls::Kvm,
}

impl Fixture {
    /// Returns whether L1 is offered a feature of SVM, by its bit in CPUID 8000_000Ah:EDX.
    fn offers(&self, bit: u32) -> Result<bool> {
        let cpuid = selftests::vm::cpuid(&self.kvm)?;
        let mut entries = cpuid.as_slice().iter();
        let entry = entries.find(|entry| entry.function == 0x8000_000a);
        Ok(entry.is_some_and(|entry| entry.edx >> bit & 1 == 1))
    }
}

fn main() -> ExitCode {
    let kvm = match machine::open(Vendor::Svm) {
        Ok(kvm) => kvm,
        Err(error) => return tap::skip_all(format_args!("{error:#}")),
    };
    if let Err(error) = signal::install() {
        return tap::skip_all(format_args!("{error:#}"));
    }
    let mut points = inject::points();
    points.extend(routing::points());
    points.extend(virtual_interrupts::points());
    points.extend(smm::points());
    points.extend(halted::points());
    tap::run(&points, &Fixture { kvm }, |_| Ok(()))
}
