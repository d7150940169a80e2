// SPDX-License-Identifier: GPL-2.0

//! Cases of an L1 with VMX.

use anyhow::{ensure, Result};
use kvm_ioctls::Kvm;

use super::allowed::{FIELDS_OF_C, FIELDS_OF_OURS};
use super::mode::{Mode, Vectors};
use super::observe::{Seen, What};
use super::stage::{self, Stage};
use super::{code, Action, Case, Subject};
use crate::guest::layout::{
    APIC_ACCESS, MSR_LIST, OTHER_VMCS, PML, SHADOW_VMCS, VIRTUAL_APIC, VMCS, VMREAD_BITMAP,
    VMXON_REGION, VMX_REGISTERS,
};
use crate::guest::vmx::bits::entry;
use crate::guest::vmx::field::{self, segment};
use crate::guest::vmx::near_valid;
use crate::guest::vmx::script::{self, Answer, Operation};
use crate::guest::vmx::{control, Capabilities, Fields};

/// The machine.
pub struct Vmx {
    stage: Stage,
    fields: Fields,
    revision: u32,
    /// The fields that can be read.
    offer: Vec<u32>,
    /// Those that are compared.
    exist: Vec<u32>,
}

impl Vmx {
    /// Creates the machine.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let stage = Stage::new(kvm, script::interpreter)?;
        let capabilities = Capabilities::read(kvm)?;
        let mut fields = control::fields(&capabilities, &stage.machine.tables, 0, code::CODE)?;
        // As for L1: Bochs does not interrupt guests that have switched interrupts off.
        fields.set(field::GUEST_RFLAGS, 1 << 9);
        for (at, value) in [
            (field::GUEST_PAT, near_valid::PAT),
            (field::HOST_PAT, near_valid::PAT),
            (field::GUEST_EFER, stage.machine.tables.efer),
            (field::HOST_EFER, stage.machine.tables.efer),
            (field::VPID, 1),
            (field::MSR_BITMAP, VMREAD_BITMAP),
            (field::IO_BITMAP_A, VMREAD_BITMAP),
            (field::IO_BITMAP_B, VMREAD_BITMAP),
            (field::VIRTUAL_APIC, VIRTUAL_APIC),
            (field::APIC_ACCESS, APIC_ACCESS),
            (field::PML_ADDRESS, PML),
            (field::PML_INDEX, 511),
            (field::EXIT_MSR_STORE, MSR_LIST),
            (field::EXIT_MSR_LOAD, MSR_LIST),
            (field::ENTRY_MSR_LOAD, MSR_LIST),
        ] {
            fields.put(at, value);
        }
        let mut this = Self {
            stage,
            fields,
            revision: capabilities.revision(),
            offer: Vec::new(),
            exist: Vec::new(),
        };
        this.stage.reset()?;
        this.prepare();
        let all = candidates();
        let mut operations = this.prologue();
        let first = operations.len();
        operations.extend(all.iter().map(|field| script::vmread((*field).into())));
        let answers = this.execute(&operations, &mut Vec::new(), 0)?;
        let reads = answers.get(first..).unwrap_or_default();
        let exists = |(_, answer): &(&u32, &Answer)| matches!(answer, Answer::Done(_));
        let existing = all.iter().zip(reads).filter(exists);
        this.offer = existing.map(|(field, _)| *field).collect();
        let compared = this.offer.iter().copied();
        this.exist = compared
            .filter(|field| !FIELDS_OF_C.contains(field) && !FIELDS_OF_OURS.contains(field))
            .collect();
        ensure!(this.exist.len() > 100, "L1 can read {:x?}", this.exist);
        Ok(this)
    }

    /// Writes the regions and what is in memory.
    fn prepare(&self) {
        let memory = &self.stage.machine.memory;
        for region in [VMCS, OTHER_VMCS, VMXON_REGION, SHADOW_VMCS] {
            memory.fill(region, 0x1000, 0);
            memory.write(region, self.revision);
        }
        memory.write(SHADOW_VMCS, self.revision | 1 << 31);
    }

    /// Returns what makes a VMCS current with which L2 would run.
    fn prologue(&self) -> Vec<Operation> {
        let mut operations = vec![
            script::vmxon(VMXON_REGION),
            script::vmclear(VMCS),
            script::vmptrld(VMCS),
        ];
        let all = self.fields.beyond(&EMPTY);
        operations.extend(all.map(|(field, value)| script::vmwrite(field.into(), value)));
        operations
    }

    /// Lets L1 execute operations; what stops it is noted.
    fn execute(
        &mut self,
        operations: &[Operation],
        seen: &mut Vec<Seen>,
        step: usize,
    ) -> Result<Vec<Answer>> {
        script::write(&self.stage.machine.memory, operations);
        self.stage.run(seen, step)?;
        Ok(script::answers(
            &self.stage.machine.memory,
            operations.len(),
        ))
    }

    fn operation(action: &Action) -> Operation {
        let [a, b, c] = action.operands;
        match action.verb {
            "vmwrite" => script::vmwrite(a, b),
            "vmread" => script::vmread(a),
            "vmlaunch" => script::vmlaunch(),
            "vmresume" => script::vmresume(),
            "vmxon" => script::vmxon(a),
            "vmxoff" => script::vmxoff(),
            "vmclear" => script::vmclear(a),
            "vmptrld" => script::vmptrld(a),
            "vmptrst" => script::vmptrst(),
            "invept" => script::invept(a, b, c),
            "invvpid" => script::invvpid(a, b, c),
            "vmcall" => script::vmcall(),
            "vmfunc" => script::vmfunc(a, b),
            "rdmsr" => script::rdmsr(a),
            "wrmsr" => script::wrmsr(a, b),
            "cr0" => script::set_cr0(a),
            "cr4" => script::set_cr4(a),
            "link" => script::vmwrite(field::LINK_POINTER.into(), SHADOW_VMCS),
            _ => script::poke_memory(a, b),
        }
    }

    /// Gives L2 what it needs in the mode in which it begins, if there is a current VMCS.
    fn fit_mode(&mut self, seen: &mut Vec<Seen>, step: usize) -> Result<()> {
        let reads = [
            field::GUEST_CR0,
            field::GUEST_RFLAGS,
            field::ENTRY,
            field::GUEST_RIGHTS + segment::CS,
            field::GUEST_RIP,
        ]
        .map(|field| script::vmread(field.into()));
        let answers = self.execute(&reads, seen, step)?;
        let [Answer::Done(cr0), Answer::Done(rflags), Answer::Done(controls), Answer::Done(rights), Answer::Done(rip)] =
            answers[..]
        else {
            return Ok(());
        };
        let mode = Mode {
            cr0,
            rflags,
            long: controls & entry::LONG_MODE != 0,
            code_is_64_bit: rights & 1 << 13 != 0,
            code_is_32_bit: rights & 1 << 14 != 0,
            rip,
        };
        let mut changes = Vec::new();
        if let Some(Vectors { base, limit }) = mode.vectors() {
            changes.push((field::GUEST_BASE + segment::IDTR, base));
            changes.push((field::GUEST_LIMIT + segment::IDTR, limit));
        }
        if let Some(found) = mode.segment() {
            changes.push((field::GUEST_BASE + segment::CS, found.base));
            if let Some(selector) = found.selector {
                changes.push((field::GUEST_SELECTOR + segment::CS, selector));
            }
            changes.push((field::GUEST_RIP, found.rip));
        }
        if !changes.is_empty() {
            let writes = changes.into_iter();
            let writes: Vec<Operation> = writes
                .map(|(field, value)| script::vmwrite(field.into(), value))
                .collect();
            self.execute(&writes, seen, step)?;
        }
        Ok(())
    }

    /// Notes what L1 can read after an entry of L2.
    fn observe(&mut self, seen: &mut Vec<Seen>, step: usize) -> Result<()> {
        let reads: Vec<Operation> = self
            .exist
            .iter()
            .map(|field| script::vmread((*field).into()))
            .collect();
        let answers = self.execute(&reads, seen, step)?;
        for (field, answer) in self.exist.iter().zip(answers) {
            let (kind, value) = match answer {
                Answer::Done(value) => (What::Field(*field), value),
                Answer::Invalid => (What::Outcome, 1),
                Answer::Valid(number) => (What::Value, number),
                Answer::Exception(vector, _) => (What::Value, vector),
                Answer::Nothing => break,
            };
            // It counts down; it matters whether it has run out.
            let value = match *field {
                field::PREEMPTION_TIMER => value >> 31,
                _ => value,
            };
            seen.push(Seen::number(step, kind, value));
            if kind == What::Outcome {
                break;
            }
        }
        Ok(())
    }
}

/// Returns whether L2 may run in another mode than L1.
fn changes_mode(case: &Case) -> bool {
    let writes = case.steps.iter().filter(|step| step.verb == "vmwrite");
    let mut changed = writes.map(|step| step.operands[0]);
    let all = [
        field::GUEST_CR0,
        field::GUEST_RFLAGS,
        field::ENTRY,
        field::GUEST_RIGHTS + segment::CS,
    ];
    changed.any(|at| all.map(u64::from).contains(&at))
}

/// No field has a value.
static EMPTY: std::sync::LazyLock<Fields> = std::sync::LazyLock::new(Fields::default);

/// Returns the encodings that fields may have.
fn candidates() -> Vec<u32> {
    let widths = (0..4).map(|width| width << 13);
    let types = widths.flat_map(|width| (0..4).map(move |kind| width | kind << 10));
    let all = types.flat_map(|group| (0..0x38).step_by(2).map(move |index| group | index));
    all.collect()
}

impl Subject for Vmx {
    fn run(&mut self, case: &Case) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        self.stage.reset()?;
        self.prepare();
        self.stage.begin(case, VMX_REGISTERS);
        let mut before = self.prologue();
        let mut first = 0;
        while first < case.steps.len() && !self.stage.is_over() {
            let rest = case.steps.get(first..).unwrap_or_default();
            let entry = rest
                .iter()
                .position(|step| matches!(step.verb, "vmlaunch" | "vmresume"));
            let count = entry.map_or(rest.len(), |entry| entry + 1);
            let skipped = before.len();
            let round = rest.get(..count).unwrap_or_default();
            before.extend(round.iter().map(Self::operation));
            let last = first + count - 1;
            let answers = if entry.is_some() && changes_mode(case) {
                let (steps, entry) = before.split_at(before.len() - 1);
                let mut answers = self.execute(steps, &mut seen, last)?;
                if !self.stage.is_over() {
                    self.fit_mode(&mut seen, last)?;
                    answers.extend(self.execute(entry, &mut seen, last)?);
                }
                answers
            } else {
                self.execute(&before, &mut seen, last)?
            };
            if self.stage.is_lost() {
                break;
            }
            before.clear();
            for (step, answer) in (first..).zip(answers.into_iter().skip(skipped)) {
                note(&mut seen, step, answer);
            }
            if !self.stage.is_over() {
                self.observe(&mut seen, last)?;
            }
            self.stage.observe(&mut seen, last)?;
            stage::words(
                &self.stage.machine.memory,
                &mut seen,
                last,
                VMX_REGISTERS,
                16,
            );
            first += count;
        }
        Ok(seen)
    }

    fn offer(&self) -> &[u32] {
        &self.offer
    }

    fn be_patient(&mut self, patience: u32) {
        self.stage.patience = patience;
    }

    fn initial(&self, field: u64) -> u64 {
        u32::try_from(field).map_or(0, |field| self.fields.get(field))
    }
}

fn note(seen: &mut Vec<Seen>, step: usize, answer: Answer) {
    use crate::guest::vmx::code::outcome;

    let (ended, value, error) = match answer {
        Answer::Done(value) => (outcome::DONE, value, 0),
        Answer::Invalid => (outcome::INVALID, 0, 0),
        Answer::Valid(number) => (outcome::VALID, number, 0),
        Answer::Exception(vector, error) => (outcome::EXCEPTION, vector, error),
        Answer::Nothing => return,
    };
    seen.push(Seen::number(step, What::Outcome, ended));
    seen.push(Seen::number(step, What::Value, value));
    seen.push(Seen::number(step, What::Error, error));
}
