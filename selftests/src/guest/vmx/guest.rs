// SPDX-License-Identifier: GPL-2.0

//! Machines whose L1 executes what the test program says, and enters L2.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use kvm_ioctls::Kvm;

use super::control::{self, Capabilities};
use super::field;
use super::fields::Fields;
use super::script::{self, interpreter, vmread, Answer, Operation};
use crate::guest::layout::{
    exception, EXCEPTIONS, OTHER_VMCS, SHADOW_VMCS, VMCS, VMXON_REGION, VMX_REGISTERS,
};
use crate::guest::machine::{heard, run, set_msr, Interrupts, Level, Stop};
use crate::guest::state::{self, Nested, Saved};
use crate::guest::{signal, GuestMemory, Machine};

/// How often a guest may stop for user space before it says something.
const STOPS: usize = 10;

/// Where a guest's RAX is among the registers.
pub const RAX: usize = 14;

/// Time after which a guest that says nothing never will.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time after which a guest that is to come to rest has done so.
const REST: Duration = Duration::from_millis(20);

/// A machine with the interpreter as its L1.
pub struct VmxMachine {
    /// The machine.
    pub machine: Machine,
    /// What L1's processor can do.
    pub capabilities: Capabilities,
    /// What user space does when L2 stops for it.
    pub at_stop: Option<fn(&mut Self) -> Result<()>>,
    /// What user space does, once, when the guest has not stopped for some time.
    pub at_rest: Option<fn(&mut Self) -> Result<()>>,
    /// What is in the VMCS, as far as this is known.
    loaded: Fields,
    interrupts: Interrupts,
}

/// What an exit of L2 says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The reason, all 32 bits.
    pub reason: u64,
    /// The qualification.
    pub qualification: u64,
    /// The event that was an exit.
    pub event: u64,
    /// Its error code.
    pub error_code: u64,
    /// The event that was being delivered.
    pub vectoring: u64,
    /// Its error code.
    pub vectoring_error_code: u64,
    /// Bytes of the instruction.
    pub length: u64,
    /// More about the instruction.
    pub instruction: u64,
    /// The linear address.
    pub linear: u64,
    /// The physical address.
    pub physical: u64,
    /// L2's RIP.
    pub rip: u64,
    /// L2's RSP.
    pub rsp: u64,
    /// L2's RFLAGS.
    pub rflags: u64,
    /// L2's interruptibility.
    pub interruptibility: u64,
    /// L2's pending debug exceptions.
    pub pending_debug: u64,
    /// L2's CR0.
    pub cr0: u64,
    /// The event to inject, of which the exit clears the highest bit.
    pub injected: u64,
}

/// The fields of [`Exit`], in the same order.
const EXIT_FIELDS: [u32; 17] = [
    field::EXIT_REASON,
    field::QUALIFICATION,
    field::EXIT_EVENT,
    field::EXIT_ERROR_CODE,
    field::VECTORING_EVENT,
    field::VECTORING_ERROR_CODE,
    field::EXIT_LENGTH,
    field::EXIT_INSTRUCTION,
    field::GUEST_LINEAR,
    field::GUEST_PHYSICAL,
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::INTERRUPTIBILITY,
    field::PENDING_DEBUG,
    field::GUEST_CR0,
    field::ENTRY_EVENT,
];

impl Exit {
    fn new(values: [u64; EXIT_FIELDS.len()]) -> Self {
        let [reason, qualification, event, error_code, vectoring, vectoring_error_code, length, instruction, linear, physical, rip, rsp, rflags, interruptibility, pending_debug, cr0, injected] =
            values;
        Self {
            reason,
            qualification,
            event,
            error_code,
            vectoring,
            vectoring_error_code,
            length,
            instruction,
            linear,
            physical,
            rip,
            rsp,
            rflags,
            interruptibility,
            pending_debug,
            cr0,
            injected,
        }
    }
}

/// How an entry ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// VMfailInvalid.
    Invalid,
    /// VMfailValid.
    Valid(u64),
    /// An exception of L1.
    Exception(u64, u64),
    /// An exit of L2, or an entry that failed like one.
    Exit(Box<Exit>),
}

impl Entered {
    /// Returns the exit, if there is one.
    pub fn exit(self) -> Result<Exit> {
        match self {
            Self::Exit(exit) => Ok(*exit),
            other => bail!("expected an exit of L2, saw {other:x?}"),
        }
    }
}

impl VmxMachine {
    /// Creates a machine that is not in VMX operation; the regions have their revisions.
    pub fn new(kvm: &Kvm, interrupts: Interrupts) -> Result<Self> {
        let machine = Machine::new(kvm, 1, interrupts)?;
        Self::with(kvm, machine, interrupts)
    }

    /// Makes it of a machine whose processor has executed nothing yet.
    pub fn with(kvm: &Kvm, machine: Machine, interrupts: Interrupts) -> Result<Self> {
        signal::install()?;
        let capabilities = Capabilities::read(kvm)?;
        let mut this = Self {
            machine,
            capabilities,
            at_stop: None,
            at_rest: None,
            loaded: Fields::default(),
            interrupts,
        };
        this.reset()?;
        Ok(this)
    }

    /// Lets L1 begin again, and writes the revisions of the regions.
    pub fn reset(&mut self) -> Result<()> {
        for region in [VMCS, OTHER_VMCS, VMXON_REGION, SHADOW_VMCS] {
            self.memory().fill(region, 0x1000, 0);
            self.memory().write(region, self.capabilities.revision());
        }
        self.memory().fill(EXCEPTIONS, 0x100, 0);
        self.loaded.forget();
        self.machine.start(0, interpreter)?;
        self.machine.hear()?;
        Ok(())
    }

    /// Saves the machine and continues with a new one on the same memory.
    pub fn replace(&mut self, kvm: &Kvm) -> Result<()> {
        let vcpu = &mut self.machine.vcpus[0];
        signal::complete(vcpu)?;
        let saved = Saved::read(vcpu, &state::msrs(kvm, vcpu)?)?;
        let next = self.machine.again(kvm, self.interrupts)?;
        saved.restore(&next.vcpus[0])?;
        let again = Nested::read(&next.vcpus[0])?;
        if let Some(difference) = saved.nested.differences(&again) {
            bail!("the nested state is not what was restored: {difference}");
        }
        self.machine = next;
        Ok(())
    }

    /// The machine's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.machine.memory
    }

    /// Enters VMX operation.
    pub fn vmxon(&mut self) -> Result<()> {
        let answers = self.execute(&[script::vmxon(VMXON_REGION)])?;
        ensure!(answers == [Answer::Done(0)], "VMXON: {:x?}", answers[0]);
        Ok(())
    }

    /// Returns a VMCS with which L2 starts at some code, in the same mode as L1.
    pub fn fields(&self, rip: u64) -> Result<Fields> {
        control::fields(&self.capabilities, &self.machine.tables, 0, rip)
    }

    /// Lets L1 execute operations; nothing may stop it.
    pub fn execute(&mut self, operations: &[Operation]) -> Result<Vec<Answer>> {
        let (answers, stops) = self.run(operations)?;
        ensure!(stops.is_empty(), "the guest stopped: {stops:?}");
        Ok(answers)
    }

    /// Lets L1 execute an operation; nothing may stop it.
    pub fn answer(&mut self, operation: Operation) -> Result<Answer> {
        let answers = self.execute(&[operation])?;
        answers.first().copied().context("no answer")
    }

    fn patience(&self) -> Duration {
        match self.at_rest {
            Some(_) => REST,
            None => PATIENCE,
        }
    }

    /// Lets L1 execute operations; returns how they ended, and what user space saw.
    pub fn run(&mut self, operations: &[Operation]) -> Result<(Vec<Answer>, Vec<Stop>)> {
        script::write(self.memory(), operations);
        signal::after(self.patience())?;
        let mut stops = Vec::new();
        loop {
            match run(&mut self.machine.vcpus[0]) {
                Stop::Said(message) if message.level == Level::L1 => {
                    heard(message)?;
                    break;
                }
                Stop::Said(message) => bail!("L2 says {:?}", heard(message)?),
                stop @ (Stop::Out(..) | Stop::In(..) | Stop::Halt) if stops.len() < STOPS => {
                    stops.push(stop);
                    if let Some(action) = self.at_stop {
                        action(self)?;
                    }
                }
                Stop::Interrupted => match self.at_rest.take() {
                    Some(action) => {
                        action(self)?;
                        signal::after(self.patience())?;
                    }
                    None => bail!("the guest does not stop"),
                },
                other => bail!("the guest stopped: expected a report, saw {other:?}"),
            }
        }
        signal::after(Duration::ZERO)?;
        Ok((script::answers(self.memory(), operations.len()), stops))
    }

    /// Returns the operations that make the current VMCS a cleared one with fields.
    pub fn load(&self, fields: &Fields) -> Vec<Operation> {
        let mut operations = vec![script::vmclear(VMCS), script::vmptrld(VMCS)];
        let writes = fields.beyond(&self.loaded);
        operations.extend(writes.map(|(field, value)| script::vmwrite(field.into(), value)));
        operations
    }

    /// Enters L2 with fields; returns how that ended, and what user space saw.
    pub fn enter(&mut self, fields: &Fields) -> Result<(Entered, Vec<Stop>)> {
        self.enter_with(fields, script::vmlaunch())
    }

    /// Enters L2 with fields by an operation after which it continues.
    pub fn enter_with(
        &mut self,
        fields: &Fields,
        operation: Operation,
    ) -> Result<(Entered, Vec<Stop>)> {
        let mut operations = self.load(fields);
        let entry = operations.len();
        operations.push(operation);
        operations.extend(EXIT_FIELDS.map(|field| vmread(field.into())));
        let (answers, stops) = self.run(&operations)?;
        let failed = (0..entry).find(|index| answers[*index] != Answer::Done(0));
        if let Some(index) = failed {
            self.loaded.forget();
            bail!("{:x?}: {:x?}", operations[index], answers[index]);
        }
        self.loaded = fields.clone();
        let entered = match answers[entry] {
            Answer::Done(_) => {
                self.loaded.forget_guest_state();
                Entered::Exit(Box::new(self.exit(&answers[entry + 1..])?))
            }
            Answer::Invalid => Entered::Invalid,
            Answer::Valid(number) => Entered::Valid(number),
            Answer::Exception(vector, error) => Entered::Exception(vector, error),
            Answer::Nothing => bail!("L1 has not tried to enter L2"),
        };
        Ok((entered, stops))
    }

    /// Makes L1 about to enter L2 with fields, by VMLAUNCH, the last of its operations.
    pub fn launch(&mut self, fields: &Fields) -> Result<()> {
        let mut operations = self.load(fields);
        operations.push(script::vmlaunch());
        self.loaded.forget();
        script::write(self.memory(), &operations);
        Ok(())
    }

    /// Continues L2 with some fields written; returns how that ended, and what user space saw.
    pub fn resume(&mut self, changes: &[(u32, u64)]) -> Result<(Entered, Vec<Stop>)> {
        let write = |(field, value): &(u32, u64)| script::vmwrite((*field).into(), *value);
        let mut operations: Vec<Operation> = changes.iter().map(write).collect();
        operations.push(script::vmresume());
        operations.extend(EXIT_FIELDS.map(|field| vmread(field.into())));
        self.loaded.forget();
        let (answers, stops) = self.run(&operations)?;
        let (writes, rest) = answers.split_at(changes.len());
        ensure!(
            writes.iter().all(|answer| *answer == Answer::Done(0)),
            "VMWRITE: {writes:x?}"
        );
        let entered = match rest[0] {
            Answer::Done(_) => Entered::Exit(Box::new(self.exit(&rest[1..])?)),
            Answer::Invalid => Entered::Invalid,
            Answer::Valid(number) => Entered::Valid(number),
            Answer::Exception(vector, error) => Entered::Exception(vector, error),
            Answer::Nothing => bail!("L1 has not tried to enter L2"),
        };
        Ok((entered, stops))
    }

    fn exit(&self, answers: &[Answer]) -> Result<Exit> {
        let mut values = [0; EXIT_FIELDS.len()];
        ensure!(answers.len() == values.len(), "{answers:x?}");
        for ((value, answer), field) in values.iter_mut().zip(answers).zip(EXIT_FIELDS) {
            match answer {
                Answer::Done(read) => *value = *read,
                other => bail!("VMREAD of {field:#x}: {other:x?}"),
            }
        }
        Ok(Exit::new(values))
    }

    /// Reads a field of the current VMCS.
    pub fn read(&mut self, field: u32) -> Result<u64> {
        match self.answer(vmread(field.into()))? {
            Answer::Done(value) => Ok(value),
            other => bail!("VMREAD of {field:#x}: {other:x?}"),
        }
    }

    /// Gives L2 the values of its registers, in the order RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15,
    /// RAX.
    pub fn set_register(&self, index: usize, value: u64) {
        self.memory().write(VMX_REGISTERS + 8 * index as u64, value);
    }

    /// Writes MSRs of L1 or L2, whichever runs.
    pub fn set_msr(&self, index: u32, value: u64) -> Result<()> {
        set_msr(&self.machine.vcpus[0], index, value)
    }

    /// Returns a register that L2 had when it exited.
    pub fn register(&self, index: usize) -> u64 {
        self.memory().read(VMX_REGISTERS + 8 * index as u64)
    }

    /// Returns the number of exceptions that L2 had, and the vector and error code of the last one.
    pub fn l2_exceptions(&self) -> (u64, u64, u64) {
        let record = EXCEPTIONS + exception::SIZE;
        let read = |offset| self.memory().read::<u64>(record + offset);
        (
            read(exception::COUNT),
            read(exception::VECTOR),
            read(exception::ERROR),
        )
    }

    /// Says where L2 goes on after its next exception; forgets those that it had.
    pub fn recover_l2(&self, address: u64) {
        let record = EXCEPTIONS + exception::SIZE;
        self.memory().fill(record, exception::SIZE, 0);
        self.memory().write(record + exception::RECOVERY, address);
    }
}
