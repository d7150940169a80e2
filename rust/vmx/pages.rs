// SPDX-License-Identifier: GPL-2.0

//! Pages of L1 that vmcs02 refers to.
//!
//! They are mapped as long as L2 is active, so that the processor cannot write to memory that has
//! become another's. They stay mapped for the next entry, which asks KVM whether anything has become
//! of L1's memory meanwhile.

use crate::{
    hyperv,
    vcpu::VmxVcpu, //
};
use kvm::bindings;
use nested::{
    address::Gpa,
    checked::Checked,
    vmx::{
        field::Field,
        merge::{
            apic::{
                apic_access_page,
                posted_interrupt_descriptor,
                virtual_apic_page,
                ApicAccessPage,
                Backing,
                PostedInterruptDescriptor,
                VirtualApicPage, //
            },
            conditions::MsrBitmapUse,
            msr_bitmap::merge_msr_bitmap, //
        },
        Vmcs12, //
    }, //
};

/// What of L1's memory vmcs02 makes use of.
pub(crate) struct Pages {
    /// What is done about the virtual-APIC page.
    pub(crate) virtual_apic: VirtualApicPage,
    /// What is done about the posted-interrupt descriptor.
    pub(crate) descriptor: PostedInterruptDescriptor,
    /// Whether there is a merged MSR bitmap.
    pub(crate) msr_bitmap: MsrBitmapUse,
}

impl Pages {
    /// What is written to vmcs02 before the pages of a restored state can be mapped: L2 does not run
    /// with it.
    pub(crate) const NOT_YET: Self = Self {
        virtual_apic: VirtualApicPage::Illegal,
        descriptor: PostedInterruptDescriptor::Unused,
        msr_bitmap: MsrBitmapUse::Unused,
    };
}

/// There is no memory of L1 where vmcs02 needs it.
#[derive(Debug)]
pub(crate) struct Missing;

/// A state of L1's memory, as KVM counts its changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// Changes of where in the host the memory is.
    sequence: u64,
    /// Changes of the memory slots.
    generation: u64,
}

impl Epoch {
    /// Returns the state now, unless it is changing.
    fn now(vmx: &VmxVcpu) -> Option<Self> {
        let mut epoch = Self::default();

        // SAFETY: By the invariants of `VmxVcpu`; the counts are read as KVM's own users of mappings
        // read them: a change that comes later changes a count.
        unsafe {
            bindings::nested_helper_memory_epoch(
                vmx.as_ptr(),
                &raw mut epoch.sequence,
                &raw mut epoch.generation,
            )
        }
        .then_some(epoch)
    }
}

/// Releases all pages if any may not be L1's any more.
fn revalidate(vmx: &mut VmxVcpu) {
    let now = Epoch::now(vmx);

    if now.is_none() || vmx.private().mapped_in != now {
        unmap(vmx);
        vmx.private().mapped_in = now;
    }
}

/// Maps the page that `gpa` is in, unless it is; returns the address of the same byte in the host.
fn map(vmx: &VmxVcpu, gpa: u64, map: *mut bindings::kvm_host_map) -> Option<u64> {
    let page = Gpa::from_raw(gpa).page().into_raw() >> 12;

    // SAFETY: By the invariants of `VmxVcpu`; `map` is a part of the vCPU that is unused, or has
    // mapped a page for it that `revalidate()` has found to be valid.
    let is_mapped = unsafe {
        if !(*map).hva.is_null() && (*map).gfn == page {
            true
        } else {
            bindings::kvm_vcpu_unmap(vmx.as_ptr(), map);
            bindings::__kvm_vcpu_map(vmx.as_ptr(), page, map, true) == 0
        }
    };
    // SAFETY: As above.
    is_mapped.then(|| unsafe { (*map).pfn } << 12 | gpa & 0xfff)
}

fn backing(address: Option<u64>) -> Backing {
    match address {
        Some(_) => Backing::Memory,
        None => Backing::Nothing,
    }
}

/// Maps the pages that vmcs12 names, and writes their addresses to vmcs02.
pub(crate) fn map_all(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> Result<Pages, Missing> {
    revalidate(vmx);
    map_apic_access(vmx, vmcs12)?;

    Ok(Pages {
        virtual_apic: map_virtual_apic(vmx, vmcs12),
        descriptor: map_descriptor(vmx, vmcs12),
        msr_bitmap: merge_bitmaps(vmx, vmcs12),
    })
}

fn map_apic_access(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> Result<(), Missing> {
    let place = &raw mut vmx.nested().apic_access_page_map;
    let mut address = None;

    match apic_access_page(vmcs12, || {
        address = map(vmx, vmcs12.apic_access_addr, place);
        backing(address)
    }) {
        ApicAccessPage::Missing => return Err(Missing),
        ApicAccessPage::Unused | ApicAccessPage::Used => {}
    }
    if let Some(address) = address {
        vmx.vmcs().write(Field::APIC_ACCESS_ADDR, address);
    }
    Ok(())
}

fn map_virtual_apic(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> VirtualApicPage {
    /// An address that makes the processor refuse the entry.
    const ILLEGAL: u64 = u64::MAX;

    let place = &raw mut vmx.nested().virtual_apic_map;
    let mut address = None;
    let page = virtual_apic_page(vmcs12, || {
        address = map(vmx, vmcs12.virtual_apic_page_addr, place);
        backing(address)
    });

    match page {
        VirtualApicPage::Unused => {}
        VirtualApicPage::Used | VirtualApicPage::Illegal => {
            let address = address.unwrap_or(ILLEGAL);
            vmx.vmcs().write(Field::VIRTUAL_APIC_PAGE_ADDR, address);
        }
    }
    page
}

fn map_descriptor(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> PostedInterruptDescriptor {
    let place = &raw mut vmx.nested().pi_desc_map;
    let gpa = vmcs12.posted_intr_desc_addr;
    let mut address = None;
    let descriptor = posted_interrupt_descriptor(vmcs12, || {
        address = map(vmx, gpa, place);
        backing(address)
    });

    let nested = vmx.nested();
    match address {
        Some(address) => {
            let page: *mut u8 = nested.pi_desc_map.hva.cast();
            nested.pi_desc = page.wrapping_add((gpa & 0xfff) as usize).cast();
            vmx.vmcs().write(Field::POSTED_INTR_DESC_ADDR, address);
        }
        None => nested.pi_desc = core::ptr::null_mut(),
    }
    descriptor
}

fn merge_bitmaps(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> MsrBitmapUse {
    // A hypervisor that uses Hyper-V's interface says when it has changed nothing.
    if !vmx.nested().force_msr_bitmap_recalc && hyperv::msr_bitmap_is_unchanged(vmx) {
        return MsrBitmapUse::Merged;
    }
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };
    let merged = match vmx.msr_bitmaps() {
        Some((vmcs01, vmcs02)) => merge_msr_bitmap(vmcs12, memory, vmcs01, vmcs02),
        None => MsrBitmapUse::Unused,
    };
    if merged == MsrBitmapUse::Merged {
        vmx.nested().force_msr_bitmap_recalc = false;
    }
    merged
}

/// Has what the processor has written noted for user space: L2 is not active any more.
pub(crate) fn leave(vmx: &mut VmxVcpu) {
    // SAFETY: By the invariants of `VmxVcpu`; maps that are unused are left alone.
    unsafe { bindings::nested_helper_vmx_mark_pages_dirty(vmx.raw()) };
    vmx.nested().pi_desc = core::ptr::null_mut();
}

/// Releases the pages.
pub(crate) fn unmap(vmx: &mut VmxVcpu) {
    let vcpu = vmx.as_ptr();
    let nested = vmx.nested();

    for map in [
        &raw mut nested.apic_access_page_map,
        &raw mut nested.virtual_apic_map,
        &raw mut nested.pi_desc_map,
    ] {
        // SAFETY: By the invariants of `VmxVcpu`; a map that is unused is left alone.
        unsafe { bindings::kvm_vcpu_unmap(vcpu, map) };
    }
    nested.pi_desc = core::ptr::null_mut();
}
