// SPDX-License-Identifier: GPL-2.0

//! Checks that need the checkout only: formatting, lints and tests of crates, documents.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use walkdir::{DirEntry, WalkDir};

use super::Finding;

/// The edition of Rust in the kernel's build.
const KERNEL_EDITION: &str = "2021";

/// The checkout.
pub struct Tree {
    checkout: PathBuf,
}

impl Tree {
    /// Takes the checkout's directory.
    pub fn new(checkout: PathBuf) -> Self {
        Self { checkout }
    }

    /// Returns the checkout's directory.
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// Returns files of the tree, sorted, without build output.
    fn files(&self, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let walk = WalkDir::new(&self.checkout)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(is_source);
        for entry in walk {
            let entry = entry?;
            if entry.file_type().is_file() && wanted(entry.path()) {
                files.push(entry.into_path());
            }
        }
        Ok(files)
    }

    fn manifests(&self) -> Result<Vec<PathBuf>> {
        self.files(|path| path.file_name() == Some(OsStr::new("Cargo.toml")))
    }

    /// Returns the C files of the kernel side.
    pub fn kernel_c_files(&self) -> Result<Vec<PathBuf>> {
        let rust = self.checkout.join("rust");
        self.files(|path| {
            path.starts_with(&rust)
                && path
                    .extension()
                    .is_some_and(|extension| extension == "c" || extension == "h")
        })
    }

    /// Checks the format of all Rust files, by crate and by file where there is no crate.
    pub fn rustfmt(&self) -> Result<Vec<Finding>> {
        let manifests = self.manifests()?;
        let mut findings = Vec::new();
        for manifest in &manifests {
            let mut cargo = self.cargo(manifest, "fmt");
            findings.push(Finding::of(cargo.args(["--check", "--", "-l"]))?);
        }
        let crates: Vec<&Path> = manifests.iter().filter_map(|m| m.parent()).collect();
        let loose = self.files(|path| {
            path.extension() == Some(OsStr::new("rs"))
                && !crates.iter().any(|dir| path.starts_with(dir))
        })?;
        for file in loose {
            let mut rustfmt = Command::new("rustfmt");
            rustfmt
                .args(["--check", "-l", "--edition", KERNEL_EDITION])
                .arg(&file)
                .current_dir(&self.checkout);
            findings.push(Finding::of(&mut rustfmt)?);
        }
        Ok(findings)
    }

    /// Runs Clippy on the crates that cargo builds.
    pub fn clippy(&self) -> Result<Vec<Finding>> {
        self.crates("clippy", &["--all-targets", "--", "-D", "warnings"])
    }

    /// Runs the tests of the crates that cargo builds.
    pub fn tests(&self) -> Result<Vec<Finding>> {
        self.crates("test", &[])
    }

    /// Returns a cargo command for a crate, with its output below the checkout's.
    pub fn cargo(&self, manifest: &Path, action: &str) -> Command {
        let mut cargo = Command::new("cargo");
        cargo
            .arg(action)
            .arg("--manifest-path")
            .arg(manifest)
            .env("CARGO_TARGET_DIR", self.checkout.join("build/cargo"))
            .env("CARGO_TERM_COLOR", "never");
        cargo
    }

    fn crates(&self, action: &str, args: &[&str]) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for manifest in self.manifests()? {
            let mut cargo = self.cargo(&manifest, action);
            findings.push(Finding::of(cargo.arg("--quiet").args(args))?);
        }
        Ok(findings)
    }

    /// Builds the documents with every warning an error.
    pub fn sphinx(&self) -> Result<Vec<Finding>> {
        let source = self.checkout.join("Documentation");
        if !source.join("conf.py").is_file() {
            return Ok(vec![Finding::Skipped(
                "Documentation has no conf.py".into(),
            )]);
        }
        // By the interpreter's module: a version manager's may shadow Debian's program.
        let mut sphinx = Command::new("/usr/bin/python3");
        sphinx
            .args(["-m", "sphinx", "-q", "-W", "-n", "-E", "--keep-going"])
            .args(["-b", "html"])
            .arg(&source)
            .arg(self.checkout.join("build/doc"));
        Ok(vec![Finding::of(&mut sphinx)?])
    }
}

fn is_source(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_output = ["target", "build", ".git"].iter().any(|dir| name == *dir);
    // A source file or directory may be called `build`; what is skipped has these names at
    // the top or beside a manifest.
    let at_top = entry.depth() == 1
        || entry
            .path()
            .parent()
            .is_some_and(|dir| dir.join("Cargo.toml").is_file());
    !(entry.file_type().is_dir() && is_output && at_top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn build_output_is_not_source() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "rust/helpers.c",
            "rust/helpers.h",
            "rust/build/page.c",
            "build/generated.c",
            "tools/lab/Cargo.toml",
            "tools/lab/target/debug/x.c",
            "nested/lib.rs",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let tree = Tree::new(dir.path().to_owned());
        let names: Vec<_> = tree
            .files(|_| true)
            .unwrap()
            .into_iter()
            .map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "nested/lib.rs",
                "rust/build/page.c",
                "rust/helpers.c",
                "rust/helpers.h",
                "tools/lab/Cargo.toml"
            ]
        );
        assert_eq!(tree.kernel_c_files().unwrap().len(), 3);
    }
}
