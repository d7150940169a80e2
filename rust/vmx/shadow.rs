// SPDX-License-Identifier: GPL-2.0

//! VMCS shadowing by the processor: L1 reads and writes the fields that it uses most without exits.
//!
//! They are in a VMCS of L0, beside vmcs01. What L1 has written there is copied to vmcs12 when L1
//! enters L2 or leaves the VMCS; what an exit of L2 has changed is copied back before L1 runs.

use crate::{
    capability::processor_fields,
    state::Private,
    vcpu::VmxVcpu,
    vmcs::host_field, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use kvm::{
    bindings,
    Preemption, //
};
use nested::{
    address::Gpa,
    vmx::{
        field::{
            load_shadow,
            store_shadow,
            Component,
            Extent,
            Field,
            FieldSet,
            Shadow,
            ShadowVmcs, //
        },
        vmcs12::REGION_SIZE,
        Vmcs12, //
    }, //
};

/// The addresses of the bitmaps for the processor, 0 without VMCS shadowing.
static VMREAD_BITMAP: Atomic<u64> = Atomic::new(0);
static VMWRITE_BITMAP: Atomic<u64> = Atomic::new(0);

const SHADOW_VMCS: u32 = 1 << 14;

/// Returns whether VMCS shadowing is used.
pub(crate) fn is_enabled() -> bool {
    VMREAD_BITMAP.load(Relaxed) != 0
}

/// The bitmaps that say which fields exit: one bit for an encoding.
///
/// # Invariants
///
/// kvm-intel writes the addresses of both to VMCSes as long as the value lives.
pub(crate) struct Bitmaps {
    // Not read by us: the processor does.
    _vmread: Bitmap,
    _vmwrite: Bitmap,
}

type Bitmap = KBox<[u64; 512]>;

impl Bitmaps {
    /// Makes the bitmaps, if the processor has VMCS shadowing and it is to be used.
    pub(crate) fn new() -> Result<Option<Self>> {
        let is_wanted = crate::module_parameters::enable_shadow_vmcs.value();
        // SAFETY: Reads a capability of the processor; kvm-intel is loaded.
        if !is_wanted || !unsafe { bindings::nested_helper_vmx_has_shadow_vmcs() } {
            return Ok(None);
        }
        let vmread = bitmap(|field| field.shadow() != Shadow::Trapped)?;
        let vmwrite = bitmap(|field| field.shadow() == Shadow::ReadWrite)?;

        VMREAD_BITMAP.store(physical_address(&vmread)?, Relaxed);
        VMWRITE_BITMAP.store(physical_address(&vmwrite)?, Relaxed);
        // INVARIANT: They are what `set_bitmaps()` writes.
        Ok(Some(Self {
            _vmread: vmread,
            _vmwrite: vmwrite,
        }))
    }
}

impl Drop for Bitmaps {
    fn drop(&mut self) {
        // No VM is left that uses them.
        VMREAD_BITMAP.store(0, Relaxed);
        VMWRITE_BITMAP.store(0, Relaxed);
    }
}

/// Makes a bitmap in which only the fields for which `passes` is true do not exit.
fn bitmap(passes: impl Fn(Field) -> bool) -> Result<Bitmap> {
    let mut bitmap: Bitmap = KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
    bitmap.fill(u64::MAX);

    for field in processor_fields().iter().filter(|field| passes(*field)) {
        let full = Component::full(field);
        for component in [Some(full), Component::high(field)].into_iter().flatten() {
            let encoding = usize::from(component.encoding());
            if let Some(word) = bitmap.get_mut(encoding / 64) {
                *word &= !(1 << (encoding % 64));
            }
        }
    }
    Ok(bitmap)
}

fn physical_address(bitmap: &Bitmap) -> Result<u64> {
    // SAFETY: The bitmap is in memory that the kernel has allocated.
    let address = unsafe { bindings::nested_helper_vmx_physical_address(bitmap.as_ptr().cast()) };

    // An allocation of the size of a page is one.
    Some(address)
        .filter(|&address| Gpa::from_raw(address).is_page_aligned())
        .ok_or(EINVAL)
}

/// Tells the current VMCS, a vmcs01 that is new, of the bitmaps.
///
/// # Safety
///
/// A VMCS of a vCPU is current on this processor.
pub(crate) unsafe fn set_bitmaps() {
    if is_enabled() {
        for (field, bitmap) in [
            (host_field::VMREAD_BITMAP, &VMREAD_BITMAP),
            (host_field::VMWRITE_BITMAP, &VMWRITE_BITMAP),
        ] {
            // SAFETY: By the requirements of this function.
            unsafe { bindings::nested_helper_vmx_write64(field, bitmap.load(Relaxed)) };
        }
    }
}

/// What is known of a shadow VMCS.
pub(crate) struct Image {
    /// The fields that the processor has.
    fields: FieldSet,
    /// What it holds, in the layout of vmcs12.
    content: KBox<[u64; REGION_SIZE / 8]>,
    /// Which fields the next copy has to write.
    stale: Extent,
}

impl Image {
    /// Allocates the image of a shadow VMCS of which nothing is known.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            fields: processor_fields(),
            content: KBox::init(pin_init::init_zeroed(), GFP_KERNEL_ACCOUNT)?,
            stale: Extent::All,
        })
    }

    fn parts(&mut self) -> (&FieldSet, &mut Vmcs12, &mut Extent) {
        // SAFETY: The region is larger than the type, which is made of integers.
        let content = unsafe { &mut *self.content.as_mut_ptr().cast() };

        (&self.fields, content, &mut self.stale)
    }
}

/// The shadow VMCS of a vCPU, loaded in place of its current VMCS.
///
/// # Invariants
///
/// `shadow` is current on this processor, and `current` was before and will be again.
struct Loaded {
    shadow: *mut bindings::vmcs,
    current: *mut bindings::vmcs,
    _preemption: Preemption,
}

impl Loaded {
    /// Loads the shadow VMCS, if there is one.
    fn new(vmx: &mut VmxVcpu) -> Option<Self> {
        let preemption = Preemption::disable();
        let shadow = vmx.fields().vmcs01.shadow_vmcs;
        let current = vmx.vmcs().region();

        if shadow.is_null() {
            return None;
        }
        // SAFETY: The VMCS is there as long as L1 is in VMX operation.
        unsafe { bindings::nested_helper_vmx_load(shadow) };
        // INVARIANT: It is current, and the thread stays on the processor.
        Some(Self {
            shadow,
            current,
            _preemption: preemption,
        })
    }
}

impl ShadowVmcs for Loaded {
    #[inline]
    fn read(&self, encoding: u16) -> u64 {
        // SAFETY: By the type invariants; only fields that the processor has are asked for.
        unsafe { bindings::nested_helper_vmx_read_shadow(u32::from(encoding)) }
    }

    #[inline]
    fn write(&mut self, encoding: u16, value: u64) {
        // SAFETY: As above.
        unsafe { bindings::nested_helper_vmx_write_shadow(u32::from(encoding), value) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. The processor must not write to it while L1 uses it as a
        // shadow VMCS.
        unsafe {
            bindings::nested_helper_vmx_clear(self.shadow);
            bindings::nested_helper_vmx_load(self.current);
        }
    }
}

/// Copies to vmcs12 what L1 has written without exits.
pub(crate) fn copy_to_vmcs12(vmx: &mut VmxVcpu) {
    let Some(loaded) = Loaded::new(vmx) else {
        return;
    };
    let private: *mut Private = vmx.private();
    // SAFETY: What is private is not a part of vmcs12, and nothing else uses it here.
    let Private { image, passed, .. } = unsafe { &mut *private };
    let (fields, image, _) = image.parts();

    load_shadow(vmx.vmcs12_mut(), image, fields, &loaded, |field| {
        passed.forget_field(u32::from(field.encoding()));
    });
}

/// Copies vmcs12 to where L1 reads and writes it without exits.
pub(crate) fn copy_from_vmcs12(vmx: &mut VmxVcpu) {
    let Some(mut loaded) = Loaded::new(vmx) else {
        return;
    };
    let private: *mut Private = vmx.private();
    // SAFETY: As in `copy_to_vmcs12()`.
    let (fields, image, stale) = unsafe { (*private).image.parts() };

    let extent = core::mem::replace(stale, Extent::Changed);
    store_shadow(vmx.vmcs12(), image, fields, &mut loaded, extent);
}

/// Makes a VMCS the current one of L1. Its snapshot has been taken.
pub(crate) fn set_current_vmptr(vmx: &mut VmxVcpu, pointer: Gpa) {
    vmx.nested().current_vmptr = pointer.into_raw();
    if is_enabled() {
        let shadow = vmx.fields().vmcs01.shadow_vmcs;
        // SAFETY: The VMCS is in memory that the kernel has allocated.
        let address = unsafe { bindings::nested_helper_vmx_physical_address(shadow.cast()) };
        let mut vmcs = vmx.vmcs();
        vmcs.set_secondary(vmcs.secondary() | SHADOW_VMCS);
        vmcs.write(Field::VMCS_LINK_POINTER, address);
        vmx.nested().need_vmcs12_to_shadow_sync = true;
    }
    vmx.private().forget();
    vmx.private().image.stale = Extent::All;
    vmx.nested().dirty_vmcs12 = true;
    vmx.nested().force_msr_bitmap_recalc = true;
}

/// Makes all VMREADs and VMWRITEs of L1 exit.
pub(crate) fn disable(vmx: &mut VmxVcpu) {
    let mut vmcs = vmx.vmcs();

    vmcs.set_secondary(vmcs.secondary() & !SHADOW_VMCS);
    vmcs.write(Field::VMCS_LINK_POINTER, u64::MAX);
    vmx.nested().need_vmcs12_to_shadow_sync = false;
}
