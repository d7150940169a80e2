// SPDX-License-Identifier: GPL-2.0

//! Pages of L1's memory that stay mapped from one access to the next.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h), `kvm_gpc_*()`.

use crate::{
    bindings,
    MappedPage,
    Vcpu, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    types::Opaque, //
};
use nested::{
    address::Gpa,
    memory::Inaccessible, //
};

/// How many pages a vCPU has mapped: a VMCB of L2 and one of L1 itself, for two vCPUs of L2.
const PAGES: usize = 4;

/// How often a page is looked up that is taken away meanwhile.
const ATTEMPTS: usize = 3;

/// The pages that a vCPU of L1 uses over and over.
///
/// KVM takes a page away when the host moves or swaps it, and when memory slots change; it is
/// looked up again when it is next used. An access holds it for as long as it takes.
///
/// # Invariants
///
/// The entries are initialized for the VM of the vCPU, and don't move.
pub struct PageCache {
    entries: KBox<[Entry; PAGES]>,
    /// The entry that the next other page gets.
    next: usize,
}

struct Entry {
    /// The page that the entry is for.
    gpa: Option<Gpa>,
    cache: Opaque<bindings::gfn_to_pfn_cache>,
}

impl PageCache {
    /// Makes a cache without pages.
    ///
    /// The VM of `vcpu` must outlive it, as it does what a vCPU owns.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if memory is short.
    pub fn new(vcpu: &Vcpu) -> Result<Self> {
        let entries = KBox::new(
            [(); PAGES].map(|()| Entry {
                gpa: None,
                cache: Opaque::new(bindings::gfn_to_pfn_cache::default()),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;

        for entry in entries.iter() {
            // SAFETY: The entry is zeroed and has the address that it keeps; by the invariants of
            // `Vcpu` the VM is there.
            unsafe { bindings::kvm_gpc_init(entry.cache.get(), (*vcpu.as_ptr()).kvm) };
        }
        // INVARIANT: All entries are initialized; nothing moves them out of the box.
        Ok(Self { entries, next: 0 })
    }

    /// Gives access to the page at `gpa`, for reading and writing.
    ///
    /// Nothing may sleep before the page is dropped.
    pub fn map<'a>(&'a mut self, vcpu: &'a Vcpu, gpa: Gpa) -> Result<MappedPage<'a>, Inaccessible> {
        // What is cached is not the memory of system-management mode.
        if !vcpu.is_smm() {
            if let Some(page) = self.lock(vcpu, gpa) {
                return Ok(page);
            }
        }
        MappedPage::new(vcpu, gpa)
    }

    /// Returns the page at `gpa`, if it can be kept.
    fn lock<'a>(&'a mut self, vcpu: &'a Vcpu, gpa: Gpa) -> Option<MappedPage<'a>> {
        let known = self.entries.iter().position(|entry| entry.gpa == Some(gpa));
        let index = known.unwrap_or(self.next);
        if known.is_none() {
            self.next = self.next.wrapping_add(1) % PAGES;
        }
        let entry = self.entries.get_mut(index)?;
        let cache = entry.cache.get();

        for _ in 0..ATTEMPTS {
            if entry.gpa == Some(gpa) {
                // SAFETY: By the type invariants.
                let page = unsafe { bindings::nested_helper_lock_page(cache) };
                if let Some(page) = NonNull::new(page) {
                    // SAFETY: The cache was locked, and the page is that at `gpa`.
                    return Some(unsafe { MappedPage::from_locked(vcpu, cache, page.cast()) });
                }
            }

            entry.gpa = None;
            // SAFETY: By the type invariants; memory slots are protected as for any access.
            if unsafe { bindings::kvm_gpc_activate(cache, gpa.into_raw(), PAGE_SIZE) } != 0 {
                return None;
            }
            // Who cleans a page of the host takes it away. One that is here is thus dirty as long
            // as it stays, once it was mapped for writing.
            drop(MappedPage::new(vcpu, gpa).ok()?);
            entry.gpa = Some(gpa);
        }
        None
    }
}

/// Size of a page, as KVM wants it.
const PAGE_SIZE: usize = nested::address::PAGE_SIZE as usize;

impl Drop for PageCache {
    fn drop(&mut self) {
        for entry in self.entries.iter() {
            // SAFETY: By the type invariants. No page is in use: that would borrow `self`.
            unsafe { bindings::kvm_gpc_deactivate(entry.cache.get()) }
        }
    }
}
