// SPDX-License-Identifier: GPL-2.0

//! The root that a vCPU runs L2 with.

use super::{
    fault::L2,
    Vm,
    NO_ADDRESS, //
};
use crate::{
    bindings,
    Vcpu, //
};
use kernel::{
    ffi::c_int,
    prelude::*, //
};
use nested::{
    address::L2Gpa,
    mmu::{
        access::Access,
        counters::Event,
        format::RootKey,
        shadow::{
            RootRefusal,
            RootUse, //
        },
        walk::Walk, //
    }, //
};

/// What a vCPU has loaded, which the vendor's module keeps for it.
///
/// Before it is dropped, [`unload_root()`] has to be called.
#[derive(Default)]
pub struct LoadedRoot {
    root: Option<(RootKey, RootUse)>,
    /// The vCPU's last walk, which exists if there has been a root.
    pub(super) walk: Option<KBox<Walk>>,
    /// Roots of which the processor has nothing that is void. When the vCPU comes to another
    /// processor, KVM flushes all that is there.
    known: [u64; Self::KNOWN],
    /// The last access of L2 that L1 was asked for.
    pub(super) refused: Option<(L2Gpa, Access)>,
}

impl LoadedRoot {
    const KNOWN: usize = 4;

    /// Notes that a root is loaded, and returns whether it has to be flushed first: whoever had
    /// the same page as a root before may have left something.
    fn learn(&mut self, root: &RootUse) -> bool {
        let number = root.number();
        let place = self.known.iter().position(|known| *known == number);
        let last = place.unwrap_or(Self::KNOWN - 1);

        if let Some(part) = self.known.get_mut(..=last) {
            part.rotate_right(1);
            if let Some(first) = part.first_mut() {
                *first = number;
            }
        }
        place.is_none()
    }

    /// Forgets what the processor has: it has to be flushed.
    fn forget(&mut self) {
        self.known = [0; Self::KNOWN];
    }

    /// Returns the root and what it is one of.
    pub(super) fn get(&self) -> Option<(&RootKey, &RootUse)> {
        self.root.as_ref().map(|(key, root)| (key, root))
    }
}

/// How often pages are added to make a root.
const ATTEMPTS: u32 = 64;

/// Makes KVM load the root that L2 is to run with: the op `mmu_load`.
pub fn load_root(l2: &mut impl L2) -> c_int {
    match load(l2) {
        Ok(flush) => c_int::from(flush),
        Err(error) => error.to_errno(),
    }
}

/// Returns whether a flush is needed.
fn load(l2: &mut impl L2) -> Result<bool> {
    let key = l2.key();
    let vm = Vm::of(l2.vcpu());
    let tables = vm.tables();

    release_root(l2);
    if l2.loaded_root().walk.is_none() {
        let walk = KBox::new(Walk::default(), GFP_KERNEL_ACCOUNT)?;
        l2.loaded_root().walk = Some(walk);
    }
    for _ in 0..ATTEMPTS {
        let found = tables
            .read(vm, |shadow| {
                let root = shadow.find_root(&key)?;
                Some((shadow.root_address(&root)?, root))
            })
            .flatten();
        let found = match found {
            Some(found) => Ok(found),
            None => tables.write(vm, |shadow| {
                let shadow = shadow.as_mut().ok_or(RootRefusal::NeedPages)?;
                let root = shadow.load_root(&key, &vm)?;
                let address = shadow.root_address(&root).ok_or(RootRefusal::Impossible)?;
                Ok((address, root))
            }),
        };
        match found {
            Ok(((address, _), root)) => {
                let page_table = l2.page_table();
                l2.vcpu().with_arch(|arch| {
                    arch.guest_mmu.root.hpa = address;
                    arch.guest_mmu.root.pgd = page_table;
                });
                let loaded = l2.loaded_root();
                let flush = loaded.learn(&root);
                loaded.root = Some((key, root));
                tables.note(vm, Event::Root, 1, NO_ADDRESS);
                return Ok(flush);
            }
            Err(RootRefusal::NeedPages) => tables.refill(l2.vcpu())?,
            Err(RootRefusal::Impossible) => return Err(EIO),
        }
    }
    Err(ENOMEM)
}

/// Gives up the root: the op `mmu_unload`. KVM forgets it.
pub fn release_root(l2: &mut impl L2) {
    let Some((_, root)) = l2.loaded_root().root.take() else {
        return;
    };
    let vm = Vm::of(l2.vcpu());

    vm.tables().read(vm, |shadow| shadow.release_root(root));
}

/// Makes KVM give up the root.
pub fn unload_root(vcpu: &Vcpu) {
    const ALL: usize = (1 << (1 + bindings::KVM_MMU_NUM_PREV_ROOTS)) - 1;

    let mmu = vcpu.with_arch(|arch| &raw mut arch.guest_mmu);
    // SAFETY: By the invariants of `Vcpu`; the MMU is a part of the vCPU.
    unsafe { bindings::kvm_mmu_free_roots((*vcpu.as_ptr()).kvm, mmu, ALL) }
}

/// Has the processor's translations by any root flushed before L2 runs with it again.
pub fn flush_roots(l2: &mut impl L2) {
    l2.loaded_root().forget();
    unload_root(l2.vcpu());
}

/// Makes sure that L2, which becomes active, does not run on the tables of another.
pub fn check_root(l2: &mut impl L2) {
    let key = l2.key();
    let is_other = match l2.loaded_root().get() {
        Some((loaded, _)) => *loaded != key,
        None => false,
    };

    if is_other {
        unload_root(l2.vcpu());
    }
}
