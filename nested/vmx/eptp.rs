// SPDX-License-Identifier: GPL-2.0

//! EPT pointers of L1, and what `IA32_VMX_EPT_VPID_CAP` says.

use super::capability::msrs::{ept, join, vpid, Msrs};
use crate::address::Gpa;
use crate::mmu::level::Level;

/// `IA32_VMX_EPT_VPID_CAP` (SDM, "VPID and EPT Capabilities").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptVpidCapability(u64);

impl EptVpidCapability {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u64 = join(ept::EXECUTE_ONLY, 0);
    /// Page walks of 4 levels.
    pub const WALK_4: u64 = join(ept::PAGE_WALK_4, 0);
    /// Page walks of 5 levels.
    pub const WALK_5: u64 = join(ept::PAGE_WALK_5, 0);
    /// Pages of 2 MiB.
    pub const PAGE_2M: u64 = join(ept::PAGE_2MB, 0);
    /// Pages of 1 GiB.
    pub const PAGE_1G: u64 = join(ept::PAGE_1GB, 0);
    /// Uncacheable paging structures.
    pub const UNCACHEABLE: u64 = join(ept::UC, 0);
    /// Write-back paging structures.
    pub const WRITE_BACK: u64 = join(ept::WB, 0);
    /// INVEPT.
    pub const INVEPT: u64 = join(ept::INVEPT, 0);
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = join(ept::AD, 0);
    /// INVEPT of a single context.
    pub const INVEPT_SINGLE_CONTEXT: u64 = join(ept::EXTENT_CONTEXT, 0);
    /// INVEPT of all contexts.
    pub const INVEPT_ALL_CONTEXTS: u64 = join(ept::EXTENT_GLOBAL, 0);
    /// INVVPID.
    pub const INVVPID: u64 = join(0, vpid::INVVPID);
    /// INVVPID of an individual address.
    pub const INVVPID_INDIVIDUAL_ADDRESS: u64 = join(0, vpid::EXTENT_INDIVIDUAL_ADDR);
    /// INVVPID of a single context.
    pub const INVVPID_SINGLE_CONTEXT: u64 = join(0, vpid::EXTENT_SINGLE_CONTEXT);
    /// INVVPID of all contexts.
    pub const INVVPID_ALL_CONTEXTS: u64 = join(0, vpid::EXTENT_GLOBAL_CONTEXT);
    /// INVVPID of a single context except for global translations.
    pub const INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS: u64 =
        join(0, vpid::EXTENT_SINGLE_NON_GLOBAL);

    /// Takes the value of the MSR.
    pub const fn new(msr: u64) -> Self {
        Self(msr)
    }

    /// Returns whether all of the features are there.
    pub const fn has(self, features: u64) -> bool {
        self.0 & features == features
    }
}

impl Msrs {
    /// Returns what there is of EPT and of VPIDs.
    pub const fn ept_vpid(&self) -> EptVpidCapability {
        EptVpidCapability::new(join(self.ept_caps, self.vpid_caps))
    }
}

/// An EPT pointer that has passed its checks, so that an entry could use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eptp(u64);

impl Eptp {
    const MEMORY_TYPE: u64 = 0x7;
    const WALK_LENGTH: u64 = 0x38;
    const ACCESSED_DIRTY: u64 = 1 << 6;
    const RESERVED: u64 = 0xf80;

    /// Checks a number that L1 supplies.
    pub fn new(
        raw: u64,
        capability: EptVpidCapability,
        physical_address_width: u32,
    ) -> Result<Self, EptpCheck> {
        check_eptp(raw, capability, physical_address_width).map(|()| Self(raw))
    }

    /// Takes the EPT pointer of a VMCS whose checks have passed.
    pub const fn of_checked(raw: u64) -> Self {
        Self(raw)
    }

    /// Returns the number.
    pub const fn into_raw(self) -> u64 {
        self.0
    }

    /// Returns the address of the top-level table.
    pub const fn table(self) -> Gpa {
        Gpa::from_raw(self.0).page()
    }

    /// Returns the level of that table.
    pub const fn top(self) -> Level {
        // The check leaves these two lengths of a walk.
        if self.0 & Self::WALK_LENGTH == 4 << 3 {
            Level::Table256T
        } else {
            Level::Table512G
        }
    }

    /// Returns whether the tables have accessed and dirty flags.
    pub const fn has_accessed_dirty(self) -> bool {
        self.0 & Self::ACCESSED_DIRTY != 0
    }
}

consistency_checks! {
    /// Checks an EPT pointer (SDM, "Checks on VM-Execution Control Fields").
    pub fn check_eptp(
        raw: u64,
        capability: EptVpidCapability,
        physical_address_width: u32,
    ) -> Result<(), EptpCheck> {
        /// The memory type of the paging structures is not one that there is.
        MemoryType: !match raw & Eptp::MEMORY_TYPE {
            0 => capability.has(EptVpidCapability::UNCACHEABLE),
            6 => capability.has(EptVpidCapability::WRITE_BACK),
            _ => false,
        },
        /// The length of page walks, less 1, is not one that there is.
        WalkLength: !match (raw & Eptp::WALK_LENGTH) >> 3 {
            3 => capability.has(EptVpidCapability::WALK_4),
            4 => capability.has(EptVpidCapability::WALK_5),
            _ => false,
        },
        /// A reserved bit is set.
        Reserved: raw & Eptp::RESERVED != 0,
        /// The address is too wide.
        Address: !Gpa::from_raw(raw).fits(physical_address_width),
        /// There are no accessed and dirty flags.
        AccessedDirty: raw & Eptp::ACCESSED_DIRTY != 0
            && !capability.has(EptVpidCapability::ACCESSED_DIRTY),
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_eptp))]
mod tests {
    use super::*;

    const ALL: EptVpidCapability = EptVpidCapability::new(u64::MAX);
    const WIDTH: u32 = 40;

    #[test]
    fn good_pointers_are_taken() {
        for raw in [
            0x1234_5018,
            0x1234_501e,
            0x1234_505e,
            0x1234_5026,
            0xff_ffff_f01e,
        ] {
            let eptp = Eptp::new(raw, ALL, WIDTH);

            assert_eq!(eptp.map(Eptp::into_raw), Ok(raw));
            assert_eq!(eptp.map(Eptp::table), Ok(Gpa::from_raw(raw & !0xfff)));
            assert_eq!(
                eptp.map(Eptp::has_accessed_dirty),
                Ok(raw & Eptp::ACCESSED_DIRTY != 0)
            );
        }
    }

    #[test]
    fn each_violation_is_found() {
        for (raw, check) in [
            (0x1019, EptpCheck::MemoryType),
            (0x1016, EptpCheck::WalkLength),
            (0x102e, EptpCheck::WalkLength),
            (0x109e, EptpCheck::Reserved),
            (0x181e, EptpCheck::Reserved),
            (0x100_0000_001e, EptpCheck::Address),
            (1 << 63 | 0x1e, EptpCheck::Address),
        ] {
            assert_eq!(Eptp::new(raw, ALL, WIDTH), Err(check));
        }
    }

    #[test]
    fn what_the_processor_does_not_have_is_a_violation() {
        for (raw, missing, check) in [
            (
                0x1018,
                EptVpidCapability::UNCACHEABLE,
                EptpCheck::MemoryType,
            ),
            (0x101e, EptVpidCapability::WRITE_BACK, EptpCheck::MemoryType),
            (0x101e, EptVpidCapability::WALK_4, EptpCheck::WalkLength),
            (0x1026, EptVpidCapability::WALK_5, EptpCheck::WalkLength),
            (
                0x105e,
                EptVpidCapability::ACCESSED_DIRTY,
                EptpCheck::AccessedDirty,
            ),
        ] {
            let capability = EptVpidCapability::new(!missing);

            assert!(Eptp::new(raw, ALL, WIDTH).is_ok());
            assert_eq!(Eptp::new(raw, capability, WIDTH), Err(check));
        }
    }
}
