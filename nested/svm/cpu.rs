// SPDX-License-Identifier: GPL-2.0

//! L1's virtual processor, as far as nested SVM depends on it.

use crate::address::Gpa;

/// A feature that L1's virtual processor may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of X86_FEATURE_*")]
pub enum Feature {
    Eraps,
    Gmet,
    Invpcid,
    Lbrv,
    Npt,
    Nrips,
    PauseFilter,
    PauseFilterThreshold,
    Rdpru,
    Rdtscp,
    SevEs,
    ShadowStack,
    Skinit,
    TscRatio,
    Vgif,
    VmloadVmsave,
    Vnmi,
    Xsave,
}

/// What L1's virtual processor is like: CPUID, and what KVM allows.
pub trait VirtualCpu {
    /// Returns whether the processor has `feature` and KVM can virtualize it.
    fn has(&self, feature: Feature) -> bool;

    /// Returns whether `gpa` has no bit beyond the physical-address width.
    fn is_legal(&self, gpa: Gpa) -> bool;

    /// Returns whether CR3 may have the value `cr3`.
    fn is_legal_cr3(&self, cr3: u64) -> bool;

    /// Returns whether CR4 may have the value `cr4`.
    fn is_legal_cr4(&self, cr4: u64) -> bool;

    /// Returns whether EFER may have the value `efer`.
    fn is_legal_efer(&self, efer: u64) -> bool;

    /// Returns whether L1 uses Hyper-V's interface.
    fn uses_hyperv(&self) -> bool;
}

#[cfg(test)]
pub(super) mod fake {
    use super::*;

    /// A processor that has all features but one, or none.
    pub(crate) struct Cpu {
        everything: bool,
        pub(crate) lacks: Option<Feature>,
    }

    impl Cpu {
        pub(crate) const fn with_everything() -> Self {
            Self {
                everything: true,
                lacks: None,
            }
        }

        pub(crate) const fn with_nothing() -> Self {
            Self {
                everything: false,
                lacks: None,
            }
        }

        pub(crate) const fn without(feature: Feature) -> Self {
            Self {
                everything: true,
                lacks: Some(feature),
            }
        }
    }

    impl VirtualCpu for Cpu {
        fn has(&self, feature: Feature) -> bool {
            self.everything && self.lacks != Some(feature)
        }

        fn is_legal(&self, gpa: Gpa) -> bool {
            gpa.fits(40)
        }

        fn is_legal_cr3(&self, cr3: u64) -> bool {
            cr3 >> 40 == 0
        }

        fn is_legal_cr4(&self, cr4: u64) -> bool {
            cr4 >> 32 == 0
        }

        fn is_legal_efer(&self, efer: u64) -> bool {
            efer & !0xffff == 0
        }

        fn uses_hyperv(&self) -> bool {
            self.everything
        }
    }
}
