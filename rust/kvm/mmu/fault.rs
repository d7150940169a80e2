// SPDX-License-Identifier: GPL-2.0

//! Faults of L2.

use super::{
    root::LoadedRoot,
    Entries,
    Fault,
    Tables,
    Vm, //
};
use crate::{
    bindings,
    Vcpu, //
};
use core::{
    marker::PhantomData,
    sync::atomic::AtomicU64, //
};
use kernel::ffi::c_int;
use nested::{
    address::{
        Gpa,
        L2Gpa, //
    },
    memory::GuestTables,
    mmu::{
        access::{
            Access,
            Kind,
            Mode,
            Stage, //
        },
        counters::Event,
        format::RootKey,
        level::Level,
        npt::error,
        shadow::{
            Backing,
            Backings,
            Installation,
            Mapped,
            RootUse,
            Shadow,
            Target,
            Ticket,
            Tracking, //
        },
        walk::{
            Intent,
            Refusal,
            Request,
            Stop,
            Walk, //
        }, //
    }, //
};

/// What the vendor's module knows of an L2 that is active, and that L1 has nested paging for.
pub trait L2 {
    /// Whether the processor says what the access was if an entry was not one that it takes.
    const KNOWS_ACCESS_OF_RESERVED: bool;

    /// Returns the vCPU.
    fn vcpu(&self) -> &Vcpu;

    /// Returns what defines L1's tables.
    fn key(&mut self) -> RootKey;

    /// Returns what KVM knows L1's tables by: nCR3, or the EPT pointer.
    fn page_table(&self) -> u64;

    /// Returns where the vCPU's root is kept.
    fn loaded_root(&mut self) -> &mut LoadedRoot;

    /// Walks L1's tables for an access of L2.
    fn walk(
        &mut self,
        memory: &impl GuestTables,
        key: &RootKey,
        ticket: Ticket,
        request: &Request,
        found: &mut Walk,
    ) -> Result<(), Stop>;

    /// Returns what KVM is to keep of an access that it was to make in L2's place, and that L1's
    /// tables do not allow.
    fn fault(&mut self, refusal: &Refusal, access: Access) -> Fault;

    /// Exits to L1, as its tables do not allow the access of L2.
    fn refuse(&mut self, refusal: &Refusal, address: L2Gpa, access: Access);

    /// Returns the attributes of an entry in whose place L1's memory type is to be used, if that
    /// is the case.
    fn without_memory_type(attributes: u64) -> Option<u64>;
}

/// KVM has to emulate the instruction.
const EMULATE: c_int = 0;
/// The guest goes on.
const RESUME: c_int = 1;

/// How often a fault is tried again before the guest is, for KVM to look for signals.
const ATTEMPTS: u32 = 4;

/// Handles a fault of L2: the op `mmu_fault`.
pub fn handle_fault<L: L2>(l2: &mut L, address: u64, error_code: u64) -> c_int {
    let address = L2Gpa::from_raw(address);

    if error_code & error::RESERVED != 0 && is_known_mmio(l2, address) {
        count(l2, Event::KnownMmio, address);
        return EMULATE;
    }
    for _ in 0..ATTEMPTS {
        if let Some(result) = try_fault(l2, address, error_code) {
            return result;
        }
        let vm = Vm::of(l2.vcpu());
        if let Err(error) = vm.tables().refill(l2.vcpu()) {
            return error.to_errno();
        }
    }
    RESUME
}

/// Returns whether there is an entry for MMIO at the address, which is still true.
fn is_known_mmio<L: L2>(l2: &mut L, address: L2Gpa) -> bool {
    let Some(generation) = generation(l2.vcpu()) else {
        return false;
    };
    let vm = Vm::of(l2.vcpu());
    let Some((_, root)) = l2.loaded_root().get() else {
        return false;
    };

    vm.tables()
        .read(vm, |shadow| shadow.mmio(root, address, generation))
        .flatten()
        .is_some()
}

/// Returns the generation of memory slots, unless it is about to change.
fn generation(vcpu: &Vcpu) -> Option<u64> {
    let mut generation = 0;
    // SAFETY: By the invariants of `Vcpu`.
    let is_stable =
        unsafe { bindings::nested_helper_slot_generation(vcpu.as_ptr(), &raw mut generation) };

    is_stable.then_some(generation)
}

/// Returns what an access was that the processor has refused. KVM says so of EPT, too, by the error
/// codes of nested page faults.
pub(super) fn access_of(error_code: u64) -> Access {
    Access {
        kind: if error_code & error::FETCH != 0 {
            Kind::Fetch
        } else if error_code & error::WRITE != 0 {
            Kind::Write
        } else {
            Kind::Read
        },
        mode: if error_code & error::USER != 0 {
            Mode::User
        } else {
            Mode::Supervisor
        },
        stage: if error_code & error::PAGE_TABLE != 0 {
            Stage::PageTable
        } else {
            Stage::Final
        },
    }
}

/// Handles a fault; `None` if there have to be more pages first.
fn try_fault<L: L2>(l2: &mut L, address: L2Gpa, error_code: u64) -> Option<c_int> {
    let access = access_of(error_code);

    match try_map(l2, address, access, Intent::Demand) {
        Outcome::Mapped => {
            count(l2, Event::Mapped, address);
            Some(RESUME)
        }
        Outcome::Again => {
            count(l2, Event::Repeated, address);
            Some(RESUME)
        }
        Outcome::Emulate => {
            count(l2, Event::Emulated, address);
            Some(EMULATE)
        }
        Outcome::NeedPages => None,
        Outcome::Error(error) => Some(error),
        Outcome::Refused(refusal) => {
            count(l2, Event::Refused, address);
            forget(l2, address);
            // If it is not known what the access was, L2 repeats it now that the entry is gone.
            if error_code & error::RESERVED == 0 || L::KNOWS_ACCESS_OF_RESERVED {
                l2.loaded_root().refused = Some((address, access));
                l2.refuse(&refusal, address, access);
            }
            Some(RESUME)
        }
    }
}

/// Maps the page that L1 has been asked for, if it is there now: L2, which L1 has just entered, is
/// going to access it.
pub fn anticipate<L: L2>(l2: &mut L) {
    let Some((address, access)) = l2.loaded_root().refused.take() else {
        return;
    };
    let has_tables = l2
        .vcpu()
        .with_arch(|arch| core::ptr::eq(arch.mmu, &arch.guest_mmu));
    if !has_tables {
        return;
    }

    // If there are no pages left, the fault will see to that.
    if let Outcome::Mapped = try_map(l2, address, access, Intent::Speculative) {
        count(l2, Event::Anticipated, address);
    }
}

fn count(l2: &impl L2, event: Event, address: L2Gpa) {
    let vm = Vm::of(l2.vcpu());

    vm.tables().note(vm, event, 1, address);
}

/// What became of an access.
enum Outcome {
    /// It is mapped.
    Mapped,
    /// L2 has to try again.
    Again,
    /// It has to be emulated.
    Emulate,
    /// There have to be more pages.
    NeedPages,
    /// L1's tables do not allow it.
    Refused(Refusal),
    /// KVM cannot go on.
    Error(c_int),
}

/// Maps what L2 accesses.
fn try_map<L: L2>(l2: &mut L, address: L2Gpa, access: Access, intent: Intent) -> Outcome {
    // KVM loads a root before L2 goes on.
    let Some(mut walk) = l2.loaded_root().walk.take() else {
        return Outcome::Again;
    };
    let request = Request {
        address,
        access,
        intent,
    };
    let outcome = map_by(l2, &request, &mut walk);

    l2.loaded_root().walk = Some(walk);
    outcome
}

/// Maps what L2 accesses, with the vCPU's last walk at hand.
fn map_by<L: L2>(l2: &mut L, request: &Request, walk: &mut Walk) -> Outcome {
    let access = request.access;
    let vm = Vm::of(l2.vcpu());
    let tables = vm.tables();
    let Some((key, _)) = l2.loaded_root().get() else {
        return Outcome::Again;
    };
    let key = *key;
    let ticket = tables.sequences.begin(&key);

    // SAFETY: What is done with the reference, accessing L1's memory, is done with none of the
    // parts of `l2`, which lives as long as the op takes.
    let vcpu = unsafe { Vcpu::from_raw(l2.vcpu().as_ptr()) };
    match l2.walk(&Entries::new(vcpu), &key, ticket, request, walk) {
        Ok(()) => {}
        Err(Stop::Again) => return Outcome::Again,
        Err(Stop::Refused(refusal)) => return Outcome::Refused(refusal),
    }
    let Some((_, root)) = l2.loaded_root().get() else {
        return Outcome::Again;
    };

    let mut error_code = match access.kind {
        Kind::Read => 0,
        Kind::Write => error::WRITE,
        Kind::Fetch => error::FETCH,
    };
    // What the processor writes besides has to be writable for L0, too.
    if key.format.writes(access) {
        error_code |= error::WRITE;
    }
    let mut mapping = Mapping::<'_> {
        fault: bindings::kvm_nested_fault {
            l2_gpa: request.address.into_raw(),
            error_code,
            gfn: walk.page.into_raw() >> 12,
            max_level: i32::from(walk.level.number()),
            prefetch: request.intent == Intent::Speculative,
            map: Some(map::<L>),
            ..Default::default()
        },
        place: Place {
            vcpu,
            tables,
            root,
            access,
            ticket,
            has_flags: key.format.accessed_dirty(Level::Page4K).is_some(),
        },
        walk,
        needs_pages: false,
        is_to_settle: false,
    };
    // SAFETY: By the invariants of `Vcpu`. `map()` is called with this fault, which is the first
    // member of the mapping; the pointer is one to the whole.
    let result =
        unsafe { bindings::kvm_mmu_nested_fault(vcpu.as_ptr(), (&raw mut mapping).cast()) };

    if mapping.is_to_settle {
        tables.settle(vcpu);
    }
    if mapping.needs_pages {
        return Outcome::NeedPages;
    }
    match u32::try_from(result) {
        Ok(bindings::kvm_nested_fault_result_KVM_NESTED_FAULT_EMULATE) => Outcome::Emulate,
        Ok(bindings::kvm_nested_fault_result_KVM_NESTED_FAULT_FIXED) => Outcome::Mapped,
        Ok(_) => Outcome::Again,
        Err(_) => Outcome::Error(result),
    }
}

/// Forgets the translation of an address, as the processor does when it reports a fault.
pub fn forget<L: L2>(l2: &mut L, address: L2Gpa) {
    let vm = Vm::of(l2.vcpu());
    let tables = vm.tables();
    let Some((_, root)) = l2.loaded_root().get() else {
        return;
    };

    tables.read(vm, |shadow| {
        shadow.invalidate(&tables.sequences, root, address, &vm);
    });
}

/// What is to be mapped.
#[repr(C)]
struct Mapping<'a> {
    fault: bindings::kvm_nested_fault,
    place: Place<'a>,
    walk: &'a mut Walk,
    needs_pages: bool,
    /// There are enough new tables to track them.
    is_to_settle: bool,
}

/// Where something is to be mapped, and for what.
struct Place<'a> {
    vcpu: &'a Vcpu,
    tables: &'a Tables,
    root: &'a RootUse,
    access: Access,
    ticket: Ticket,
    /// The entries have dirty flags.
    has_flags: bool,
}

/// Maps a page, now that KVM has got hold of it.
///
/// # Safety
///
/// `fault` is part of a [`Mapping`]; `mmu_lock` is held for reading.
unsafe extern "C" fn map<L: L2>(
    vcpu: *mut bindings::kvm_vcpu,
    fault: *mut bindings::kvm_nested_fault,
) -> c_int {
    // SAFETY: By the requirements of this function.
    let (vcpu, mapping) = unsafe { (Vcpu::from_raw(vcpu), &mut *fault.cast::<Mapping<'_>>()) };
    // SAFETY: As above.
    let Some(shadow) = (unsafe { mapping.place.tables.locked_for_read() }) else {
        return RETRY;
    };

    match map_in::<L>(vcpu, mapping, shadow) {
        Mapped::Done { is_writable, .. } => {
            mapping.fault.writable = is_writable;
            mapping.is_to_settle = shadow.is_to_settle();
            FIXED
        }
        Mapped::Emulate => EMULATED,
        Mapped::Again | Mapped::WrongRoot => RETRY,
        Mapped::NeedPages => {
            mapping.needs_pages = true;
            RETRY
        }
    }
}

const RETRY: c_int = bindings::kvm_nested_fault_result_KVM_NESTED_FAULT_RETRY as c_int;
const EMULATED: c_int = bindings::kvm_nested_fault_result_KVM_NESTED_FAULT_EMULATE as c_int;
const FIXED: c_int = bindings::kvm_nested_fault_result_KVM_NESTED_FAULT_FIXED as c_int;

fn map_in<L: L2>(vcpu: &Vcpu, mapping: &mut Mapping<'_>, shadow: &Shadow<super::Pages>) -> Mapped {
    let Mapping {
        fault, place, walk, ..
    } = mapping;
    let target = if fault.slot.is_null() {
        match generation(vcpu) {
            Some(generation) => Target::Mmio { generation },
            None => return Mapped::Emulate,
        }
    } else {
        Target::Memory(place.backing::<L>(fault))
    };
    let vm = Vm::of(vcpu);
    let install = Installation::<'_, AtomicU64, _> {
        sequences: &place.tables.sequences,
        ticket: place.ticket,
        dirty: &vm,
    };

    let neighbours = Neighbours::<'_, L> {
        place,
        mmu_seq: fault.mmu_seq,
        l2: PhantomData,
    };
    let (mapped, count) = shadow.map(
        &install,
        place.root,
        walk,
        place.access,
        &target,
        &neighbours,
    );

    let tables = place.tables;
    tables.note(vm, Event::Neighbour, u64::from(count), walk.address);
    mapped
}

/// Pages beside the one that is mapped.
struct Neighbours<'a, L> {
    place: &'a Place<'a>,
    mmu_seq: kernel::ffi::c_ulong,
    l2: PhantomData<L>,
}

impl<L: L2> Backings for Neighbours<'_, L> {
    fn resident(&self, page: Gpa) -> Option<Backing> {
        let mut other = bindings::kvm_nested_fault {
            mmu_seq: self.mmu_seq,
            ..Default::default()
        };
        // SAFETY: By the invariants of `Vcpu`; called with `mmu_lock` held for reading.
        let is_resident = unsafe {
            bindings::kvm_mmu_nested_prefetch(
                self.place.vcpu.as_ptr(),
                &raw mut other,
                page.into_raw() >> 12,
            )
        };

        is_resident.then(|| self.place.backing::<L>(&other))
    }
}

impl Place<'_> {
    /// Returns what KVM has found out about a page.
    fn backing<L: L2>(&self, fault: &bindings::kvm_nested_fault) -> Backing {
        let (attributes, follow_memory_type) = match L::without_memory_type(fault.attributes) {
            Some(attributes) => (attributes, true),
            None => (fault.attributes, false),
        };

        Backing {
            physical: fault.pfn << 12,
            largest: match fault.level {
                3.. => Level::Page1G,
                2 => Level::Page2M,
                _ => Level::Page4K,
            },
            is_writable: fault.writable,
            tracking: if !fault.logged {
                Tracking::None
            } else if self.has_flags && Vm::of(self.vcpu).logs_by_flags() {
                Tracking::Flag
            } else {
                Tracking::Protect
            },
            attributes,
            follow_memory_type,
        }
    }
}
