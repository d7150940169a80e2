// SPDX-License-Identifier: GPL-2.0

//! Suites that boot machines, as many at a time as keep the processors busy.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::suites::{Selection, Suite};

/// What one processor does without a break; returns lines of the table.
type Work<'a> = Box<dyn FnOnce() -> Vec<Suite> + Send + 'a>;

/// A suite, or several, that have not run yet.
struct Job<'a> {
    name: String,
    /// Whether it takes minutes.
    long: bool,
    work: Work<'a>,
}

/// Suites in the order of the table.
#[derive(Default)]
pub struct Jobs<'a>(Vec<Job<'a>>);

impl<'a> Jobs<'a> {
    /// Adds a suite, which counts its results. An error is a failed test.
    pub fn add(&mut self, name: String, work: impl FnOnce(&mut Suite) -> Result<()> + Send + 'a) {
        let mut suite = Suite::new(name.clone());
        self.add_several(name, move || {
            let start = Instant::now();
            if let Err(error) = work(&mut suite) {
                suite.broke(&error);
            }
            suite.time = Some(start.elapsed());
            vec![suite]
        });
    }

    /// Adds suites that run one after the other, and are selected by one name.
    pub fn add_several(&mut self, name: String, work: impl FnOnce() -> Vec<Suite> + Send + 'a) {
        self.0.push(Job {
            name,
            long: false,
            work: Box::new(work),
        });
    }

    /// Says that the job that was added last takes minutes: it begins before the short ones, so that
    /// it is not alone in the end.
    pub fn mark_last_long(&mut self) {
        if let Some(job) = self.0.last_mut() {
            job.long = true;
        }
    }

    /// Runs those that are wanted, and returns their results in the order of the table.
    ///
    /// A machine waits for a third of its time: for timers, or for another of its programs to end.
    pub fn run(self, selection: &Selection) -> Result<Vec<Suite>> {
        let wanted = |job: &Job<'_>| selection.has(&job.name);
        let mut queue: VecDeque<_> = self.0.into_iter().filter(wanted).enumerate().collect();
        queue.make_contiguous().sort_by_key(|(_, job)| !job.long);
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let workers = processors + processors / 2;
        let (queue, done) = (Mutex::new(queue), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|_| scope.spawn(|| work(&queue, &done)))
                .collect();
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow!("the thread of a suite panicked"))??;
            }
            anyhow::Ok(())
        })?;
        let mut done = done.into_inner().map_err(|_| poisoned())?;
        done.sort_by_key(|(place, _)| *place);
        Ok(done.into_iter().flat_map(|(_, suites)| suites).collect())
    }
}

fn poisoned() -> anyhow::Error {
    anyhow!("another suite panicked")
}

/// Runs jobs until none is left.
fn work(
    queue: &Mutex<VecDeque<(usize, Job<'_>)>>,
    done: &Mutex<Vec<(usize, Vec<Suite>)>>,
) -> Result<()> {
    loop {
        let next = queue.lock().map_err(|_| poisoned())?.pop_front();
        let Some((place, job)) = next else {
            return Ok(());
        };
        let suites = (job.work)();
        done.lock().map_err(|_| poisoned())?.push((place, suites));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Verdict;

    #[test]
    fn a_suite_that_is_not_selected_does_not_run() {
        let mut jobs = Jobs::default();
        jobs.add("harness (amd)".into(), |_| panic!("it runs"));
        jobs.add("KVM selftests (amd)".into(), |_| Ok(()));
        let suites = jobs.run(&Selection::new(Some("kvm SELF"))).unwrap();
        assert_eq!(suites.len(), 1);
    }

    #[test]
    fn results_are_in_the_order_of_the_table_and_an_error_is_a_failure() {
        let mut jobs = Jobs::default();
        for place in 0..20 {
            jobs.add(place.to_string(), move |suite| {
                thread::sleep(std::time::Duration::from_millis(20 - place));
                suite.count(Verdict::Passed, String::new);
                if place == 7 {
                    anyhow::bail!("broken");
                }
                Ok(())
            });
        }
        let suites = jobs.run(&Selection::default()).unwrap();
        for (place, suite) in suites.iter().enumerate() {
            assert_eq!(suite.name, place.to_string());
            assert_eq!((suite.passed, suite.failed), (1, u32::from(place == 7)));
        }
        assert_eq!(suites.len(), 20);
    }
}
