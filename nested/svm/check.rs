// SPDX-License-Identifier: GPL-2.0

//! The checks that `VMRUN` makes (APM, "Canonicalization and Consistency Checks").

use super::{
    bits::{interrupt, register::*},
    event::{Event, Kind},
    intercept::Intercept,
    vmcb12::{Control12, Save12},
    Feature, VirtualCpu,
};
use crate::{address::Gpa, checked::Checked};

/// Size of the I/O permission map in bytes.
const IOPM_SIZE: u64 = 3 * 4096;

/// Size of the MSR permission map in bytes.
const MSRPM_SIZE: u64 = 2 * 4096;

/// Why `VMRUN` fails with `VMEXIT_INVALID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The state-save area violates a rule.
    Save(SaveCheck),
    /// The control area violates a rule.
    Control(ControlCheck),
}

impl Invalid {
    /// Returns the name of the check that failed.
    pub const fn name(self) -> &'static core::ffi::CStr {
        match self {
            Self::Save(check) => check.name(),
            Self::Control(check) => check.name(),
        }
    }
}

/// Whether L2 has a page-attribute table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pat {
    /// It is that of L1.
    Shared,
    /// It is in vmcb12.
    Separate,
}

/// Checks what `VMRUN` is to load for L2.
pub fn check_vmcb12<'a>(
    control: &'a Control12,
    save: &'a Save12,
    pat: Pat,
    cpu: &impl VirtualCpu,
) -> Result<(Checked<'a, Control12>, Checked<'a, Save12>), Invalid> {
    check_save(save, pat, cpu).map_err(Invalid::Save)?;
    Ok((vouch_control(control, cpu)?, Checked::vouch(save)))
}

/// Checks a control area alone, for state of which the rest comes from elsewhere.
pub fn vouch_control<'a>(
    control: &'a Control12,
    cpu: &impl VirtualCpu,
) -> Result<Checked<'a, Control12>, Invalid> {
    check_control(control, cpu).map_err(Invalid::Control)?;
    Ok(Checked::vouch(control))
}

/// Returns whether all entries of a page-attribute table have types that exist.
pub fn is_legal_pat(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|memory_type| matches!(memory_type, 0 | 1 | 4 | 5 | 6 | 7))
}

/// Returns whether a permission map of `size` bytes at `start` is within the address width.
fn is_legal_map(start: Gpa, size: u64, cpu: &impl VirtualCpu) -> bool {
    let last = start.page().checked_add(size.wrapping_sub(1));

    cpu.is_legal(start.page()) && last.is_some_and(|last| cpu.is_legal(last))
}

/// Returns whether `VMRUN` can inject `event`.
fn is_legal_event(event: Event, cpu: &impl VirtualCpu) -> bool {
    if !event.is_valid() {
        return true;
    }
    match event.kind() {
        None => false,
        Some(Kind::Exception) => is_exception(event.vector(), cpu),
        Some(Kind::Interrupt | Kind::Nmi | Kind::Software) => true,
    }
}

/// Returns whether `vector` is that of an exception that L1's virtual processor can raise.
fn is_exception(vector: u8, cpu: &impl VirtualCpu) -> bool {
    match vector {
        0 | 1 | 3..=8 | 10..=14 | 16..=19 | 28 | 30 => true,
        21 => cpu.has(Feature::ShadowStack),
        29 => cpu.has(Feature::SevEs),
        _ => false,
    }
}

/// Returns whether the guest would be in long mode, or on the way into it.
const fn is_long(save: &Save12) -> bool {
    save.efer & EFER_LME != 0 && save.cr0 & CR0_PG != 0
}

consistency_checks! {
    /// Checks the state-save area.
    pub fn check_save(save: &Save12, pat: Pat, cpu: &impl VirtualCpu) -> Result<(), SaveCheck> {
        /// EFER.SVME is clear.
        EferSvme: save.efer & EFER_SVME == 0,
        /// CR0.CD is clear and CR0.NW is set.
        Cr0CacheControl: save.cr0 & (CR0_CD | CR0_NW) == CR0_NW,
        /// CR0 has a bit in its upper half.
        Cr0Upper: save.cr0 >> 32 != 0,
        /// DR6 has a bit in its upper half.
        Dr6Upper: save.dr6 >> 32 != 0,
        /// DR7 has a bit in its upper half.
        Dr7Upper: save.dr7 >> 32 != 0,
        /// EFER.LME and CR0.PG are set, and CR4.PAE is clear.
        LongModePae: is_long(save) && save.cr4 & CR4_PAE == 0,
        /// EFER.LME and CR0.PG are set, and CR0.PE is clear.
        LongModeProtection: is_long(save) && save.cr0 & CR0_PE == 0,
        /// EFER.LME and CR0.PG are set, and CR3 has bits that must be zero.
        LongModeCr3: is_long(save) && !cpu.is_legal_cr3(save.cr3),
        /// EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are set.
        LongModeCs: is_long(save)
            && save.cs.attrib & (ATTRIB_L | ATTRIB_DB) == ATTRIB_L | ATTRIB_DB,
        /// CR4 has bits that must be zero.
        Cr4Reserved: !cpu.is_legal_cr4(save.cr4),
        /// EFER has bits that must be zero.
        EferReserved: !cpu.is_legal_efer(save.efer),
        /// The page-attribute table has a type that does not exist.
        PatType: pat == Pat::Separate && !is_legal_pat(save.g_pat),
    }
}

consistency_checks! {
    /// Checks the control area.
    pub fn check_control(
        control: &Control12,
        cpu: &impl VirtualCpu,
    ) -> Result<(), ControlCheck> {
        /// The intercept of VMRUN is clear.
        VmrunIntercept: !control.intercepts.contains(Intercept::VMRUN),
        /// The ASID is that of the host.
        Asid: control.asid == 0,
        /// The address of the nested page tables is too wide.
        NestedCr3: control.nested_paging() && !cpu.is_legal(control.nested_cr3),
        /// The MSR permission map reaches beyond the physical-address width.
        MsrPermissionMap: !is_legal_map(control.msrpm_base_pa, MSRPM_SIZE, cpu),
        /// The I/O permission map reaches beyond the physical-address width.
        IoPermissionMap: !is_legal_map(control.iopm_base_pa, IOPM_SIZE, cpu),
        /// Virtual NMIs are enabled, and NMIs are not intercepted.
        VirtualNmi: control.int_ctl & interrupt::V_NMI_ENABLE != 0
            && !control.intercepts.contains(Intercept::NMI),
        /// The event to inject has a type or a vector that is not allowed.
        EventInjection: !is_legal_event(Event::from_raw(control.event_inj), cpu),
    }
}

/// Why a state that user space restores cannot have been saved.
///
/// What was saved beside the control area is L1's state from before `VMRUN`.
pub fn check_saved_l1(save: &Save12, cpu: &impl VirtualCpu) -> Result<(), SavedL1Check> {
    check_saved_mode(save)?;
    check_save(save, Pat::Shared, cpu).map_err(|_| SavedL1Check::State)
}

/// What is wrong with L1's saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedL1Check {
    /// L1 was not in a mode in which it can execute `VMRUN`.
    Mode,
    /// The state violates a rule that holds for any state.
    State,
}

fn check_saved_mode(save: &Save12) -> Result<(), SavedL1Check> {
    let protected = save.cr0 & (CR0_PG | CR0_PE) == CR0_PG | CR0_PE;
    let virtual_8086 = save.rflags & RFLAGS_VM != 0;
    let long_by_accident = save.efer & (EFER_LMA | EFER_LME) == EFER_LMA;

    if protected && !virtual_8086 && !long_by_accident {
        Ok(())
    } else {
        Err(SavedL1Check::Mode)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cpu::fake::Cpu, *};

    const WIDTH: u64 = 1 << 40;

    fn control() -> Control12 {
        let mut control = Control12 {
            asid: 1,
            ..Control12::default()
        };
        control.intercepts.insert(Intercept::VMRUN);
        control
    }

    fn save() -> Save12 {
        Save12 {
            efer: EFER_SVME | EFER_LME | EFER_LMA,
            cr0: CR0_PG | CR0_PE,
            cr4: CR4_PAE,
            g_pat: 0x0007_0406_0007_0406,
            ..Save12::default()
        }
    }

    fn check(control: &Control12, save: &Save12) -> Result<(), Invalid> {
        check_vmcb12(control, save, Pat::Separate, &Cpu::with_everything()).map(|_| ())
    }

    #[test]
    fn a_valid_vmcb12_passes() {
        assert_eq!(check(&control(), &save()), Ok(()));
    }

    /// The smallest change to a valid state-save area that violates `check`.
    fn violating_save(check: SaveCheck) -> Save12 {
        let mut save = save();
        match check {
            SaveCheck::EferSvme => save.efer &= !EFER_SVME,
            SaveCheck::Cr0CacheControl => save.cr0 |= CR0_NW,
            SaveCheck::Cr0Upper => save.cr0 |= 1 << 32,
            SaveCheck::Dr6Upper => save.dr6 |= 1 << 32,
            SaveCheck::Dr7Upper => save.dr7 |= 1 << 63,
            SaveCheck::LongModePae => save.cr4 &= !CR4_PAE,
            SaveCheck::LongModeProtection => save.cr0 &= !CR0_PE,
            SaveCheck::LongModeCr3 => save.cr3 = WIDTH,
            SaveCheck::LongModeCs => save.cs.attrib = ATTRIB_L | ATTRIB_DB,
            SaveCheck::Cr4Reserved => save.cr4 |= 1 << 32,
            SaveCheck::EferReserved => save.efer |= 1 << 16,
            SaveCheck::PatType => save.g_pat |= 2 << 24,
        }
        save
    }

    #[test]
    fn each_check_of_the_save_area_fires_alone() {
        for &id in SaveCheck::ALL {
            let save = violating_save(id);
            assert_eq!(check(&control(), &save), Err(Invalid::Save(id)), "{id:?}");
        }
    }

    /// The smallest change to a valid control area that violates `check`.
    fn violating_control(check: ControlCheck) -> Control12 {
        let mut control = control();
        match check {
            ControlCheck::VmrunIntercept => control.intercepts.remove(Intercept::VMRUN),
            ControlCheck::Asid => control.asid = 0,
            ControlCheck::NestedCr3 => {
                control.misc_ctl = 1;
                control.nested_cr3 = Gpa::from_raw(WIDTH);
            }
            ControlCheck::MsrPermissionMap => {
                control.msrpm_base_pa = Gpa::from_raw(WIDTH - 4096);
            }
            ControlCheck::IoPermissionMap => {
                control.iopm_base_pa = Gpa::from_raw(WIDTH - 2 * 4096);
            }
            ControlCheck::VirtualNmi => control.int_ctl |= interrupt::V_NMI_ENABLE,
            ControlCheck::EventInjection => control.event_inj = 0x8000_0100,
        }
        control
    }

    #[test]
    fn each_check_of_the_control_area_fires_alone() {
        for &id in ControlCheck::ALL {
            let control = violating_control(id);
            assert_eq!(
                check(&control, &save()),
                Err(Invalid::Control(id)),
                "{id:?}"
            );
        }
    }

    #[test]
    fn a_check_tells_its_name() {
        let failed = check(&violating_control(ControlCheck::Asid), &save()).unwrap_err();

        assert_eq!(failed.name(), c"ControlCheck::Asid");
    }

    #[test]
    fn permission_maps_may_end_at_the_address_width() {
        let mut control = control();
        control.msrpm_base_pa = Gpa::from_raw(WIDTH - MSRPM_SIZE);
        control.iopm_base_pa = Gpa::from_raw(WIDTH - IOPM_SIZE);

        assert_eq!(check(&control, &save()), Ok(()));
    }

    #[test]
    fn a_map_at_the_end_of_all_addresses_does_not_wrap() {
        let mut control = control();
        control.msrpm_base_pa = Gpa::from_raw(!0xfff);

        assert_eq!(
            check(&control, &save()),
            Err(Invalid::Control(ControlCheck::MsrPermissionMap))
        );
    }

    #[test]
    fn without_nested_paging_its_address_does_not_matter() {
        let mut control = control();
        control.nested_cr3 = Gpa::from_raw(u64::MAX);

        assert_eq!(check(&control, &save()), Ok(()));
    }

    #[test]
    fn outside_long_mode_cr3_and_cs_do_not_matter() {
        let mut save = save();
        save.efer = EFER_SVME;
        save.cr3 = u64::MAX;
        save.cs.attrib = ATTRIB_L | ATTRIB_DB;
        save.cr4 = 0;

        assert_eq!(check(&control(), &save), Ok(()));
    }

    #[test]
    fn a_shared_pat_is_not_checked() {
        let save = violating_save(SaveCheck::PatType);
        let cpu = Cpu::with_everything();

        assert!(check_vmcb12(&control(), &save, Pat::Shared, &cpu).is_ok());
    }

    #[test]
    fn exceptions_that_can_be_injected_are_those_that_the_cpu_raises() {
        let injected = |cpu: &Cpu, vector| {
            let control = Control12 {
                event_inj: Event::new(Kind::Exception, vector).into_raw(),
                ..control()
            };
            vouch_control(&control, cpu).is_ok()
        };
        let all = Cpu::with_everything();
        let legal: Vec<u8> = (0..=255).filter(|&vector| injected(&all, vector)).collect();

        assert_eq!(
            legal,
            [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 21, 28, 29, 30]
        );
        assert!(!injected(&Cpu::without(Feature::ShadowStack), 21));
        assert!(!injected(&Cpu::without(Feature::SevEs), 29));
    }

    #[test]
    fn interrupts_of_all_vectors_can_be_injected() {
        for kind in [Kind::Interrupt, Kind::Nmi, Kind::Software] {
            for vector in 0..=255 {
                let control = Control12 {
                    event_inj: Event::new(kind, vector).into_raw(),
                    ..control()
                };
                assert_eq!(check(&control, &save()), Ok(()));
            }
        }
    }

    #[test]
    fn types_of_the_pat_are_the_architectural_ones() {
        for value in 0..=255u64 {
            let legal = [0, 1, 4, 5, 6, 7].contains(&value);
            for entry in 0..8 {
                assert_eq!(is_legal_pat(value << (8 * entry)), legal);
            }
        }
    }

    #[test]
    fn saved_l1_state_is_of_a_mode_that_can_execute_vmrun() {
        let cpu = Cpu::with_everything();
        let refused = |change: fn(&mut Save12)| {
            let mut save = save();
            change(&mut save);
            check_saved_l1(&save, &cpu).unwrap_err()
        };

        assert_eq!(check_saved_l1(&save(), &cpu), Ok(()));
        assert_eq!(refused(|save| save.cr0 &= !CR0_PG), SavedL1Check::Mode);
        assert_eq!(refused(|save| save.cr0 &= !CR0_PE), SavedL1Check::Mode);
        assert_eq!(refused(|save| save.rflags |= RFLAGS_VM), SavedL1Check::Mode);
        assert_eq!(refused(|save| save.efer &= !EFER_LME), SavedL1Check::Mode);
        assert_eq!(refused(|save| save.dr7 |= 1 << 40), SavedL1Check::State);
    }
}
