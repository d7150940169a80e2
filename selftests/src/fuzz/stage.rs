// SPDX-License-Identifier: GPL-2.0

//! A machine that is made as it was at the beginning before each case.

use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::kvm_interrupt;
use kvm_ioctls::{Kvm, VcpuFd};
use std::os::fd::AsRawFd;

use super::code::{self, event, EVENT_PORT, OPERAND, PORTS};
use super::observe::{Seen, What, LOST};
use super::{mode, Case};
use crate::guest::code::SAYS;
use crate::guest::layout::{
    exception, EXCEPTIONS, MSR_LIST, OTHER_VMCS, PML, RAM, VIRTUAL_APIC, VMREAD_BITMAP,
};
use crate::guest::machine::{run, Interrupts, Level, Stop};
use crate::guest::memory::GuestMemory;
use crate::guest::state::{self, Nested, Saved};
use crate::guest::{signal, Machine};

/// How often user space goes on after what a guest does.
const STOPS: usize = 24;

/// Time after which a guest that says nothing is taken for one that never will.
const PATIENCE: Duration = Duration::from_millis(200);

/// The vector of the interrupt that L2 can ask for.
const VECTOR: u32 = 0x51;

const KVM_INTERRUPT: u64 = 1 << 30 | (size_of::<kvm_interrupt>() as u64) << 16 | 0xae86;
const KVM_NMI: u64 = 0xae9a;

/// Words of a page.
const PAGE: u64 = 512;

/// A machine.
pub struct Stage {
    /// The machine itself.
    pub machine: Machine,
    /// How many times the usual time guests may take.
    pub patience: u32,
    initial: Saved,
    memory: Vec<u64>,
    /// Where L2 only calls L1.
    end: u64,
    over: bool,
    lost: bool,
}

impl Stage {
    /// Creates a machine with a program of L1, which reports when it is ready.
    pub fn new(kvm: &Kvm, l1: extern "C" fn() -> !) -> Result<Self> {
        signal::install()?;
        let mut machine = Machine::new(kvm, 1, Interrupts::None)?;
        machine.start(0, l1)?;
        machine.hear()?;
        signal::complete(&mut machine.vcpus[0])?;
        let indices = state::msrs(kvm, &machine.vcpus[0])?;
        let initial = Saved::read(&machine.vcpus[0], &indices)?;
        let memory = machine.memory.ram.copy();
        Ok(Self {
            machine,
            patience: 1,
            initial,
            memory,
            end: 0,
            over: false,
            lost: false,
        })
    }

    /// Makes the machine as it was at the beginning.
    pub fn reset(&mut self) -> Result<()> {
        let vcpu = &mut self.machine.vcpus[0];
        // What it was about to do, it need not.
        let _ = signal::complete(vcpu);
        let off = Nested::read(vcpu)?.off();
        vcpu.set_nested_state(&off.0)
            .context("KVM_SET_NESTED_STATE")?;
        self.initial.restore(vcpu)?;
        self.machine.memory.ram.restore(&self.memory);
        self.machine.forget_translations()?;
        (self.over, self.lost) = (false, false);
        Ok(())
    }

    /// Writes the code and the registers of L2, and what its instructions have in memory.
    pub fn begin(&mut self, case: &Case, registers: u64) {
        self.end = code::address(case.code.len());
        let memory = &self.machine.memory;
        for (at, byte) in (code::CODE..).zip(code::assemble(case)) {
            memory.write(at, byte);
        }
        for (at, number) in (registers..).step_by(8).zip(1..15u64) {
            memory.write(at, (number << 32) | (0x1111 * number));
        }
        // An address for VMPTRLD and others; a limit and a base for LGDT.
        memory.write(OPERAND, OTHER_VMCS);
        memory.write(OPERAND + 8, 0u64);
        mode::write(memory, case.vendor);
    }

    /// Returns whether the guest was interrupted, or executes what is not its code: what it has done
    /// until then is not known.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Returns whether nothing runs any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Lets L1 go on until it reports; what stops the machine is noted.
    pub fn run(&mut self, seen: &mut Vec<Seen>, step: usize) -> Result<()> {
        let record = EXCEPTIONS + exception::SIZE;
        // L2 goes on behind its code after the first exception of each round.
        self.machine
            .memory
            .write(record + exception::RECOVERY, self.end);
        signal::after(PATIENCE * self.patience)?;
        for _ in 0..STOPS {
            let stop = run(&mut self.machine.vcpus[0]);
            match stop {
                Stop::Said(message) if message.level == Level::L1 && message.kind == SAYS => {
                    return signal::after(Duration::ZERO);
                }
                Stop::Out(EVENT_PORT, bytes) => {
                    let kind = bytes.first().copied().unwrap_or_default();
                    self.cause(seen, step, kind.into());
                }
                Stop::Out(port, _) | Stop::In(port, _) if PORTS.contains(&port.into()) => {
                    seen.push(Seen::stop(step, format!("{stop:?}")));
                }
                // Where it was interrupted is another place each time. So it is with what is executed
                // that is no code: how far it gets depends on the time that it has.
                Stop::Interrupted | Stop::Out(..) | Stop::In(..) => {
                    self.lost = true;
                    seen.push(Seen::stop(step, LOST.into()));
                    break;
                }
                other => {
                    seen.push(Seen::stop(step, format!("{other:?}")));
                    break;
                }
            }
        }
        // Wherever it is, it does not go on.
        self.over = true;
        signal::after(Duration::ZERO)
    }

    /// Causes an event that L2 has asked for.
    fn cause(&self, seen: &mut Vec<Seen>, step: usize, kind: u64) {
        let vcpu: &VcpuFd = &self.machine.vcpus[0];
        let interrupt = kvm_interrupt { irq: VECTOR };
        // SAFETY: The first request reads the structure, the second one has no argument.
        let result = unsafe {
            match kind {
                event::INTERRUPT => {
                    libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt)
                }
                _ => libc::ioctl(vcpu.as_raw_fd(), KVM_NMI),
            }
        };
        seen.push(Seen::stop(step, format!("event {kind}: {result}")));
    }

    /// Notes what the processor and the memory are like.
    pub fn observe(&self, seen: &mut Vec<Seen>, step: usize) -> Result<()> {
        if self.lost {
            return Ok(());
        }
        let vcpu = &self.machine.vcpus[0];
        let mut note = |name, value| seen.push(Seen::number(step, What::Register(name), value));
        let regs = vcpu.get_regs().context("KVM_GET_REGS")?;
        for (name, value) in [
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rbp", regs.rbp),
            ("rsp", regs.rsp),
            ("rip", regs.rip),
            ("rflags", regs.rflags),
        ] {
            note(name, value);
        }
        let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        for (name, value) in [
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("cr8", sregs.cr8),
            ("efer", sregs.efer),
            ("apic_base", sregs.apic_base),
            ("gdt", sregs.gdt.base ^ u64::from(sregs.gdt.limit) << 48),
            ("idt", sregs.idt.base ^ u64::from(sregs.idt.limit) << 48),
        ] {
            note(name, value);
        }
        for (name, segment) in [
            ("cs", sregs.cs),
            ("ds", sregs.ds),
            ("es", sregs.es),
            ("fs", sregs.fs),
            ("gs", sregs.gs),
            ("ss", sregs.ss),
            ("tr", sregs.tr),
            ("ldt", sregs.ldt),
        ] {
            let bits = [
                segment.type_,
                segment.s << 4,
                segment.present << 5,
                segment.avl << 6,
                segment.l << 7,
            ];
            let low = bits.iter().fold(0, |all, bits| all | bits);
            let high = segment.dpl | segment.db << 2 | segment.g << 3 | segment.unusable << 4;
            note(name, segment.base);
            note(name, u64::from(segment.limit));
            note(
                name,
                u64::from(segment.selector) | u64::from(low) << 16 | u64::from(high) << 24,
            );
        }
        let debug = vcpu.get_debug_regs().context("KVM_GET_DEBUGREGS")?;
        note("dr6", debug.dr6);
        note("dr7", debug.dr7);
        let nested = Nested::read(vcpu)?;
        seen.push(Seen::number(step, What::Nested(0), nested.0.flags.into()));
        let memory = &self.machine.memory;
        words(memory, seen, step, EXCEPTIONS, 16);
        for page in [
            code::DATA,
            VIRTUAL_APIC,
            PML,
            MSR_LIST,
            VMREAD_BITMAP,
            RAM - 0x1000,
        ] {
            words(memory, seen, step, page, PAGE);
        }
        Ok(())
    }
}

/// Notes the words of memory that are not 0.
pub fn words(memory: &GuestMemory, seen: &mut Vec<Seen>, step: usize, start: u64, count: u64) {
    for at in (start..).step_by(8).take(count as usize) {
        let value = memory.read::<u64>(at);
        if value != 0 {
            seen.push(Seen::number(step, What::Memory(at), value));
        }
    }
}
