// SPDX-License-Identifier: GPL-2.0

//! The table of the VMCS fields.

use super::{Entry, Exit, Extent, FieldSet, Requires, Shadow, ShadowVmcs, Truncate};
use crate::vmx::vmcs12::{Vmcs12, REVISION};
use core::mem::{offset_of, size_of_val};

/// Declares the fields of vmcs12, a row each.
///
/// A row gives the encoding, how the field gets into vmcs02 at entry and back at exit, whether a
/// shadow VMCS is good for it, its name, its member, and what has to be there for it to exist.
macro_rules! vmcs_fields {
    (
        $(
            $encoding:literal $entry:ident $exit:ident $shadow:ident
            $name:ident: $member:ident $(, if $requires:ident)?;
        )*
    ) => {
        /// A field of the VMCS that L1 has.
        ///
        /// The names are KVM's, and the number of each is its encoding for a full access (SDM,
        /// "Field Encoding in VMCS").
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Field {
            $(
                #[doc = concat!("The VMCS field `", stringify!($name), "`.")]
                $name = $encoding,
            )*
        }

        impl Field {
            /// Every field, in the order of the encodings.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// Returns the name of the field.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => stringify!($name), )*
                }
            }

            /// Returns the offset of the field in [`Vmcs12`], in bytes.
            pub const fn offset(self) -> usize {
                match self {
                    $( Self::$name => offset_of!(Vmcs12, $member), )*
                }
            }

            /// Returns what has to be there for the field to exist, if it does not always.
            pub const fn requires(self) -> Option<Requires> {
                match self {
                    $( Self::$name => vmcs_fields!(@requires $($requires)?), )*
                }
            }

            /// Returns how the field gets into vmcs02.
            pub const fn entry(self) -> Entry {
                match self {
                    $( Self::$name => Entry::$entry, )*
                }
            }

            /// Returns how the field gets back from vmcs02.
            pub const fn exit(self) -> Exit {
                match self {
                    $( Self::$name => Exit::$exit, )*
                }
            }

            /// Returns what L1 may do with the field in a shadow VMCS.
            pub const fn shadow(self) -> Shadow {
                match self {
                    $( Self::$name => Shadow::$shadow, )*
                }
            }

            /// Returns the value of the field, zero-extended.
            #[inline]
            pub fn read(self, vmcs12: &Vmcs12) -> u64 {
                match self {
                    $( Self::$name => u64::from(vmcs12.$member), )*
                }
            }

            /// Stores as many low bits of `value` as the field has.
            #[inline]
            pub(super) fn store(self, vmcs12: &mut Vmcs12, value: u64) {
                match self {
                    $( Self::$name => vmcs12.$member = Truncate::truncate(value), )*
                }
            }
        }

        /// Copies to `vmcs12` what L1 has written to a shadow VMCS without exits, and to `image`.
        ///
        /// `exists` are the fields of the processor. `changed` is told of each field that has
        /// another value now.
        pub fn load_shadow(
            vmcs12: &mut Vmcs12,
            image: &mut Vmcs12,
            exists: &FieldSet,
            shadow: &impl ShadowVmcs,
            mut changed: impl FnMut(Field),
        ) {
            // What is not shadowed is known when this is compiled, and leaves no code.
            $(
                if matches!(Shadow::$shadow, Shadow::ReadWrite) && exists.contains(Field::$name) {
                    let value = Truncate::truncate(shadow.read(Field::$name.encoding()));

                    image.$member = value;
                    if vmcs12.$member != value {
                        vmcs12.$member = value;
                        changed(Field::$name);
                    }
                }
            )*
        }

        /// Copies the shadowed fields of `vmcs12` to a shadow VMCS, of which `image` is a copy: only
        /// those that are others there if `extent` says so.
        pub fn store_shadow(
            vmcs12: &Vmcs12,
            image: &mut Vmcs12,
            exists: &FieldSet,
            shadow: &mut impl ShadowVmcs,
            extent: Extent,
        ) {
            $(
                if !matches!(Shadow::$shadow, Shadow::Trapped) && exists.contains(Field::$name) {
                    if extent == Extent::All || image.$member != vmcs12.$member {
                        image.$member = vmcs12.$member;
                        shadow.write(Field::$name.encoding(), u64::from(vmcs12.$member));
                    }
                }
            )*
        }

        /// A VMCS of zeroes with the right revision.
        ///
        /// That it compiles proves that the table has each member of [`Vmcs12`] once.
        pub const CLEAR: Vmcs12 = Vmcs12 {
            revision: REVISION,
            abort: 0,
            launch_state: 0,
            padding: [0; 7],
            padding64: [0; 1],
            dead_space: [0; 4],
            paddingl: [0; 2],
            padding32: [0; 5],
            $( $member: 0, )*
        };

        // Each member is as wide as its encoding says.
        $( const _: () = assert!(size_of_val(&CLEAR.$member) == Field::$name.width().bytes()); )*
    };

    (@requires) => { None };
    (@requires $requires:ident) => { Some(Requires::$requires) };
}

vmcs_fields! {
    //     Entry    Exit     Shadow    name: member, if it requires something

    // 16-bit control fields.
    0x0000 Merged   Never    Trapped   VIRTUAL_PROCESSOR_ID: virtual_processor_id, if Vpid;
    0x0002 Emulated Never    Trapped   POSTED_INTR_NV: posted_intr_nv, if PostedInterrupts;

    // 16-bit guest-state fields.
    0x0800 IfDirty  WhenRead Trapped   GUEST_ES_SELECTOR: guest_es_selector;
    0x0802 IfDirty  WhenRead Trapped   GUEST_CS_SELECTOR: guest_cs_selector;
    0x0804 IfDirty  WhenRead Trapped   GUEST_SS_SELECTOR: guest_ss_selector;
    0x0806 IfDirty  WhenRead Trapped   GUEST_DS_SELECTOR: guest_ds_selector;
    0x0808 IfDirty  WhenRead Trapped   GUEST_FS_SELECTOR: guest_fs_selector;
    0x080a IfDirty  WhenRead Trapped   GUEST_GS_SELECTOR: guest_gs_selector;
    0x080c IfDirty  WhenRead Trapped   GUEST_LDTR_SELECTOR: guest_ldtr_selector;
    0x080e IfDirty  WhenRead Trapped   GUEST_TR_SELECTOR: guest_tr_selector;
    0x0810 Copied   Always   ReadWrite GUEST_INTR_STATUS: guest_intr_status, if InterruptDelivery;
    0x0812 Emulated Never    ReadWrite GUEST_PML_INDEX: guest_pml_index;

    // 16-bit host-state fields.
    0x0c00 Emulated Never    Trapped   HOST_ES_SELECTOR: host_es_selector;
    0x0c02 Emulated Never    Trapped   HOST_CS_SELECTOR: host_cs_selector;
    0x0c04 Emulated Never    Trapped   HOST_SS_SELECTOR: host_ss_selector;
    0x0c06 Emulated Never    Trapped   HOST_DS_SELECTOR: host_ds_selector;
    0x0c08 Emulated Never    ReadWrite HOST_FS_SELECTOR: host_fs_selector;
    0x0c0a Emulated Never    ReadWrite HOST_GS_SELECTOR: host_gs_selector;
    0x0c0c Emulated Never    Trapped   HOST_TR_SELECTOR: host_tr_selector;

    // 64-bit control fields.
    0x2000 Emulated Never    Trapped   IO_BITMAP_A: io_bitmap_a;
    0x2002 Emulated Never    Trapped   IO_BITMAP_B: io_bitmap_b;
    0x2004 Merged   Never    Trapped   MSR_BITMAP: msr_bitmap;
    0x2006 Emulated Never    Trapped   VM_EXIT_MSR_STORE_ADDR: vm_exit_msr_store_addr;
    0x2008 Emulated Never    Trapped   VM_EXIT_MSR_LOAD_ADDR: vm_exit_msr_load_addr;
    0x200a Emulated Never    Trapped   VM_ENTRY_MSR_LOAD_ADDR: vm_entry_msr_load_addr;
    0x200e Emulated Never    Trapped   PML_ADDRESS: pml_address;
    0x2010 Merged   Never    Trapped   TSC_OFFSET: tsc_offset;
    0x2012 Located  Never    Trapped   VIRTUAL_APIC_PAGE_ADDR: virtual_apic_page_addr, if TprShadow;
    0x2014 Located  Never    Trapped   APIC_ACCESS_ADDR: apic_access_addr, if ApicAccesses;
    0x2016 Located  Never    Trapped   POSTED_INTR_DESC_ADDR: posted_intr_desc_addr,
                                       if PostedInterrupts;
    0x2018 Emulated Never    Trapped   VM_FUNCTION_CONTROL: vm_function_control, if VmFunctions;
    0x201a Located  Never    Trapped   EPT_POINTER: ept_pointer, if Ept;
    0x201c IfDirty  Never    Trapped   EOI_EXIT_BITMAP0: eoi_exit_bitmap0;
    0x201e IfDirty  Never    Trapped   EOI_EXIT_BITMAP1: eoi_exit_bitmap1;
    0x2020 IfDirty  Never    Trapped   EOI_EXIT_BITMAP2: eoi_exit_bitmap2;
    0x2022 IfDirty  Never    Trapped   EOI_EXIT_BITMAP3: eoi_exit_bitmap3;
    0x2024 Emulated Never    Trapped   EPTP_LIST_ADDRESS: eptp_list_address, if VmFunctions;
    0x2026 Emulated Never    Trapped   VMREAD_BITMAP: vmread_bitmap;
    0x2028 Emulated Never    Trapped   VMWRITE_BITMAP: vmwrite_bitmap;
    0x202c IfDirty  Never    Trapped   XSS_EXIT_BITMAP: xss_exit_bitmap, if Xsaves;
    0x202e Merged   Never    Trapped   ENCLS_EXITING_BITMAP: encls_exiting_bitmap, if EnclsExiting;
    0x2032 Merged   Never    Trapped   TSC_MULTIPLIER: tsc_multiplier, if TscScaling;

    // 64-bit read-only data fields.
    0x2400 Absent   Always   Read      GUEST_PHYSICAL_ADDRESS: guest_physical_address;

    // 64-bit guest-state fields.
    0x2800 Emulated Never    Trapped   VMCS_LINK_POINTER: vmcs_link_pointer;
    0x2802 Merged   WithMsr  Trapped   GUEST_IA32_DEBUGCTL: guest_ia32_debugctl;
    0x2804 Copied   WithMsr  Trapped   GUEST_IA32_PAT: guest_ia32_pat;
    0x2806 Merged   Always   Trapped   GUEST_IA32_EFER: guest_ia32_efer;
    0x2808 Emulated WithMsr  Trapped   GUEST_IA32_PERF_GLOBAL_CTRL: guest_ia32_perf_global_ctrl,
                                       if PerfGlobalCtrl;
    0x280a IfDirty  Always   Trapped   GUEST_PDPTR0: guest_pdptr0;
    0x280c IfDirty  Always   Trapped   GUEST_PDPTR1: guest_pdptr1;
    0x280e IfDirty  Always   Trapped   GUEST_PDPTR2: guest_pdptr2;
    0x2810 IfDirty  Always   Trapped   GUEST_PDPTR3: guest_pdptr3;
    0x2812 IfDirty  WithMsr  Trapped   GUEST_BNDCFGS: guest_bndcfgs;

    // 64-bit host-state fields.
    0x2c00 Emulated Never    Trapped   HOST_IA32_PAT: host_ia32_pat;
    0x2c02 Emulated Never    Trapped   HOST_IA32_EFER: host_ia32_efer;
    0x2c04 Emulated Never    Trapped   HOST_IA32_PERF_GLOBAL_CTRL: host_ia32_perf_global_ctrl,
                                       if PerfGlobalCtrl;

    // 32-bit control fields.
    0x4000 Merged   Never    ReadWrite PIN_BASED_VM_EXEC_CONTROL: pin_based_vm_exec_control;
    0x4002 Merged   Never    ReadWrite CPU_BASED_VM_EXEC_CONTROL: cpu_based_vm_exec_control;
    0x4004 Merged   Never    ReadWrite EXCEPTION_BITMAP: exception_bitmap;
    0x4006 Merged   Never    Trapped   PAGE_FAULT_ERROR_CODE_MASK: page_fault_error_code_mask;
    0x4008 Merged   Never    Trapped   PAGE_FAULT_ERROR_CODE_MATCH: page_fault_error_code_match;
    0x400a Emulated Never    Trapped   CR3_TARGET_COUNT: cr3_target_count;
    0x400c Merged   Never    Trapped   VM_EXIT_CONTROLS: vm_exit_controls;
    0x400e Emulated Never    Trapped   VM_EXIT_MSR_STORE_COUNT: vm_exit_msr_store_count;
    0x4010 Emulated Never    Trapped   VM_EXIT_MSR_LOAD_COUNT: vm_exit_msr_load_count;
    0x4012 Merged   Always   Trapped   VM_ENTRY_CONTROLS: vm_entry_controls;
    0x4014 Emulated Never    Trapped   VM_ENTRY_MSR_LOAD_COUNT: vm_entry_msr_load_count;
    0x4016 Copied   Always   ReadWrite VM_ENTRY_INTR_INFO_FIELD: vm_entry_intr_info_field;
    0x4018 Copied   Never    ReadWrite VM_ENTRY_EXCEPTION_ERROR_CODE: vm_entry_exception_error_code;
    0x401a Copied   Never    ReadWrite VM_ENTRY_INSTRUCTION_LEN: vm_entry_instruction_len;
    0x401c Copied   Never    ReadWrite TPR_THRESHOLD: tpr_threshold, if TprShadow;
    0x401e Merged   Never    Trapped   SECONDARY_VM_EXEC_CONTROL: secondary_vm_exec_control,
                                       if SecondaryControls;
    0x4020 Merged   Never    Trapped   PLE_GAP: ple_gap, if PauseLoop;
    0x4022 Merged   Never    Trapped   PLE_WINDOW: ple_window, if PauseLoop;

    // 32-bit read-only data fields.
    0x4400 Absent   Never    Trapped   VM_INSTRUCTION_ERROR: vm_instruction_error;
    0x4402 Absent   Always   Read      VM_EXIT_REASON: vm_exit_reason;
    0x4404 Absent   Always   Read      VM_EXIT_INTR_INFO: vm_exit_intr_info;
    0x4406 Absent   Always   Read      VM_EXIT_INTR_ERROR_CODE: vm_exit_intr_error_code;
    0x4408 Absent   Always   Read      IDT_VECTORING_INFO_FIELD: idt_vectoring_info_field;
    0x440a Absent   Always   Read      IDT_VECTORING_ERROR_CODE: idt_vectoring_error_code;
    0x440c Absent   Always   Read      VM_EXIT_INSTRUCTION_LEN: vm_exit_instruction_len;
    0x440e Absent   Always   Trapped   VMX_INSTRUCTION_INFO: vmx_instruction_info;

    // 32-bit guest-state fields.
    0x4800 IfDirty  WhenRead Trapped   GUEST_ES_LIMIT: guest_es_limit;
    0x4802 IfDirty  WhenRead Trapped   GUEST_CS_LIMIT: guest_cs_limit;
    0x4804 IfDirty  WhenRead Trapped   GUEST_SS_LIMIT: guest_ss_limit;
    0x4806 IfDirty  WhenRead Trapped   GUEST_DS_LIMIT: guest_ds_limit;
    0x4808 IfDirty  WhenRead Trapped   GUEST_FS_LIMIT: guest_fs_limit;
    0x480a IfDirty  WhenRead Trapped   GUEST_GS_LIMIT: guest_gs_limit;
    0x480c IfDirty  WhenRead Trapped   GUEST_LDTR_LIMIT: guest_ldtr_limit;
    0x480e IfDirty  WhenRead Trapped   GUEST_TR_LIMIT: guest_tr_limit;
    0x4810 IfDirty  WhenRead Trapped   GUEST_GDTR_LIMIT: guest_gdtr_limit;
    0x4812 IfDirty  WhenRead Trapped   GUEST_IDTR_LIMIT: guest_idtr_limit;
    0x4814 IfDirty  WhenRead Trapped   GUEST_ES_AR_BYTES: guest_es_ar_bytes;
    0x4816 IfDirty  Always   Read      GUEST_CS_AR_BYTES: guest_cs_ar_bytes;
    0x4818 IfDirty  Always   Read      GUEST_SS_AR_BYTES: guest_ss_ar_bytes;
    0x481a IfDirty  WhenRead Trapped   GUEST_DS_AR_BYTES: guest_ds_ar_bytes;
    0x481c IfDirty  WhenRead Trapped   GUEST_FS_AR_BYTES: guest_fs_ar_bytes;
    0x481e IfDirty  WhenRead Trapped   GUEST_GS_AR_BYTES: guest_gs_ar_bytes;
    0x4820 IfDirty  WhenRead Trapped   GUEST_LDTR_AR_BYTES: guest_ldtr_ar_bytes;
    0x4822 IfDirty  WhenRead Trapped   GUEST_TR_AR_BYTES: guest_tr_ar_bytes;
    0x4824 Copied   Always   ReadWrite GUEST_INTERRUPTIBILITY_INFO: guest_interruptibility_info;
    0x4826 Emulated Always   Trapped   GUEST_ACTIVITY_STATE: guest_activity_state;
    0x482a IfDirty  WithMsr  Trapped   GUEST_SYSENTER_CS: guest_sysenter_cs;
    0x482e Emulated Always   ReadWrite VMX_PREEMPTION_TIMER_VALUE: vmx_preemption_timer_value;

    // 32-bit host-state fields.
    0x4c00 Emulated Never    Trapped   HOST_IA32_SYSENTER_CS: host_ia32_sysenter_cs;

    // Natural-width control fields.
    0x6000 Merged   Never    ReadWrite CR0_GUEST_HOST_MASK: cr0_guest_host_mask;
    0x6002 Merged   Never    Trapped   CR4_GUEST_HOST_MASK: cr4_guest_host_mask;
    0x6004 Merged   Never    ReadWrite CR0_READ_SHADOW: cr0_read_shadow;
    0x6006 Merged   Never    ReadWrite CR4_READ_SHADOW: cr4_read_shadow;

    // Natural-width read-only data fields.
    0x6400 Absent   Always   Read      EXIT_QUALIFICATION: exit_qualification;
    0x640a Absent   Always   Read      GUEST_LINEAR_ADDRESS: guest_linear_address;

    // Natural-width guest-state fields.
    0x6800 Merged   Always   ReadWrite GUEST_CR0: guest_cr0;
    0x6802 Copied   Always   ReadWrite GUEST_CR3: guest_cr3;
    0x6804 Merged   Always   ReadWrite GUEST_CR4: guest_cr4;
    0x6806 IfDirty  WhenRead Trapped   GUEST_ES_BASE: guest_es_base;
    0x6808 IfDirty  WhenRead Trapped   GUEST_CS_BASE: guest_cs_base;
    0x680a IfDirty  WhenRead Trapped   GUEST_SS_BASE: guest_ss_base;
    0x680c IfDirty  WhenRead Trapped   GUEST_DS_BASE: guest_ds_base;
    0x680e IfDirty  WhenRead Trapped   GUEST_FS_BASE: guest_fs_base;
    0x6810 IfDirty  WhenRead Trapped   GUEST_GS_BASE: guest_gs_base;
    0x6812 IfDirty  WhenRead Trapped   GUEST_LDTR_BASE: guest_ldtr_base;
    0x6814 IfDirty  WhenRead Trapped   GUEST_TR_BASE: guest_tr_base;
    0x6816 IfDirty  WhenRead Trapped   GUEST_GDTR_BASE: guest_gdtr_base;
    0x6818 IfDirty  WhenRead Trapped   GUEST_IDTR_BASE: guest_idtr_base;
    0x681a Copied   Always   Trapped   GUEST_DR7: guest_dr7;
    0x681c Copied   Always   ReadWrite GUEST_RSP: guest_rsp;
    0x681e Copied   Always   ReadWrite GUEST_RIP: guest_rip;
    0x6820 Copied   Always   ReadWrite GUEST_RFLAGS: guest_rflags;
    0x6822 IfDirty  WhenRead Trapped   GUEST_PENDING_DBG_EXCEPTIONS: guest_pending_dbg_exceptions;
    0x6824 IfDirty  WithMsr  Trapped   GUEST_SYSENTER_ESP: guest_sysenter_esp;
    0x6826 IfDirty  WithMsr  Trapped   GUEST_SYSENTER_EIP: guest_sysenter_eip;
    0x6828 IfDirty  Always   Trapped   GUEST_S_CET: guest_s_cet, if CetState;
    0x682a IfDirty  Always   Trapped   GUEST_SSP: guest_ssp, if CetState;
    0x682c IfDirty  Always   Trapped   GUEST_INTR_SSP_TABLE: guest_ssp_tbl, if CetState;

    // Natural-width host-state fields.
    0x6c00 Emulated Never    Trapped   HOST_CR0: host_cr0;
    0x6c02 Emulated Never    Trapped   HOST_CR3: host_cr3;
    0x6c04 Emulated Never    Trapped   HOST_CR4: host_cr4;
    0x6c06 Emulated Never    ReadWrite HOST_FS_BASE: host_fs_base;
    0x6c08 Emulated Never    ReadWrite HOST_GS_BASE: host_gs_base;
    0x6c0a Emulated Never    Trapped   HOST_TR_BASE: host_tr_base;
    0x6c0c Emulated Never    Trapped   HOST_GDTR_BASE: host_gdtr_base;
    0x6c0e Emulated Never    Trapped   HOST_IDTR_BASE: host_idtr_base;
    0x6c10 Emulated Never    Trapped   HOST_IA32_SYSENTER_ESP: host_ia32_sysenter_esp;
    0x6c12 Emulated Never    Trapped   HOST_IA32_SYSENTER_EIP: host_ia32_sysenter_eip;
    0x6c14 Emulated Never    Trapped   HOST_RSP: host_rsp;
    0x6c16 Emulated Never    Trapped   HOST_RIP: host_rip;
    0x6c18 Emulated Never    Trapped   HOST_S_CET: host_s_cet, if CetState;
    0x6c1a Emulated Never    Trapped   HOST_SSP: host_ssp, if CetState;
    0x6c1c Emulated Never    Trapped   HOST_INTR_SSP_TABLE: host_ssp_tbl, if CetState;
}
