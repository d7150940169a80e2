// SPDX-License-Identifier: GPL-2.0

//! An L1 and an L2 that note their time.

use std::arch::x86_64::_rdtsc;

use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::{Kvm, VcpuFd};
use selftests::guest::code::{peek, poke, report, DONE};
use selftests::guest::extension::{self, Extension, Svm, Vmx};
use selftests::guest::layout::{MSR_MAP, SHARED};
use selftests::guest::machine::{self, get_msr, set_msr, Interrupts, RFLAGS_IF};
use selftests::guest::state::{self, Saved, GUEST_MODE};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::vmx::control::{pin, primary, reason};
use selftests::guest::vmx::{code, field, script, Answer, Fields};
use selftests::guest::{signal, Machine, Stop, Vendor};
use selftests::{expect, guest_code_for_both};

/// IA32_TSC.
pub const TSC: u32 = 0x10;

/// What L2 has read first.
pub const FIRST: u64 = SHARED + 0x10;

/// What L2 has read after its call of user space, or after what it has written.
pub const SECOND: u64 = SHARED + 0x18;

/// The MSR that L2 writes, and its value.
const L2_WRITES: u64 = SHARED + 0x20;

/// The MSR that L1 writes before its next entry, or 0, and its value.
const L1_WRITES: u64 = SHARED + 0x30;

/// L1's TSC just before the entry.
pub const BEFORE: u64 = SHARED + 0x40;

/// L1's TSC just after the exit.
pub const AFTER: u64 = SHARED + 0x48;

/// L1's TSC after that, read by RDMSR, which L0 may execute in L1's place.
pub const BY_RDMSR: u64 = SHARED + 0x68;

/// L1 has operations to execute before its next entry, with VMX.
const HAS_SCRIPT: u64 = SHARED + 0x50;

/// What L1's deadline is ahead of its time when it enters L2, or 0.
pub const AHEAD: u64 = SHARED + 0x58;

/// The deadline.
pub const DEADLINE: u64 = SHARED + 0x60;

const _: () = assert!(SHARED == 0x6000);

/// The vector of L1's timer.
pub const VECTOR: u64 = 0x40;

guest_code_for_both! {
    /// L2: reads its TSC by RDTSC before and after a call of user space, calls L1, and starts again.
    timer_svm_rdtsc, timer_vmx_rdtsc:
        "2:", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6010], rax", "out 0x80, al",
        "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6018], rax";
        call; "jmp 2b".
    /// L2: the same by RDMSR.
    timer_svm_rdmsr, timer_vmx_rdmsr:
        "2:", "mov ecx, 0x10",
        "rdmsr", "shl rdx, 32", "mov eax, eax", "or rax, rdx", "mov [0x6010], rax", "out 0x80, al",
        "rdmsr", "shl rdx, 32", "mov eax, eax", "or rax, rdx", "mov [0x6018], rax";
        call; "jmp 2b".
    /// L2: writes an MSR between its readings, and then calls user space.
    timer_svm_wrmsr, timer_vmx_wrmsr:
        "2:", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6010], rax",
        "mov ecx, [0x6020]", "mov eax, [0x6028]", "mov edx, [0x602c]", "wrmsr",
        "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6018], rax", "out 0x80, al";
        call; "jmp 2b".
    /// L2: works for some time between its readings.
    timer_svm_work, timer_vmx_work:
        "2:", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6010], rax",
        "mov ecx, 30000", "3:", "dec ecx", "jnz 3b",
        "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6018], rax";
        call; "jmp 2b".
    /// L2: reads its TSC again and again.
    timer_svm_spin, timer_vmx_spin:
        "2:", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [0x6018], rax", "jmp 2b";
        call.
}

/// What L2 executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Readings by RDTSC, and a call of user space.
    Rdtsc,
    /// Readings by RDMSR, and a call of user space.
    Rdmsr,
    /// A write of an MSR, and a call of user space.
    Wrmsr,
    /// Work.
    Work,
    /// Readings without end.
    Spin,
}

impl Code {
    fn address(self, vendor: Vendor) -> u64 {
        let (svm, vmx): (unsafe extern "C" fn(), unsafe extern "C" fn()) = match self {
            Self::Rdtsc => (timer_svm_rdtsc, timer_vmx_rdtsc),
            Self::Rdmsr => (timer_svm_rdmsr, timer_vmx_rdmsr),
            Self::Wrmsr => (timer_svm_wrmsr, timer_vmx_wrmsr),
            Self::Work => (timer_svm_work, timer_vmx_work),
            Self::Spin => (timer_svm_spin, timer_vmx_spin),
        };
        match vendor {
            Vendor::Svm => svm as *const () as u64,
            Vendor::Vmx => vmx as *const () as u64,
        }
    }
}

/// How L2 has exited to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It has called L1.
    Call,
    /// It was about to write an MSR.
    WriteMsr,
    /// An interrupt has come.
    Interrupt,
    /// The VMX-preemption timer has run out.
    Timer,
    /// Another code.
    Other(u64),
}

impl Exit {
    fn of(vendor: Vendor, code: u64, info: u64) -> Self {
        match (vendor, code) {
            (Vendor::Svm, exit::VMMCALL) | (Vendor::Vmx, reason::VMCALL) => Self::Call,
            (Vendor::Svm, exit::MSR) if info == 1 => Self::WriteMsr,
            (Vendor::Vmx, reason::WRMSR) => Self::WriteMsr,
            (Vendor::Svm, exit::INTR) | (Vendor::Vmx, reason::EXTERNAL_INTERRUPT) => {
                Self::Interrupt
            }
            (Vendor::Vmx, reason::PREEMPTION_TIMER) => Self::Timer,
            _ => Self::Other(code),
        }
    }
}

/// Reads an MSR.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn read_msr(index: u64) -> u64 {
    // SAFETY: As above. An exception changes nothing.
    unsafe { code::rdmsr(index).1 }
}

/// Lets the local APIC interrupt L1 at a time.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn arm(deadline: u64) {
    /// IA32_APIC_BASE, and what switches the mode on in which registers are MSRs.
    const BASE: (u64, u64) = (0x1b, 0xc00);
    /// The MSR that lets interrupts come, and its value.
    const SPURIOUS: (u64, u64) = (0x80f, 0x1ff);
    /// The MSR of the timer, and its mode in which there is a deadline.
    const TIMER: (u64, u64) = (0x832, 2 << 17 | VECTOR);
    /// IA32_TSC_DEADLINE.
    const TSC_DEADLINE: u64 = 0x6e0;

    // SAFETY: As above.
    unsafe {
        code::wrmsr(BASE.0, read_msr(BASE.0) | BASE.1);
        code::wrmsr(SPURIOUS.0, SPURIOUS.1);
        code::wrmsr(TIMER.0, TIMER.1);
        code::wrmsr(TSC_DEADLINE, deadline);
    }
}

/// L1: enters L2 again and again, and notes when.
extern "C" fn l1<E: Extension>() -> ! {
    // SAFETY: This is L1.
    unsafe {
        E::begin();
        loop {
            if peek(HAS_SCRIPT) != 0 {
                script::execute_all();
            }
            let index = peek(L1_WRITES);
            if index != 0 {
                code::wrmsr(index, peek(L1_WRITES + 8));
            }
            let ahead = peek(AHEAD);
            if ahead != 0 {
                let deadline = _rdtsc().wrapping_add(ahead);
                poke(DEADLINE, deadline);
                arm(deadline);
            }
            poke(BEFORE, _rdtsc());
            E::run_l2();
            poke(AFTER, _rdtsc());
            poke(BY_RDMSR, read_msr(TSC.into()));
            let (code, info) = E::exit();
            if E::called() {
                E::skip_call();
            }
            report(DONE, code, info);
        }
    }
}

/// What L1 wants of an L2.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What L2 executes.
    pub code: Code,
    /// What L2's TSC is ahead.
    pub offset: u64,
    /// The MSR of which a write exits.
    pub intercepted: Option<u32>,
    /// Whether interrupts exit.
    pub interrupts: bool,
    /// More that is in the VMCS.
    pub vmcs: fn(&mut Fields),
}

impl Wish {
    /// An L2 with an offset, for which nothing exits that need not.
    pub fn new(code: Code, offset: u64) -> Self {
        Self {
            code,
            offset,
            intercepted: None,
            interrupts: false,
            vmcs: |fields| fields.set(field::PRIMARY, primary::TSC_OFFSETTING),
        }
    }
}

/// A machine with an L2 as L1 wants it.
pub struct Scene {
    machine: Machine,
    interrupts: Interrupts,
}

impl Scene {
    /// Creates a machine of which L1 is about to enter L2.
    pub fn new(kvm: &Kvm, wish: &Wish) -> Result<Self> {
        Self::with(kvm, wish, |_| Ok(()))
    }

    /// The same on a processor to which user space has done something.
    pub fn with(kvm: &Kvm, wish: &Wish, first: impl Fn(&VcpuFd) -> Result<()>) -> Result<Self> {
        let interrupts = if wish.interrupts {
            Interrupts::LocalApic
        } else {
            Interrupts::None
        };
        let machine = Machine::new(kvm, 1, interrupts)?;
        first(&machine.vcpus[0])?;
        match machine.vendor {
            Vendor::Svm => machine.start(0, l1::<Svm>)?,
            Vendor::Vmx => machine.start(0, l1::<Vmx>)?,
        }
        let rip = wish.code.address(machine.vendor);
        extension::prepare_with(kvm, &machine, rip, &[0; 15], |fields, _| {
            fields.set(field::PRIMARY, primary::MSR_BITMAPS);
            fields.put(field::MSR_BITMAP, MSR_MAP);
            fields.put(field::TSC_OFFSET, wish.offset);
            if wish.interrupts {
                fields.set(field::PIN, pin::EXTERNAL_INTERRUPT);
            }
            (wish.vmcs)(fields);
        })?;
        let memory = &machine.memory;
        memory.fill(SHARED, 0x100, 0);
        if machine.vendor == Vendor::Svm {
            memory.write(vmcb::TSC_OFFSET, wish.offset);
            memory.set(vmcb::RFLAGS, RFLAGS_IF);
            vmcb::set_intercept(memory, exit::MSR);
            if wish.interrupts {
                vmcb::set_intercept(memory, exit::INTR);
            }
        }
        if let Some(index) = wish.intercepted {
            let bit = match machine.vendor {
                Vendor::Svm => u64::from(index) * 2 + 1,
                Vendor::Vmx => 0x800 * 8 + u64::from(index),
            };
            memory.write(MSR_MAP + bit / 8, 1u8 << (bit % 8));
        }
        Ok(Self {
            machine,
            interrupts,
        })
    }

    /// The processor.
    pub fn vcpu(&self) -> &VcpuFd {
        &self.machine.vcpus[0]
    }

    /// The extension that L1 uses.
    pub fn vendor(&self) -> Vendor {
        self.machine.vendor
    }

    /// Returns what L1 or L2 has noted.
    pub fn noted(&self, address: u64) -> u64 {
        self.machine.memory.read(address)
    }

    /// Says how far ahead of its time L1 sets its timer.
    pub fn set_timer(&self, ahead: u64) {
        self.machine.memory.write(AHEAD, ahead);
    }

    /// Says which MSR L2 writes.
    pub fn let_l2_write(&self, index: u32, value: u64) {
        let memory = &self.machine.memory;
        memory.write(L2_WRITES, u64::from(index));
        memory.write(L2_WRITES + 8, value);
    }

    /// Says which MSR L1 writes before each entry.
    pub fn let_l1_write(&self, index: u32, value: u64) {
        let memory = &self.machine.memory;
        memory.write(L1_WRITES, u64::from(index));
        memory.write(L1_WRITES + 8, value);
    }

    /// Lets L1 give L2 another offset before its next entry.
    pub fn let_l1_offset(&self, offset: u64) {
        let memory = &self.machine.memory;
        match self.vendor() {
            Vendor::Svm => memory.write(vmcb::TSC_OFFSET, offset),
            Vendor::Vmx => {
                script::write(memory, &[script::vmwrite(field::TSC_OFFSET.into(), offset)]);
                memory.write(HAS_SCRIPT, 1u64);
            }
        }
    }

    /// Lets L1 read what is left of the VMX-preemption timer, and then enter L2 again.
    pub fn timer_left(&mut self) -> Result<u64> {
        let operation = script::vmread(field::PREEMPTION_TIMER.into());
        script::write(&self.machine.memory, &[operation]);
        self.machine.memory.write(HAS_SCRIPT, 1u64);
        self.until_exit(Exit::Call)?;
        match script::answers(&self.machine.memory, 1)[..] {
            [Answer::Done(value)] => Ok(value),
            ref other => bail!("VMREAD: {other:x?}"),
        }
    }

    /// Returns the TSC as user space reads it.
    pub fn time(&self) -> Result<u64> {
        get_msr(self.vcpu(), TSC)
    }

    /// Sets the TSC as user space does.
    pub fn set_time(&self, time: u64) -> Result<()> {
        set_msr(self.vcpu(), TSC, time)
    }

    /// Runs until L2 calls user space: it is active then.
    pub fn until_l2_calls(&mut self) -> Result<()> {
        match machine::run(&mut self.machine.vcpus[0]) {
            Stop::Out(0x80, _) => Ok(()),
            Stop::Said(message) => {
                bail!("expected a call of L2, saw {:x?}", machine::heard(message)?)
            }
            other => bail!("expected a call of L2, saw {other:?}"),
        }
    }

    /// Runs until L1 has an exit of L2, which must be the one that is expected.
    pub fn until_exit(&mut self, expected: Exit) -> Result<()> {
        let message = self.machine.hear()?;
        let seen = Exit::of(self.vendor(), message.first, message.second);
        expect("exit of L2", seen, expected)
    }

    /// Saves the machine while L2 is active, and goes on with a new one; returns the time that it
    /// was given.
    pub fn move_in_l2(&mut self, kvm: &Kvm) -> Result<u64> {
        signal::complete(&mut self.machine.vcpus[0])?;
        let indices = state::msrs(kvm, self.vcpu())?;
        ensure!(indices.contains(&TSC), "KVM does not save the TSC");
        let saved = Saved::read(self.vcpu(), &indices)?;
        ensure!(saved.nested.has(GUEST_MODE), "L2 was not active");
        let next = self.machine.again(kvm, self.interrupts)?;
        saved.restore(&next.vcpus[0])?;
        self.machine = next;
        saved.msr(TSC).context("no TSC was saved")
    }
}

/// No test takes so many ticks of any TSC.
const LONG: u64 = 1 << 44;

/// An offset or a step that is more than time can pass.
pub const FAR: u64 = 1 << 50;

/// Checks that times come one after the other, none of them much later than the first.
pub fn in_order(times: &[(&str, u64)]) -> Result<()> {
    let start = times.first().map_or(0, |(_, time)| *time);
    let passed = |time: u64| time.wrapping_sub(start);
    let is_in_order = times
        .windows(2)
        .all(|pair| passed(pair[0].1) <= passed(pair[1].1));
    let is_near = times.iter().all(|(_, time)| passed(*time) < LONG);
    ensure!(is_in_order && is_near, "not in order: {times:#x?}");
    Ok(())
}
