// SPDX-License-Identifier: GPL-2.0

//! A VMCS that passes all checks, for tests to make invalid.

use super::{beyond, Mode, Processor};
use crate::{
    address::Gpa,
    memory::{GuestMemory, Inaccessible},
    vmx::{
        capability::{hosts, Msrs},
        controls::{Entry, Exit, Pin, Primary, Secondary},
        vmcs12::REVISION,
        Vmcs12,
    },
};

/// A VMCS, the processor that it is for, and the memory of L1.
pub(in crate::vmx) struct Case {
    pub(in crate::vmx) vmcs12: Vmcs12,
    pub(in crate::vmx) msrs: Msrs,
    pub(in crate::vmx) mode: Mode,
    pub(in crate::vmx) memory: Pages,
    pub(in crate::vmx) current: Option<Gpa>,
}

/// The address of the VMCS.
pub(in crate::vmx) const CURRENT: u64 = 0x2_0000;
/// The address of a shadow VMCS.
pub(in crate::vmx) const LINKED: u64 = 0x2_1000;
/// The number of bits of a physical address.
pub(in crate::vmx) const PHYSICAL_ADDRESS_WIDTH: u32 = 46;
/// The lowest address that is not canonical.
pub(in crate::vmx) const NON_CANONICAL: u64 = 1 << 47;
/// An address with a bit too many, of a page.
pub(in crate::vmx) const TOO_WIDE: u64 = 1 << PHYSICAL_ADDRESS_WIDTH;

/// Memory with a few words, in which the rest is 0 up to 1 MByte.
#[derive(Clone, Copy)]
pub(in crate::vmx) struct Pages {
    pub(in crate::vmx) words: [(u64, u64); 4],
}

impl GuestMemory for Pages {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
        for (offset, byte) in (0..).zip(bytes) {
            let address = gpa.checked_add(offset).ok_or(Inaccessible)?.into_raw();

            if address >= 1 << 20 {
                return Err(Inaccessible);
            }
            *byte = 0;
            for (word_address, word) in self.words {
                for (position, part) in (0..).zip(word.to_le_bytes()) {
                    if word_address.wrapping_add(position) == address {
                        *byte = part;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Inaccessible> {
        Err(Inaccessible)
    }
}

impl Case {
    /// Returns a valid case: everything is offered, a 64-bit L1 enters a 64-bit L2.
    pub(in crate::vmx) fn new() -> Self {
        Self {
            vmcs12: vmcs12(),
            msrs: hosts::EVERYTHING.offer(),
            mode: Mode::Ia32e,
            memory: Pages {
                words: [
                    (LINKED, u64::from(REVISION) | 1 << 31),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                ],
            },
            current: Some(Gpa::from_raw(CURRENT)),
        }
    }

    pub(in crate::vmx) fn processor(&self) -> Processor<'_> {
        Processor {
            msrs: &self.msrs,
            physical_address_width: PHYSICAL_ADDRESS_WIDTH,
            linear_address_width: 48,
            cr3_reserved: beyond(PHYSICAL_ADDRESS_WIDTH),
            // CR4.SMAP.
            cr4_reserved: 1 << 21,
            efer_reserved: !(1 << 11 | 1 << 10 | 1 << 8 | 1 << 0),
            debugctl_reserved: !0x1_0003,
            perf_global_ctrl_reserved: !0x7_0000_000f,
            s_cet_reserved: 0x3c0,
            pending_debug_reserved: !0x1_500f,
            interruptibility_reserved: !0x1f,
            mode: self.mode,
        }
    }

    /// Sets secondary controls.
    pub(in crate::vmx) fn set(&mut self, controls: Secondary) {
        self.vmcs12.secondary_vm_exec_control |= controls.into_raw();
    }

    /// Clears secondary controls.
    pub(in crate::vmx) fn clear(&mut self, controls: Secondary) {
        self.vmcs12.secondary_vm_exec_control &= !controls.into_raw();
    }

    /// Makes L2 one without unrestricted guest.
    pub(in crate::vmx) fn restrict_guest(&mut self) {
        self.clear(Secondary::UNRESTRICTED_GUEST);
    }

    /// Makes L1 one of 32 bits, with an L2 of 32 bits.
    pub(in crate::vmx) fn make_l1_32bit(&mut self) {
        self.make_l2_32bit();
        self.mode = Mode::Legacy;
        self.vmcs12.vm_exit_controls &= !Exit::HOST_ADDR_SPACE_SIZE.into_raw();
        self.vmcs12.host_ia32_efer = 0;
        self.vmcs12.host_rip = 0x1000;
    }

    /// Makes L2 one of 32 bits, with PAE paging.
    pub(in crate::vmx) fn make_l2_32bit(&mut self) {
        self.vmcs12.vm_entry_controls &= !Entry::IA32E_MODE.into_raw();
        self.vmcs12.guest_ia32_efer = 0;
        self.vmcs12.guest_cs_ar_bytes = 0xc09b;
        self.vmcs12.guest_rip = 0x1000;
        self.vmcs12.guest_ssp = 0x1000;
    }

    /// Takes EPT from L2, and what needs it.
    pub(in crate::vmx) fn without_ept(&mut self) {
        self.clear(
            Secondary::ENABLE_EPT
                .with(Secondary::UNRESTRICTED_GUEST)
                .with(Secondary::ENABLE_VMFUNC)
                .with(Secondary::ENABLE_PML)
                .with(Secondary::MODE_BASED_EPT_EXEC),
        );
    }

    /// Takes the TPR shadow from L2, and what needs it.
    pub(in crate::vmx) fn without_tpr_shadow(&mut self) {
        self.vmcs12.pin_based_vm_exec_control &= !Pin::POSTED_INTR.into_raw();
        self.vmcs12.cpu_based_vm_exec_control &= !Primary::TPR_SHADOW.into_raw();
        self.clear(
            Secondary::VIRTUALIZE_X2APIC_MODE
                .with(Secondary::APIC_REGISTER_VIRT)
                .with(Secondary::VIRTUAL_INTR_DELIVERY),
        );
    }

    /// Gives L2 the segment registers of virtual-8086 mode.
    pub(in crate::vmx) fn enter_virtual_8086(&mut self) {
        let vmcs12 = &mut self.vmcs12;

        vmcs12.guest_rflags |= 1 << 17;
        vmcs12.guest_rip = 0x1000;
        vmcs12.guest_ssp = 0x1000;
        for (selector, base, limit, rights) in [
            (
                &mut vmcs12.guest_cs_selector,
                &mut vmcs12.guest_cs_base,
                &mut vmcs12.guest_cs_limit,
                &mut vmcs12.guest_cs_ar_bytes,
            ),
            (
                &mut vmcs12.guest_ss_selector,
                &mut vmcs12.guest_ss_base,
                &mut vmcs12.guest_ss_limit,
                &mut vmcs12.guest_ss_ar_bytes,
            ),
            (
                &mut vmcs12.guest_ds_selector,
                &mut vmcs12.guest_ds_base,
                &mut vmcs12.guest_ds_limit,
                &mut vmcs12.guest_ds_ar_bytes,
            ),
            (
                &mut vmcs12.guest_es_selector,
                &mut vmcs12.guest_es_base,
                &mut vmcs12.guest_es_limit,
                &mut vmcs12.guest_es_ar_bytes,
            ),
            (
                &mut vmcs12.guest_fs_selector,
                &mut vmcs12.guest_fs_base,
                &mut vmcs12.guest_fs_limit,
                &mut vmcs12.guest_fs_ar_bytes,
            ),
            (
                &mut vmcs12.guest_gs_selector,
                &mut vmcs12.guest_gs_base,
                &mut vmcs12.guest_gs_limit,
                &mut vmcs12.guest_gs_ar_bytes,
            ),
        ] {
            *selector = 0x1000;
            *base = 0x1_0000;
            *limit = 0xffff;
            *rights = 0xf3;
        }
    }

    /// Injects an event.
    pub(in crate::vmx) fn inject(&mut self, kind: u32, vector: u32) {
        self.vmcs12.vm_entry_intr_info_field = 1 << 31 | kind << 8 | vector;
    }
}

fn vmcs12() -> Vmcs12 {
    let pin = Pin::DEFAULT1
        .with(Pin::EXT_INTR_MASK)
        .with(Pin::NMI_EXITING)
        .with(Pin::VIRTUAL_NMIS)
        .with(Pin::VMX_PREEMPTION_TIMER)
        .with(Pin::POSTED_INTR);
    let primary = Primary::DEFAULT1
        .with(Primary::TPR_SHADOW)
        .with(Primary::NMI_WINDOW_EXITING)
        .with(Primary::USE_IO_BITMAPS)
        .with(Primary::USE_MSR_BITMAPS)
        .with(Primary::ACTIVATE_SECONDARY_CONTROLS);
    let secondary = Secondary::ENABLE_EPT
        .with(Secondary::VIRTUALIZE_X2APIC_MODE)
        .with(Secondary::ENABLE_VPID)
        .with(Secondary::UNRESTRICTED_GUEST)
        .with(Secondary::APIC_REGISTER_VIRT)
        .with(Secondary::VIRTUAL_INTR_DELIVERY)
        .with(Secondary::ENABLE_VMFUNC)
        .with(Secondary::SHADOW_VMCS)
        .with(Secondary::ENABLE_PML)
        .with(Secondary::MODE_BASED_EPT_EXEC)
        .with(Secondary::TSC_SCALING);
    let exit = Exit::DEFAULT1
        .with(Exit::HOST_ADDR_SPACE_SIZE)
        .with(Exit::LOAD_IA32_PERF_GLOBAL_CTRL)
        .with(Exit::ACK_INTR_ON_EXIT)
        .with(Exit::LOAD_IA32_PAT)
        .with(Exit::LOAD_IA32_EFER)
        .with(Exit::SAVE_VMX_PREEMPTION_TIMER)
        .with(Exit::LOAD_CET_STATE);
    let entry = Entry::DEFAULT1
        .with(Entry::IA32E_MODE)
        .with(Entry::LOAD_IA32_PERF_GLOBAL_CTRL)
        .with(Entry::LOAD_IA32_PAT)
        .with(Entry::LOAD_IA32_EFER)
        .with(Entry::LOAD_BNDCFGS)
        .with(Entry::LOAD_CET_STATE);

    Vmcs12 {
        revision: REVISION,
        pin_based_vm_exec_control: pin.into_raw(),
        cpu_based_vm_exec_control: primary.into_raw(),
        secondary_vm_exec_control: secondary.into_raw(),
        vm_exit_controls: exit.into_raw(),
        vm_entry_controls: entry.into_raw(),
        io_bitmap_a: 0x1000,
        io_bitmap_b: 0x2000,
        msr_bitmap: 0x3000,
        virtual_apic_page_addr: 0x4000,
        apic_access_addr: 0x5000,
        posted_intr_desc_addr: 0x6040,
        posted_intr_nv: 0xf2,
        virtual_processor_id: 1,
        // Write-back, length 4, accessed and dirty flags.
        ept_pointer: 0x7000 | 1 << 6 | 3 << 3 | 6,
        pml_address: 0x8000,
        vm_function_control: 1,
        eptp_list_address: 0x9000,
        vmread_bitmap: 0xa000,
        vmwrite_bitmap: 0xb000,
        tsc_multiplier: 1 << 48,
        vm_exit_msr_store_addr: 0xc000,
        vm_exit_msr_store_count: 1,
        vm_exit_msr_load_addr: 0xd000,
        vm_exit_msr_load_count: 1,
        vm_entry_msr_load_addr: 0xe000,
        vm_entry_msr_load_count: 1,
        vmcs_link_pointer: LINKED,

        host_cr0: 0x8001_0033,
        host_cr3: 0x1_0000,
        host_cr4: 1 << 23 | 1 << 13 | 1 << 5,
        host_ia32_efer: 0xd01,
        host_ia32_pat: 0x0007_0406_0007_0406,
        host_ia32_perf_global_ctrl: 0xf,
        host_ssp: 0x1000,
        host_rip: 0xffff_8000_0000_1000,
        host_cs_selector: 0x10,
        host_ss_selector: 0x18,
        host_tr_selector: 0x40,
        host_fs_base: 0xffff_8000_0000_0000,
        host_gs_base: 0xffff_8000_0000_0000,

        guest_cr0: 0x8001_0033,
        guest_cr3: 0x1_1000,
        guest_cr4: 1 << 23 | 1 << 13 | 1 << 5,
        guest_dr7: 0x400,
        guest_ia32_efer: 0xd01,
        guest_ia32_pat: 0x0007_0406_0007_0406,
        guest_ia32_perf_global_ctrl: 0xf,
        guest_bndcfgs: 3,
        guest_ssp: 0xffff_8000_0000_1000,
        guest_rip: 0xffff_8000_0000_1000,
        guest_rflags: 0x202,
        guest_cs_selector: 0x10,
        guest_cs_limit: 0xffff_ffff,
        guest_cs_ar_bytes: 0xa09b,
        guest_ss_selector: 0x18,
        guest_ss_limit: 0xffff_ffff,
        guest_ss_ar_bytes: 0xc093,
        guest_ds_limit: 0xffff_ffff,
        guest_ds_ar_bytes: 0xc093,
        guest_es_limit: 0xffff_ffff,
        guest_es_ar_bytes: 0xc093,
        guest_fs_base: 0xffff_8000_0000_0000,
        guest_fs_limit: 0xffff_ffff,
        guest_fs_ar_bytes: 0xc093,
        guest_gs_base: 0xffff_8000_0000_0000,
        guest_gs_limit: 0xffff_ffff,
        guest_gs_ar_bytes: 0xc093,
        guest_tr_selector: 0x40,
        guest_tr_base: 0xffff_8000_0000_0000,
        guest_tr_limit: 0x67,
        guest_tr_ar_bytes: 0x8b,
        guest_ldtr_selector: 0x48,
        guest_ldtr_base: 0xffff_8000_0000_0000,
        guest_ldtr_limit: 0xfff,
        guest_ldtr_ar_bytes: 0x82,
        guest_gdtr_limit: 0x7f,
        guest_idtr_limit: 0xfff,

        ..Vmcs12::default()
    }
}
