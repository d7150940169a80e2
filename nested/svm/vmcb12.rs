// SPDX-License-Identifier: GPL-2.0

//! What L1 wrote for L2: a snapshot of vmcb12.

use core::mem::offset_of;

use super::{
    bits::{interrupt, misc, misc2, tlb, EVENT_INJECTION},
    intercept::{Intercept, Intercepts},
    vmcb::{Enlightenments, Group, Segment, Vmcb},
    Feature, VirtualCpu,
};
use crate::address::Gpa;

/// A VMCB in memory of L1, to which other vCPUs and devices write at any time.
///
/// Offsets are those of [`Vmcb`], and aligned to what is accessed there.
pub trait VmcbPage {
    /// Reads a byte, once.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads 2 bytes, once.
    fn read_u16(&self, offset: usize) -> u16;
    /// Reads 4 bytes, once.
    fn read_u32(&self, offset: usize) -> u32;
    /// Reads 8 bytes, once.
    fn read_u64(&self, offset: usize) -> u64;
    /// Writes a byte.
    fn write_u8(&mut self, offset: usize, value: u8);
    /// Writes 2 bytes.
    fn write_u16(&mut self, offset: usize, value: u16);
    /// Writes 4 bytes.
    fn write_u32(&mut self, offset: usize, value: u32);
    /// Writes 8 bytes.
    fn write_u64(&mut self, offset: usize, value: u64);
}

/// A field of a VMCB.
pub trait Field: Copy {
    /// Reads the field at `offset`.
    fn load<P: VmcbPage + ?Sized>(page: &P, offset: usize) -> Self;
    /// Writes the field at `offset`.
    fn store<P: VmcbPage + ?Sized>(self, page: &mut P, offset: usize);
}

macro_rules! field {
    ($ty:ty, $read:ident, $write:ident) => {
        impl Field for $ty {
            #[inline]
            fn load<P: VmcbPage + ?Sized>(page: &P, offset: usize) -> Self {
                page.$read(offset)
            }

            #[inline]
            fn store<P: VmcbPage + ?Sized>(self, page: &mut P, offset: usize) {
                page.$write(offset, self);
            }
        }
    };
}

field!(u8, read_u8, write_u8);
field!(u16, read_u16, write_u16);
field!(u32, read_u32, write_u32);
field!(u64, read_u64, write_u64);

impl Field for Segment {
    #[inline]
    fn load<P: VmcbPage + ?Sized>(page: &P, offset: usize) -> Self {
        Self {
            selector: page.read_u16(offset.wrapping_add(offset_of!(Self, selector))),
            attrib: page.read_u16(offset.wrapping_add(offset_of!(Self, attrib))),
            limit: page.read_u32(offset.wrapping_add(offset_of!(Self, limit))),
            base: page.read_u64(offset.wrapping_add(offset_of!(Self, base))),
        }
    }

    #[inline]
    fn store<P: VmcbPage + ?Sized>(self, page: &mut P, offset: usize) {
        page.write_u16(
            offset.wrapping_add(offset_of!(Self, selector)),
            self.selector,
        );
        page.write_u16(offset.wrapping_add(offset_of!(Self, attrib)), self.attrib);
        page.write_u32(offset.wrapping_add(offset_of!(Self, limit)), self.limit);
        page.write_u64(offset.wrapping_add(offset_of!(Self, base)), self.base);
    }
}

/// Reads a field of the VMCB in `page`.
macro_rules! load {
    ($page:expr, $($field:ident).+) => {
        $crate::svm::vmcb12::Field::load(
            $page,
            core::mem::offset_of!($crate::svm::vmcb::Vmcb, $($field).+),
        )
    };
}

/// Writes a field of the VMCB in `page`.
macro_rules! store {
    ($page:expr, $($field:ident).+, $value:expr) => {
        $crate::svm::vmcb12::Field::store(
            $value,
            $page,
            core::mem::offset_of!($crate::svm::vmcb::Vmcb, $($field).+),
        )
    };
}
pub(super) use store;

/// A snapshot of the control area of vmcb12, in the layout of KVM's `vmcb_ctrl_area_cached`.
///
/// It has no bit that L1's virtual processor does not have or that the processor ignores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "the fields have the names of those of ControlArea"
)]
pub struct Control12 {
    pub intercepts: Intercepts,
    pub pause_filter_thresh: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: Gpa,
    pub msrpm_base_pa: Gpa,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_ctl: u8,
    pub erap_ctl: u8,
    pub int_ctl: u32,
    pub int_vector: u32,
    pub int_state: u32,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    pub exit_int_info: u32,
    pub exit_int_info_err: u32,
    pub misc_ctl: u64,
    pub event_inj: u32,
    pub event_inj_err: u32,
    pub next_rip: u64,
    pub nested_cr3: Gpa,
    pub misc_ctl2: u64,
    pub clean: u32,
    pub enlightenments: Enlightenments,
}

/// Intercepts that exist with a feature of L1's virtual processor only.
const OPTIONAL_INTERCEPTS: &[(Feature, Intercept)] = &[
    (Feature::Xsave, Intercept::XSETBV),
    (Feature::Invpcid, Intercept::INVPCID),
    (Feature::Rdtscp, Intercept::RDTSCP),
    (Feature::Skinit, Intercept::SKINIT),
    (Feature::Rdpru, Intercept::RDPRU),
];

impl Control12 {
    /// Reads the control area of the VMCB in `page`.
    pub fn load(&mut self, page: &(impl VmcbPage + ?Sized), cpu: &impl VirtualCpu) {
        const INTERCEPTS: usize = offset_of!(Vmcb, control.intercepts);
        let word = |index: usize| page.read_u32(INTERCEPTS.wrapping_add(index.wrapping_mul(4)));

        self.intercepts = Intercepts::from_words([0, 1, 2, 3, 4, 5].map(word));
        for &(feature, intercept) in OPTIONAL_INTERCEPTS {
            if !cpu.has(feature) {
                self.intercepts.remove(intercept);
            }
        }

        self.misc_ctl = load!(page, control.misc_ctl);
        if !cpu.has(Feature::Npt) {
            self.misc_ctl &= !misc::NESTED_PAGING;
        }
        if !cpu.has(Feature::Gmet) {
            self.misc_ctl &= !misc::GMET;
        }

        self.pause_filter_thresh = load!(page, control.pause_filter_thresh);
        self.pause_filter_count = load!(page, control.pause_filter_count);
        self.iopm_base_pa = Gpa::from_raw(load!(page, control.iopm_base_pa)).page();
        self.msrpm_base_pa = Gpa::from_raw(load!(page, control.msrpm_base_pa)).page();
        self.tsc_offset = load!(page, control.tsc_offset);
        self.asid = load!(page, control.asid);
        self.tlb_ctl = u8::load(page, offset_of!(Vmcb, control.tlb_ctl)) & tlb::MASK;
        self.erap_ctl = load!(page, control.erap_ctl);
        self.int_ctl = load!(page, control.int_ctl);
        self.int_vector = u32::load(page, offset_of!(Vmcb, control.int_vector)) & 0xff;
        self.int_state = u32::load(page, offset_of!(Vmcb, control.int_state)) & 1;
        self.exit_code = load!(page, control.exit_code);
        self.exit_info_1 = load!(page, control.exit_info_1);
        self.exit_info_2 = load!(page, control.exit_info_2);
        self.exit_int_info = load!(page, control.exit_int_info);
        self.exit_int_info_err = load!(page, control.exit_int_info_err);
        self.event_inj = u32::load(page, offset_of!(Vmcb, control.event_inj)) & EVENT_INJECTION;
        self.event_inj_err = load!(page, control.event_inj_err);
        self.next_rip = load!(page, control.next_rip);
        self.nested_cr3 = Gpa::from_raw(load!(page, control.nested_cr3));
        self.misc_ctl2 = load!(page, control.misc_ctl2);
        self.clean = load!(page, control.clean);

        if cpu.uses_hyperv() {
            self.enlightenments = Enlightenments {
                control: load!(page, control.enlightenments.control),
                vp_id: load!(page, control.enlightenments.vp_id),
                vm_id: load!(page, control.enlightenments.vm_id),
                partition_assist_page: load!(page, control.enlightenments.partition_assist_page),
                reserved: load!(page, control.enlightenments.reserved),
            };
        }
    }

    /// Writes all that a snapshot holds, for user space that saves the state of the vCPU.
    ///
    /// The clean field and the enlightenments are not part of it.
    pub fn store(&self, page: &mut (impl VmcbPage + ?Sized)) {
        for (index, word) in self.intercepts.words().into_iter().enumerate() {
            let offset = offset_of!(Vmcb, control.intercepts).wrapping_add(index.wrapping_mul(4));
            page.write_u32(offset, word);
        }
        store!(page, control.pause_filter_thresh, self.pause_filter_thresh);
        store!(page, control.pause_filter_count, self.pause_filter_count);
        store!(page, control.iopm_base_pa, self.iopm_base_pa.into_raw());
        store!(page, control.msrpm_base_pa, self.msrpm_base_pa.into_raw());
        store!(page, control.tsc_offset, self.tsc_offset);
        store!(page, control.asid, self.asid);
        store!(page, control.tlb_ctl, self.tlb_ctl);
        store!(page, control.erap_ctl, self.erap_ctl);
        store!(page, control.int_ctl, self.int_ctl);
        store!(page, control.int_vector, self.int_vector);
        store!(page, control.int_state, self.int_state);
        store!(page, control.exit_code, self.exit_code);
        store!(page, control.exit_info_1, self.exit_info_1);
        store!(page, control.exit_info_2, self.exit_info_2);
        store!(page, control.exit_int_info, self.exit_int_info);
        store!(page, control.exit_int_info_err, self.exit_int_info_err);
        store!(page, control.misc_ctl, self.misc_ctl);
        store!(page, control.event_inj, self.event_inj);
        store!(page, control.event_inj_err, self.event_inj_err);
        store!(page, control.next_rip, self.next_rip);
        store!(page, control.nested_cr3, self.nested_cr3.into_raw());
        store!(page, control.misc_ctl2, self.misc_ctl2);
    }

    /// Returns whether L1 has nested paging for L2.
    #[inline]
    pub const fn nested_paging(&self) -> bool {
        self.misc_ctl & misc::NESTED_PAGING != 0
    }

    /// Returns whether L1 has the guest-mode execution trap enabled.
    #[inline]
    pub const fn gmet(&self) -> bool {
        self.misc_ctl & misc::GMET != 0
    }

    /// Returns whether RFLAGS.IF of L1 masks interrupts while L2 runs.
    #[inline]
    pub const fn virtual_interrupt_masking(&self) -> bool {
        self.int_ctl & interrupt::V_INTR_MASKING != 0
    }

    /// Returns whether L2 has a GIF of its own.
    #[inline]
    pub fn virtual_gif(&self, cpu: &impl VirtualCpu) -> bool {
        self.int_ctl & interrupt::V_GIF_ENABLE != 0 && cpu.has(Feature::Vgif)
    }

    /// Returns whether L1 gives NMIs to L2 by way of the VMCB.
    #[inline]
    pub fn virtual_nmi(&self, cpu: &impl VirtualCpu) -> bool {
        self.int_ctl & interrupt::V_NMI_ENABLE != 0 && cpu.has(Feature::Vnmi)
    }

    /// Returns whether L2 has last-branch records of its own.
    #[inline]
    pub fn last_branch_virtualization(&self, cpu: &impl VirtualCpu) -> bool {
        self.misc_ctl2 & misc2::LAST_BRANCH != 0 && cpu.has(Feature::Lbrv)
    }

    /// Returns whether VMLOAD and VMSAVE of L2 need not exit.
    #[inline]
    pub fn virtual_vmload_vmsave(&self, cpu: &impl VirtualCpu) -> bool {
        self.misc_ctl2 & misc2::VMLOAD_VMSAVE != 0
            && self.nested_paging()
            && cpu.has(Feature::VmloadVmsave)
    }

    /// Returns whether L1 may have changed the fields of `group` since it last ran this VMCB.
    #[inline]
    pub const fn is_dirty(&self, group: Group) -> bool {
        self.clean & group.bit() == 0
    }

    /// Returns whether the host handles L2's hypercalls that flush.
    #[inline]
    pub fn direct_flush(&self, cpu: &impl VirtualCpu) -> bool {
        cpu.uses_hyperv()
            && self.enlightenments.control & Enlightenments::NESTED_FLUSH_HYPERCALL != 0
    }

    /// Returns whether L1 vouches that the MSR permission map is as it was.
    ///
    /// Only hypervisors on Hyper-V's interface do.
    #[inline]
    pub fn msr_map_is_unchanged(&self, cpu: &impl VirtualCpu) -> bool {
        cpu.uses_hyperv()
            && self.enlightenments.control & Enlightenments::MSR_BITMAP != 0
            && !self.is_dirty(Group::Software)
    }
}

/// A snapshot of the state-save area of vmcb12, in the layout of KVM's `vmcb_save_area_cached`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(
    missing_docs,
    reason = "the fields have the names of those of SaveArea"
)]
pub struct Save12 {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub cpl: u8,
    pub efer: u64,
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub cr2: u64,
    pub g_pat: u64,
    pub dbgctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub last_excp_from: u64,
    pub last_excp_to: u64,
}

/// Reads or copies each field of the list.
macro_rules! for_each_save_field {
    ($action:ident) => {
        $action! {
            es cs ss ds gdtr idtr cpl efer cr4 cr3 cr0 dr7 dr6 rflags rip rsp s_cet ssp isst_addr
            rax cr2 g_pat dbgctl br_from br_to last_excp_from last_excp_to
        }
    };
}

impl Save12 {
    /// Reads the state-save area of the VMCB in `page`.
    pub fn load(&mut self, page: &(impl VmcbPage + ?Sized)) {
        macro_rules! load_all {
            ($($field:ident)*) => { $( self.$field = load!(page, save.$field); )* };
        }
        for_each_save_field!(load_all);
    }
}

#[cfg(test)]
pub(super) mod fake {
    use super::*;

    /// A VMCB in a buffer, which counts how often each byte was read.
    pub(crate) struct Page {
        pub(crate) bytes: [u8; 4096],
        reads: core::cell::RefCell<[u8; 4096]>,
    }

    impl Page {
        pub(crate) fn new() -> Self {
            Self {
                bytes: [0; 4096],
                reads: core::cell::RefCell::new([0; 4096]),
            }
        }

        pub(crate) fn most_reads(&self) -> u8 {
            self.reads.borrow().iter().copied().max().unwrap()
        }

        fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
            assert_eq!(offset % N, 0);
            for count in &mut self.reads.borrow_mut()[offset..offset + N] {
                *count += 1;
            }
            self.bytes[offset..offset + N].try_into().unwrap()
        }

        fn put(&mut self, offset: usize, bytes: &[u8]) {
            assert_eq!(offset % bytes.len(), 0);
            self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    impl VmcbPage for Page {
        fn read_u8(&self, offset: usize) -> u8 {
            u8::from_le_bytes(self.get(offset))
        }
        fn read_u16(&self, offset: usize) -> u16 {
            u16::from_le_bytes(self.get(offset))
        }
        fn read_u32(&self, offset: usize) -> u32 {
            u32::from_le_bytes(self.get(offset))
        }
        fn read_u64(&self, offset: usize) -> u64 {
            u64::from_le_bytes(self.get(offset))
        }
        fn write_u8(&mut self, offset: usize, value: u8) {
            self.put(offset, &value.to_le_bytes());
        }
        fn write_u16(&mut self, offset: usize, value: u16) {
            self.put(offset, &value.to_le_bytes());
        }
        fn write_u32(&mut self, offset: usize, value: u32) {
            self.put(offset, &value.to_le_bytes());
        }
        fn write_u64(&mut self, offset: usize, value: u64) {
            self.put(offset, &value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cpu::fake::Cpu, fake::Page, *};

    #[test]
    fn every_byte_of_vmcb12_is_read_once_at_most() {
        let page = Page::new();
        let cpu = Cpu::with_everything();

        Control12::default().load(&page, &cpu);
        Save12::default().load(&page);

        assert_eq!(page.most_reads(), 1);
    }

    #[test]
    fn a_stored_snapshot_loads_as_it_was() {
        let cpu = Cpu::with_everything();
        let mut page = Page::new();
        for (index, byte) in page.bytes.iter_mut().enumerate() {
            *byte = (index * 7 + 3) as u8;
        }
        let mut control = Control12::default();
        control.load(&page, &cpu);

        let mut copy = Page::new();
        control.store(&mut copy);
        let mut again = Control12::default();
        again.load(&copy, &cpu);

        again.clean = control.clean;
        again.enlightenments = control.enlightenments;
        assert_eq!(again, control);
    }

    #[test]
    fn enlightenments_count_on_hypervs_interface_only() {
        let mut control = Control12::default();
        let (with, without) = (Cpu::with_everything(), Cpu::with_nothing());

        control.clean = Group::Software.bit();
        assert!(!control.direct_flush(&with) && !control.msr_map_is_unchanged(&with));

        control.enlightenments.control =
            Enlightenments::NESTED_FLUSH_HYPERCALL | Enlightenments::MSR_BITMAP;
        assert!(control.direct_flush(&with) && control.msr_map_is_unchanged(&with));
        assert!(!control.direct_flush(&without) && !control.msr_map_is_unchanged(&without));

        control.clean = 0;
        assert!(control.direct_flush(&with) && !control.msr_map_is_unchanged(&with));
    }

    #[test]
    fn what_the_virtual_cpu_lacks_is_not_in_the_snapshot() {
        let mut page = Page::new();
        page.bytes.fill(0xff);
        let mut control = Control12::default();

        control.load(&page, &Cpu::with_nothing());

        for &(_, intercept) in OPTIONAL_INTERCEPTS {
            assert!(!control.intercepts.contains(intercept));
        }
        assert!(control.intercepts.contains(Intercept::CPUID));
        assert!(!control.nested_paging() && !control.gmet());
        assert_eq!(control.enlightenments, Enlightenments::default());
        assert_eq!(control.int_state, 1);
        assert_eq!(control.int_vector, 0xff);
        assert_eq!(control.tlb_ctl, 7);
        assert!(control.iopm_base_pa.is_page_aligned());
    }
}
