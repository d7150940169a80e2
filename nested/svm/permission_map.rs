// SPDX-License-Identifier: GPL-2.0

//! The MSR and I/O permission maps (APM, "MSR Intercepts", "IOIO Intercepts").

use crate::{
    address::Gpa,
    memory::{GuestMemory, Inaccessible},
};

/// Number of words of an MSR permission map.
pub const MSR_MAP_WORDS: usize = 1024;

/// An MSR permission map, as words of 64 bits.
pub type MsrMap = [u64; MSR_MAP_WORDS];

/// What is done with an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// Returns the number of the bit that intercepts reading `msr`; the next one is for writing.
///
/// MSRs without a bit are always intercepted.
pub const fn msr_bit(msr: u32) -> Option<u32> {
    const MSRS_OF_RANGE: u32 = 0x2000;

    let first = match msr & !(MSRS_OF_RANGE - 1) {
        0 => 0,
        0xc000_0000 => MSRS_OF_RANGE,
        0xc001_0000 => 2 * MSRS_OF_RANGE,
        _ => return None,
    };

    Some(
        first
            .wrapping_add(msr & (MSRS_OF_RANGE - 1))
            .wrapping_mul(2),
    )
}

/// MSRs that KVM may let a guest access: of L1's map, nothing else matters.
///
/// An MSR that is not here exits to L0 whatever the maps say. The registers of the x2APIC must
/// never be: L2 would access those of the host.
const PASSED_THROUGH: &[u32] = &[
    0x48,        // SPEC_CTRL
    0x49,        // PRED_CMD
    0xe7,        // MPERF
    0xe8,        // APERF
    0x10b,       // FLUSH_CMD
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x1db,       // LASTBRANCHFROMIP
    0x1dc,       // LASTBRANCHTOIP
    0x1dd,       // LASTINTFROMIP
    0x1de,       // LASTINTTOIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL_MASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0300, // PERF_CNTR_GLOBAL_STATUS
    0xc000_0301, // PERF_CNTR_GLOBAL_CTL
    0xc000_0302, // PERF_CNTR_GLOBAL_STATUS_CLR
    0xc000_0303, // PERF_CNTR_GLOBAL_STATUS_SET
    0xc001_0004, // K7_PERFCTR0
    0xc001_0005, // K7_PERFCTR1
    0xc001_0006, // K7_PERFCTR2
    0xc001_0007, // K7_PERFCTR3
    0xc001_0201, // F15H_PERF_CTR0
    0xc001_0203, // F15H_PERF_CTR1
    0xc001_0205, // F15H_PERF_CTR2
    0xc001_0207, // F15H_PERF_CTR3
    0xc001_0209, // F15H_PERF_CTR4
    0xc001_020b, // F15H_PERF_CTR5
];

/// Words of the map that have a bit of one of [`PASSED_THROUGH`], and how many they are.
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler"
)]
const MERGED_WORDS: ([u16; PASSED_THROUGH.len()], usize) = {
    let mut words = [0; PASSED_THROUGH.len()];
    let mut count = 0;
    let mut index = 0;

    while index < PASSED_THROUGH.len() {
        let word = match msr_bit(PASSED_THROUGH[index]) {
            Some(bit) => (bit / 64) as u16,
            // Each has one, as the tests tell.
            None => u16::MAX,
        };
        if count == 0 || words[count - 1] != word {
            words[count] = word;
            count += 1;
        }
        index += 1;
    }
    (words, count)
};

/// Returns the indices of the words that are merged, each once, in ascending order.
fn merged_words() -> impl Iterator<Item = u16> {
    const { &MERGED_WORDS.0 }
        .iter()
        .copied()
        .take(MERGED_WORDS.1)
}

/// Merges the map of L1 at `base` with that of L0 into the one that L2 runs with.
///
/// In the words that are not merged, `map02` keeps the bits that it has: it starts with all set.
pub fn merge_msr_map(
    map02: &mut MsrMap,
    map01: &MsrMap,
    base: Gpa,
    memory: &impl GuestMemory,
) -> Result<(), Inaccessible> {
    for word in merged_words() {
        let at = base
            .checked_add(u64::from(word).wrapping_mul(8))
            .ok_or(Inaccessible)?;
        let mut l1 = [0; 8];
        memory.read(at, &mut l1)?;

        if let (Some(to), Some(l0)) = (
            map02.get_mut(usize::from(word)),
            map01.get(usize::from(word)),
        ) {
            *to = l0 | u64::from_le_bytes(l1);
        }
    }
    Ok(())
}

/// Returns whether L1's map at `base` intercepts an access of L2 to `msr`.
pub fn msr_is_intercepted(
    msr: u32,
    access: Access,
    base: Gpa,
    memory: &impl GuestMemory,
) -> Result<bool, Inaccessible> {
    let Some(bit) = msr_bit(msr) else {
        return Ok(true);
    };
    let bit = match access {
        Access::Read => bit,
        Access::Write => bit.wrapping_add(1),
    };
    let mut byte = [0];

    memory.read(
        base.checked_add(u64::from(bit / 8)).ok_or(Inaccessible)?,
        &mut byte,
    )?;
    Ok(u8::from_le_bytes(byte).wrapping_shr(bit % 8) & 1 != 0)
}

/// Returns whether L1's map at `base` intercepts an access of L2 to `size` ports from `port` on.
pub fn ports_are_intercepted(
    port: u16,
    size: u8,
    base: Gpa,
    memory: &impl GuestMemory,
) -> Result<bool, Inaccessible> {
    let first = port % 8;
    let mask = 1u16.wrapping_shl(u32::from(size.min(4))).wrapping_sub(1);
    let mask = mask.wrapping_shl(u32::from(first));
    let at = base.checked_add(u64::from(port / 8)).ok_or(Inaccessible)?;
    let mut bytes = [0; 2];

    // The map has bits beyond the last port, for accesses that start at it.
    if mask > 0xff {
        memory.read(at, &mut bytes)?;
    } else {
        let (low, _) = bytes.split_at_mut(1);
        memory.read(at, low)?;
    }
    Ok(u16::from_le_bytes(bytes) & mask != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svm::testing::noise;

    /// L1's memory, with a map at its start.
    struct Memory(Vec<u8>);

    impl GuestMemory for Memory {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            let start = gpa.into_raw() as usize;
            let end = start.checked_add(bytes.len()).ok_or(Inaccessible)?;
            bytes.copy_from_slice(self.0.get(start..end).ok_or(Inaccessible)?);
            Ok(())
        }

        fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    const BASE: Gpa = Gpa::from_raw(0);

    #[test]
    fn each_msr_of_the_ranges_has_two_bits_of_its_own() {
        let mut next = 0;
        for range in [0, 0xc000_0000, 0xc001_0000] {
            for msr in range..range + 0x2000 {
                assert_eq!(msr_bit(msr), Some(next));
                next += 2;
            }
        }
        for msr in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(msr_bit(msr), None);
        }
    }

    #[test]
    fn merged_words_ascend_and_hold_no_register_of_the_x2apic() {
        let words: Vec<u16> = merged_words().collect();

        assert!(words.windows(2).all(|pair| pair[0] < pair[1]));
        for msr in 0x800..0x900 {
            let word = (msr_bit(msr).unwrap() / 64) as u16;
            assert!(!words.contains(&word), "{msr:#x}");
        }
    }

    /// Returns whether L2 exits if it accesses an MSR, of which the maps of L0 and L1 say whether they
    /// intercept it. What is not passed through is left to the maps where the map has it in the same
    /// word as something that is.
    fn naive(msr: u32, l0: bool, l1: bool) -> bool {
        let word = |msr| msr_bit(msr).map(|bit| bit / 64);
        let merged = PASSED_THROUGH
            .iter()
            .any(|&passed| word(passed) == word(msr));

        !merged || l0 || l1
    }

    #[test]
    fn l2_gets_what_both_maps_allow_and_kvm_may_pass_through() {
        let mut random = noise(0x5eed);
        let memory =
            |map: &MsrMap| Memory(map.iter().flat_map(|word| word.to_le_bytes()).collect());
        for _ in 0..20 {
            let map01: MsrMap = core::array::from_fn(|_| random());
            let l1: MsrMap = core::array::from_fn(|_| random());
            let mut map02 = [u64::MAX; MSR_MAP_WORDS];

            merge_msr_map(&mut map02, &map01, BASE, &memory(&l1)).unwrap();

            let maps = [memory(&map01), memory(&l1), memory(&map02)];
            for range in [0, 0xc000_0000, 0xc001_0000] {
                for (msr, access) in (range..range + 0x2000)
                    .flat_map(|msr| [(msr, Access::Read), (msr, Access::Write)])
                {
                    let [l0, l1, merged] = maps
                        .each_ref()
                        .map(|map| msr_is_intercepted(msr, access, BASE, map).unwrap());
                    assert_eq!(merged, naive(msr, l0, l1), "{access:?} of {msr:#x}");
                }
            }
        }
    }

    #[test]
    fn a_map_that_is_not_in_memory_fails_the_merge() {
        let memory = Memory(vec![0; 4096]);
        let mut map02 = [u64::MAX; MSR_MAP_WORDS];

        let result = merge_msr_map(&mut map02, &[0; MSR_MAP_WORDS], BASE, &memory);
        assert_eq!(result, Err(Inaccessible));
        let at_the_end = Gpa::from_raw(!0xfff);
        let result = merge_msr_map(&mut map02, &[0; MSR_MAP_WORDS], at_the_end, &memory);
        assert_eq!(result, Err(Inaccessible));
    }

    #[test]
    fn each_access_to_an_msr_has_its_bit() {
        for msr in [0, 0x10, 0x1fff, 0xc000_0080, 0xc001_1fff] {
            for access in [Access::Read, Access::Write] {
                let bit = msr_bit(msr).unwrap() + u32::from(access == Access::Write);
                let mut memory = Memory(vec![0; 8192]);
                let intercepted =
                    |memory: &Memory| msr_is_intercepted(msr, access, BASE, memory).unwrap();

                assert!(!intercepted(&memory));
                memory.0[bit as usize / 8] = 1 << (bit % 8);
                assert!(intercepted(&memory));
                memory.0.fill(0xff);
                memory.0[bit as usize / 8] = !(1 << (bit % 8));
                assert!(!intercepted(&memory));
            }
        }
        let open = Memory(vec![0; 8192]);
        assert_eq!(
            msr_is_intercepted(0x2000, Access::Read, BASE, &open),
            Ok(true)
        );
    }

    #[test]
    fn an_access_to_ports_is_intercepted_by_the_bit_of_each() {
        for port in [0, 5, 6, 7, 8, 0x3f8, 0xfff0, 0xfffd, 0xffff] {
            for size in [1, 2, 4] {
                for set in 0..=0x1_0003usize {
                    // Only bits nearby can matter; others are sampled.
                    if set.abs_diff(usize::from(port)) > 10 && set % 4099 != 0 {
                        continue;
                    }
                    let mut memory = Memory(vec![0; 3 * 4096]);
                    memory.0[set / 8] = 1 << (set % 8);
                    let within = set >= usize::from(port) && set < usize::from(port) + size;

                    assert_eq!(
                        ports_are_intercepted(port, size as u8, BASE, &memory),
                        Ok(within),
                        "port {port:#x}, size {size}, bit {set:#x}"
                    );
                }
            }
        }
    }
}
