// SPDX-License-Identifier: GPL-2.0

//! Address spaces: which ASID L2 runs with, and what is flushed when it starts (APM, "TLB Control"
//! and "Address Space Identifiers").
//!
//! A vCPU of L1 has an ASID of the host for L1 itself, and one for each ASID that L1 uses for an L2.
//! Hence a translation lives on while the other guest runs, until something ends its life:
//!
//! * L1 asks for a flush: by TLB_CONTROL, by another ASID, by INVLPGA. What L1 may expect then is
//!   that its nested page tables are read anew, so that the shadow of them is synchronized, too.
//! * L0 changes what L1's memory is mapped to: all ASIDs are flushed, those that do not run at the
//!   latest before they do.
//!
//! ASIDs of the host belong to a processor and are assigned by L0 in generations, see [`Assigned`].

use core::mem::swap;

use super::{
    bits::{misc, tlb},
    vmcb12::Control12,
};

/// The number of ASIDs that KVM lets L1 have, the host's own one included.
const COUNT: usize = 8;

/// An ASID of the host.
///
/// L0 does not assign the same number twice to a processor in a generation, and before the first of
/// a generation is used, it flushes all that the processor holds. Thus none that is the same as
/// another one was ever assigned to something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The processor.
    pub cpu: i32,
    /// The generation.
    pub generation: u64,
    /// The number.
    pub asid: u32,
}

/// What VMRUN flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// The translations of the ASID that are not global.
    NonGlobal,
    /// All translations of the ASID.
    Asid,
}

impl Flush {
    /// Returns the value of TLB_CONTROL.
    pub const fn tlb_control(self) -> u8 {
        match self {
            Self::Nothing => tlb::NOTHING,
            Self::NonGlobal => tlb::NON_GLOBAL,
            Self::Asid => tlb::ASID,
        }
    }
}

/// Whether the host's processors can flush one ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushByAsid {
    /// They can.
    Present,
    /// They can flush all ASIDs only: a flush is done by taking another ASID.
    Absent,
}

/// An ASID of the host and the flush that it needs before it is used.
///
/// There is no way to the one without the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    assigned: Assigned,
    pending: Flush,
}

/// What L1 knows of its address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// L1 expects no more of it than the processor gives.
    Unchanged,
    /// L1 expects that nothing of what was read of its page tables so far is used.
    Stale,
}

/// What decides how nested page tables are read. TLBs do not distinguish this; the shadow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The address of L1's nested page tables.
    pub nested_cr3: u64,
    /// L1's CR4.
    pub cr4: u64,
    /// L1's EFER.
    pub efer: u64,
    /// The guest-mode execution trap.
    pub gmet: bool,
}

impl Tables {
    /// The memory of L1.
    const NONE: Self = Self {
        nested_cr3: 0,
        cr4: 0,
        efer: 0,
        gmet: false,
    };

    /// Returns what L2 runs on by `control`; `cr4` and `efer` are those of L1.
    ///
    /// Without nested paging it is the memory of L1, whatever L1's registers are.
    pub fn new(control: &Control12, cr4: u64, efer: u64) -> Self {
        if !control.nested_paging() {
            return Self::NONE;
        }
        Self {
            nested_cr3: control.nested_cr3.into_raw(),
            cr4,
            efer,
            gmet: control.misc_ctl & misc::GMET != 0,
        }
    }
}

/// What L1 asks for when it runs L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// L1's ASID of L2.
    pub asid: u32,
    /// L1's TLB_CONTROL.
    pub tlb_control: u8,
    /// L2's page tables.
    pub tables: Tables,
}

/// The machine that L2 is to run on.
pub trait Machine {
    /// Makes L2 run with `asid`, or with one that L0 assigns, and have `flush` done before that.
    fn load(&mut self, asid: Option<Assigned>, flush: Flush);

    /// Makes the shadow of L1's nested page tables follow them before L2 runs.
    fn synchronize(&mut self);

    /// Has L1's own translations flushed before L1 runs.
    fn flush_l1(&mut self);
}

/// What is to be done for L2 to run.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Entry {
    tag: Option<Tag>,
    synchronizes: bool,
    flushes_l1: bool,
}

impl Entry {
    /// Does it.
    pub fn carry_out(self, machine: &mut impl Machine) {
        match self.tag {
            Some(tag) => machine.load(Some(tag.assigned), tag.pending),
            None => machine.load(None, Flush::Asid),
        }
        if self.synchronizes {
            machine.synchronize();
        }
        if self.flushes_l1 {
            machine.flush_l1();
        }
    }
}

/// What is known of L2's ASID when L2 has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The ASID that it ran with, if L0 has assigned one.
    pub assigned: Option<Assigned>,
    /// TLB_CONTROL of vmcb02: not 0 if a flush was asked for and L2 has not run since.
    pub tlb_control: u8,
}

/// Who has to act when a page of an address space is invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Invalidated {
    /// Nobody: it is flushed before it is used.
    Later,
    /// L2 is running with it: it has to be flushed, and the shadow to be synchronized, before L2
    /// goes on.
    InUse,
}

/// One of L1's address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Space {
    asid: u32,
    tables: Tables,
    state: State,
    tag: Option<Tag>,
}

impl Space {
    const fn new(asid: u32, tables: Tables) -> Self {
        Self {
            asid,
            tables,
            state: State::Stale,
            tag: None,
        }
    }

    fn make_stale(&mut self) {
        self.state = State::Stale;
        self.flush();
    }

    fn flush(&mut self) {
        if let Some(tag) = &mut self.tag {
            tag.pending = Flush::Asid;
        }
    }
}

/// Whether L2 has run since it was entered or flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    No,
    Yes,
}

/// The address space that L2 runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Active {
    asid: u32,
    ran: Ran,
}

/// The address spaces of L2 on a vCPU of L1.
#[derive(Debug)]
pub struct AddressSpaces {
    /// In the order of their last use. Those with ASID 0 are not in use.
    spaces: [Space; COUNT],
    active: Option<Active>,
    flush_by_asid: FlushByAsid,
}

impl AddressSpaces {
    /// Returns those of a vCPU that has not run an L2.
    pub const fn new(flush_by_asid: FlushByAsid) -> Self {
        Self {
            spaces: [Space::new(0, Tables::NONE); COUNT],
            active: None,
            flush_by_asid,
        }
    }

    /// L1 runs L2; `cpu` is the processor that vmcb02 was used on last.
    pub fn enter(&mut self, request: Request, cpu: i32) -> Entry {
        let (flush, flushes_all) = match request.tlb_control {
            tlb::NOTHING => (Flush::Nothing, false),
            tlb::NON_GLOBAL => (Flush::NonGlobal, false),
            tlb::ASID => (Flush::Asid, false),
            // What the others do is not defined: this is the most that they can.
            _ => (Flush::Asid, true),
        };

        if flushes_all {
            self.each(Space::make_stale);
        }
        self.active = Some(Active {
            asid: request.asid,
            ran: Ran::No,
        });

        let flush_by_asid = self.flush_by_asid;
        let space = self.find_or_add(request);
        if flush != Flush::Nothing {
            space.state = State::Stale;
        }
        // An ASID cannot be used on another processor, nor be flushed without the feature.
        space.tag = space.tag.filter(|tag| tag.assigned.cpu == cpu);
        if let Some(tag) = &mut space.tag {
            tag.pending = tag.pending.max(flush);
            if flush_by_asid == FlushByAsid::Absent && tag.pending != Flush::Nothing {
                space.tag = None;
            }
        }

        Entry {
            tag: space.tag,
            synchronizes: space.state == State::Stale,
            flushes_l1: flushes_all,
        }
    }

    /// L2 has been run by the processor.
    #[inline]
    pub fn note_run(&mut self) {
        if let Some(active) = &mut self.active {
            active.ran = Ran::Yes;
        }
    }

    /// L2 has exited to L1.
    pub fn leave(&mut self, left: Left) {
        let Some(active) = self.active.take() else {
            return;
        };
        let Some(space) = self.find(active.asid) else {
            return;
        };

        if active.ran == Ran::Yes {
            space.state = State::Unchanged;
            space.tag = left.assigned.map(|assigned| Tag {
                assigned,
                pending: Flush::Nothing,
            });
        } else {
            // Without flush by ASID, L0 flushes by making the ASID another one.
            space.tag = space.tag.filter(|tag| left.assigned == Some(tag.assigned));
        }
        // A flush that was to come with the next run of L2, and did not.
        if left.tlb_control != tlb::NOTHING {
            space.flush();
        }
    }

    /// L0 has flushed the ASID of the guest that is running: the others must follow.
    pub fn flush(&mut self) {
        let active = self.active.map(|active| active.asid);

        self.each(|space| {
            if Some(space.asid) != active {
                space.flush();
            }
        });
    }

    /// L1, or L2 with its consent, invalidates a page of the address space `asid`, not 0.
    ///
    /// The instruction may invalidate more than its operand says; all is what this does.
    pub fn invalidate(&mut self, asid: u32) -> Invalidated {
        if let Some(space) = self.find(asid) {
            space.make_stale();
        }
        match &mut self.active {
            Some(active) if active.asid == asid => {
                active.ran = Ran::No;
                Invalidated::InUse
            }
            _ => Invalidated::Later,
        }
    }

    /// Nothing that has been is of use: L2 was left without an exit.
    pub fn forget(&mut self) {
        *self = Self::new(self.flush_by_asid);
    }

    fn each(&mut self, act: impl FnMut(&mut Space)) {
        self.spaces.iter_mut().for_each(act);
    }

    fn find(&mut self, asid: u32) -> Option<&mut Space> {
        self.spaces.iter_mut().find(|space| space.asid == asid)
    }

    /// Returns the address space of `request`, which is stale if L1 did not use it like that last.
    fn find_or_add(&mut self, request: Request) -> &mut Space {
        let [recent, others @ ..] = &mut self.spaces;

        // Those that are passed move on by one place: the last is what was not used for longest.
        for other in others {
            if recent.asid == request.asid {
                break;
            }
            swap(recent, other);
        }
        if recent.asid != request.asid {
            *recent = Space::new(request.asid, request.tables);
        }
        if recent.tables != request.tables {
            recent.tables = request.tables;
            recent.make_stale();
        }
        recent
    }
}

#[cfg(test)]
#[path = "asid_tests.rs"]
mod tests;
