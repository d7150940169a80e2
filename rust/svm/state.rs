// SPDX-License-Identifier: GPL-2.0

//! The nested state of a vCPU: its pages, and how user space saves and restores it.

use crate::{
    address_space,
    entry,
    exit,
    vcpu::{
        Gif,
        Private,
        SvmVcpu, //
    }, //
};
use core::{
    mem::{
        offset_of,
        size_of, //
    },
    ptr::NonNull, //
};
use kernel::{
    ffi::c_int,
    pr_warn_once,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use kvm::{
    bindings,
    mmu::{
        self,
        LoadedRoot, //
    },
    PageCache,
    RunPending,
    SharedPage, //
};
use nested::{
    address::Gpa,
    svm::{
        bits::register::{
            CR0_CD,
            CR0_NW,
            EFER_SVME, //
        },
        check::{
            check_saved_l1,
            is_legal_pat,
            vouch_control,
            Pat, //
        },
        Control12,
        Save12,
        Vmcb, //
    }, //
};

/// What stands for "there is none" where KVM keeps an address.
const INVALID_GPA: u64 = u64::MAX;

/// Allocates vmcb02 and the MSR permission map of L2, unless they are there.
pub(crate) fn allocate(svm: &mut SvmVcpu) -> Result {
    if svm.fields().nested.initialized {
        return Ok(());
    }

    let private = KBox::new(
        Private {
            address_spaces: address_space::new(),
            pages: PageCache::new(svm)?,
            root: LoadedRoot::default(),
        },
        GFP_KERNEL_ACCOUNT,
    )?;
    let mut address = 0;
    // SAFETY: Writes the physical address of the page.
    let vmcb02 = unsafe { bindings::nested_helper_svm_alloc_vmcb(&raw mut address) };
    if vmcb02.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: Allocates.
    let map = unsafe { bindings::nested_helper_svm_alloc_msr_map() };
    if map.is_null() {
        // SAFETY: The page was allocated above, and nothing refers to it.
        unsafe { bindings::nested_helper_svm_free_vmcb(vmcb02) };
        return Err(ENOMEM);
    }

    let nested = &mut svm.fields().nested;
    nested.provider_data = KBox::into_raw(private).cast();
    nested.vmcb02.ptr = vmcb02;
    nested.vmcb02.pa = address;
    nested.vmcb02.cpu = -1;
    nested.msrpm = map;
    nested.initialized = true;
    Ok(())
}

/// Frees what [`allocate()`] has allocated.
pub(crate) fn free(svm: &mut SvmVcpu) {
    if !svm.fields().nested.initialized {
        return;
    }
    // KVM has left L2 before. If that ever fails, the vCPU must not keep running with a freed page.
    if svm.fields().vmcb != svm.fields().vmcb01.ptr {
        pr_warn_once!("L2 is active while its VMCB is freed\n");
        svm.switch_to_vmcb01();
    }

    mmu::unload_root(svm);

    let nested = &mut svm.fields().nested;
    // SAFETY: All were allocated by `allocate()`, and the vCPU runs with vmcb01.
    unsafe {
        drop(KBox::<Private>::from_raw(nested.provider_data.cast()));
        bindings::nested_helper_svm_free_msr_map(nested.msrpm);
        bindings::nested_helper_svm_free_vmcb(nested.vmcb02.ptr);
    }
    nested.provider_data = core::ptr::null_mut();
    nested.msrpm = core::ptr::null_mut();
    nested.vmcb02.ptr = core::ptr::null_mut();
    // Another vmcb02 holds nothing of the vmcb12 that was loaded last.
    nested.last_vmcb12_gpa = INVALID_GPA;
    nested.initialized = false;
}

/// The header of the state that user space gets, `struct kvm_nested_state`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    flags: u16,
    format: u16,
    size: u32,
    vmcb12: u64,
    pat: u64,
    reserved: [u64; 13],
}

const HEADER_SIZE: usize = size_of::<Header>();
const VMCB_SIZE: usize = bindings::KVM_STATE_NESTED_SVM_VMCB_SIZE as usize;
const FORMAT: u16 = bindings::KVM_STATE_NESTED_FORMAT_SVM as u16;
const GUEST_MODE: u16 = bindings::KVM_STATE_NESTED_GUEST_MODE as u16;
const RUN_PENDING: u16 = bindings::KVM_STATE_NESTED_RUN_PENDING as u16;
const GIF_SET: u16 = bindings::KVM_STATE_NESTED_GIF_SET as u16;

const _: () = {
    assert!(HEADER_SIZE == size_of::<bindings::kvm_nested_state>());
    assert!(offset_of!(Header, vmcb12) == offset_of!(bindings::kvm_nested_state, hdr));
    assert!(VMCB_SIZE == 4096);
    assert!(size_of::<Vmcb>() <= VMCB_SIZE);
};

impl Header {
    fn bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
                *to = *from;
            }
        };

        put(offset_of!(Self, flags), &self.flags.to_ne_bytes());
        put(offset_of!(Self, format), &self.format.to_ne_bytes());
        put(offset_of!(Self, size), &self.size.to_ne_bytes());
        put(offset_of!(Self, vmcb12), &self.vmcb12.to_ne_bytes());
        put(offset_of!(Self, pat), &self.pat.to_ne_bytes());
        bytes
    }
}

/// A VMCB on its way from or to user space.
struct Buffer(KBox<[u64; VMCB_SIZE / 8]>);

impl Buffer {
    fn zeroed() -> Result<Self> {
        Ok(Self(KBox::init(
            pin_init::init_zeroed(),
            GFP_KERNEL_ACCOUNT,
        )?))
    }

    fn page(&mut self) -> SharedPage<'_> {
        // SAFETY: The buffer has the size of a page, and lives as long as the borrow.
        unsafe { SharedPage::from_raw(NonNull::from(&mut *self.0).cast()) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: All bytes of the array are initialized, and any are valid.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), VMCB_SIZE) }
    }

    /// Returns the state-save area.
    fn save(&mut self) -> *mut bindings::vmcb_save_area {
        self.0
            .as_mut_ptr()
            .wrapping_byte_add(offset_of!(Vmcb, save))
            .cast()
    }
}

/// Returns how large a state can be.
pub(crate) const fn largest_size() -> c_int {
    (HEADER_SIZE + VMCB_SIZE) as c_int
}

/// Copies the state to user space; returns its size, even where it does not fit.
pub(crate) fn get(svm: &mut SvmVcpu, user: UserPtr, room: u32) -> Result<c_int> {
    let mut header = Header {
        flags: 0,
        format: FORMAT,
        size: HEADER_SIZE as u32,
        vmcb12: 0,
        pat: 0,
        reserved: [0; 13],
    };
    if (room as usize) < HEADER_SIZE {
        return Ok(HEADER_SIZE as c_int);
    }

    let active = svm.is_guest_mode();
    if active {
        let control12 = *svm.control12();
        header.flags |= GUEST_MODE;
        header.size += VMCB_SIZE as u32;
        header.vmcb12 = svm.fields().nested.vmcb12_gpa;
        if svm.pat(&control12) == Pat::Separate {
            header.pat = svm.current_vmcb().save.g_pat;
        }
        if svm.run_pending() != RunPending::No {
            header.flags |= RUN_PENDING;
        }
    }
    if svm.gif() == Gif::Set {
        header.flags |= GIF_SET;
    }

    let size = header.size as c_int;
    let length = header.size as usize;
    let mut writer = UserSlice::new(user, length).writer();
    writer.write_slice(&header.bytes())?;
    if active {
        let mut buffer = Buffer::zeroed()?;
        svm.control12().store(&mut buffer.page());
        let save01: *const _ = &raw const svm.vmcb01().0.save;
        // SAFETY: Both are state-save areas: one in vmcb01, one in the buffer.
        unsafe { buffer.save().copy_from_nonoverlapping(save01.cast(), 1) };
        writer.write_slice(buffer.bytes())?;
    }
    Ok(size)
}

/// Restores a state, of which KVM has copied the header.
///
/// # Errors
///
/// `EINVAL` if the vCPU cannot have had that state, `EFAULT` if it is not readable.
pub(crate) fn set(svm: &mut SvmVcpu, user: UserPtr, header: &bindings::kvm_nested_state) -> Result {
    let flags = header.flags;
    if header.format != FORMAT || flags & !(GUEST_MODE | RUN_PENDING | GIF_SET) != 0 {
        return Err(EINVAL);
    }
    // While L2 is active it is L2's EFER: that has the bit set, too. Clearing it does not set GIF.
    let enabled = svm.with_arch(|arch| arch.efer & EFER_SVME != 0);
    if !enabled && flags != 0 && flags != GIF_SET {
        return Err(EINVAL);
    }
    let gif = if flags & GIF_SET == 0 {
        Gif::Clear
    } else {
        Gif::Set
    };

    if flags & GUEST_MODE == 0 {
        exit::leave(svm);
        svm.set_gif(gif);
        return Ok(());
    }

    // SAFETY: The format says which member of the union it is.
    let hdr = unsafe { header.hdr.svm };
    let vmcb12 = Gpa::from_raw(hdr.vmcb_pa);
    let complete = header.size as usize >= HEADER_SIZE + VMCB_SIZE;
    if svm.is_smm() || !complete || !vmcb12.is_page_aligned() || !svm.is_legal_gpa(vmcb12) {
        return Err(EINVAL);
    }
    let mut buffer = Buffer::zeroed()?;
    UserSlice::new(user.wrapping_byte_add(HEADER_SIZE), VMCB_SIZE)
        .reader()
        .read_slice(buffer.bytes())?;

    let (control12, pat) = check(svm, &mut buffer, hdr.gpat)?;

    // Everything is legal. L2's registers are those that the vCPU has now.
    if svm.is_guest_mode() {
        exit::leave(svm);
    } else {
        let parts = svm.parts();
        parts.vmcb02.0.save.clone_from(&parts.vmcb01.0.save);
    }
    svm.set_gif(gif);
    svm.set_run_pending(if flags & RUN_PENDING == 0 {
        RunPending::No
    } else {
        RunPending::Restored
    });
    svm.fields().nested.vmcb12_gpa = vmcb12.into_raw();
    let save01: *mut _ = &raw mut svm.vmcb01().0.save;
    // SAFETY: Both are state-save areas: one in vmcb01, one in the buffer.
    unsafe { bindings::nested_helper_svm_copy_vmrun_state(save01.cast(), buffer.save()) };
    *svm.control12_mut() = control12;

    entry::resume(svm, pat)
}

/// Checks a state of an active L2. Returns the control area of vmcb12, and L2's page-attribute table
/// if it has one of its own.
fn check(svm: &mut SvmVcpu, buffer: &mut Buffer, pat: u64) -> Result<(Control12, Option<u64>)> {
    let page = buffer.page();
    let mut control12 = Control12::default();
    let mut save01 = Save12::default();
    control12.load(&page, svm.cpu());
    save01.load(&page);

    let legal_controls = vouch_control(&control12, svm.cpu())
        .inspect_err(|invalid| svm.trace_failed_check(invalid.name()))
        .is_ok();
    // Of L2's registers, that is what setting them does not check.
    let legal_cr0 = svm.cr0() as u64 & (CR0_CD | CR0_NW) != CR0_NW;
    if !legal_controls || !legal_cr0 || check_saved_l1(&save01, svm.cpu()).is_err() {
        return Err(EINVAL);
    }
    match svm.pat(&control12) {
        Pat::Shared => Ok((control12, None)),
        Pat::Separate if is_legal_pat(pat) => Ok((control12, Some(pat))),
        Pat::Separate => Err(EINVAL),
    }
}
