// SPDX-License-Identifier: GPL-2.0

//! That the guest tests fit into the kernel's kselftest harness.

use std::fs;

use anyhow::Result;

use super::{Context, Finding};
use crate::host::clean;

/// Installs the programs by the kernel's `lib.mk`, and looks for each of them.
pub fn check(context: &Context<'_>) -> Result<Vec<Finding>> {
    let selftests = context.tree.checkout().join("selftests");
    let installed = context.scratch("kselftest")?;
    let mut make = clean("make");
    make.arg("-C")
        .arg(&selftests)
        .arg("install")
        .arg(format!("KSRC={}", context.kernel.srctree.display()))
        .arg(format!("INSTALL_PATH={}", installed.display()));
    let mut findings = vec![Finding::of(&mut make)?];
    for program in fs::read_dir(selftests.join("src/bin"))? {
        let name = program?.file_name();
        findings.push(if installed.join(&name).is_file() {
            Finding::Passed
        } else {
            Finding::Failed(format!("{} is not installed", name.to_string_lossy()))
        });
    }
    Ok(findings)
}
