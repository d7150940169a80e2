// SPDX-License-Identifier: GPL-2.0

//! Who gets an exit of L2.

use super::{
    intercept::Intercept,
    permission_map::{msr_is_intercepted, ports_are_intercepted, Access},
    vmcb12::Control12,
    ExitCode,
};
use crate::memory::GuestMemory;

/// Who gets an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Route {
    /// The host handles it, and enters L2 again or reflects it later.
    L0,
    /// The guest hypervisor gets it.
    L1,
}

/// An exit of L2, as in vmcb02.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Why L2 has exited.
    pub code: ExitCode,
    /// `EXITINFO1`.
    pub info_1: u64,
    /// ECX of L2, which is the number of an MSR.
    pub ecx: u32,
}

/// What L0 wants for itself, whatever L1 intercepts.
pub trait Wanted {
    /// Returns whether KVM intercepts the exception with `vector` in any guest.
    fn exception(&self, vector: u8) -> bool;

    /// Returns whether a page fault tells of a page that the host has to get first.
    fn asynchronous_page_fault(&self) -> bool;

    /// Returns whether a hypercall is one that L0 handles for L2 in place of L1.
    fn direct_hypercall(&self) -> bool;
}

/// Routes an exit that the processor has reported.
pub fn route(
    exit: Exit,
    control: &Control12,
    wanted: &impl Wanted,
    memory: &impl GuestMemory,
) -> Route {
    if is_wanted_by_l0(exit.code, wanted) {
        Route::L0
    } else {
        route_by_l1(exit, control, memory)
    }
}

/// Returns whether L0 gets an exit before L1 is asked.
fn is_wanted_by_l0(code: ExitCode, wanted: &impl Wanted) -> bool {
    const PF: u8 = 14;

    match code {
        // These are the host's own; if L1 is to get an interrupt, that is decided later. A nested
        // page fault is L1's if its own tables have no translation.
        ExitCode::INTR | ExitCode::NMI | ExitCode::NPF => true,
        ExitCode::VMMCALL => wanted.direct_hypercall(),
        code => code.exception().is_some_and(|vector| {
            wanted.exception(vector) || (vector == PF && wanted.asynchronous_page_fault())
        }),
    }
}

/// Routes an exit, or an instruction of L2 that L0 emulates, by what L1 intercepts.
pub fn route_by_l1(exit: Exit, control: &Control12, memory: &impl GuestMemory) -> Route {
    let to_l1 = match exit.code {
        code if code.is_vmrun_failure() => true,
        // L0 does not want it, so that it is L1 for whom the exception is intercepted.
        code if code.exception().is_some() => true,
        ExitCode::MSR => control.intercepts.contains(Intercept::MSR) && msr(exit, control, memory),
        ExitCode::IOIO => {
            control.intercepts.contains(Intercept::IOIO) && ports(exit, control, memory)
        }
        code => Intercept::of(code).is_some_and(|code| control.intercepts.contains(code)),
    };

    if to_l1 {
        Route::L1
    } else {
        Route::L0
    }
}

/// Returns whether L1 intercepts an access to an MSR; it does if its map cannot be read.
fn msr(exit: Exit, control: &Control12, memory: &impl GuestMemory) -> bool {
    let access = if exit.info_1 & 1 == 0 {
        Access::Read
    } else {
        Access::Write
    };

    msr_is_intercepted(exit.ecx, access, control.msrpm_base_pa, memory).unwrap_or(true)
}

/// Returns whether L1 intercepts an access to ports; it does if its map cannot be read.
fn ports(exit: Exit, control: &Control12, memory: &impl GuestMemory) -> bool {
    let [_, _, low, high, ..] = exit.info_1.to_le_bytes();
    let size = exit.info_1.to_le_bytes()[0] >> 4 & 7;

    ports_are_intercepted(
        u16::from_le_bytes([low, high]),
        size,
        control.iopm_base_pa,
        memory,
    )
    .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::Gpa, memory::Inaccessible};

    struct Nothing;

    impl Wanted for Nothing {
        fn exception(&self, _: u8) -> bool {
            false
        }
        fn asynchronous_page_fault(&self) -> bool {
            false
        }
        fn direct_hypercall(&self) -> bool {
            false
        }
    }

    struct Everything;

    impl Wanted for Everything {
        fn exception(&self, _: u8) -> bool {
            true
        }
        fn asynchronous_page_fault(&self) -> bool {
            true
        }
        fn direct_hypercall(&self) -> bool {
            true
        }
    }

    /// Memory whose bytes all have the same value, or that is not there.
    struct Memory(Option<u8>);

    impl GuestMemory for Memory {
        fn read(&self, _: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            bytes.fill(self.0.ok_or(Inaccessible)?);
            Ok(())
        }
        fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    const ONES: Memory = Memory(Some(0xff));
    const ZEROES: Memory = Memory(Some(0));

    fn exit(code: ExitCode) -> Exit {
        Exit {
            code,
            // An access to 4 ports.
            info_1: 0x40 | 0x3f8 << 16,
            ecx: 0x10,
        }
    }

    fn intercepting(code: ExitCode) -> Control12 {
        let mut control = Control12::default();
        if let Some(intercept) = Intercept::of(code) {
            control.intercepts.insert(intercept);
        }
        control
    }

    fn all_codes() -> impl Iterator<Item = ExitCode> {
        (0..0x500)
            .chain([u64::MAX, u64::from(u32::MAX), 0xf000_0000])
            .map(ExitCode::from_raw)
    }

    #[test]
    fn every_exit_goes_to_l1_if_l1_intercepts_it_and_l0_does_not_want_it() {
        for code in all_codes() {
            let always_l0 = [ExitCode::INTR, ExitCode::NMI, ExitCode::NPF].contains(&code);
            let always_l1 = code.exception().is_some() || code.is_vmrun_failure();
            let has_intercept = Intercept::of(code).is_some();

            let routed = |control: &Control12| route(exit(code), control, &Nothing, &ONES);
            let with = routed(&intercepting(code));
            let without = routed(&Control12::default());

            let l1_if = |l1| if l1 { Route::L1 } else { Route::L0 };
            assert_eq!(
                with,
                l1_if(!always_l0 && (always_l1 || has_intercept)),
                "{code:?}"
            );
            assert_eq!(without, l1_if(always_l1), "{code:?}");
        }
    }

    #[test]
    fn what_l0_wants_l1_does_not_get() {
        for code in all_codes() {
            let routed = route(exit(code), &intercepting(code), &Everything, &ONES);
            if code.exception().is_some() || code == ExitCode::VMMCALL {
                assert_eq!(routed, Route::L0, "{code:?}");
            }
        }
    }

    #[test]
    fn permission_maps_decide_on_msrs_and_ports() {
        for code in [ExitCode::MSR, ExitCode::IOIO] {
            let control = intercepting(code);
            let routed = |memory| route(exit(code), &control, &Nothing, memory);

            assert_eq!(routed(&ONES), Route::L1);
            assert_eq!(routed(&ZEROES), Route::L0);
            assert_eq!(routed(&Memory(None)), Route::L1);
        }
    }

    #[test]
    fn an_emulated_interrupt_of_l1_is_routed_by_its_intercept() {
        let code = ExitCode::INTR;

        assert_eq!(
            route_by_l1(exit(code), &intercepting(code), &ONES),
            Route::L1
        );
        assert_eq!(
            route_by_l1(exit(code), &Control12::default(), &ONES),
            Route::L0
        );
    }
}
