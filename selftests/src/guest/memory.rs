// SPDX-License-Identifier: GPL-2.0

//! The memory of a guest, which the guest changes at any time.

use std::ptr::null_mut;

use anyhow::Result;
use rustix::mm::{
    madvise, mmap_anonymous, mprotect, mremap_fixed, munmap, Advice, MapFlags, MprotectFlags,
    MremapFlags, ProtFlags,
};

use super::layout::{RAM, VMCB, VMCB_SLOT};

/// A type of which all bit patterns are values.
///
/// # Safety
///
/// All bit patterns are values, and there is no padding.
pub unsafe trait Plain: Copy {}

// SAFETY: These are integers.
unsafe impl Plain for u8 {}
// SAFETY: These are integers.
unsafe impl Plain for u16 {}
// SAFETY: These are integers.
unsafe impl Plain for u32 {}
// SAFETY: These are integers.
unsafe impl Plain for u64 {}

/// An anonymous mapping.
pub struct Mapping {
    base: *mut u8,
    size: usize,
}

// SAFETY: The mapping belongs to the process, and is accessed by volatile accesses only.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Creates a mapping of zeros.
    pub fn new(size: u64) -> Result<Self> {
        let size = usize::try_from(size)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: A new mapping where the kernel finds room touches no memory of this program.
        let base = unsafe { mmap_anonymous(null_mut(), size, protection, MapFlags::PRIVATE) }?;
        let base = base.cast();
        Ok(Self { base, size })
    }

    /// Returns the address in this process.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    fn at<T: Plain>(&self, offset: u64) -> *mut T {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + size_of::<T>() <= self.size && offset % align_of::<T>() == 0);
        // SAFETY: The offset is within the mapping.
        unsafe { self.base.add(offset).cast() }
    }

    /// Makes the mapping one of small pages.
    pub fn split(&self) -> Result<()> {
        // SAFETY: The mapping is ours; its content stays.
        unsafe { madvise(self.base.cast(), self.size, Advice::LinuxNoHugepage) }?;
        Ok(())
    }

    /// Makes the kernel provide the page of an offset.
    pub fn touch(&self, offset: u64) {
        let byte = self.at::<u8>(offset);
        // SAFETY: The pointer is into the mapping.
        unsafe { byte.write_volatile(byte.read_volatile()) };
    }

    /// Drops the content of a page: it is zeros after that.
    pub fn discard(&self, offset: u64) -> Result<()> {
        let page = self.at::<u8>(offset & !0xfff);
        // SAFETY: The page is in the mapping, which consists of plain bytes.
        unsafe { madvise(page.cast(), 0x1000, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// Makes the kernel refuse writes to the pages, or accept them again.
    pub fn protect(&self, writable: bool) -> Result<()> {
        let mut flags = MprotectFlags::READ;
        flags.set(MprotectFlags::WRITE, writable);
        // SAFETY: The mapping is ours. Nobody writes to it meanwhile but guests, for which KVM does.
        unsafe { mprotect(self.base.cast(), self.size, flags) }?;
        Ok(())
    }

    /// Reads a word.
    pub fn read(&self, offset: u64) -> u64 {
        // SAFETY: The pointer is into the mapping, and all bit patterns are values.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Writes a word.
    pub fn write(&self, offset: u64, value: u64) {
        // SAFETY: The pointer is into the mapping, to which there are no references.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// Returns a copy of the words.
    pub fn copy(&self) -> Vec<u64> {
        let words = (0..self.size as u64).step_by(8);
        words.map(|offset| self.read(offset)).collect()
    }

    /// Makes the content that of a copy again, where it is not.
    pub fn restore(&self, copy: &[u64]) {
        assert_eq!(size_of_val(copy), self.size);
        for (start, page) in (0..).step_by(0x1000).zip(copy.chunks(0x1000 / 8)) {
            let now = self.at::<u8>(start);
            // SAFETY: Both have so many bytes. What a guest writes meanwhile may be seen or not.
            let order =
                unsafe { libc::memcmp(now.cast(), page.as_ptr().cast(), size_of_val(page)) };
            if order != 0 {
                for (offset, word) in (start..).step_by(8).zip(page) {
                    self.write(offset, *word);
                }
            }
        }
    }

    /// Makes large pages of a part; returns whether the kernel did it.
    pub fn collapse(&self, offset: u64, size: u64) -> Result<bool> {
        let _ = self.at::<u64>(offset + size - 8);
        let size = usize::try_from(size)?;
        let part = self.at::<u8>(offset);
        // SAFETY: The part is in the mapping; its content stays.
        let result = unsafe { libc::madvise(part.cast(), size, libc::MADV_COLLAPSE) };
        Ok(result == 0)
    }

    /// Puts a copy of the pages in the place of the pages.
    pub fn replace(&self) -> Result<()> {
        self.replace_part(0, self.size as u64)
    }

    /// Puts a copy of some pages in the place of these pages.
    pub fn replace_part(&self, start: u64, size: u64) -> Result<()> {
        let copy = std::mem::ManuallyDrop::new(Self::new(size)?);
        for offset in (0..size).step_by(8) {
            copy.write(offset, self.read(start + offset));
        }
        // SAFETY: The old pages are in a mapping of ours, to which there are no references.
        unsafe {
            mremap_fixed(
                copy.base.cast(),
                copy.size,
                copy.size,
                MremapFlags::MAYMOVE,
                self.at::<u8>(start).cast(),
            )
        }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast(), self.size) };
    }
}

/// The memory of a guest, which survives machines that use it.
pub struct GuestMemory {
    /// The memory at address 0.
    pub ram: Mapping,
    /// That of vmcb12.
    pub vmcb: Mapping,
}

impl GuestMemory {
    /// Creates memory of zeros.
    pub fn new() -> Result<Self> {
        Ok(Self {
            ram: Mapping::new(RAM)?,
            vmcb: Mapping::new(VMCB_SLOT)?,
        })
    }

    fn at<T: Plain>(&self, address: u64) -> *mut T {
        if address >= VMCB {
            self.vmcb.at(address - VMCB)
        } else {
            self.ram.at(address)
        }
    }

    /// Reads what the guest has at `address`.
    pub fn read<T: Plain>(&self, address: u64) -> T {
        // SAFETY: The pointer is into a mapping, and all bit patterns are values.
        unsafe { self.at::<T>(address).read_volatile() }
    }

    /// Writes what the guest finds at `address`.
    pub fn write<T: Plain>(&self, address: u64, value: T) {
        // SAFETY: The pointer is into a mapping to which there are no references.
        unsafe { self.at::<T>(address).write_volatile(value) }
    }

    /// Sets bits.
    pub fn set(&self, address: u64, bits: u64) {
        self.write(address, self.read::<u64>(address) | bits);
    }

    /// Clears bits.
    pub fn clear(&self, address: u64, bits: u64) {
        self.write(address, self.read::<u64>(address) & !bits);
    }

    /// Fills bytes, which are whole words.
    pub fn fill(&self, address: u64, size: u64, value: u64) {
        for offset in (0..size).step_by(8) {
            self.write(address + offset, value);
        }
    }
}

/// Bytes at the end of a page behind which there is none.
pub struct Guarded {
    pages: Mapping,
    start: usize,
}

impl Guarded {
    /// Copies bytes, at most a page of them, whose number is a multiple of 8.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let pages = Mapping::new(0x2000)?;
        let start = 0x1000 - bytes.len();
        for (offset, byte) in (start as u64..).zip(bytes) {
            // SAFETY: The pointer is into the mapping.
            unsafe { pages.at::<u8>(offset).write_volatile(*byte) };
        }
        // SAFETY: The second page is ours, and nothing is there.
        unsafe { munmap(pages.at::<u8>(0x1000).cast(), 0x1000) }?;
        Ok(Self { pages, start })
    }

    /// Offers the bytes to KVM as a nested state; returns whether they are accepted.
    pub fn offer(&self, vcpu: &kvm_ioctls::VcpuFd) -> bool {
        let request = 1 << 30 | 128 << 16 | 0xaebf;
        let bytes = self.pages.at::<u8>(self.start as u64);
        // SAFETY: The request reads memory only, and fails if there is none.
        0 == unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(vcpu), request, bytes) }
    }
}
