// SPDX-License-Identifier: GPL-2.0

//! The consistency checks of VM entry.
//!
//! They stand in the order of the manual and in the groups that it has (SDM, "VM Entries"). The
//! group of a check that fails decides what L1 sees: see [`Failure::outcome()`].
//!
//! They are not left to the processor, which sees vmcs02: a part of that is L0's, and L0 may have
//! changed what L1 wrote. The one exception is the TPR threshold, which must not be above the
//! virtual TPR: that is in memory which L1 can write at any time, also after a check.

pub mod controls;
mod failure;
pub mod guest_state;
pub mod host_state;
mod passed;
mod registers;
#[cfg(any(test, CONFIG_KUNIT))]
pub(in crate::vmx) mod valid;

pub use failure::{ControlCheck, Failure, GuestStateCheck, Outcome};
pub use passed::{Group, Passed};
pub use registers::is_canonical;

use super::{capability::Msrs, controls::Secondary, Vmcs12};
use crate::{address::Gpa, checked::Checked, memory::GuestMemory};

const CR0_PE: u64 = 1 << 0;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_CET: u64 = 1 << 23;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_VM: u64 = 1 << 17;

/// Whether L1 is in IA-32e mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is not.
    Legacy,
    /// IA32_EFER.LMA is 1.
    Ia32e,
}

/// The virtual processor of L1, as far as VM entry looks at it.
///
/// `reserved` are the bits that must be 0 because the processor does not have what they stand for.
#[derive(Clone, Copy, Debug)]
pub struct Processor<'a> {
    /// The VMX capability MSRs.
    pub msrs: &'a Msrs,
    /// The number of bits of a physical address.
    pub physical_address_width: u32,
    /// The number of bits of a linear address that the host has: 48 or 57.
    ///
    /// MSRs and bases of segments are checked against this, whatever CR4.LA57 is.
    pub linear_address_width: u32,
    /// Reserved bits of CR3: those beyond the physical addresses, but for those of linear-address
    /// masking where L1 has that.
    pub cr3_reserved: u64,
    /// Reserved bits of CR4.
    pub cr4_reserved: u64,
    /// Reserved bits of `IA32_EFER`.
    pub efer_reserved: u64,
    /// Reserved bits of `IA32_DEBUGCTL`, which do not include those that L1 may set in vain.
    pub debugctl_reserved: u64,
    /// Reserved bits of `IA32_PERF_GLOBAL_CTRL`.
    pub perf_global_ctrl_reserved: u64,
    /// Reserved bits of `IA32_S_CET`: 9:6, and those of what is missing, shadow stacks (1:0) or
    /// indirect-branch tracking (63:10 and 5:2).
    pub s_cet_reserved: u64,
    /// Reserved bits of the pending debug exceptions: 63:17, 15, 13 and 11:4, and 16 without RTM.
    /// Bit 11 exists with detection of bus locks.
    pub pending_debug_reserved: u64,
    /// Reserved bits of the interruptibility state: 31:5, and 4 without SGX.
    pub interruptibility_reserved: u32,
    /// Whether L1 is in IA-32e mode now.
    pub mode: Mode,
}

/// Returns the bits beyond the first `width`.
#[inline]
const fn beyond(width: u32) -> u64 {
    match u64::MAX.checked_shl(width) {
        Some(bits) => bits,
        None => 0,
    }
}

/// Returns whether `value` has all bits of `fixed0`, and none but those of `fixed1`.
#[inline]
const fn has_fixed_bits(value: u64, fixed0: u64, fixed1: u64) -> bool {
    value & fixed1 | fixed0 == value
}

impl Processor<'_> {
    /// Returns whether `address` is that of a page.
    #[inline]
    fn is_page(&self, address: u64) -> bool {
        Gpa::from_raw(address).is_legal_page(self.physical_address_width)
    }

    /// Returns whether `address` is canonical in the widest mode of the host.
    #[inline]
    fn is_canonical(&self, address: u64) -> bool {
        is_canonical(address, self.linear_address_width)
    }

    /// Returns whether `cr0` is valid in VMX operation.
    #[inline]
    fn is_host_cr0(&self, cr0: u64) -> bool {
        has_fixed_bits(cr0, self.msrs.cr0_fixed0, self.msrs.cr0_fixed1)
    }

    /// Returns whether `cr0` is valid for L2. An unrestricted guest needs no protection or paging.
    #[inline]
    fn is_guest_cr0(&self, cr0: u64, secondary: Secondary) -> bool {
        let free = if secondary.unrestricted_guest() {
            CR0_PE | CR0_PG
        } else {
            0
        };

        has_fixed_bits(cr0, self.msrs.cr0_fixed0 & !free, self.msrs.cr0_fixed1)
    }

    /// Returns whether `cr4` is valid, for L1 and L2 alike.
    #[inline]
    fn is_cr4(&self, cr4: u64) -> bool {
        has_fixed_bits(cr4, self.msrs.cr4_fixed0, self.msrs.cr4_fixed1)
            && cr4 & self.cr4_reserved == 0
    }
}

/// Makes the checks of VMLAUNCH and VMRESUME, but those that `passed` says need no repetition.
///
/// `current` is where the VMCS is in memory of L1, if it is. The MSRs that VM entry loads come
/// after that: [`MsrArea`](super::exit::msr_area::MsrArea).
pub fn check_vm_entry<'a, M: GuestMemory>(
    vmcs12: &'a Vmcs12,
    current: Option<Gpa>,
    processor: &Processor<'_>,
    memory: &M,
    passed: &mut Passed,
) -> Result<Checked<'a, Vmcs12>, Failure> {
    passed
        .check_controls(vmcs12, processor)
        .map_err(Failure::Controls)?;
    controls::check_event_injection(vmcs12, processor)
        .map_err(|check| Failure::Controls(ControlCheck::Event(check)))?;
    host_state::check_mode(vmcs12, processor).map_err(Failure::Mode)?;
    passed
        .check_host_state(vmcs12, processor)
        .map_err(Failure::HostState)?;
    check_guest_state(vmcs12, current, processor, memory, passed).map_err(Failure::GuestState)?;

    Ok(Checked::vouch(vmcs12))
}

/// Makes the checks on the guest-state area.
fn check_guest_state<M: GuestMemory>(
    vmcs12: &Vmcs12,
    current: Option<Gpa>,
    processor: &Processor<'_>,
    memory: &M,
    passed: &mut Passed,
) -> Result<(), GuestStateCheck> {
    passed.check_registers(vmcs12, processor)?;
    guest_state::check_efer(vmcs12, processor).map_err(GuestStateCheck::Efer)?;
    passed.check_segments(vmcs12, processor)?;
    guest_state::check_rip_rflags(vmcs12, processor).map_err(GuestStateCheck::RipRflags)?;
    guest_state::check_activity(vmcs12, processor).map_err(GuestStateCheck::Activity)?;
    guest_state::check_non_register_state(vmcs12, processor)
        .map_err(GuestStateCheck::NonRegister)?;
    guest_state::check_link_pointer(vmcs12, current, processor, memory)
        .map_err(GuestStateCheck::LinkPointer)?;
    guest_state::check_guest_pdptes(vmcs12, processor, memory).map_err(GuestStateCheck::Pdpte)
}

/// Makes the checks on a VMCS that user space restores.
///
/// L2 ran before, so the guest-state area is not what L1 wrote, and user space may give L2 other
/// registers after that. The processor checks those when it enters L2. What mode L1 is in is not
/// known: the registers are those of L2. It was checked when L1 entered L2.
pub fn check_restored<'a, M: GuestMemory>(
    vmcs12: &'a Vmcs12,
    current: Option<Gpa>,
    processor: &Processor<'_>,
    memory: &M,
    entry: PendingEntry,
) -> Result<Checked<'a, Vmcs12>, Failure> {
    controls::check_controls(vmcs12, processor).map_err(Failure::Controls)?;
    controls::check_event_injection(vmcs12, processor)
        .map_err(|check| Failure::Controls(ControlCheck::Event(check)))?;
    host_state::check_host_state(vmcs12, processor).map_err(Failure::HostState)?;

    check_restored_guest_state(vmcs12, current, processor, memory, entry)
        .map_err(Failure::GuestState)?;
    Ok(Checked::vouch(vmcs12))
}

/// Makes the checks on what of the guest-state area does not change behind the back of L1.
fn check_restored_guest_state<M: GuestMemory>(
    vmcs12: &Vmcs12,
    current: Option<Gpa>,
    processor: &Processor<'_>,
    memory: &M,
    entry: PendingEntry,
) -> Result<(), GuestStateCheck> {
    guest_state::check_registers(vmcs12, processor).map_err(GuestStateCheck::Registers)?;
    if entry == PendingEntry::Pending {
        guest_state::check_efer(vmcs12, processor).map_err(GuestStateCheck::Efer)?;
    }
    guest_state::check_activity(vmcs12, processor).map_err(GuestStateCheck::Activity)?;
    guest_state::check_link_pointer(vmcs12, current, processor, memory)
        .map_err(GuestStateCheck::LinkPointer)
}

/// Whether the state that user space restores was saved between VM entry and the first instruction
/// of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingEntry {
    /// L2 ran.
    Completed,
    /// VM entry of L1 is not complete.
    Pending,
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check))]
mod tests {
    use super::{
        guest_state::{LinkPointerCheck, NonRegisterCheck, PdpteCheck, RegisterCheck},
        host_state::HostStateCheck,
        valid::Case,
        *,
    };
    use crate::vmx::{eptp::EptpCheck, instruction::InstructionError, ExitReason};

    impl Case {
        /// Returns the check that VM entry fails.
        pub(in crate::vmx) fn failure(&self) -> Option<Failure> {
            let mut passed = Passed::NONE;

            check_vm_entry(
                &self.vmcs12,
                self.current,
                &self.processor(),
                &self.memory,
                &mut passed,
            )
            .err()
        }

        /// Returns the check that restoration by user space fails.
        fn restore_failure(&self, entry: PendingEntry) -> Option<Failure> {
            check_restored(
                &self.vmcs12,
                self.current,
                &self.processor(),
                &self.memory,
                entry,
            )
            .err()
        }
    }

    #[test]
    fn valid_cases_are_valid() {
        assert_eq!(Case::new().failure(), None);

        let mut case = Case::new();
        case.restrict_guest();
        assert_eq!(case.failure(), None);

        case = Case::new();
        case.make_l2_32bit();
        assert_eq!(case.failure(), None);

        case = Case::new();
        case.make_l1_32bit();
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn success_proves_the_vmcs_that_was_checked() {
        let case = Case::new();
        let mut passed = Passed::NONE;
        let checked = check_vm_entry(
            &case.vmcs12,
            case.current,
            &case.processor(),
            &case.memory,
            &mut passed,
        );

        assert!(checked.is_ok_and(|checked| core::ptr::eq(&*checked, &case.vmcs12)));
        assert!(passed != Passed::NONE);
    }

    #[test]
    fn the_stage_decides_what_l1_sees() {
        let invalid_state = |qualification| Outcome::FailedEntry {
            reason: ExitReason::INVALID_STATE,
            qualification,
        };

        assert_eq!(
            Failure::Controls(ControlCheck::EptPointer(EptpCheck::Address)).outcome(),
            Outcome::VmFailValid(InstructionError::ENTRY_INVALID_CONTROL_FIELD)
        );
        assert_eq!(
            Failure::HostState(HostStateCheck::CsNull).outcome(),
            Outcome::VmFailValid(InstructionError::ENTRY_INVALID_HOST_STATE_FIELD)
        );
        assert_eq!(
            Failure::GuestState(GuestStateCheck::Registers(RegisterCheck::Dr7)).outcome(),
            invalid_state(0)
        );
        assert_eq!(
            Failure::GuestState(GuestStateCheck::Pdpte(PdpteCheck::Pdpte0)).outcome(),
            invalid_state(2)
        );
        assert_eq!(
            Failure::GuestState(GuestStateCheck::NonRegister(
                NonRegisterCheck::NmiWhileBlockedBySti
            ))
            .outcome(),
            invalid_state(3)
        );
        assert_eq!(
            Failure::GuestState(GuestStateCheck::LinkPointer(LinkPointerCheck::Shadow)).outcome(),
            invalid_state(4)
        );
    }

    #[test]
    fn a_failure_has_the_names_of_its_group_and_check() {
        let failure = Failure::HostState(HostStateCheck::CsNull);

        assert_eq!(failure.group(), "host state");
        assert_eq!(failure.name(), c"HostStateCheck::CsNull");
    }

    #[test]
    fn controls_fail_before_host_state_and_that_before_guest_state() {
        let mut case = Case::new();

        case.vmcs12.guest_rflags = 0;
        assert!(matches!(case.failure(), Some(Failure::GuestState(_))));
        case.vmcs12.host_cs_selector = 0;
        assert!(matches!(case.failure(), Some(Failure::HostState(_))));
        case.vmcs12.virtual_processor_id = 0;
        assert!(matches!(case.failure(), Some(Failure::Controls(_))));
    }

    #[test]
    fn restored_state_may_have_what_l2_changed() {
        let mut case = Case::new();
        case.vmcs12.guest_rflags = 0;
        case.vmcs12.guest_cs_ar_bytes = 0;
        assert_eq!(case.restore_failure(PendingEntry::Pending), None);

        case.vmcs12.guest_ia32_efer = 0;
        assert_eq!(case.restore_failure(PendingEntry::Completed), None);
        assert!(case.restore_failure(PendingEntry::Pending).is_some());

        // The mode of L1 is not known.
        case.mode = Mode::Legacy;
        assert_eq!(case.restore_failure(PendingEntry::Completed), None);

        case.vmcs12.guest_activity_state = 4;
        assert!(case.restore_failure(PendingEntry::Completed).is_some());
    }

    #[test]
    fn restored_state_passes_the_checks_on_what_l1_wrote() {
        let failure = |change: fn(&mut Vmcs12)| {
            let mut case = Case::new();

            change(&mut case.vmcs12);
            case.restore_failure(PendingEntry::Completed)
        };

        assert!(matches!(
            failure(|vmcs12| vmcs12.virtual_processor_id = 0),
            Some(Failure::Controls(_))
        ));
        assert!(matches!(
            failure(|vmcs12| vmcs12.vm_entry_intr_info_field = 1 << 31 | 1 << 12),
            Some(Failure::Controls(ControlCheck::Event(_)))
        ));
        assert!(matches!(
            failure(|vmcs12| vmcs12.host_cs_selector = 0),
            Some(Failure::HostState(_))
        ));
        assert!(matches!(
            failure(|vmcs12| vmcs12.guest_cr4 = 0),
            Some(Failure::GuestState(GuestStateCheck::Registers(_)))
        ));
        assert!(matches!(
            failure(|vmcs12| vmcs12.vmcs_link_pointer = 1),
            Some(Failure::GuestState(GuestStateCheck::LinkPointer(_)))
        ));
    }
}
