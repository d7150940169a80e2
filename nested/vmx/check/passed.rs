// SPDX-License-Identifier: GPL-2.0

//! Which checks of a VMCS need no repetition, because nothing changed since they passed.

#[cfg(test)]
mod host;

use super::{
    controls::check_controls,
    failure::{ControlCheck, GuestStateCheck},
    guest_state::{check_registers, check_segments, SegmentContext},
    host_state::{check_host_state, HostStateCheck},
    Processor,
};
use crate::vmx::Vmcs12;

/// A group of fields that are checked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The controls. The checks of the other groups depend on them.
    Controls,
    /// The host-state area.
    HostState,
    /// Control registers, debug registers, MSRs and descriptor-table registers of L2.
    Registers,
    /// The segment registers of L2.
    Segments,
}

/// The groups of one VMCS that passed their checks and did not change since then.
///
/// It is kept beside the VMCS, and starts as [`Passed::NONE`] when another VMCS takes the place,
/// and when the features of the virtual processor change. Whoever changes a field calls
/// [`Self::forget_field()`], or [`Self::forget()`] when it changes many; so does an exit of L2 that
/// saves other values than VM entry loaded. Only the checks themselves can add to it, and the
/// processor, which has made them: see [`Self::trust_segments()`].
///
/// What L2 changes all the time, RIP and RFLAGS for example, is not in a group: it is always
/// checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    controls: bool,
    host_state: bool,
    registers: bool,
    segments: Option<SegmentContext>,
}

impl Passed {
    /// No group passed.
    pub const NONE: Self = Self {
        controls: false,
        host_state: false,
        registers: false,
        segments: None,
    };

    /// Has the checks of `group` repeated, and of those that depend on it.
    pub fn forget(&mut self, group: Group) {
        match group {
            Group::Controls => *self = Self::NONE,
            Group::HostState => self.host_state = false,
            Group::Registers => self.registers = false,
            Group::Segments => self.segments = None,
        }
    }

    /// Has the checks repeated that depend on the field with this `encoding`.
    #[inline]
    pub fn forget_field(&mut self, encoding: u32) {
        if let Some(group) = Group::of_field(encoding) {
            self.forget(group);
        }
    }

    /// Takes the segment registers as those that the processor has saved when L2 exited.
    ///
    /// Not all of them need be in `vmcs12`: L1 rarely reads them.
    #[inline]
    pub fn trust_segments(&mut self, vmcs12: &Vmcs12) {
        self.segments = Some(SegmentContext::of(vmcs12));
    }

    /// Returns whether the segment registers of `vmcs12` need no check: they need not be up to date
    /// then.
    #[inline]
    pub fn covers_segments(&self, vmcs12: &Vmcs12) -> bool {
        self.segments == Some(SegmentContext::of(vmcs12))
    }

    /// Makes the checks on the controls, unless they passed.
    #[inline]
    pub fn check_controls(
        &mut self,
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), ControlCheck> {
        if !self.controls {
            check_controls(vmcs12, processor)?;
            self.controls = true;
        }
        Ok(())
    }

    /// Makes the checks on the host-state area, unless they passed.
    #[inline]
    pub fn check_host_state(
        &mut self,
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), HostStateCheck> {
        if !self.host_state {
            check_host_state(vmcs12, processor)?;
            self.host_state = true;
        }
        Ok(())
    }

    /// Makes the checks on registers of L2, unless they passed.
    #[inline]
    pub fn check_registers(
        &mut self,
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), GuestStateCheck> {
        if !self.registers {
            check_registers(vmcs12, processor).map_err(GuestStateCheck::Registers)?;
            self.registers = true;
        }
        Ok(())
    }

    /// Makes the checks on the segment registers of L2, unless they passed in the same mode of L2.
    #[inline]
    pub fn check_segments(
        &mut self,
        vmcs12: &Vmcs12,
        processor: &Processor<'_>,
    ) -> Result<(), GuestStateCheck> {
        let context = Some(SegmentContext::of(vmcs12));

        if self.segments != context {
            self.segments = None;
            check_segments(vmcs12, processor).map_err(GuestStateCheck::Segments)?;
            self.segments = context;
        }
        Ok(())
    }
}

impl Group {
    /// Returns the group of the field with this `encoding` (SDM, "Field Encoding in VMCS").
    ///
    /// There is none for a field that is not looked at, or that is always checked.
    pub const fn of_field(encoding: u32) -> Option<Self> {
        const TYPE: u32 = 3 << 10;
        const CONTROL: u32 = 0 << 10;
        const READ_ONLY: u32 = 1 << 10;
        const GUEST: u32 = 2 << 10;
        /// Accesses the high half of a 64-bit field.
        const HIGH: u32 = 1;

        let field = encoding & !HIGH;

        match field & TYPE {
            CONTROL => Self::of_control(field),
            READ_ONLY => None,
            GUEST => Self::of_guest_state(field),
            _ => Some(Self::HostState),
        }
    }

    const fn of_control(field: u32) -> Option<Self> {
        match field {
            // TSC_OFFSET, EOI_EXIT_BITMAP0 to 3, XSS_EXIT_BITMAP, ENCLS_EXITING_BITMAP.
            0x2010 | 0x201c | 0x201e | 0x2020 | 0x2022 | 0x202c | 0x202e => None,
            // EXCEPTION_BITMAP and the masks of page faults.
            0x4004 | 0x4006 | 0x4008 => None,
            // Event injection, which is always checked.
            0x4016 | 0x4018 | 0x401a => None,
            // PLE_GAP and PLE_WINDOW.
            0x4020 | 0x4022 => None,
            // Masks and read shadows of CR0 and CR4, CR3-target values.
            0x6000..=0x600e => None,
            _ => Some(Self::Controls),
        }
    }

    const fn of_guest_state(field: u32) -> Option<Self> {
        match field {
            // Selectors, limits, access rights and bases of ES, CS, SS, DS, FS, GS, LDTR and TR.
            0x0800..=0x080e | 0x4800..=0x480e | 0x4814..=0x4822 | 0x6806..=0x6814 => {
                Some(Self::Segments)
            }
            // GUEST_INTR_STATUS and GUEST_PML_INDEX.
            0x0810 | 0x0812 => None,
            // VMCS_LINK_POINTER, GUEST_IA32_EFER and GUEST_PDPTR0 to 3, which are always checked.
            0x2800 | 0x2806 | 0x280a..=0x2810 => None,
            // Interruptibility and activity, which are always checked.
            0x4824 | 0x4826 => None,
            // SMBASE, GUEST_SYSENTER_CS and VMX_PREEMPTION_TIMER_VALUE.
            0x4828 | 0x482a | 0x482e => None,
            // RSP, RIP, RFLAGS and pending debug exceptions, SSP.
            0x681c | 0x681e | 0x6820 | 0x6822 | 0x682a => None,
            _ => Some(Self::Registers),
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_passed))]
mod tests {
    use super::*;
    use crate::vmx::check::{check_vm_entry, host_state::ModeCheck, valid::Case, Failure, Mode};

    fn enter(case: &Case, passed: &mut Passed) -> Result<(), Failure> {
        check_vm_entry(
            &case.vmcs12,
            case.current,
            &case.processor(),
            &case.memory,
            passed,
        )
        .map(|_| ())
    }

    /// A group, the encoding of one of its fields, and a change of that which violates a check.
    type Violation = (Group, u32, fn(&mut Vmcs12));

    const VIOLATIONS: [Violation; 4] = [
        (Group::Controls, 0x0000, |vmcs12| {
            vmcs12.virtual_processor_id = 0;
        }),
        (Group::HostState, 0x0c02, |vmcs12| {
            vmcs12.host_cs_selector = 0;
        }),
        (Group::Registers, 0x6800, |vmcs12| vmcs12.guest_cr0 = 0),
        (Group::Segments, 0x4816, |vmcs12| {
            vmcs12.guest_cs_ar_bytes = 0x20_2098;
        }),
    ];

    #[test]
    fn segments_of_the_processor_are_checked_only_in_another_mode() {
        let mut case = Case::new();
        let mut passed = Passed::NONE;

        assert!(!passed.covers_segments(&case.vmcs12));
        case.vmcs12.guest_cs_limit = 0x12_3456;
        passed.trust_segments(&case.vmcs12);
        assert!(passed.covers_segments(&case.vmcs12));
        assert_eq!(enter(&case, &mut passed), Ok(()));

        case.make_l2_32bit();
        assert!(!passed.covers_segments(&case.vmcs12));
        assert!(enter(&case, &mut passed).is_err());
    }

    #[test]
    fn a_group_that_passed_is_checked_again_when_it_is_forgotten() {
        for (group, field, violate) in VIOLATIONS {
            let mut case = Case::new();
            let mut passed = Passed::NONE;

            assert_eq!(enter(&case, &mut passed), Ok(()));
            violate(&mut case.vmcs12);
            assert_eq!(Group::of_field(field), Some(group));

            let mut forgotten = passed;
            forgotten.forget_field(field);
            assert!(enter(&case, &mut forgotten).is_err());

            forgotten = passed;
            forgotten.forget(group);
            assert!(enter(&case, &mut forgotten).is_err());
            // What failed did not pass.
            assert!(enter(&case, &mut forgotten).is_err());

            // Every group depends on the controls.
            forgotten = passed;
            forgotten.forget(Group::Controls);
            assert!(enter(&case, &mut forgotten).is_err());
        }
    }

    #[test]
    fn a_failure_of_a_later_group_keeps_what_passed() {
        let mut case = Case::new();
        let mut passed = Passed::NONE;

        case.vmcs12.guest_rflags = 0;
        assert!(enter(&case, &mut passed).is_err());
        assert!(passed.controls);
        assert!(passed.registers);
        assert!(passed.segments.is_some());
    }

    #[test]
    fn segments_are_checked_again_in_another_mode_of_l2() {
        let mut case = Case::new();
        let mut passed = Passed::NONE;
        case.make_l2_32bit();
        assert_eq!(enter(&case, &mut passed), Ok(()));

        // RFLAGS is no field of a group.
        case.vmcs12.guest_rflags |= 1 << 17;
        passed.forget_field(0x6820);
        assert!(matches!(
            enter(&case, &mut passed),
            Err(Failure::GuestState(GuestStateCheck::Segments(_)))
        ));
    }

    #[test]
    fn the_mode_of_l1_is_always_checked() {
        let mut case = Case::new();
        let mut passed = Passed::NONE;
        assert_eq!(enter(&case, &mut passed), Ok(()));

        case.mode = Mode::Legacy;
        assert_eq!(
            enter(&case, &mut passed),
            Err(Failure::Mode(ModeCheck::AddressSpaceSize))
        );
    }

    #[test]
    fn what_changes_all_the_time_is_always_checked() {
        let violations: [fn(&mut Vmcs12); 7] = [
            |vmcs12| vmcs12.guest_rip = 1 << 48,
            |vmcs12| vmcs12.guest_rflags = 0,
            |vmcs12| vmcs12.guest_activity_state = 4,
            |vmcs12| vmcs12.guest_interruptibility_info = 3,
            |vmcs12| vmcs12.guest_ia32_efer = 0,
            |vmcs12| vmcs12.vmcs_link_pointer = 1,
            |vmcs12| vmcs12.vm_entry_intr_info_field = 1 << 31 | 1 << 8,
        ];

        for violate in violations {
            let mut case = Case::new();
            let mut passed = Passed::NONE;

            assert_eq!(enter(&case, &mut passed), Ok(()));
            violate(&mut case.vmcs12);
            assert!(enter(&case, &mut passed).is_err());
        }
    }

    #[test]
    fn both_halves_of_a_field_are_in_its_group() {
        for field in (0..0x8000).step_by(2) {
            assert_eq!(Group::of_field(field), Group::of_field(field + 1));
        }
    }
}
