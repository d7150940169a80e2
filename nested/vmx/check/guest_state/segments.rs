// SPDX-License-Identifier: GPL-2.0

//! Checks on the segment registers of L2.

mod code;
mod data;
mod system;
#[cfg(any(test, CONFIG_KUNIT))]
mod tests;
mod virtual_8086;

pub use code::CodeSegmentCheck;
pub use data::{DataSegmentCheck, StackSegmentCheck};
pub use system::{LdtrCheck, TaskRegisterCheck};
pub use virtual_8086::Virtual8086Check;

use self::data::Reach;
use crate::vmx::{
    check::{Processor, CR0_PE, RFLAGS_VM},
    Vmcs12,
};
use core::ffi::CStr;

/// The access rights of a segment, as a VMCS has them (SDM, "Format of Access Rights").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AccessRights(u32);

impl AccessRights {
    #[inline]
    pub(super) const fn of_cs(vmcs12: &Vmcs12) -> Self {
        Self(vmcs12.guest_cs_ar_bytes)
    }

    #[inline]
    pub(super) const fn of_ss(vmcs12: &Vmcs12) -> Self {
        Self(vmcs12.guest_ss_ar_bytes)
    }

    /// Returns the type.
    #[inline]
    pub(super) const fn kind(self) -> u32 {
        self.0 & 0xf
    }

    /// Returns whether this is a segment of code or data, not of the system.
    #[inline]
    const fn is_code_or_data(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// Returns the descriptor privilege level.
    #[inline]
    pub(super) const fn dpl(self) -> u32 {
        self.0 >> 5 & 3
    }

    #[inline]
    const fn is_present(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// Returns whether a code segment is one of 64-bit mode.
    #[inline]
    pub(super) const fn is_64bit(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Returns whether operations are 32 bits wide by default.
    #[inline]
    const fn is_32bit(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    #[inline]
    const fn is_unusable(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// Returns whether reserved bits are set: 11:8, or 31:17.
    #[inline]
    const fn has_reserved(self) -> bool {
        self.0 & 0xfffe_0f00 != 0
    }

    /// Returns whether the granularity is one with which `limit` can be expressed.
    #[inline]
    const fn can_express(self, limit: u32) -> bool {
        let in_pages = self.0 & 1 << 15 != 0;

        if in_pages {
            limit & 0xfff == 0xfff
        } else {
            limit & 0xfff0_0000 == 0
        }
    }
}

/// A segment register of L2.
#[derive(Clone, Copy, Debug)]
struct Segment {
    selector: u16,
    base: u64,
    limit: u32,
    rights: AccessRights,
}

impl Segment {
    /// Returns the requested privilege level.
    #[inline]
    const fn rpl(self) -> u32 {
        self.selector as u32 & 3
    }

    /// Returns whether the selector refers to the LDT.
    #[inline]
    const fn is_in_ldt(self) -> bool {
        self.selector & 4 != 0
    }
}

/// Takes the segment registers out of a VMCS: one function a register.
macro_rules! segments {
    ($( $func:ident: $selector:ident, $base:ident, $limit:ident, $rights:ident; )*) => {
        impl Segment {
            $(
                #[inline]
                const fn $func(vmcs12: &Vmcs12) -> Self {
                    Self {
                        selector: vmcs12.$selector,
                        base: vmcs12.$base,
                        limit: vmcs12.$limit,
                        rights: AccessRights(vmcs12.$rights),
                    }
                }
            )*
        }
    };
}

segments! {
    cs: guest_cs_selector, guest_cs_base, guest_cs_limit, guest_cs_ar_bytes;
    ss: guest_ss_selector, guest_ss_base, guest_ss_limit, guest_ss_ar_bytes;
    ds: guest_ds_selector, guest_ds_base, guest_ds_limit, guest_ds_ar_bytes;
    es: guest_es_selector, guest_es_base, guest_es_limit, guest_es_ar_bytes;
    fs: guest_fs_selector, guest_fs_base, guest_fs_limit, guest_fs_ar_bytes;
    gs: guest_gs_selector, guest_gs_base, guest_gs_limit, guest_gs_ar_bytes;
    ldtr: guest_ldtr_selector, guest_ldtr_base, guest_ldtr_limit, guest_ldtr_ar_bytes;
    tr: guest_tr_selector, guest_tr_base, guest_tr_limit, guest_tr_ar_bytes;
}

/// What beside the segment registers themselves their checks depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentContext {
    virtual_8086: bool,
    protected: bool,
    ia32e: bool,
    unrestricted: bool,
}

impl SegmentContext {
    /// Takes the context out of a VMCS.
    #[inline]
    pub const fn of(vmcs12: &Vmcs12) -> Self {
        Self {
            virtual_8086: vmcs12.guest_rflags & RFLAGS_VM != 0,
            protected: vmcs12.guest_cr0 & CR0_PE != 0,
            ia32e: vmcs12.entry().ia32e_mode_guest(),
            unrestricted: vmcs12.secondary().unrestricted_guest(),
        }
    }
}

/// Which check on a segment register failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentCheck {
    /// CS in virtual-8086 mode.
    Virtual8086Cs(Virtual8086Check),
    /// SS in virtual-8086 mode.
    Virtual8086Ss(Virtual8086Check),
    /// DS in virtual-8086 mode.
    Virtual8086Ds(Virtual8086Check),
    /// ES in virtual-8086 mode.
    Virtual8086Es(Virtual8086Check),
    /// FS in virtual-8086 mode.
    Virtual8086Fs(Virtual8086Check),
    /// GS in virtual-8086 mode.
    Virtual8086Gs(Virtual8086Check),
    /// CS.
    Cs(CodeSegmentCheck),
    /// SS.
    Ss(StackSegmentCheck),
    /// DS.
    Ds(DataSegmentCheck),
    /// ES.
    Es(DataSegmentCheck),
    /// FS.
    Fs(DataSegmentCheck),
    /// GS.
    Gs(DataSegmentCheck),
    /// TR.
    Tr(TaskRegisterCheck),
    /// LDTR.
    Ldtr(LdtrCheck),
}

impl SegmentCheck {
    /// Returns the name of the register.
    pub const fn register(self) -> &'static str {
        match self {
            Self::Virtual8086Cs(_) | Self::Cs(_) => "CS",
            Self::Virtual8086Ss(_) | Self::Ss(_) => "SS",
            Self::Virtual8086Ds(_) | Self::Ds(_) => "DS",
            Self::Virtual8086Es(_) | Self::Es(_) => "ES",
            Self::Virtual8086Fs(_) | Self::Fs(_) => "FS",
            Self::Virtual8086Gs(_) | Self::Gs(_) => "GS",
            Self::Tr(_) => "TR",
            Self::Ldtr(_) => "LDTR",
        }
    }

    /// Returns the name of the check.
    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Virtual8086Cs(check)
            | Self::Virtual8086Ss(check)
            | Self::Virtual8086Ds(check)
            | Self::Virtual8086Es(check)
            | Self::Virtual8086Fs(check)
            | Self::Virtual8086Gs(check) => check.name(),
            Self::Cs(check) => check.name(),
            Self::Ss(check) => check.name(),
            Self::Ds(check) | Self::Es(check) | Self::Fs(check) | Self::Gs(check) => check.name(),
            Self::Tr(check) => check.name(),
            Self::Ldtr(check) => check.name(),
        }
    }
}

/// Makes the checks on the segment registers (SDM, "Checks on Guest Segment Registers").
pub fn check_segments(vmcs12: &Vmcs12, processor: &Processor<'_>) -> Result<(), SegmentCheck> {
    let context = SegmentContext::of(vmcs12);
    let (cs, ss) = (Segment::cs(vmcs12), Segment::ss(vmcs12));
    let (ds, es) = (Segment::ds(vmcs12), Segment::es(vmcs12));
    let (fs, gs) = (Segment::fs(vmcs12), Segment::gs(vmcs12));

    if context.virtual_8086 {
        virtual_8086::check(cs).map_err(SegmentCheck::Virtual8086Cs)?;
        virtual_8086::check(ss).map_err(SegmentCheck::Virtual8086Ss)?;
        virtual_8086::check(ds).map_err(SegmentCheck::Virtual8086Ds)?;
        virtual_8086::check(es).map_err(SegmentCheck::Virtual8086Es)?;
        virtual_8086::check(fs).map_err(SegmentCheck::Virtual8086Fs)?;
        virtual_8086::check(gs).map_err(SegmentCheck::Virtual8086Gs)?;
    } else {
        code::check(cs, ss, context).map_err(SegmentCheck::Cs)?;
        data::check_stack(ss, cs, context).map_err(SegmentCheck::Ss)?;
        data::check(ds, Reach::Low, context, processor).map_err(SegmentCheck::Ds)?;
        data::check(es, Reach::Low, context, processor).map_err(SegmentCheck::Es)?;
        data::check(fs, Reach::Anywhere, context, processor).map_err(SegmentCheck::Fs)?;
        data::check(gs, Reach::Anywhere, context, processor).map_err(SegmentCheck::Gs)?;
    }
    system::check_tr(Segment::tr(vmcs12), context, processor).map_err(SegmentCheck::Tr)?;
    system::check_ldtr(Segment::ldtr(vmcs12), processor).map_err(SegmentCheck::Ldtr)
}
