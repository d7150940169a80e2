// SPDX-License-Identifier: GPL-2.0

//! Who gets an exception or NMI of L2.

use super::{ExitFacts, Route, Wish};
use crate::vmx::{
    bits::vector,
    exit::interruption::{InterruptionInformation, InterruptionType},
    merge::exceptions::Exceptions,
    Vmcs12,
};

/// Returns whether an exception is #BP, which INT3 raises as a software exception.
fn is_breakpoint(interruption: InterruptionInformation) -> bool {
    interruption.vector() == vector::BP
        && (interruption.is_kind(InterruptionType::SOFTWARE_EXCEPTION)
            || interruption.is_kind(InterruptionType::HARDWARE_EXCEPTION))
}

/// Returns the route of an exception or NMI that is L0's whatever L1 wants.
pub(super) fn taken_by_l0(facts: &impl ExitFacts) -> Option<Route> {
    let interruption = facts.interruption();
    let if_wished = |wish, route| facts.l0_wants(wish).then_some(route);

    if interruption.is_kind(InterruptionType::NMI) {
        // It was sent to the host.
        Some(Route::L0)
    } else if interruption.is_exception(vector::PF) {
        if_wished(Wish::PageFault, Route::L0First)
    } else if interruption.is_exception(vector::DB) {
        if_wished(Wish::DebugException, Route::L0)
    } else if is_breakpoint(interruption) {
        if_wished(Wish::Breakpoint, Route::L0)
    } else if interruption.is_exception(vector::AC) {
        if_wished(Wish::AlignmentCheck, Route::L0)
    } else if interruption.is_exception(vector::VE) {
        // Off in vmcs02: there is none unless L0 has made a mistake.
        Some(Route::L0)
    } else {
        None
    }
}

/// Returns whether L1 asked for an exception.
pub(super) fn is_wanted_by_l1(vmcs12: &Vmcs12, interruption: InterruptionInformation) -> bool {
    // If L0 has no use for page faults, only those that L1 selects exit at all.
    interruption.is_exception(vector::PF)
        || Exceptions::of(vmcs12).select_by_bitmap(interruption.vector())
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_route_exception))]
mod tests {
    use super::{
        super::{
            fake::{Facts, Memory},
            Exit,
        },
        *,
    };
    use crate::vmx::ExitReason;

    fn route(bitmap: u32, interruption: u32, wish: Option<Wish>) -> Route {
        let vmcs12 = Vmcs12 {
            exception_bitmap: bitmap,
            ..Vmcs12::default()
        };

        Exit {
            reason: ExitReason::EXCEPTION_NMI,
            vmcs12: &vmcs12,
            facts: &Facts {
                interruption,
                wish,
                ..Facts::NONE
            },
            memory: &Memory::EMPTY,
        }
        .route()
    }

    #[test]
    fn nmis_and_virtualization_exceptions_are_of_l0() {
        assert_eq!(route(u32::MAX, 0x8000_0202, None), Route::L0);
        assert_eq!(route(u32::MAX, 0x8000_0314, None), Route::L0);
    }

    #[test]
    fn exceptions_go_by_the_bitmap_of_l1() {
        for vector in (0..32).filter(|&vector| vector != 14 && vector != 20) {
            let interruption = 0x8000_0300 | vector;

            assert_eq!(route(1 << vector, interruption, None), Route::L1);
            assert_eq!(route(!(1 << vector), interruption, None), Route::L0);
        }
    }

    #[test]
    fn software_exceptions_go_by_the_bitmap_too() {
        for interruption in [0x8000_0603, 0x8000_0604, 0x8000_0501] {
            let bit = 1 << (interruption & 0xff);

            assert_eq!(route(bit, interruption, None), Route::L1);
            assert_eq!(route(!bit, interruption, None), Route::L0);
        }
    }

    #[test]
    fn page_faults_that_l0_has_no_use_for_are_those_of_l1() {
        let page_fault = 0x8000_0b0e;

        assert_eq!(route(0, page_fault, None), Route::L1);
        assert_eq!(
            route(u32::MAX, page_fault, Some(Wish::PageFault)),
            Route::L0First
        );
    }

    #[test]
    fn wishes_of_l0_are_for_their_exception_only() {
        let exceptions = [
            (0x8000_0301, Wish::DebugException),
            (0x8000_0603, Wish::Breakpoint),
            (0x8000_0303, Wish::Breakpoint),
            (0x8000_0b11, Wish::AlignmentCheck),
        ];

        for (interruption, wanted) in exceptions {
            for (_, wish) in exceptions {
                let expected = if wish == wanted { Route::L0 } else { Route::L1 };

                assert_eq!(route(u32::MAX, interruption, Some(wish)), expected);
            }
        }
        // INT1 is no debug exception that a debugger of L0 could have caused.
        assert_eq!(
            route(u32::MAX, 0x8000_0501, Some(Wish::DebugException)),
            Route::L1
        );
    }

    #[test]
    fn vectors_without_a_bit_are_not_wanted() {
        assert_eq!(route(u32::MAX, 0x8000_0320, None), Route::L0);
        assert_eq!(route(u32::MAX, 0x8000_03ff, None), Route::L0);
    }
}
