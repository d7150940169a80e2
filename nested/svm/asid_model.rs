// SPDX-License-Identifier: GPL-2.0

//! Random histories of vCPUs on processors whose TLBs are modelled, one page for each ASID and kind:
//! no translation that is used may be another guest's, or older than what must have ended its life.

use super::*;
use crate::svm::testing::noise;
use std::collections::HashMap;

/// Whether the page of the guest is global.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Page {
    Global,
    NonGlobal,
}

/// Whose translation it is: the vCPU's L1, or the L2 in one of its address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    L1(usize),
    L2(usize, u32, Tables),
}

/// What a TLB holds.
#[derive(Clone, Copy, Debug)]
struct Translation {
    guest: Guest,
    /// When the guest's tables were read.
    tables_read: u64,
    /// When it was translated.
    made: u64,
}

/// A processor, and how kvm-amd assigns its ASIDs.
#[derive(Debug)]
struct Processor {
    tlb: HashMap<(u32, Page), Translation>,
    generation: u64,
    next: u32,
    flush_all: bool,
}

const MAX_ASID: u32 = 6;

/// The part of a VMCB that matters, and what kvm-amd keeps beside it.
#[derive(Debug)]
struct Control {
    cpu: i32,
    generation: u64,
    asid: u32,
    tlb_control: u8,
}

const UNUSED: Control = Control {
    cpu: -1,
    generation: 0,
    asid: 0,
    tlb_control: 0,
};

#[derive(Debug)]
struct Vcpu {
    index: usize,
    spaces: AddressSpaces,
    flush_by_asid: FlushByAsid,
    cpu: usize,
    asid: u32,
    vmcb01: Control,
    vmcb02: Control,
    l2: Option<Request>,
    synchronize: bool,
    /// What must be younger: L1's pages, those of each ASID of L1, and all because of L0.
    floor_l1: u64,
    floor_l2: HashMap<(u32, Page), u64>,
    floor_all_l2: u64,
    floor_l0: u64,
}

impl Machine for Vcpu {
    fn load(&mut self, asid: Option<Assigned>, flush: Flush) {
        match asid {
            Some(assigned) => {
                self.asid = assigned.asid;
                self.vmcb02.generation = assigned.generation;
            }
            None => self.vmcb02.generation = 0,
        }
        self.vmcb02.tlb_control = match self.flush_by_asid {
            FlushByAsid::Present => flush.tlb_control(),
            FlushByAsid::Absent => {
                assert!(asid.is_none() || flush == Flush::Nothing);
                0
            }
        };
    }

    fn synchronize(&mut self) {
        self.synchronize = true;
    }

    fn flush_l1(&mut self) {
        flush(&mut self.vmcb01, self.flush_by_asid);
    }
}

/// What kvm-amd does to flush the ASID of a VMCB.
fn flush(control: &mut Control, flush_by_asid: FlushByAsid) {
    match flush_by_asid {
        FlushByAsid::Present => control.tlb_control = tlb::ASID,
        FlushByAsid::Absent => control.generation = control.generation.wrapping_sub(1),
    }
}

impl Vcpu {
    fn new(index: usize, flush_by_asid: FlushByAsid) -> Self {
        Self {
            index,
            spaces: AddressSpaces::new(flush_by_asid),
            flush_by_asid,
            cpu: 0,
            asid: 0,
            vmcb01: UNUSED,
            vmcb02: UNUSED,
            l2: None,
            synchronize: false,
            floor_l1: 0,
            floor_l2: HashMap::new(),
            floor_all_l2: 0,
            floor_l0: 0,
        }
    }

    fn enter(&mut self, request: Request, now: u64) {
        let mut flushed = |page| self.floor_l2.insert((request.asid, page), now);
        match request.tlb_control {
            0 => (),
            3 => {
                flushed(Page::Global);
                flushed(Page::NonGlobal);
            }
            7 => {
                flushed(Page::NonGlobal);
            }
            _ => {
                self.floor_all_l2 = now;
                self.floor_l1 = now;
            }
        }
        self.l2 = Some(request);
        let cpu = self.vmcb02.cpu;
        self.spaces.enter(request, cpu).carry_out(self);
    }

    fn leave(&mut self) {
        self.spaces.leave(Left {
            assigned: (self.vmcb02.generation != 0).then_some(Assigned {
                cpu: self.vmcb02.cpu,
                generation: self.vmcb02.generation,
                asid: self.asid,
            }),
            tlb_control: self.vmcb02.tlb_control,
        });
        self.l2 = None;
        self.asid = self.vmcb01.asid;
    }

    fn invalidate(&mut self, asid: u32, now: u64) {
        self.floor_l2.insert((asid, Page::Global), now);
        self.floor_l2.insert((asid, Page::NonGlobal), now);
        match self.spaces.invalidate(asid) {
            Invalidated::Later => (),
            Invalidated::InUse => {
                self.synchronize = true;
                self.flush_by_l0();
            }
        }
    }

    /// L0 flushes the current ASID, and tells.
    fn flush_by_l0(&mut self) {
        let l2 = self.l2.is_some();
        let current = if l2 {
            &mut self.vmcb02
        } else {
            &mut self.vmcb01
        };
        flush(current, self.flush_by_asid);
        self.spaces.flush();
        if l2 {
            self.flush_l1();
        }
    }

    /// Runs the current guest, which accesses `page`. `shadows` says when each was synchronized.
    fn run(
        &mut self,
        processor: &mut Processor,
        shadows: &mut HashMap<u64, u64>,
        page: Page,
        now: u64,
    ) {
        let cpu = i32::try_from(self.cpu).unwrap();
        let synchronize = std::mem::take(&mut self.synchronize);
        if let (Some(request), true) = (self.l2, synchronize) {
            shadows.insert(request.tables.nested_cr3, now);
        }

        // What kvm-amd does before VMRUN.
        let current_cpu = if self.l2.is_some() {
            self.vmcb02.cpu
        } else {
            self.vmcb01.cpu
        };
        if current_cpu != cpu {
            self.vmcb01.generation = 0;
            self.vmcb02.generation = 0;
        }
        let control = if self.l2.is_some() {
            &mut self.vmcb02
        } else {
            &mut self.vmcb01
        };
        control.cpu = cpu;
        if control.generation != processor.generation {
            if processor.next > MAX_ASID {
                processor.generation += 1;
                processor.next = 1;
                processor.flush_all = true;
            }
            control.generation = processor.generation;
            self.asid = processor.next;
            processor.next += 1;
        }
        control.asid = self.asid;
        if processor.flush_all {
            control.tlb_control = tlb::ALL;
        }

        // What the processor does.
        let asid = control.asid;
        match control.tlb_control {
            tlb::NOTHING => (),
            tlb::ALL => processor.tlb.clear(),
            tlb::NON_GLOBAL => {
                processor.tlb.remove(&(asid, Page::NonGlobal));
            }
            _ => processor.tlb.retain(|&(tagged, _), _| tagged != asid),
        }
        control.tlb_control = 0;
        processor.flush_all = false;

        let guest = match self.l2 {
            Some(request) => Guest::L2(self.index, request.asid, request.tables),
            None => Guest::L1(self.index),
        };
        let tables_read = match self.l2 {
            Some(request) => *shadows.entry(request.tables.nested_cr3).or_insert(now),
            None => now,
        };
        let used = *processor.tlb.entry((asid, page)).or_insert(Translation {
            guest,
            tables_read,
            made: now,
        });
        self.check(used, page);

        if self.l2.is_some() {
            self.spaces.note_run();
        }
    }

    fn check(&self, used: Translation, page: Page) {
        assert!(used.made >= self.floor_l0, "L0 has flushed: {used:?}");
        let guest = match self.l2 {
            Some(request) => Guest::L2(self.index, request.asid, request.tables),
            None => Guest::L1(self.index),
        };
        assert_eq!(used.guest, guest);

        let floor = match self.l2 {
            Some(request) => {
                let flushed = self.floor_l2.get(&(request.asid, page)).copied();
                flushed.unwrap_or(0).max(self.floor_all_l2)
            }
            None => self.floor_l1,
        };
        assert!(used.tables_read >= floor, "L1 has flushed: {used:?}");
    }
}

fn history(seed: u64, flush_by_asid: FlushByAsid) {
    let mut random = noise(seed);
    let mut below = |bound: u64| random() % bound;
    let mut processors: Vec<_> = (0..2)
        .map(|_| Processor {
            tlb: HashMap::new(),
            generation: 1,
            next: MAX_ASID + 1,
            flush_all: false,
        })
        .collect();
    let mut vcpus: Vec<_> = (0..3)
        .map(|index| Vcpu::new(index, flush_by_asid))
        .collect();
    let mut shadows = HashMap::new();

    for now in 1..400 {
        let vcpu = &mut vcpus[below(3) as usize];
        let page = if below(2) == 0 {
            Page::Global
        } else {
            Page::NonGlobal
        };
        match below(16) {
            0 => vcpu.cpu = below(2) as usize,
            1 => {
                vcpu.flush_by_l0();
                vcpu.floor_l0 = now;
            }
            2 => vcpu.invalidate(1 + below(9) as u32, now),
            3..=6 => match vcpu.l2 {
                Some(_) => vcpu.leave(),
                None => {
                    // Mostly nothing, and each value there is.
                    let tlb_control = below(32) as u8;
                    let asids = if below(4) == 0 { 10 } else { 2 };
                    let request = Request {
                        asid: 1 + below(asids) as u32,
                        tlb_control: if tlb_control < 8 { tlb_control } else { 0 },
                        tables: tables(0x1000 * (1 + below(8) / 6)),
                    };
                    vcpu.enter(request, now);
                }
            },
            _ => {
                let cpu = vcpu.cpu;
                vcpu.run(&mut processors[cpu], &mut shadows, page, now);
            }
        }
    }
}

#[test]
fn no_translation_outlives_its_flush() {
    for seed in 1..2000 {
        history(seed, FlushByAsid::Present);
        history(seed, FlushByAsid::Absent);
    }
}
