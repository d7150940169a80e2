// SPDX-License-Identifier: GPL-2.0

//! `lab doc`: the documents and rustdoc, as HTML.

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::checks::Finding;
use crate::checks::tree::Tree;
use crate::host::Toolchain;
use crate::kernel::{self, Variant};
use crate::modules;
use crate::options::{Options, checkout, default_jobs};
use crate::step;

/// Builds Documentation/ into build/doc, and rustdoc of the kernel side into build/rustdoc.
pub fn build(cache: &Cache, options: &Options) -> Result<()> {
    let checkout = checkout()?;
    let tree = Tree::new(checkout.clone());
    step::run("build the documents", |_| passed(tree.sphinx()?))?;
    println!("{}", checkout.join("build/doc/index.html").display());

    let kernel = kernel::ensure(cache, options, Variant::Builtin)?;
    let toolchain = Toolchain::ensure(cache)?;
    let dir = checkout.join("build/rustdoc");
    step::run("build rustdoc", |_| {
        let guard = modules::lock(cache, &checkout, &kernel)?;
        let mut make = modules::make(&toolchain, &kernel, &checkout, &dir, &guard)?;
        make.args(["NESTED_RUSTDOC=y", "modules"])
            .arg(format!("-j{}", default_jobs()));
        passed(vec![Finding::of(&mut make)?])
    })?;
    for name in ["nested", "kvm", "nested_vmx", "nested_svm"] {
        println!(
            "{}",
            dir.join("doc").join(name).join("index.html").display()
        );
    }
    Ok(())
}

/// Turns what a check found into an error.
fn passed(findings: Vec<Finding>) -> Result<()> {
    for finding in findings {
        match finding {
            Finding::Passed => {}
            Finding::Failed(text) | Finding::Skipped(text) => bail!("{text}"),
        }
    }
    Ok(())
}
