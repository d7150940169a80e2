// SPDX-License-Identifier: GPL-2.0

//! Cases of an L1 with SVM.

use anyhow::Result;
use kvm_ioctls::Kvm;

use super::mode::{Mode, Vectors};
use super::observe::{Seen, What};
use super::stage::{self, Stage};
use super::svm_script::{self as script, kind, Answer, NOTHING};
use super::svm_vocabulary::TASK_ATTRIBUTES;
use super::{code, Action, Case, Subject};
use crate::guest::layout::{OTHER_VMCS, REGISTERS, TASK, TSS, VMCB, VMCB_SLOT};
use crate::guest::vmcb;

/// Paging in CR0.
const PAGING: u64 = 1 << 31;

/// Long-mode enable in EFER.
const LONG_MODE_ENABLE: u64 = 1 << 8;

/// The register CS.
const CODE_SEGMENT: u64 = vmcb::SEGMENTS + 16;

/// The clean bits of what makes the mode: control registers, GDTR and IDTR, and the segments.
const CLEAN_MODE: u32 = 1 << 5 | 1 << 7 | 1 << 8;

/// The machine.
pub struct Svm {
    stage: Stage,
    /// The words of the VMCB at the beginning.
    vmcb: Vec<u64>,
}

impl Svm {
    /// Creates the machine.
    pub fn new(kvm: &Kvm) -> Result<Self> {
        let stage = Stage::new(kvm, script::interpreter)?;
        let mut this = Self {
            stage,
            vmcb: Vec::new(),
        };
        this.prepare();
        let words = (VMCB..VMCB + 0x1000).step_by(8);
        this.vmcb = words.map(|at| this.stage.machine.memory.read(at)).collect();
        Ok(this)
    }

    /// Writes a VMCB with which L2 would run.
    fn prepare(&self) {
        let memory = &self.stage.machine.memory;
        memory.fill(VMCB, VMCB_SLOT, 0);
        vmcb::write(memory, &self.stage.machine.tables, code::CODE);
        memory.write(TASK_ATTRIBUTES - 2, TASK);
        memory.write(TASK_ATTRIBUTES, 0x8bu16);
        memory.write(TASK_ATTRIBUTES + 2, 0x67u32);
        memory.write(TASK_ATTRIBUTES + 6, TSS);
        // What VMLOAD can load from has a task as well.
        for offset in (0..0x1000).step_by(8) {
            memory.write(OTHER_VMCS + offset, memory.read::<u64>(VMCB + offset));
        }
    }

    /// Lets L1 take some steps; what stops it is noted.
    fn execute(
        &mut self,
        round: &[Action],
        seen: &mut Vec<Seen>,
        step: usize,
    ) -> Result<Vec<Answer>> {
        let operations: Vec<_> = round.iter().map(Self::operation).collect();
        script::write(&self.stage.machine.memory, &operations);
        self.stage.run(seen, step)?;
        let memory = &self.stage.machine.memory;
        Ok(script::answers(memory, round.len()))
    }

    /// Gives L2 what it needs in the mode in which it begins.
    ///
    /// The clean bits hold for what is in the VMCB; of a VMCB with which this case has not entered L2
    /// yet, they would let L2 begin with the state of an earlier case.
    fn fit_mode(&self, is_first: bool) {
        let memory = &self.stage.machine.memory;
        let word = |at| memory.read::<u64>(at);
        let attributes = memory.read::<u16>(CODE_SEGMENT + 2);
        let mode = Mode {
            cr0: word(vmcb::CR0),
            rflags: word(vmcb::RFLAGS),
            long: word(vmcb::CR0) & PAGING != 0 && word(vmcb::EFER) & LONG_MODE_ENABLE != 0,
            code_is_64_bit: attributes & 1 << 9 != 0,
            code_is_32_bit: attributes & 1 << 10 != 0,
            rip: word(vmcb::RIP),
        };
        if let Some(Vectors { base, limit }) = mode.vectors() {
            memory.write(vmcb::IDTR + 4, limit as u32);
            memory.write(vmcb::IDTR + 8, base);
        }
        if let Some(segment) = mode.segment() {
            memory.write(CODE_SEGMENT + 8, segment.base);
            if let Some(selector) = segment.selector {
                memory.write(CODE_SEGMENT, selector as u16);
            }
            memory.write(vmcb::RIP, segment.rip);
        }
        let clean = memory.read::<u32>(vmcb::CLEAN);
        let dirty = if is_first { u32::MAX } else { CLEAN_MODE };
        memory.write(vmcb::CLEAN, clean & !dirty);
    }

    fn operation(action: &Action) -> (u64, [u64; 3]) {
        let [a, b, c] = action.operands;
        let kind = match action.verb {
            "vmrun" => kind::VMRUN,
            "vmload" => kind::VMLOAD,
            "vmsave" => kind::VMSAVE,
            "stgi" => kind::STGI,
            "clgi" => kind::CLGI,
            "skinit" => kind::SKINIT,
            "invlpga" => kind::INVLPGA,
            "vmmcall" => kind::VMMCALL,
            "rdmsr" => kind::RDMSR,
            "wrmsr" => kind::WRMSR,
            "cr0" => kind::CR0,
            "cr4" => kind::CR4,
            "map" => return (kind::SET, [a, u64::MAX, b]),
            _ => kind::SET,
        };
        (kind, [a, b, c])
    }
}

/// Returns whether L2 may run in another mode than L1.
fn changes_mode(case: &Case) -> bool {
    let mut changed = case.steps.iter().map(|step| step.operands[0]);
    let modes = [
        vmcb::CR0,
        vmcb::EFER,
        vmcb::RFLAGS,
        vmcb::CLEAN,
        CODE_SEGMENT,
    ];
    changed.any(|at| modes.contains(&at))
}

impl Subject for Svm {
    fn run(&mut self, case: &Case) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        self.stage.reset()?;
        self.prepare();
        self.stage.begin(case, REGISTERS);
        let mut first = 0;
        let mut is_first = true;
        while first < case.steps.len() && !self.stage.is_over() {
            let rest = case.steps.get(first..).unwrap_or_default();
            let entry = rest.iter().position(|step| step.verb == "vmrun");
            let count = entry.map_or(rest.len(), |entry| entry + 1);
            let round = rest.get(..count).unwrap_or_default();
            let last = first + count - 1;
            let answers = if entry.is_some() && changes_mode(case) {
                let mut answers = self.execute(&round[..count - 1], &mut seen, last)?;
                if !self.stage.is_over() {
                    self.fit_mode(is_first);
                    is_first = false;
                    answers.extend(self.execute(&round[count - 1..], &mut seen, last)?);
                }
                answers
            } else {
                self.execute(round, &mut seen, last)?
            };
            if self.stage.is_lost() {
                break;
            }
            for (step, answer) in (first..).zip(answers) {
                if answer.outcome == NOTHING {
                    break;
                }
                seen.push(Seen::number(step, What::Outcome, answer.outcome));
                seen.push(Seen::number(step, What::Value, answer.value));
                seen.push(Seen::number(step, What::Value, answer.vector));
                seen.push(Seen::number(step, What::Error, answer.error));
            }
            self.stage.observe(&mut seen, last)?;
            let memory = &self.stage.machine.memory;
            stage::words(memory, &mut seen, last, REGISTERS, 16);
            stage::words(memory, &mut seen, last, VMCB, VMCB_SLOT / 8);
            first += count;
        }
        Ok(seen)
    }

    fn be_patient(&mut self, patience: u32) {
        self.stage.patience = patience;
    }

    fn initial(&self, field: u64) -> u64 {
        // All that is changed is in a word.
        let word = self.vmcb.get((field.wrapping_sub(VMCB) / 8) as usize);
        word.map_or(0, |word| word >> (field % 8 * 8))
    }
}
