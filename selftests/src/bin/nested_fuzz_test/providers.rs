// SPDX-License-Identifier: GPL-2.0

//! Cases with one provider, then with the other.

use anyhow::{Context, Result};
use selftests::fuzz::allowed::first_not_allowed;
use selftests::fuzz::observe::{differences, Difference, Seen};
use selftests::fuzz::{shrink, subject, Case};
use selftests::provider::Ours;
use selftests::tap;

use crate::Fixture;

/// Candidates of a smaller case that are tried at once.
const CANDIDATES: usize = 16;

/// How much more time a guest gets whose case differs.
const PATIENCE: u32 = 20;

/// What the providers are called, in the order in which they are used.
const NAMES: [&str; 2] = ["C", "ours"];

/// Both providers.
pub struct Providers<'a> {
    fixture: &'a Fixture,
    ours: Ours,
}

impl<'a> Providers<'a> {
    /// Returns them, if both are there.
    pub fn find(fixture: &'a Fixture) -> Result<Self> {
        let ours = Ours::find(&fixture.kvm, &fixture.module)?;
        Ok(Self { fixture, ours })
    }

    /// Runs cases one after the other in one machine.
    fn run(&self, cases: &[Case], patience: u32) -> Result<Vec<Vec<Seen>>> {
        let mut subject = subject(&self.fixture.kvm, self.fixture.vendor)?;
        subject.be_patient(patience);
        let run = |case: &Case| subject.run(case).with_context(|| format!("in\n{case}"));
        cases.iter().map(run).collect()
    }

    /// Does something with C, then with ours, which is there afterwards in any case.
    fn with_each<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<[T; 2]> {
        let [c, ours] = NAMES;
        self.ours.take_out()?;
        let by_c = work();
        self.ours.put_in()?;
        Ok([by_c.context(c)?, work().context(ours)?])
    }

    /// Returns the fields that L1 can read with C, and with ours.
    pub fn offers(&self) -> Result<[Vec<u32>; 2]> {
        let offer = || -> Result<Vec<u32>> {
            let subject = subject(&self.fixture.kvm, self.fixture.vendor)?;
            Ok(subject.offer().to_vec())
        };
        self.with_each(offer)
    }

    /// Returns the first difference of each case that must not be there, with its index.
    pub fn compare(&self, cases: &[Case], counts: &mut [u64]) -> Result<Vec<(usize, Difference)>> {
        self.compare_with(1, cases, counts)
    }

    fn compare_with(
        &self,
        patience: u32,
        cases: &[Case],
        counts: &mut [u64],
    ) -> Result<Vec<(usize, Difference)>> {
        let [by_c, by_ours] = self.with_each(|| self.run(cases, patience))?;
        let mut found = Vec::new();
        for (index, case) in cases.iter().enumerate() {
            let all = differences(&by_c[index], &by_ours[index]);
            if let Some(difference) = first_not_allowed(case, &all, counts) {
                found.push((index, difference.clone()));
            }
        }
        Ok(found)
    }

    /// Returns the difference of a case if it does so when guests have more time, too.
    pub fn confirm(&self, case: &Case) -> Result<Option<Difference>> {
        let found = self.compare_with(PATIENCE, std::slice::from_ref(case), &mut [])?;
        Ok(found.into_iter().next().map(|(_, difference)| difference))
    }

    /// Runs cases once more, and returns whether the last one of them differs.
    pub fn differs_again(&self, cases: &[Case]) -> Result<bool> {
        let found = self.compare(cases, &mut [])?;
        Ok(found.iter().any(|(index, _)| index + 1 == cases.len()))
    }

    /// Returns the names of the providers with which the last one of the cases does something else
    /// than in a new machine.
    pub fn that_remember(&self, cases: &[Case]) -> Result<Vec<&'static str>> {
        let Some(last) = cases.last() else {
            return Ok(Vec::new());
        };
        let remembers = || -> Result<bool> {
            let after = self.run(cases, 1)?.pop().unwrap_or_default();
            let alone = self.run(std::slice::from_ref(last), 1)?.pop();
            let all = differences(&alone.unwrap_or_default(), &after);
            Ok(first_not_allowed(last, &all, &mut []).is_some())
        };
        let found = NAMES.into_iter().zip(self.with_each(remembers)?);
        let found = found.filter(|(_, remembers)| *remembers);
        Ok(found.map(|(name, _)| name).collect())
    }

    /// Returns a case that still differs, and of which nothing can be left out.
    pub fn shrink(&self, case: &Case, difference: Difference) -> Result<(Case, Difference)> {
        let (mut smallest, mut difference) = (case.clone(), difference);
        'smaller: loop {
            for candidates in shrink::candidates(&smallest).chunks(CANDIDATES) {
                // It takes minutes, and must not look like a hang.
                tap::note("  looking for a smaller case");
                let found = self.compare(candidates, &mut [])?;
                if let Some((index, other)) = found.into_iter().next() {
                    (smallest, difference) = (candidates[index].clone(), other);
                    continue 'smaller;
                }
            }
            return Ok((smallest, difference));
        }
    }
}
