// SPDX-License-Identifier: GPL-2.0

//! Memory of L1.

use crate::{
    bindings,
    Vcpu, //
};
use core::{
    cell::Cell,
    marker::PhantomData,
    mem::size_of,
    ptr::NonNull, //
};
use kernel::ffi::c_ulong;
use nested::{
    address::{
        Gpa,
        PAGE_SIZE, //
    },
    memory::{
        GuestMemory,
        Inaccessible, //
    },
    svm::vmcb12::VmcbPage, //
};

impl GuestMemory for Vcpu {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
        if is_word(gpa, bytes) {
            // SAFETY: It is dropped at once.
            return unsafe { Window::new(self) }.read(gpa, bytes);
        }
        // SAFETY: By the invariants of `Vcpu`; the buffer has the length given.
        let result = unsafe {
            bindings::kvm_vcpu_read_guest(
                self.as_ptr(),
                gpa.into_raw(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
            )
        };

        if result == 0 {
            Ok(())
        } else {
            Err(Inaccessible)
        }
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Inaccessible> {
        // SAFETY: By the invariants of `Vcpu`; the buffer has the length given.
        let result = unsafe {
            bindings::kvm_vcpu_write_guest(
                self.as_ptr(),
                gpa.into_raw(),
                bytes.as_ptr().cast(),
                bytes.len(),
            )
        };

        if result == 0 {
            Ok(())
        } else {
            Err(Inaccessible)
        }
    }
}

/// Returns whether an access is one to 8 bytes that are in one page, which need less than what
/// `kvm_vcpu_read_guest()` is made for.
#[inline]
fn is_word(gpa: Gpa, bytes: &[u8]) -> bool {
    const WORD: u64 = size_of::<u64>() as u64;

    bytes.len() as u64 == WORD && gpa.into_raw() % PAGE_SIZE <= PAGE_SIZE - WORD
}

/// L1's memory, for several accesses to words of the same page: it is looked up once.
pub struct Window<'a> {
    vcpu: &'a Vcpu,
    /// The page that was accessed last, and its address in user space.
    page: Cell<Option<(Gpa, c_ulong)>>,
}

impl<'a> Window<'a> {
    /// Returns the memory of `vcpu`, for one op: the next one looks up the page again.
    ///
    /// # Safety
    ///
    /// It must be dropped before the op returns.
    pub unsafe fn new(vcpu: &'a Vcpu) -> Self {
        Self {
            vcpu,
            page: Cell::new(None),
        }
    }

    /// Returns the address in user space of the page at `gpa`.
    #[inline]
    fn address(&self, gpa: Gpa) -> Result<c_ulong, Inaccessible> {
        if let Some((page, address)) = self.page.get() {
            if page == gpa {
                return Ok(address);
            }
        }
        // SAFETY: By the invariants of `Vcpu`, the callers protect memory slots by SRCU.
        let address =
            unsafe { bindings::nested_helper_guest_page(self.vcpu.as_ptr(), gpa.into_raw()) };

        if address == 0 {
            return Err(Inaccessible);
        }
        self.page.set(Some((gpa, address)));
        Ok(address)
    }
}

impl GuestMemory for Window<'_> {
    #[inline]
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
        if !is_word(gpa, bytes) {
            return self.vcpu.read(gpa, bytes);
        }
        let offset = gpa.into_raw() % PAGE_SIZE;
        let address = self.address(gpa.page())?.wrapping_add(offset as usize);
        let mut value = 0;

        // SAFETY: By the requirements of `new()` the memory slot is still the one that the address
        // is of. Reading fails if there is nothing.
        match unsafe { bindings::nested_helper_read_user_u64(address, &raw mut value) } {
            0 => {
                for (to, from) in bytes.iter_mut().zip(value.to_ne_bytes()) {
                    *to = from;
                }
                Ok(())
            }
            _ => Err(Inaccessible),
        }
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Inaccessible> {
        self.vcpu.write(gpa, bytes)
    }
}

/// A page of L1's memory, to which the host has access as long as this lives.
///
/// # Invariants
///
/// `page` is the address of the page that `held` stands for.
pub struct MappedPage<'a> {
    vcpu: &'a Vcpu,
    held: Held,
    page: NonNull<u8>,
}

/// What keeps a page accessible.
///
/// # Invariants
///
/// A map was filled by `kvm_vcpu_map()` for the vCPU, and not unmapped yet. A cache is locked for
/// reading since it was found to be valid.
enum Held {
    Map(bindings::kvm_host_map),
    Cache(*mut bindings::gfn_to_pfn_cache),
}

impl<'a> MappedPage<'a> {
    /// Maps the page at `gpa`, for reading and writing.
    pub fn new(vcpu: &'a Vcpu, gpa: Gpa) -> Result<Self, Inaccessible> {
        let mut map = bindings::kvm_host_map::default();

        // SAFETY: By the invariants of `Vcpu`.
        let result = unsafe {
            bindings::__kvm_vcpu_map(vcpu.as_ptr(), gpa.into_raw() >> 12, &raw mut map, true)
        };
        if result != 0 {
            return Err(Inaccessible);
        }
        // INVARIANT: The map is filled, thus has an address.
        Ok(Self {
            vcpu,
            page: NonNull::new(map.hva.cast()).ok_or(Inaccessible)?,
            held: Held::Map(map),
        })
    }

    /// Takes over a page that is locked.
    ///
    /// # Safety
    ///
    /// `cache` must be a valid one of `vcpu`'s VM that is locked for reading, `page` its page, and
    /// the cache must live for `'a`.
    pub(crate) unsafe fn from_locked(
        vcpu: &'a Vcpu,
        cache: *mut bindings::gfn_to_pfn_cache,
        page: NonNull<u8>,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            vcpu,
            held: Held::Cache(cache),
            page,
        }
    }

    /// Returns the page.
    #[inline]
    pub fn page(&mut self) -> SharedPage<'_> {
        // SAFETY: By the type invariants the page is mapped, and it stays so as long as `self` is
        // borrowed.
        unsafe { SharedPage::from_raw(self.page) }
    }
}

impl Drop for MappedPage<'_> {
    #[inline]
    fn drop(&mut self) {
        let vcpu = self.vcpu.as_ptr();

        // SAFETY: By the invariants of `Held`, and of `Vcpu`.
        unsafe {
            match &mut self.held {
                Held::Map(map) => bindings::kvm_vcpu_unmap(vcpu, map),
                Held::Cache(cache) => bindings::nested_helper_unlock_page(vcpu, *cache),
            }
        }
    }
}

/// A page that a guest, or user space, writes to at the same time.
///
/// # Invariants
///
/// `base` is the address of a page that is mapped during `'a`.
pub struct SharedPage<'a> {
    base: NonNull<u8>,
    page: PhantomData<&'a mut [u8; 4096]>,
}

impl SharedPage<'_> {
    const SIZE: usize = 4096;

    /// Makes a page of its address.
    ///
    /// # Safety
    ///
    /// `base` must be the address of a page that is mapped as long as the value lives.
    pub unsafe fn from_raw(base: NonNull<u8>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            base,
            page: PhantomData,
        }
    }

    /// Returns the address of a `T` at `offset`, if it is aligned and in the page.
    #[inline]
    fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let size = size_of::<T>();

        if offset % size == 0 && offset <= Self::SIZE - size {
            // SAFETY: By the type invariants, the result is in the page.
            Some(unsafe { self.base.add(offset) }.cast())
        } else {
            None
        }
    }

    #[inline]
    fn read<T: Copy + Default>(&self, offset: usize) -> T {
        // SAFETY: By the type invariants and by `at()`, the address is valid; the access is
        // volatile as others may write to the page.
        self.at(offset)
            .map_or(T::default(), |at| unsafe { at.read_volatile() })
    }

    #[inline]
    fn write<T>(&mut self, offset: usize, value: T) {
        if let Some(at) = self.at(offset) {
            // SAFETY: As in `read()`.
            unsafe { at.write_volatile(value) }
        }
    }
}

impl VmcbPage for SharedPage<'_> {
    #[inline]
    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset)
    }

    #[inline]
    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset)
    }

    #[inline]
    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset)
    }

    #[inline]
    fn read_u64(&self, offset: usize) -> u64 {
        self.read(offset)
    }

    #[inline]
    fn write_u8(&mut self, offset: usize, value: u8) {
        self.write(offset, value);
    }

    #[inline]
    fn write_u16(&mut self, offset: usize, value: u16) {
        self.write(offset, value);
    }

    #[inline]
    fn write_u32(&mut self, offset: usize, value: u32) {
        self.write(offset, value);
    }

    #[inline]
    fn write_u64(&mut self, offset: usize, value: u64) {
        self.write(offset, value);
    }
}
