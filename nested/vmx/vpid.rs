// SPDX-License-Identifier: GPL-2.0

//! The VPIDs that L2 runs with.
//!
//! The processor tags translations with a VPID. L1 has VPIDs of its own for its guests; each of them
//! gets one of L0, as long as there are not too many, so that L1 goes from one guest to another
//! without a flush. A translation that is there from an earlier use of the number, by another guest
//! or even another virtual machine, must never be used: that is why [`Tags`] hands out nothing but
//! [`Flushed`] numbers.

use super::instruction::invalidate::Vpid;

/// How many guests of L1 have a VPID of their own at a time, for each virtual processor of L1.
pub const COUNT: usize = 8;

/// Whose VPIDs are given out.
pub trait Host {
    /// Takes a VPID that nobody else uses, if there is one.
    fn allocate(&mut self) -> Option<Vpid>;
    /// Invalidates all translations with a VPID, on this processor.
    ///
    /// When the virtual processor moves to another one, everything is flushed there.
    fn flush(&mut self, vpid: Vpid);
}

/// A VPID of L0 of which the TLB may have translations that are not valid any more.
#[derive(Debug, PartialEq, Eq)]
struct Stale(Vpid);

impl Stale {
    fn flush(self, host: &mut impl Host) -> Flushed {
        host.flush(self.0);
        Flushed(self.0)
    }
}

/// A VPID of L0 for one of L1, of which the TLB has nothing but translations of that.
///
/// Only [`Tags`] makes one, by a flush.
#[derive(Debug, PartialEq, Eq)]
pub struct Flushed(Vpid);

impl Flushed {
    /// Returns the number.
    pub const fn vpid(&self) -> Vpid {
        self.0
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Stale(Stale),
    Flushed(Flushed),
}

impl State {
    const fn vpid(&self) -> Vpid {
        match self {
            Self::Stale(Stale(vpid)) | Self::Flushed(Flushed(vpid)) => *vpid,
        }
    }
}

/// A VPID of L1 with that of L0.
#[derive(Debug, PartialEq, Eq)]
struct Tag {
    vpid12: Vpid,
    vpid02: State,
}

/// The VPIDs of one virtual processor, the one that was used last first.
///
/// Those of L0 are given back with [`Self::take()`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tags([Option<Tag>; COUNT]);

impl Tags {
    /// Returns the VPID of L0 for an L2 that runs with `vpid12`.
    ///
    /// There is none if the host has none left: L2 must run with that of L1 then, flushed at each
    /// transition.
    #[inline]
    pub fn select(&mut self, vpid12: Vpid, host: &mut impl Host) -> Option<&Flushed> {
        let is_first = matches!(&self.0, [Some(tag), ..] if tag.vpid12 == vpid12);
        if !is_first {
            self.bring_to_front(vpid12, host);
        }
        let [first, ..] = &mut self.0;
        let tag = first.as_mut().filter(|tag| tag.vpid12 == vpid12)?;

        if let State::Stale(Stale(vpid)) = tag.vpid02 {
            tag.vpid02 = State::Flushed(Stale(vpid).flush(host));
        }
        match &tag.vpid02 {
            State::Flushed(flushed) => Some(flushed),
            State::Stale(_) => None,
        }
    }

    /// Makes the tag of `vpid12` the first one: its own, a new one, or that which was not used for
    /// the longest time.
    fn bring_to_front(&mut self, vpid12: Vpid, host: &mut impl Host) {
        let of_vpid12 = |tag: &Option<Tag>| tag.as_ref().is_some_and(|tag| tag.vpid12 == vpid12);
        let place = match self.0.iter().position(of_vpid12) {
            Some(place) => Some(place),
            None => self.assign(vpid12, host),
        };

        if let Some(recent) = place.and_then(|place| self.0.get_mut(..=place)) {
            recent.rotate_right(1);
        }
    }

    /// Gives `vpid12` a VPID of L0; returns the place of the tag.
    fn assign(&mut self, vpid12: Vpid, host: &mut impl Host) -> Option<usize> {
        let used = self.0.iter().take_while(|tag| tag.is_some()).count();
        let fresh = if used < COUNT { host.allocate() } else { None };
        let (place, vpid02) = match fresh {
            Some(vpid) => (used, vpid),
            None => {
                let last = used.checked_sub(1)?;
                (last, self.0.get(last)?.as_ref()?.vpid02.vpid())
            }
        };

        *self.0.get_mut(place)? = Some(Tag {
            vpid12,
            vpid02: State::Stale(Stale(vpid02)),
        });
        Some(place)
    }

    /// Returns the VPID of L0 whose translations are those of `vpid12`, if there can be any.
    pub fn find(&self, vpid12: Vpid) -> Option<&Flushed> {
        self.tags().find_map(|tag| match &tag.vpid02 {
            State::Flushed(flushed) if tag.vpid12 == vpid12 => Some(flushed),
            _ => None,
        })
    }

    fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.0.iter().flatten()
    }

    /// Has the translations of `vpid12` flushed before L2 runs with it again.
    pub fn invalidate(&mut self, vpid12: Vpid) {
        self.invalidate_if(|tag| tag.vpid12 == vpid12);
    }

    /// Has the translations of all VPIDs flushed before L2 runs with them again.
    pub fn invalidate_all(&mut self) {
        self.invalidate_if(|_| true);
    }

    fn invalidate_if(&mut self, is_meant: impl Fn(&Tag) -> bool) {
        for tag in self.0.iter_mut().flatten().filter(|tag| is_meant(tag)) {
            tag.vpid02 = State::Stale(Stale(tag.vpid02.vpid()));
        }
    }

    /// Takes a VPID of L0 that is not needed any more, as long as there is one.
    pub fn take(&mut self) -> Option<Vpid> {
        let tag = self.0.iter_mut().find_map(Option::take)?;

        Some(tag.vpid02.vpid())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_vpid))]
mod tests {
    use super::*;

    /// A host with a number of VPIDs, which counts what it is asked for.
    struct Counting {
        left: u16,
        flushes: usize,
    }

    impl Host for Counting {
        fn allocate(&mut self) -> Option<Vpid> {
            let vpid = Vpid::new(u64::from(self.left) + 100).filter(|_| self.left != 0)?;

            self.left -= 1;
            Some(vpid)
        }

        fn flush(&mut self, _vpid: Vpid) {
            self.flushes += 1;
        }
    }

    const PLENTY: Counting = Counting {
        left: 1000,
        flushes: 0,
    };

    fn select(tags: &mut Tags, vpid12: u64, host: &mut Counting) -> Option<Vpid> {
        let vpid12 = Vpid::new(vpid12)?;

        tags.select(vpid12, host).map(Flushed::vpid)
    }

    fn finds(tags: &Tags, vpid12: u64) -> bool {
        Vpid::new(vpid12).is_some_and(|vpid12| tags.find(vpid12).is_some())
    }

    fn invalidate(tags: &mut Tags, vpid12: u64) {
        if let Some(vpid12) = Vpid::new(vpid12) {
            tags.invalidate(vpid12);
        }
    }

    #[test]
    fn the_first_use_flushes_and_the_next_does_not() {
        let (mut tags, mut host) = (Tags::default(), PLENTY);
        let first = select(&mut tags, 1, &mut host);

        assert!(first.is_some());
        assert_eq!(host.flushes, 1);
        assert_eq!(select(&mut tags, 1, &mut host), first);
        assert_eq!(host.flushes, 1);
    }

    #[test]
    fn switching_between_guests_flushes_nothing() {
        let (mut tags, mut host) = (Tags::default(), PLENTY);

        for _ in 0..3 {
            for vpid12 in 1..=COUNT as u64 {
                assert!(select(&mut tags, vpid12, &mut host).is_some());
            }
        }
        assert_eq!(host.flushes, COUNT);
    }

    #[test]
    fn one_guest_too_many_takes_the_place_of_the_one_that_waited_longest() {
        let (mut tags, mut host) = (Tags::default(), PLENTY);
        let first = select(&mut tags, 1, &mut host);
        for vpid12 in 2..=COUNT as u64 {
            select(&mut tags, vpid12, &mut host);
        }

        assert_eq!(select(&mut tags, 100, &mut host), first);
        assert_eq!(host.flushes, COUNT + 1);
        assert_eq!(host.left, PLENTY.left - COUNT as u16);
        // The second is still there, the first is not.
        assert!(finds(&tags, 2));
        assert!(!finds(&tags, 1));
    }

    #[test]
    fn an_invalidation_flushes_before_the_next_use_once() {
        let (mut tags, mut host) = (Tags::default(), PLENTY);
        select(&mut tags, 1, &mut host);
        select(&mut tags, 2, &mut host);

        invalidate(&mut tags, 1);
        invalidate(&mut tags, 1);
        // What nobody used has nothing to be flushed.
        invalidate(&mut tags, 3);
        assert_eq!(host.flushes, 2);
        assert!(!finds(&tags, 1));
        assert!(finds(&tags, 2));
        select(&mut tags, 2, &mut host);
        assert_eq!(host.flushes, 2);
        select(&mut tags, 1, &mut host);
        assert_eq!(host.flushes, 3);

        tags.invalidate_all();
        select(&mut tags, 1, &mut host);
        select(&mut tags, 2, &mut host);
        assert_eq!(host.flushes, 5);
    }

    #[test]
    fn a_host_without_vpids_has_none_for_l2() {
        let (mut tags, mut host) = (Tags::default(), Counting { left: 0, ..PLENTY });

        assert_eq!(select(&mut tags, 1, &mut host), None);
        assert_eq!(host.flushes, 0);

        // One is enough for all, with flushes.
        host.left = 1;
        assert!(select(&mut tags, 1, &mut host).is_some());
        assert!(select(&mut tags, 2, &mut host).is_some());
        assert!(select(&mut tags, 1, &mut host).is_some());
        assert_eq!(host.flushes, 3);
    }

    #[test]
    fn all_are_given_back() {
        let (mut tags, mut host) = (Tags::default(), PLENTY);
        for vpid12 in 1..=3 {
            select(&mut tags, vpid12, &mut host);
        }

        for _ in 0..3 {
            assert!(tags.take().is_some());
        }
        assert_eq!(tags.take(), None);
        assert_eq!(tags, Tags::default());
    }
}

/// A comparison with a flat model, on pseudo-random sequences.
#[cfg(test)]
mod model {
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// What a translation belongs to: a VPID of L1, and how often that was invalidated before.
    type Origin = (u64, u32);

    /// A TLB that keeps everything until it is flushed, shared with others.
    #[derive(Default)]
    struct Tlb {
        translations: HashMap<u16, HashSet<Origin>>,
        allocated: HashSet<u16>,
        limit: usize,
        flushes: u32,
    }

    impl Host for Tlb {
        fn allocate(&mut self) -> Option<Vpid> {
            if self.allocated.len() >= self.limit {
                return None;
            }
            let raw = (1..).find(|raw| !self.allocated.contains(raw))?;
            self.allocated.insert(raw);
            Vpid::new(raw.into())
        }

        fn flush(&mut self, vpid: Vpid) {
            self.flushes += 1;
            self.translations.remove(&vpid.into_raw());
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    #[test]
    fn no_translation_is_used_by_another_guest_or_after_its_invalidation() {
        const FOREIGN: Origin = (0, 0);

        for seed in 1..=300 {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
            let mut tlb = Tlb {
                limit: random.below(COUNT as u64 + 3) as usize,
                ..Tlb::default()
            };
            // What other virtual machines have left behind.
            for raw in 1..64 {
                tlb.translations.entry(raw).or_default().insert(FOREIGN);
            }
            let mut tags = Tags::default();
            let mut epochs = HashMap::<u64, u32>::new();

            for _ in 0..400 {
                let raw = 1 + random.below(COUNT as u64 + 4);
                let vpid12 = Vpid::new(raw).unwrap();
                let epoch = *epochs.entry(raw).or_default();

                match random.below(16) {
                    0 => {
                        tags.invalidate(vpid12);
                        epochs.insert(raw, epoch + 1);
                    }
                    1 => {
                        tags.invalidate_all();
                        epochs.values_mut().for_each(|epoch| *epoch += 1);
                    }
                    2 => {
                        // INVVPID of an address finds all translations there are.
                        let found = tags.find(vpid12).map(|tag| tag.vpid().into_raw());
                        for (&tag, origins) in &tlb.translations {
                            assert!(!origins.contains(&(raw, epoch)) || found == Some(tag));
                        }
                    }
                    3 if random.below(8) == 0 => {
                        while let Some(vpid) = tags.take() {
                            assert!(tlb.allocated.remove(&vpid.into_raw()));
                        }
                        assert!(tlb.allocated.is_empty());
                        // L1 leaves VMX operation and enters it again.
                        epochs.values_mut().for_each(|epoch| *epoch += 1);
                    }
                    _ => {
                        let Some(used) = tags.select(vpid12, &mut tlb).map(Flushed::vpid) else {
                            assert!(tlb.allocated.is_empty());
                            continue;
                        };
                        let used = used.into_raw();
                        assert!(tlb.allocated.contains(&used));
                        let there = tlb.translations.entry(used).or_default();
                        assert!(there.iter().all(|&origin| origin == (raw, epoch)));
                        there.insert((raw, epoch));
                    }
                }
            }
        }
    }
}
