// SPDX-License-Identifier: GPL-2.0

//! Arrays of words that are made of pages of the pool, and grow.

use super::table::TablePages;
use super::word::Word;

/// An array. Its words can be used by many at a time; it grows exclusively, and never shrinks.
///
/// It is a tree of three levels: 2^27 words at most.
#[derive(Debug, Default)]
pub(super) struct Array {
    top: Option<u32>,
    /// The first page below the top, which many arrays need no other than.
    first: Option<u32>,
    len: u32,
}

/// No page could be had.
pub(super) struct NoPage;

impl Array {
    /// Words that are added at a time.
    pub(super) const STEP: u32 = 512;
    const MAXIMUM: u32 = 1 << 27;

    /// Returns the number of words.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Returns a word.
    pub(super) fn get<'a, P: TablePages>(&self, pages: &'a P, index: u32) -> Option<&'a P::Word> {
        if index >= self.len {
            return None;
        }
        pages.word(self.page_of(pages, index)?, digit(index, 0))
    }

    /// Returns the page that a word is in.
    #[inline]
    fn page_of<P: TablePages>(&self, pages: &P, index: u32) -> Option<u32> {
        let middle = match (digit(index, 2), self.first) {
            (0, Some(first)) => first,
            (digit, _) => follow(pages.word(self.top?, digit)?)?,
        };
        follow(pages.word(middle, digit(index, 1))?)
    }

    /// Adds [`STEP`](Self::STEP) words, which are 0, in pages that `take` supplies.
    pub(super) fn grow<P: TablePages>(
        &mut self,
        pages: &P,
        mut take: impl FnMut() -> Option<u32>,
    ) -> Result<(), NoPage> {
        if self.len >= Self::MAXIMUM {
            return Err(NoPage);
        }
        let mut fresh = || {
            let page = take()?;
            clear(pages, page);
            Some(page)
        };
        let mut page = match self.top {
            Some(top) => top,
            None => *self.top.insert(fresh().ok_or(NoPage)?),
        };
        for level in [2, 1] {
            let word = pages.word(page, digit(self.len, level)).ok_or(NoPage)?;
            page = match follow(word) {
                Some(page) => page,
                None => {
                    let page = fresh().ok_or(NoPage)?;
                    word.store(u64::from(page).wrapping_add(1));
                    if level == 2 && self.first.is_none() {
                        self.first = Some(page);
                    }
                    page
                }
            };
        }
        self.len = self.len.saturating_add(Self::STEP);
        Ok(())
    }

    /// Makes all words 0.
    pub(super) fn clear<P: TablePages>(&mut self, pages: &P) {
        for first in (0..self.len).step_by(512) {
            if let Some(page) = self.page_of(pages, first) {
                clear(pages, page);
            }
        }
    }
}

/// Returns the 9 bits of an index that a level of the tree uses.
const fn digit(index: u32, level: u32) -> u16 {
    (index.wrapping_shr(level.wrapping_mul(9)) & 0x1ff) as u16
}

/// Returns the page that a word refers to.
fn follow<W: Word>(word: &W) -> Option<u32> {
    u32::try_from(word.load().checked_sub(1)?).ok()
}

fn clear<P: TablePages>(pages: &P, page: u32) {
    for index in 0..super::super::level::ENTRIES {
        if let Some(word) = pages.word(page, index) {
            word.store(0);
        }
    }
}
