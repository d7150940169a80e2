// SPDX-License-Identifier: GPL-2.0

//! What a provider keeps of each VM that can use nested virtualization.

use crate::{
    bindings,
    mmu::Tables,
    stats::{
        self,
        Reason,
        VmStats, //
    }, //
};
use kernel::{
    error::from_result,
    ffi::c_int,
    prelude::*,
    sync::Arc, //
};
use nested::mmu::counters::Counters;

/// The provider's data of a VM, whose exits of L2 have reasons of type `R`.
#[pin_data]
#[repr(C)]
pub struct VmData<R: Reason> {
    /// The first member, whatever `R` is.
    tables: Tables,
    #[pin]
    stats: VmStats<R>,
}

impl<R: Reason + Send + Sync + 'static> VmData<R> {
    /// The op that is called when a VM that can use nested virtualization is created.
    ///
    /// # Safety
    ///
    /// `kvm` is a VM that no one else uses yet.
    pub unsafe extern "C" fn vm_init(kvm: *mut bindings::kvm) -> c_int {
        // SAFETY: By the requirements of this function.
        from_result(|| unsafe { Self::install(kvm) }.map(|()| 0))
    }

    /// The op that is called when such a VM is destroyed.
    ///
    /// # Safety
    ///
    /// [`Self::vm_init`] has succeeded for `kvm`, which has no vCPU any more.
    pub unsafe extern "C" fn vm_destroy(kvm: *mut bindings::kvm) {
        // SAFETY: By the requirements of this function, `kvm` is valid.
        let data = unsafe { (*kvm).arch.nested_data };

        // SAFETY: `install()` has set the pointer to such a box, and this is the end of the VM.
        drop(unsafe { KBox::<Self>::from_raw(data.cast()) });
    }

    /// Creates the data of `kvm`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if memory is short.
    ///
    /// # Safety
    ///
    /// `kvm` is a VM that no one else uses yet.
    unsafe fn install(kvm: *mut bindings::kvm) -> Result {
        let name = stats::next_name()?;
        let data = stats::with_root(|root| {
            let counters = Arc::new(Counters::default(), GFP_KERNEL_ACCOUNT)?;
            let stats = VmStats::new(root, &name, counters.clone())?;

            KBox::pin_init(
                try_pin_init!(Self {
                    tables: Tables::new(counters),
                    stats <- stats,
                }? Error),
                GFP_KERNEL_ACCOUNT,
            )
        })?;

        // SAFETY: The box is not moved out of: `vm_destroy()` makes a pinned box of it again.
        let data = KBox::into_raw(unsafe { Pin::into_inner_unchecked(data) });

        // SAFETY: By the requirements of this function, `kvm` is valid and no one else uses it yet.
        unsafe { (*kvm).arch.nested_data = data.cast() };
        Ok(())
    }
}

impl<R: Reason> VmData<R> {
    /// Returns the statistics of `kvm`.
    ///
    /// # Safety
    ///
    /// [`Self::vm_init`] must have succeeded for `kvm` with the same `R`, and [`Self::vm_destroy`]
    /// must not be called during `'a`.
    pub(crate) unsafe fn stats<'a>(kvm: *mut bindings::kvm) -> &'a VmStats<R> {
        // SAFETY: By the requirements of this function, `kvm` is valid and `nested_data` points to
        // data of this type.
        unsafe { &(*(*kvm).arch.nested_data.cast::<Self>()).stats }
    }
}

/// Returns the shadow tables of `kvm`.
///
/// # Safety
///
/// [`VmData::vm_init`] must have succeeded for `kvm`, and [`VmData::vm_destroy`] must not be called
/// during `'a`.
pub(crate) unsafe fn tables<'a>(kvm: *mut bindings::kvm) -> &'a Tables {
    // SAFETY: By the requirements of this function; the tables are the first member, whatever the
    // type of reasons is.
    unsafe { &*(*kvm).arch.nested_data.cast() }
}
