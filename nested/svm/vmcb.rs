// SPDX-License-Identifier: GPL-2.0

//! The layout of the VMCB (APM, "Layout of VMCB").

use core::mem::offset_of;

/// A segment register, or a descriptor-table register, in the state-save area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The attributes: bits 55:52 and 47:40 of the descriptor.
    pub attrib: u16,
    /// The limit in bytes, whatever the granularity.
    pub limit: u32,
    /// The base address.
    pub base: u64,
}

/// The control area.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ControlArea {
    /// Vectors of intercepts.
    pub intercepts: [u32; 6],
    /// Reserved.
    pub reserved_1: [u32; 9],
    /// Longest distance of two PAUSEs of the same loop, in cycles.
    pub pause_filter_thresh: u16,
    /// Number of PAUSEs that do not exit.
    pub pause_filter_count: u16,
    /// Physical address of the I/O permission map.
    pub iopm_base_pa: u64,
    /// Physical address of the MSR permission map.
    pub msrpm_base_pa: u64,
    /// What is added to the time-stamp counter.
    pub tsc_offset: u64,
    /// The guest's address-space identifier.
    pub asid: u32,
    /// Which translations `VMRUN` flushes.
    pub tlb_ctl: u8,
    /// The size of the return-address predictor, and whether it is cleared.
    pub erap_ctl: u8,
    /// Reserved.
    pub reserved_2: [u8; 2],
    /// Virtual interrupts, GIF and NMIs.
    pub int_ctl: u32,
    /// Vector of the virtual interrupt.
    pub int_vector: u32,
    /// Interrupt shadow.
    pub int_state: u32,
    /// Reserved.
    pub reserved_3: u32,
    /// Why the guest exited.
    pub exit_code: u64,
    /// More on the exit.
    pub exit_info_1: u64,
    /// More on the exit.
    pub exit_info_2: u64,
    /// The event whose delivery was under way.
    pub exit_int_info: u32,
    /// The error code of that event.
    pub exit_int_info_err: u32,
    /// Nested paging, encryption, guest-mode execution trap.
    pub misc_ctl: u64,
    /// Base address of the virtual APIC.
    pub avic_vapic_bar: u64,
    /// Guest-physical address of the GHCB.
    pub ghcb_gpa: u64,
    /// The event to inject.
    pub event_inj: u32,
    /// The error code of that event.
    pub event_inj_err: u32,
    /// CR3 of the nested page tables.
    pub nested_cr3: u64,
    /// Virtualization of last-branch records, and of VMLOAD and VMSAVE.
    pub misc_ctl2: u64,
    /// Groups of fields that have not changed since the last `VMRUN`.
    pub clean: u32,
    /// Reserved.
    pub reserved_5: u32,
    /// Address of the instruction after the one that exited.
    pub next_rip: u64,
    /// Number of bytes in `insn_bytes`.
    pub insn_len: u8,
    /// The instruction that exited.
    pub insn_bytes: [u8; 15],
    /// Page of the virtual APIC.
    pub avic_backing_page: u64,
    /// Reserved.
    pub reserved_6: u64,
    /// Table of logical APIC IDs.
    pub avic_logical_id: u64,
    /// Table of physical APIC IDs.
    pub avic_physical_id: u64,
    /// Reserved.
    pub reserved_7: u64,
    /// Page of the encrypted state-save area.
    pub vmsa_pa: u64,
    /// Reserved.
    pub reserved_8: [u64; 2],
    /// Number of bus locks that do not exit.
    pub bus_lock_counter: u16,
    /// Reserved.
    pub reserved_9: [u16; 11],
    /// Features of SEV that the guest may enable.
    pub allowed_sev_features: u64,
    /// Features of SEV that the guest has enabled.
    pub guest_sev_features: u64,
    /// Reserved.
    pub reserved_10: [u64; 83],
    /// For hypervisors: Hyper-V's enlightenments.
    pub enlightenments: Enlightenments,
}

/// What a hypervisor on Hyper-V's interface tells the host (TLFS, "Nested Virtualization").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct Enlightenments {
    /// Which of them are used.
    pub control: u32,
    /// The guest's virtual processor.
    pub vp_id: u32,
    /// The guest's virtual machine.
    pub vm_id: u64,
    /// Guest-physical address of the partition assist page.
    pub partition_assist_page: u64,
    /// Reserved.
    pub reserved: u64,
}

impl Enlightenments {
    /// Bit of `control`: the host handles the guest's hypercalls that flush.
    pub const NESTED_FLUSH_HYPERCALL: u32 = 1 << 0;
    /// Bit of `control`: the clean bits tell when the MSR permission map has changed.
    pub const MSR_BITMAP: u32 = 1 << 1;
}

/// The state-save area.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SaveArea {
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// GDTR.
    pub gdtr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR.
    pub idtr: Segment,
    /// TR.
    pub tr: Segment,
    /// Reserved.
    pub reserved_0xa0: [u8; 42],
    /// Privilege level of the virtual machine.
    pub vmpl: u8,
    /// Current privilege level.
    pub cpl: u8,
    /// Reserved.
    pub reserved_0xcc: u32,
    /// EFER.
    pub efer: u64,
    /// Reserved.
    pub reserved_0xd8: [u64; 14],
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    /// Reserved.
    pub reserved_0x180: [u64; 11],
    /// RSP.
    pub rsp: u64,
    /// `IA32_S_CET`.
    pub s_cet: u64,
    /// The shadow-stack pointer.
    pub ssp: u64,
    /// Address of the interrupt shadow-stack table.
    pub isst_addr: u64,
    /// RAX.
    pub rax: u64,
    /// `STAR`.
    pub star: u64,
    /// `LSTAR`.
    pub lstar: u64,
    /// `CSTAR`.
    pub cstar: u64,
    /// `SFMASK`.
    pub sfmask: u64,
    /// `KERNEL_GS_BASE`.
    pub kernel_gs_base: u64,
    /// `SYSENTER_CS`.
    pub sysenter_cs: u64,
    /// `SYSENTER_ESP`.
    pub sysenter_esp: u64,
    /// `SYSENTER_EIP`.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    /// Reserved.
    pub reserved_0x248: [u64; 4],
    /// `PAT`.
    pub g_pat: u64,
    /// `DEBUGCTL`.
    pub dbgctl: u64,
    /// Source of the last branch.
    pub br_from: u64,
    /// Target of the last branch.
    pub br_to: u64,
    /// Source of the last exception.
    pub last_excp_from: u64,
    /// Target of the last exception.
    pub last_excp_to: u64,
    /// Reserved.
    pub reserved_0x298: [u64; 9],
    /// `SPEC_CTRL`.
    pub spec_ctrl: u64,
}

/// The start of a VMCB: what follows to the end of the page is reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Vmcb {
    /// The control area.
    pub control: ControlArea,
    /// The state-save area.
    pub save: SaveArea,
}

const _: () = {
    assert!(offset_of!(ControlArea, iopm_base_pa) == 0x40);
    assert!(offset_of!(ControlArea, int_ctl) == 0x60);
    assert!(offset_of!(ControlArea, exit_code) == 0x70);
    assert!(offset_of!(ControlArea, event_inj) == 0xa8);
    assert!(offset_of!(ControlArea, next_rip) == 0xc8);
    assert!(offset_of!(ControlArea, avic_backing_page) == 0xe0);
    assert!(offset_of!(ControlArea, bus_lock_counter) == 0x120);
    assert!(offset_of!(ControlArea, allowed_sev_features) == 0x138);
    assert!(offset_of!(ControlArea, enlightenments) == 0x3e0);
    assert!(size_of::<ControlArea>() == 0x400);
    assert!(offset_of!(SaveArea, efer) == 0xd0);
    assert!(offset_of!(SaveArea, cr4) == 0x148);
    assert!(offset_of!(SaveArea, rsp) == 0x1d8);
    assert!(offset_of!(SaveArea, g_pat) == 0x268);
    assert!(offset_of!(SaveArea, spec_ctrl) == 0x2e0);
    assert!(offset_of!(Vmcb, save) == 0x400);
};

/// Groups of fields of a VMCB, by their bits in the clean field (APM, "VMCB Clean Field").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Group {
    /// Intercepts, TSC offset, PAUSE filter.
    Intercepts = 0,
    /// Addresses of the permission maps.
    PermissionMaps = 1,
    /// The ASID.
    Asid = 2,
    /// Virtual interrupts.
    Interrupts = 3,
    /// Nested paging, `PAT`.
    NestedPaging = 4,
    /// CR0, CR3, CR4, EFER.
    ControlRegisters = 5,
    /// DR6, DR7.
    DebugRegisters = 6,
    /// GDTR, IDTR.
    DescriptorTables = 7,
    /// CS, DS, SS, ES, CPL.
    Segments = 8,
    /// CR2.
    Cr2 = 9,
    /// Last-branch records.
    LastBranch = 10,
    /// The virtual APIC.
    Avic = 11,
    /// Shadow stacks.
    Cet = 12,
    /// For software: Hyper-V's enlightenments.
    Software = 31,
}

impl Group {
    /// Returns the bit of the clean field.
    pub const fn bit(self) -> u32 {
        1u32.wrapping_shl(self as u32)
    }
}

impl ControlArea {
    /// Makes the processor read `group` at the next `VMRUN`.
    #[inline]
    pub fn mark_dirty(&mut self, group: Group) {
        self.clean &= !group.bit();
    }
}
