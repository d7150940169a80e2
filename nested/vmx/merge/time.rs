// SPDX-License-Identifier: GPL-2.0

//! The time of L2: its time-stamp counter and L1's VMX-preemption timer for it.

use crate::vmx::Vmcs12;

/// The fraction of a TSC multiplier, in bits (SDM, "Time-Stamp Counter Offset and Multiplier").
const FRACTION: u32 = 48;

/// How a time-stamp counter follows from that of the level below.
///
/// The counter is multiplied first, then the offset is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// Added to the multiplied counter, modulo 2^64.
    pub offset: u64,
    /// A fixed-point number, [`Tsc::ONE`] is 1.
    pub multiplier: u64,
}

impl Tsc {
    /// The multiplier that changes nothing.
    pub const ONE: u64 = 1 << FRACTION;

    /// A counter that is the same on both levels.
    pub const IDENTITY: Self = Self {
        offset: 0,
        multiplier: Self::ONE,
    };

    /// Returns what vmcs12 says of L2's counter and L1's.
    ///
    /// Scaling is part of offsetting: the processor does neither without the latter.
    #[inline]
    pub fn of(vmcs12: &Vmcs12) -> Self {
        if !vmcs12.primary().tsc_offsetting() {
            return Self::IDENTITY;
        }
        Self {
            offset: vmcs12.tsc_offset,
            multiplier: if vmcs12.secondary().tsc_scaling() {
                vmcs12.tsc_multiplier
            } else {
                Self::ONE
            },
        }
    }

    /// Returns how L2's counter follows from that of L0, `self` being L1's.
    ///
    /// A product of tiny multipliers does not become 0, which would stop time.
    #[inline]
    #[must_use]
    pub fn compose(self, l2: Self) -> Self {
        if l2.multiplier == Self::ONE {
            return Self {
                offset: self.offset.wrapping_add(l2.offset),
                multiplier: self.multiplier,
            };
        }
        Self {
            offset: scale_signed(self.offset, l2.multiplier).wrapping_add(l2.offset),
            multiplier: scale(self.multiplier, l2.multiplier).max(1),
        }
    }

    /// Returns the counter of this level, given that of the level below.
    #[inline]
    pub fn read(self, below: u64) -> u64 {
        scale(below, self.multiplier).wrapping_add(self.offset)
    }
}

/// Multiplies by a fixed-point number, modulo 2^64.
#[inline]
fn scale(value: u64, multiplier: u64) -> u64 {
    let product = u128::from(value).wrapping_mul(u128::from(multiplier)) >> FRACTION;
    let [a, b, c, d, e, f, g, h, ..] = product.to_le_bytes();

    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Multiplies a signed number by a fixed-point number, rounding towards 0.
#[inline]
fn scale_signed(value: u64, multiplier: u64) -> u64 {
    if value >> 63 != 0 {
        scale(value.wrapping_neg(), multiplier).wrapping_neg()
    } else {
        scale(value, multiplier)
    }
}

/// L1's VMX-preemption timer while L2 runs.
///
/// The hardware's timer is L0's own. L0 emulates that of L1 with a timer of its kernel, which must
/// go off when L1's time-stamp counter, slowed down by the rate, arrives at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreemptionTimer {
    deadline: u64,
}

impl PreemptionTimer {
    /// The timer counts once each time this bit of L1's TSC changes; L1 is told so by
    /// `IA32_VMX_MISC`.
    pub const RATE: u32 = 5;

    /// Starts the timer at an entry of L1's, if L1 wants one.
    #[inline]
    pub fn start(vmcs12: &Vmcs12, l1_tsc: u64) -> Option<Self> {
        vmcs12.pin().preemption_timer().then(|| Self {
            deadline: (l1_tsc >> Self::RATE)
                .wrapping_add(u64::from(vmcs12.vmx_preemption_timer_value)),
        })
    }

    /// Restores a timer that was running.
    pub const fn from_deadline(deadline: u64) -> Self {
        Self { deadline }
    }

    /// Returns the deadline, in units of L1's TSC shifted right by the rate.
    pub const fn deadline(self) -> u64 {
        self.deadline
    }

    /// Returns how many times the timer has yet to count. A deadline that has passed gives 0.
    #[inline]
    pub const fn remaining(self, l1_tsc: u64) -> u64 {
        self.deadline.saturating_sub(l1_tsc >> Self::RATE)
    }

    /// Converts a number of counts to nanoseconds, or nothing if L1's TSC has no known frequency.
    pub fn nanoseconds(counts: u64, l1_tsc_khz: u32) -> Option<u64> {
        (counts << Self::RATE)
            .saturating_mul(1_000_000)
            .checked_div(u64::from(l1_tsc_khz))
    }

    /// Converts nanoseconds that remain to the value that an exit saves in vmcs12.
    pub fn value(nanoseconds: u64, l1_tsc_khz: u32) -> u32 {
        let ticks = nanoseconds.saturating_mul(u64::from(l1_tsc_khz)) / 1_000_000;

        u32::try_from(ticks >> Self::RATE).unwrap_or(u32::MAX)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_time))]
mod tests {
    use super::*;
    use crate::vmx::controls::{Pin, Primary, Secondary};

    #[test]
    fn scaling_needs_offsetting() {
        let mut vmcs12 = Vmcs12 {
            tsc_offset: 5,
            tsc_multiplier: 7,
            cpu_based_vm_exec_control: Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            secondary_vm_exec_control: Secondary::TSC_SCALING.into_raw(),
            ..Vmcs12::default()
        };
        assert_eq!(Tsc::of(&vmcs12), Tsc::IDENTITY);

        vmcs12.cpu_based_vm_exec_control |= Primary::USE_TSC_OFFSETTING.into_raw();
        assert_eq!(
            Tsc::of(&vmcs12),
            Tsc {
                offset: 5,
                multiplier: 7
            }
        );

        vmcs12.secondary_vm_exec_control = 0;
        assert_eq!(
            Tsc::of(&vmcs12),
            Tsc {
                offset: 5,
                multiplier: Tsc::ONE
            }
        );
    }

    #[test]
    fn the_composed_counter_is_the_counter_of_the_counter() {
        let offsets = [0, 1000 << 8, (-1000i64 << 8) as u64];
        // Multipliers and values that divide without rest, so that both ways agree exactly.
        let multipliers = [Tsc::ONE, Tsc::ONE << 1, Tsc::ONE >> 1, 3 << 46];

        for l1_offset in offsets {
            for l1_multiplier in multipliers {
                for l2_offset in offsets {
                    for l2_multiplier in multipliers {
                        let l1 = Tsc {
                            offset: l1_offset,
                            multiplier: l1_multiplier,
                        };
                        let l2 = Tsc {
                            offset: l2_offset,
                            multiplier: l2_multiplier,
                        };
                        let tsc = 1 << 40;

                        assert_eq!(l1.compose(l2).read(tsc), l2.read(l1.read(tsc)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_negative_offset_is_scaled_as_a_negative_number() {
        let l1 = Tsc {
            offset: 10u64.wrapping_neg(),
            multiplier: Tsc::ONE,
        };
        let l2 = Tsc {
            offset: 1,
            multiplier: Tsc::ONE / 2,
        };

        assert_eq!(l1.compose(l2).offset, 4u64.wrapping_neg());
    }

    #[test]
    fn multipliers_stay_above_zero() {
        let tiny = Tsc {
            offset: 0,
            multiplier: 1,
        };

        assert_eq!(tiny.compose(tiny).multiplier, 1);
    }

    #[test]
    fn the_timer_runs_at_the_rate_that_l1_is_told() {
        let mut vmcs12 = Vmcs12 {
            vmx_preemption_timer_value: 100,
            ..Vmcs12::default()
        };
        assert_eq!(PreemptionTimer::start(&vmcs12, 0), None);

        vmcs12.pin_based_vm_exec_control = Pin::VMX_PREEMPTION_TIMER.into_raw();
        let timer =
            PreemptionTimer::start(&vmcs12, 3200).unwrap_or(PreemptionTimer::from_deadline(0));

        assert_eq!(timer.deadline(), 200);
        assert_eq!(timer.remaining(3200), 100);
        assert_eq!(timer.remaining(3232), 99);
        assert_eq!(timer.remaining(6400), 0);
        // A deadline that passed during a migration has passed, and is not far in the future.
        assert_eq!(timer.remaining(1 << 50), 0);
    }

    #[test]
    fn counts_and_nanoseconds_convert_both_ways() {
        // 1 GHz: a count is 32 ns.
        assert_eq!(PreemptionTimer::nanoseconds(100, 1_000_000), Some(3200));
        assert_eq!(PreemptionTimer::value(3200, 1_000_000), 100);
        assert_eq!(PreemptionTimer::nanoseconds(100, 0), None);

        for khz in [1, 1_000_000, 2_999_999, u32::MAX] {
            let ns = PreemptionTimer::nanoseconds(u64::from(u32::MAX), khz).unwrap_or(0);
            let value = PreemptionTimer::value(ns, khz);

            // Rounding loses less than what a nanosecond has of counts.
            assert!(u32::MAX - value <= 1 + khz / 32_000_000);
        }
        assert_eq!(PreemptionTimer::value(u64::MAX, u32::MAX), u32::MAX);
    }
}
