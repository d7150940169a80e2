// SPDX-License-Identifier: GPL-2.0

//! Memory: patterns over many pages, protection faults, copy on write.

use crate::sys::{self, Mapping, Sharing, PAGE};
use crate::{mix, Sequence};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Pages of the large mapping: 12 MB, more than any TLB holds and some large pages long.
const PAGES: usize = 3072;

/// Writes each page, reads all of them in another order, and checks what discarded pages contain.
pub fn patterns(seed: u64) -> Result<u64, String> {
    let map = Mapping::new(PAGES * PAGE, Sharing::Private)?;
    let mut sequence = Sequence::new(seed);
    for page in 0..map.pages() {
        // First, middle and last word: a wrong page size or offset shows in one of them.
        for word in [0, 255, 511] {
            map.write(page, word, sequence.next_number() ^ page as u64);
        }
    }
    let mut hash = seed;
    // 1327 is coprime to the number of pages, thus each page comes up once.
    for index in 0..map.pages() {
        let page = index * 1327 % map.pages();
        for word in [511, 0, 255, 128] {
            hash = mix(hash, map.read(page, word));
        }
    }
    let first = (sequence.next_number() % 512) as usize;
    map.discard(first, 1024)?;
    for page in 0..map.pages() {
        let word = map.read(page, 255);
        let discarded = (first..first + 1024).contains(&page);
        if discarded != (word == 0) {
            return Err(format!(
                "page {page} holds {word:#x} after pages were discarded"
            ));
        }
        hash = mix(hash, word);
    }
    Ok(hash)
}

/// Where the mapping under test begins, for the handler.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Faults that the handler saw.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// A hash over the page numbers at which they happened.
static PLACES: AtomicU64 = AtomicU64::new(0);

/// Makes the page that was written to writable again and counts the fault.
extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes valid information to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let page = address.wrapping_sub(BASE.load(Ordering::Relaxed)) / PAGE;
    FAULTS.fetch_add(1, Ordering::Relaxed);
    PLACES.store(
        mix(PLACES.load(Ordering::Relaxed), page as u64),
        Ordering::Relaxed,
    );
    let start = (address & !(PAGE - 1)) as *mut libc::c_void;
    // SAFETY: the fault comes from `protection`, whose mapping contains the page.
    if page > 64 || unsafe { libc::mprotect(start, PAGE, libc::PROT_READ | libc::PROT_WRITE) } != 0
    {
        // A fault that nobody asked for would repeat for ever.
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(99) }
    }
}

/// Writes to read-only and unreadable pages and counts the faults that must follow.
pub fn protection(seed: u64) -> Result<u64, String> {
    let map = Mapping::new(64 * PAGE, Sharing::Private)?;
    FAULTS.store(0, Ordering::Relaxed);
    PLACES.store(seed, Ordering::Relaxed);
    BASE.store(map.word(0, 0) as usize, Ordering::Relaxed);
    sys::handle(libc::SIGSEGV, on_fault)?;
    let mut sequence = Sequence::new(seed);
    for page in 0..map.pages() {
        map.write(page, 7, sequence.next_number());
    }
    map.protect(0, 32, libc::PROT_READ)?;
    map.protect(32, 16, libc::PROT_NONE)?;
    let mut hash = seed;
    for page in (0..map.pages()).rev() {
        // Reads of read-only pages must not fault, writes must, once.
        if page < 32 {
            hash = mix(hash, map.read(page, 7));
        }
        map.write(page, 8, page as u64);
        map.write(page, 9, page as u64);
        hash = mix(hash, map.read(page, 7) ^ map.read(page, 9));
    }
    let faults = FAULTS.load(Ordering::Relaxed);
    if faults != 48 {
        return Err(format!("{faults} protection faults instead of 48"));
    }
    Ok(mix(hash, PLACES.load(Ordering::Relaxed)))
}

/// Lets children change memory that they share with the parent until they write to it.
pub fn copy_on_write(seed: u64) -> Result<u64, String> {
    const CHILDREN: u64 = 3;
    let map = Mapping::new(512 * PAGE, Sharing::Private)?;
    let mut sequence = Sequence::new(seed);
    for page in 0..map.pages() {
        map.write(page, 3, sequence.next_number());
    }
    let before = hash_of(&map, seed);
    let (read, write) = sys::pipe()?;
    let mut hash = before;
    for child in 0..CHILDREN {
        let pid = sys::fork(|| {
            for page in (child as usize..map.pages()).step_by(5) {
                map.write(page, 3, map.read(page, 3) ^ (child + 1));
            }
            i32::from(sys::write_word(write, hash_of(&map, seed)).is_err())
        })?;
        // The parent writes other pages at the same time.
        map.write(child as usize, 4, child);
        if sys::wait(pid)? != 0 {
            return Err("a child could not report".into());
        }
        let word = sys::read_word(read)?;
        if word == before {
            return Err("a child did not see its own writes".into());
        }
        hash = mix(hash, word);
    }
    sys::close(read);
    sys::close(write);
    if hash_of(&map, seed) != before {
        return Err("writes of a child reached the parent".into());
    }
    Ok(hash)
}

fn hash_of(map: &Mapping, seed: u64) -> u64 {
    (0..map.pages()).fold(seed, |hash, page| mix(hash, map.read(page, 3)))
}
