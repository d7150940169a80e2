// SPDX-License-Identifier: GPL-2.0

//! The cases that are kept: each of them made two providers differ once.

use anyhow::{Context, Result};
use include_dir::{include_dir, Dir};

use super::Case;
use crate::guest::Vendor;

/// The files: a case each.
static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/corpus");

/// Returns the cases of a vendor with the names of their files.
pub fn cases(vendor: Vendor) -> Result<Vec<(String, Case)>> {
    let mut cases = Vec::new();
    for file in FILES.files() {
        let name = file.path().display().to_string();
        let text = file.contents_utf8().with_context(|| name.clone())?;
        let case: Case = text.parse().with_context(|| name.clone())?;
        if case.vendor == vendor {
            cases.push((name, case));
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_cases() {
        let of = |vendor| cases(vendor).unwrap().len();
        let files = FILES.files().count();
        assert_eq!(of(Vendor::Svm) + of(Vendor::Vmx), files);
    }
}
