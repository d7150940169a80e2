// SPDX-License-Identifier: GPL-2.0

//! The MSR bitmap of vmcs02, and what that of L1 says.
//!
//! The bitmap of vmcs02 intercepts everything, except the few MSRs of a list here; those pass if
//! neither L1 nor L0 intercepts them. The x2APIC MSRs are apart: L0 lets L1 use those of the
//! hardware's APIC, which must never become L2's. L2 gets them only where vmcs02 virtualizes the
//! access, and then L1 alone decides.

mod passable;
mod x2apic;

use self::{
    passable::PASSABLE,
    x2apic::{VirtualX2apic, X2APIC_READS, X2APIC_WRITES},
};
use super::conditions::MsrBitmapUse;
use crate::{
    address::Gpa,
    checked::Checked,
    memory::{GuestMemory, Inaccessible},
    vmx::Vmcs12,
};

/// The number of 64-bit words of an MSR bitmap.
pub const WORDS: usize = 512;

/// Whether an MSR is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// Where the bit of an MSR is: a word of the bitmap, and a bit of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    word: usize,
    mask: u64,
}

impl Place {
    /// Finds the bit of an MSR. There are bits for two ranges of 0x2000 MSRs each (SDM,
    /// "MSR-Bitmap Address").
    const fn of(msr: u32, access: Access) -> Option<Self> {
        let (range, index) = match msr {
            0..=0x1fff => (0, msr),
            0xc000_0000..=0xc000_1fff => (0x80, msr & 0x1fff),
            _ => return None,
        };
        let half = match access {
            Access::Read => 0,
            Access::Write => 0x100,
        };

        Some(Self {
            word: half | range | (index >> 6) as usize,
            mask: 1 << (index & 0x3f),
        })
    }
}

/// An MSR bitmap that the processor uses, that of vmcs01 or of vmcs02.
#[derive(Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct MsrBitmap([u64; WORDS]);

impl MsrBitmap {
    /// A bitmap that intercepts everything: what the one of vmcs02 has to be at first.
    pub const INTERCEPT_ALL: Self = Self([u64::MAX; WORDS]);

    /// Wraps the words of a bitmap.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    fn word(&self, word: usize) -> u64 {
        self.0.get(word).copied().unwrap_or(u64::MAX)
    }

    fn set_word(&mut self, word: usize, bits: u64) {
        if let Some(slot) = self.0.get_mut(word) {
            *slot = bits;
        }
    }

    /// Returns whether an access exits. One to an MSR that has no bit always does.
    pub fn intercepts(&self, msr: u32, access: Access) -> bool {
        Place::of(msr, access).is_none_or(|place| self.word(place.word) & place.mask != 0)
    }
}

/// The MSR bitmap that L1 has in its memory.
struct L1Bitmap<'a, M> {
    address: u64,
    memory: &'a M,
}

impl<M: GuestMemory> L1Bitmap<'_, M> {
    fn word(&self, word: usize) -> Result<u64, Inaccessible> {
        let offset = u64::try_from(word)
            .ok()
            .and_then(|word| word.checked_mul(8))
            .ok_or(Inaccessible)?;
        let address = Gpa::from_raw(self.address)
            .checked_add(offset)
            .ok_or(Inaccessible)?;
        let mut bytes = [0; 8];

        self.memory.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Merges the MSR bitmaps of L1 and of vmcs01 into that of vmcs02.
///
/// What L1 has in its memory is read word by word, each once, and only those words that can have an
/// effect. If one cannot be read, vmcs02 has to run without a bitmap, which intercepts everything.
#[must_use]
pub fn merge_msr_bitmap(
    vmcs12: Checked<'_, Vmcs12>,
    memory: &impl GuestMemory,
    vmcs01: &MsrBitmap,
    vmcs02: &mut MsrBitmap,
) -> MsrBitmapUse {
    if !vmcs12.primary().msr_bitmaps() {
        return MsrBitmapUse::Unused;
    }
    let l1 = L1Bitmap {
        address: vmcs12.msr_bitmap,
        memory,
    };

    match merge_words(&vmcs12, &l1, vmcs01, vmcs02) {
        Ok(()) => MsrBitmapUse::Merged,
        Err(Inaccessible) => MsrBitmapUse::Unused,
    }
}

fn merge_words<M: GuestMemory>(
    vmcs12: &Vmcs12,
    l1: &L1Bitmap<'_, M>,
    vmcs01: &MsrBitmap,
    vmcs02: &mut MsrBitmap,
) -> Result<(), Inaccessible> {
    for (word, passable) in PASSABLE {
        let intercepted = vmcs01.word(word) | !passable;
        let intercepted_by_l1 = if intercepted == u64::MAX {
            0
        } else {
            l1.word(word)?
        };
        vmcs02.set_word(word, intercepted_by_l1 | intercepted);
    }

    let x2apic = VirtualX2apic::of(vmcs12);
    for word in X2APIC_READS {
        merge_x2apic_word(l1, vmcs02, word, x2apic.reads(word))?;
    }
    for word in X2APIC_WRITES {
        merge_x2apic_word(l1, vmcs02, word, x2apic.writes(word))?;
    }
    Ok(())
}

/// Lets accesses pass that are virtualized and that L1 does not intercept.
fn merge_x2apic_word<M: GuestMemory>(
    l1: &L1Bitmap<'_, M>,
    vmcs02: &mut MsrBitmap,
    word: usize,
    virtualized: u64,
) -> Result<(), Inaccessible> {
    let intercepted_by_l1 = if virtualized == 0 { 0 } else { l1.word(word)? };

    vmcs02.set_word(word, intercepted_by_l1 | !virtualized);
    Ok(())
}

/// Returns whether an access to an MSR exits to L1. What cannot be read exits: it is L1 that knows.
pub fn msr_exits_to_l1(
    vmcs12: &Vmcs12,
    memory: &impl GuestMemory,
    msr: u32,
    access: Access,
) -> bool {
    if !vmcs12.primary().msr_bitmaps() {
        return true;
    }
    let l1 = L1Bitmap {
        address: vmcs12.msr_bitmap,
        memory,
    };

    match Place::of(msr, access) {
        Some(place) => l1
            .word(place.word)
            .map_or(true, |word| word & place.mask != 0),
        None => true,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_msr_bitmap))]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_manual_says() {
        for (msr, access, expected) in [
            (0, Access::Read, Some((0, 1))),
            (0x1fff, Access::Read, Some((127, 1 << 63))),
            (0xc000_0000, Access::Read, Some((128, 1))),
            (0xc000_0080, Access::Write, Some((386, 1))),
            (0x1fff, Access::Write, Some((383, 1 << 63))),
            (0xc000_1fff, Access::Write, Some((511, 1 << 63))),
            (0x2000, Access::Read, None),
            (0xbfff_ffff, Access::Read, None),
            (0xc000_2000, Access::Write, None),
        ] {
            assert_eq!(
                Place::of(msr, access).map(|place| (place.word, place.mask)),
                expected
            );
        }
    }
}

/// Tests that need more memory than a kernel stack has.
#[cfg(test)]
mod host {
    use super::*;
    use crate::vmx::controls::{Primary, Secondary};
    use std::cell::RefCell;

    const ADDRESS: u64 = 0x5000;

    /// L1's bitmap, and the addresses that were read.
    struct Page {
        words: Vec<u64>,
        reads: RefCell<Vec<u64>>,
    }

    impl Page {
        fn new(words: Vec<u64>) -> Self {
            Self {
                words,
                reads: RefCell::new(Vec::new()),
            }
        }
    }

    impl GuestMemory for Page {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            let offset = gpa.into_raw().checked_sub(ADDRESS).ok_or(Inaccessible)?;

            self.reads.borrow_mut().push(offset);
            let word = self.words.get(offset as usize / 8).ok_or(Inaccessible)?;
            bytes.copy_from_slice(&word.to_le_bytes());
            Ok(())
        }

        fn write(&self, _gpa: Gpa, _bytes: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    /// Numbers that look random (xorshift).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// A page of bits of which few, half, or most are set.
        fn page(&mut self) -> Vec<u64> {
            let density = self.next() % 3;

            (0..WORDS)
                .map(|_| match density {
                    0 => self.next() & self.next() & self.next(),
                    1 => self.next(),
                    _ => self.next() | self.next() | self.next(),
                })
                .collect()
        }
    }

    /// The bit of an access in a page, looked up the slow way.
    fn bit(page: &[u64], msr: u32, access: Access) -> bool {
        let base = match (access, msr < 0x2000) {
            (Access::Read, true) => 0,
            (Access::Read, false) => 1024,
            (Access::Write, true) => 2048,
            (Access::Write, false) => 3072,
        };
        let index = (msr & 0x1fff) as usize;
        let byte = page[(base + index / 8) / 8].to_le_bytes()[(index / 8) % 8];

        byte & (1 << (index % 8)) != 0
    }

    /// What the bitmap of vmcs02 should say, said for one access at a time.
    fn model(secondary: u32, l1: &[u64], l0: &[u64], msr: u32, access: Access) -> bool {
        use Access::{Read, Write};

        let l1_intercepts = bit(l1, msr, access);
        let x2apic = secondary & Secondary::VIRTUALIZE_X2APIC_MODE.into_raw() != 0;
        let registers = secondary & Secondary::APIC_REGISTER_VIRT.into_raw() != 0;
        let delivery = secondary & Secondary::VIRTUAL_INTR_DELIVERY.into_raw() != 0;

        match (msr, access) {
            (0x808, _) if x2apic => l1_intercepts,
            (0x80b | 0x83f, Write) if x2apic && delivery => l1_intercepts,
            (0x800..=0x8ff, Read) if x2apic && registers => l1_intercepts,
            (0x800..=0x8ff, _) => true,
            (0x48, _)
            | (0x49 | 0x10b | 0x390, Write)
            | (0xe7 | 0xe8 | 0x38e, Read)
            | (0xc1..=0xc8 | 0x4c1..=0x4c8 | 0x309..=0x30b | 0x38f, _)
            | (0x6a0 | 0x6a2 | 0x6a4..=0x6a7, _)
            | (0xc000_0100..=0xc000_0102, _) => l1_intercepts || bit(l0, msr, access),
            _ => true,
        }
    }

    fn vmcs12(secondary: u32) -> Vmcs12 {
        Vmcs12 {
            cpu_based_vm_exec_control: Primary::USE_MSR_BITMAPS.into_raw()
                | Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw(),
            secondary_vm_exec_control: secondary,
            msr_bitmap: ADDRESS,
            ..Vmcs12::default()
        }
    }

    fn bitmap(words: &[u64]) -> Box<MsrBitmap> {
        Box::new(MsrBitmap::from_words(words.try_into().unwrap()))
    }

    fn every_msr() -> impl Iterator<Item = u32> {
        (0..=0x1fff).chain(0xc000_0000..=0xc000_1fff)
    }

    #[test]
    fn the_merged_bitmap_is_that_of_the_model() {
        let controls = [
            Secondary::VIRTUALIZE_X2APIC_MODE.into_raw(),
            Secondary::APIC_REGISTER_VIRT.into_raw(),
            Secondary::VIRTUAL_INTR_DELIVERY.into_raw(),
        ];
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut vmcs02 = Box::new(MsrBitmap::INTERCEPT_ALL);

        for round in 0..64 {
            let secondary = (0..3)
                .filter(|n| round >> n & 1 != 0)
                .fold(0, |word, n| word | controls[n]);
            let (l1, l0) = (random.page(), random.page());
            let memory = Page::new(l1.clone());
            let vmcs12 = vmcs12(secondary);

            // The same bitmap all the time: what an earlier L1 let through must not stay.
            let merged =
                merge_msr_bitmap(Checked::vouch(&vmcs12), &memory, &bitmap(&l0), &mut vmcs02);
            assert_eq!(merged, MsrBitmapUse::Merged);

            let mut reads = memory.reads.take();
            let count = reads.len();
            reads.sort_unstable();
            reads.dedup();
            assert_eq!(reads.len(), count, "a word was read twice");

            for msr in every_msr() {
                for access in [Access::Read, Access::Write] {
                    assert_eq!(
                        vmcs02.intercepts(msr, access),
                        model(secondary, &l1, &l0, msr, access),
                        "{msr:#x} {access:?} {secondary:#x}"
                    );
                    assert_eq!(
                        msr_exits_to_l1(&vmcs12, &memory, msr, access),
                        bit(&l1, msr, access)
                    );
                }
            }
        }
    }

    #[test]
    fn the_x2apic_msrs_of_l0_never_leak() {
        // L0 passes its whole APIC to L1, and L1 everything to L2.
        let memory = Page::new(vec![0; WORDS]);
        let l0 = bitmap(&[0; WORDS]);
        let mut vmcs02 = Box::new(MsrBitmap::INTERCEPT_ALL);
        let vmcs12 = vmcs12(0);

        let merged = merge_msr_bitmap(Checked::vouch(&vmcs12), &memory, &l0, &mut vmcs02);
        assert_eq!(merged, MsrBitmapUse::Merged);
        for msr in 0x800..=0x8ff {
            assert!(vmcs02.intercepts(msr, Access::Read));
            assert!(vmcs02.intercepts(msr, Access::Write));
        }
        assert!(!vmcs02.intercepts(0xc000_0100, Access::Write));
    }

    #[test]
    fn a_bitmap_that_cannot_be_read_is_not_used() {
        let memory = Page::new(vec![0; 300]);
        let l0 = bitmap(&[0; WORDS]);
        let mut vmcs02 = Box::new(MsrBitmap::INTERCEPT_ALL);
        let mut vmcs12 = vmcs12(0);

        assert_eq!(
            merge_msr_bitmap(Checked::vouch(&vmcs12), &memory, &l0, &mut vmcs02),
            MsrBitmapUse::Unused
        );
        assert!(msr_exits_to_l1(
            &vmcs12,
            &memory,
            0xc000_0100,
            Access::Write
        ));

        vmcs12.cpu_based_vm_exec_control = 0;
        assert_eq!(
            merge_msr_bitmap(Checked::vouch(&vmcs12), &memory, &l0, &mut vmcs02),
            MsrBitmapUse::Unused
        );
        assert!(msr_exits_to_l1(&vmcs12, &memory, 0, Access::Read));
    }

    #[test]
    fn msrs_without_a_bit_exit() {
        let memory = Page::new(vec![0; WORDS]);

        for msr in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, u32::MAX] {
            assert!(msr_exits_to_l1(&vmcs12(0), &memory, msr, Access::Read));
            assert!(bitmap(&[0; WORDS]).intercepts(msr, Access::Write));
        }
    }
}
