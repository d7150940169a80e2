// SPDX-License-Identifier: GPL-2.0

//! Bits of the words of a VMCB.

/// Bits of `int_ctl` (APM, "Injecting Virtual (INTR) Interrupts").
pub mod interrupt {
    /// The virtual task-priority register.
    pub const V_TPR: u32 = 0xf;
    /// A virtual interrupt is pending.
    pub const V_IRQ: u32 = 1 << 8;
    /// The virtual global-interrupt flag.
    pub const V_GIF: u32 = 1 << 9;
    /// A virtual NMI is pending.
    pub const V_NMI_PENDING: u32 = 1 << 11;
    /// Virtual NMIs are masked.
    pub const V_NMI_BLOCKING: u32 = 1 << 12;
    /// The priority of the virtual interrupt.
    pub const V_INTR_PRIO: u32 = 0xf << 16;
    /// The virtual interrupt ignores the task priority.
    pub const V_IGN_TPR: u32 = 1 << 20;
    /// RFLAGS.IF of the guest masks virtual interrupts only.
    pub const V_INTR_MASKING: u32 = 1 << 24;
    /// The guest has a virtual global-interrupt flag.
    pub const V_GIF_ENABLE: u32 = 1 << 25;
    /// The guest has virtual NMIs.
    pub const V_NMI_ENABLE: u32 = 1 << 26;
}

/// Bits of `misc_ctl`.
pub mod misc {
    /// Nested paging is enabled.
    pub const NESTED_PAGING: u64 = 1 << 0;
    /// The guest-mode execution trap is enabled.
    pub const GMET: u64 = 1 << 3;
}

/// Bits of `misc_ctl2`.
pub mod misc2 {
    /// Last-branch records are virtualized.
    pub const LAST_BRANCH: u64 = 1 << 0;
    /// VMLOAD and VMSAVE of the guest translate their address.
    pub const VMLOAD_VMSAVE: u64 = 1 << 1;
}

/// Bits of `erap_ctl`.
pub mod erap {
    /// The return-address predictor may have its full size.
    pub const ALLOW_LARGER_RAP: u8 = 1 << 0;
    /// The return-address predictor is cleared.
    pub const CLEAR_RAP: u8 = 1 << 1;
}

/// Values of `tlb_ctl` (APM, "TLB Control").
pub mod tlb {
    /// The bits that exist.
    pub const MASK: u8 = 7;
    /// Nothing is flushed.
    pub const NOTHING: u8 = 0;
    /// The translations of all ASIDs are flushed, those of the host included.
    pub const ALL: u8 = 1;
    /// Those of the guest's ASID are flushed.
    pub const ASID: u8 = 3;
    /// Those of the guest's ASID that are not global are flushed.
    pub const NON_GLOBAL: u8 = 7;
}

/// The bits of `event_inj` that exist.
pub const EVENT_INJECTION: u32 = 0x8000_0fff;

/// Bits of control registers that SVM has rules about.
pub mod register {
    /// CR0.PE.
    pub const CR0_PE: u64 = 1 << 0;
    /// CR0.NW.
    pub const CR0_NW: u64 = 1 << 29;
    /// CR0.CD.
    pub const CR0_CD: u64 = 1 << 30;
    /// CR0.PG.
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4.PAE.
    pub const CR4_PAE: u64 = 1 << 5;
    /// EFER.LME.
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER.LMA.
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER.SVME.
    pub const EFER_SVME: u64 = 1 << 12;
    /// RFLAGS.TF.
    pub const RFLAGS_TF: u64 = 1 << 8;
    /// RFLAGS.IF.
    pub const RFLAGS_IF: u64 = 1 << 9;
    /// RFLAGS.VM.
    pub const RFLAGS_VM: u64 = 1 << 17;
    /// The bit of RFLAGS that is always set.
    pub const RFLAGS_FIXED: u64 = 1 << 1;
    /// The bit of DR7 that is always set.
    pub const DR7_FIXED: u64 = 1 << 10;
    /// The bits of DR6 that are set unless something happened.
    pub const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
    /// `DEBUGCTL.LBR`, the only bit that KVM virtualizes.
    pub const DEBUGCTL_LBR: u64 = 1 << 0;
    /// The attribute L of a code segment.
    pub const ATTRIB_L: u16 = 1 << 9;
    /// The attribute D of a code segment.
    pub const ATTRIB_DB: u16 = 1 << 10;
}
