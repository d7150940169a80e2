// SPDX-License-Identifier: GPL-2.0

//! The Linux source: the user's tree or Debian's package, copied into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use semver::Version;
use walkdir::WalkDir;

use crate::archive::{Archive, Package};
use crate::cache::{Cache, Key, remove_all, write_atomic};
use crate::command;
use crate::host::clean;
use crate::step;

/// Debian's package of the release that the series is for.
const PACKAGE: &str = "linux-source-7.3";

/// The release that the series is for; any of its stable updates will do.
const RELEASE: (u64, u64) = (7, 3);

/// A source tree in the cache.
#[derive(Clone, Debug)]
pub struct Source {
    /// Directory of the cache entry: `tree`, and `pristine` for files that patches change.
    pub dir: PathBuf,
    /// Identifies the content of the unpatched tree.
    pub key: Key,
}

impl Source {
    /// Returns the tree that kernels are built from, with some state of the series applied.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// Returns the directory of original files that the series changes.
    pub fn pristine(&self) -> PathBuf {
        self.dir.join("pristine")
    }

    /// Returns the name of the lock that writing the tree, or building from it, takes.
    pub fn lock_name(&self) -> String {
        format!("source-{}", self.key)
    }
}

/// Returns the source that KSRC names, else Debian's.
pub fn ensure(cache: &Cache, ksrc: Option<&Path>) -> Result<Source> {
    match ksrc {
        Some(dir) => from_directory(cache, dir),
        None => from_debian(cache),
    }
}

/// Forgets which of Debian's packages is in use, so that the newest is looked up again.
pub fn forget_choice(cache: &Cache) -> Result<()> {
    remove_all(&choice_file(cache))
}

fn choice_file(cache: &Cache) -> PathBuf {
    cache.root().join("source").join("debian-version")
}

fn from_debian(cache: &Cache) -> Result<Source> {
    let package = chosen_package(cache)?;
    let key = Key::builder("source")
        .add("package", &package.name)
        .add("version", &package.version)
        .finish();
    let entry = cache.entry("source", &key, |dir, lock| {
        let deb = step::run("download the Linux source", |step| {
            let archive = Archive::stable(cache)?;
            archive.download(&package, dir, step)
        })?;
        step::run("unpack the Linux source", |step| {
            let unpacked = dir.join("unpacked");
            command::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
            let tree = dir.join("tree");
            fs::create_dir(&tree)?;
            let mut tar = Command::new("tar");
            tar.args(["--strip-components=1", "--no-same-owner", "-xvf"])
                .arg(unpacked.join(format!("usr/src/{PACKAGE}.tar.xz")))
                .arg("-C")
                .arg(&tree);
            lock.share_with(&mut tar)?;
            let mut files = 0u32;
            command::logged(&mut tar, &cache.log("unpack")?, |_| {
                files += 1;
                step.progress(&format!("{files} files"));
            })?;
            remove_all(&unpacked)?;
            remove_all(&deb)
        })
    })?;
    finish(entry, key)
}

/// Returns the package chosen at the first run, so that later runs need no network.
fn chosen_package(cache: &Cache) -> Result<Package> {
    let _lock = cache.lock("source-choice")?;
    let file = choice_file(cache);
    if let Ok(version) = fs::read_to_string(&file) {
        return Ok(Package {
            name: PACKAGE.into(),
            version: version.trim().into(),
        });
    }
    let package = step::run("look up the Linux source", |_| {
        Archive::stable(cache)?.newest(PACKAGE)
    })?;
    fs::create_dir_all(file.parent().context("a file in the cache")?)?;
    write_atomic(&file, package.version.as_bytes())?;
    Ok(package)
}

fn from_directory(cache: &Cache, ksrc: &Path) -> Result<Source> {
    let ksrc = ksrc
        .canonicalize()
        .with_context(|| format!("KSRC={}", ksrc.display()))?;
    // Before the copy: a wrong tree shall not cost minutes.
    check_release(&kernelversion(&ksrc)?, &ksrc)?;
    let key = Key::builder("source")
        .add("directory", ksrc.as_os_str().as_encoded_bytes())
        .add("files", listing(&ksrc)?.as_str())
        .finish();
    let entry = cache.entry("source", &key, |dir, lock| {
        step::run("copy the Linux source", |_| {
            let tree = dir.join("tree");
            let mut rsync = Command::new("rsync");
            rsync.args(["-a", "--exclude=/.git"]);
            rsync.arg(format!("{}/", ksrc.display())).arg(&tree);
            lock.share_with(&mut rsync)?;
            command::logged(&mut rsync, &cache.log("copy-source")?, |_| ())?;
            // kbuild refuses to build elsewhere from a tree that was built in.
            let mut mrproper = clean("make");
            mrproper.arg("-C").arg(&tree).arg("mrproper");
            lock.share_with(&mut mrproper)?;
            command::logged(&mut mrproper, &cache.log("mrproper")?, |_| ())
        })
    })?;
    finish(entry, key)
}

fn finish(dir: PathBuf, key: Key) -> Result<Source> {
    let tree = dir.join("tree");
    let version = kernelversion(&tree)?;
    check_release(&version, &tree)?;
    Ok(Source { dir, key })
}

/// Returns what `make kernelversion` says of a tree; writes nothing there.
fn kernelversion(tree: &Path) -> Result<Version> {
    if !tree.join("Kbuild").is_file() || !tree.join("Makefile").is_file() {
        bail!("{} is not a Linux source tree", tree.display());
    }
    let mut make = clean("make");
    make.args(["-s", "--no-print-directory", "-C"])
        .arg(tree)
        .arg("kernelversion");
    let text = command::output(&mut make)?;
    parse_version(text.trim())
}

/// Parses a kernel version; a release without a stable update has two numbers.
fn parse_version(text: &str) -> Result<Version> {
    Version::parse(text)
        .or_else(|_| Version::parse(&format!("{text}.0")))
        .with_context(|| format!("`{text}` is not a kernel version"))
}

fn check_release(version: &Version, tree: &Path) -> Result<()> {
    let (major, minor) = RELEASE;
    let found = (version.major, version.minor);
    if found == RELEASE {
        return Ok(());
    }
    let verdict = if found < RELEASE {
        "too old"
    } else {
        "too new"
    };
    bail!(
        "{} is Linux {version}, which is {verdict}: the patches are for Linux {major}.{minor}.y",
        tree.display()
    )
}

/// Returns the hash of the names, sizes and times of a tree's files.
fn listing(tree: &Path) -> Result<Key> {
    let mut key = Key::builder("listing");
    let walk = WalkDir::new(tree)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !(entry.depth() == 1 && entry.file_name() == ".git"));
    for entry in walk {
        let entry = entry?;
        if entry.file_type().is_dir() {
            continue;
        }
        let metadata = entry.metadata()?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        let name = entry.path().strip_prefix(tree)?;
        key = key
            .add("name", name.as_os_str().as_encoded_bytes())
            .add("size", metadata.len().to_le_bytes())
            .add("time", modified.to_le_bytes());
    }
    Ok(key.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_update_of_the_release_is_taken() {
        for text in ["7.3", "7.3.4", "7.3.0-rc2", "7.3.19"] {
            let version = parse_version(text).unwrap();
            assert!(check_release(&version, Path::new("x")).is_ok(), "{text}");
        }
    }

    #[test]
    fn another_release_is_refused_with_the_one_that_would_do() {
        for (text, verdict) in [
            ("7.2.9", "too old"),
            ("6.12.1", "too old"),
            ("7.4", "too new"),
        ] {
            let version = parse_version(text).unwrap();
            let error = check_release(&version, Path::new("x"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(verdict) && error.contains("7.3.y"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_listing_changes_with_a_files_content_but_not_with_git_objects() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "one").unwrap();
        let before = listing(dir.path()).unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".git/index"), "").unwrap();
        assert_eq!(listing(dir.path()).unwrap(), before);
        fs::write(dir.path().join("file"), "three").unwrap();
        assert_ne!(listing(dir.path()).unwrap(), before);
    }
}
