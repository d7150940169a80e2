// SPDX-License-Identifier: GPL-2.0

//! The cache directory: everything that `lab` makes lives below it.
//!
//! # Invariants
//!
//! - A directory that [`Cache::entry`] returns is complete: it was renamed into place after
//!   its last file was written.
//! - Who writes below an entry or a work directory holds the [`Lock`] of the same name, and so
//!   do the children it started: a build that outlives a killed `lab` still excludes the next.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use command_fds::CommandFdExt;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::step;

/// The cache directory of this user.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache at its place in the user's cache directory.
    pub fn open() -> Result<Self> {
        let base = dirs::cache_dir()
            .context("neither XDG_CACHE_HOME nor HOME says where the cache directory is")?;
        Self::at(base.join("nested-kvm"))
    }

    /// Opens a cache at the directory given.
    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    /// Returns the directory of the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a log file; its directory exists.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("log");
        fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{name}.log")))
    }

    /// Takes the exclusive lock of a name; waits, and says so, while another process has it.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let dir = self.root.join("lock");
        fs::create_dir_all(&dir)?;
        let path = dir.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            step::note(&format!("waiting for another lab process ({name})"));
            flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(Lock { file })
    }

    /// Returns the complete directory of kind and key; `build` fills it if there is none yet.
    pub fn entry(
        &self,
        kind: &str,
        key: &Key,
        build: impl FnOnce(&Path, &Lock) -> Result<()>,
    ) -> Result<PathBuf> {
        let parent = self.root.join(kind);
        let entry = parent.join(key.as_str());
        if entry.is_dir() {
            return Ok(entry);
        }
        let lock = self.lock(&format!("{kind}-{key}"))?;
        if entry.is_dir() {
            return Ok(entry);
        }
        // The lock makes the name unique; what is there was left by a killed process.
        let partial = parent.join(format!(".{key}.partial"));
        remove_all(&partial)?;
        fs::create_dir_all(&partial)?;
        build(&partial, &lock)?;
        fs::rename(&partial, &entry).with_context(|| format!("publishing {}", entry.display()))?;
        Ok(entry)
    }

    /// Returns a directory that is kept between runs and changed in place under its lock.
    pub fn work(&self, kind: &str, key: &Key) -> Result<PathBuf> {
        let dir = self.root.join(kind).join(key.as_str());
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// Removes a file or directory tree; its absence is no error.
pub fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.with_context(|| format!("removing {}", path.display()))
}

/// Writes a file by renaming a complete one into place.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    std::io::Write::write_all(&mut file, content)?;
    // Temporary files are private; what the cache publishes is readable as by umask 022.
    fs::set_permissions(
        file.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )?;
    file.persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// An exclusive lock, released when it and the children that hold it are gone.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Lets the command hold the lock too, for as long as it or a child of it runs.
    pub fn share_with(&self, command: &mut Command) -> Result<()> {
        Self::share_all([self], command)
    }

    /// Lets the command hold several locks.
    pub fn share_all<'a>(
        locks: impl IntoIterator<Item = &'a Self>,
        command: &mut Command,
    ) -> Result<()> {
        let mut fds = Vec::new();
        for lock in locks {
            fds.push(OwnedFd::from(lock.file.try_clone()?));
        }
        command.preserved_fds(fds);
        Ok(())
    }
}

/// A content key: the hash of everything that determines a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Starts a key for results of the kind named.
    pub fn builder(kind: &str) -> KeyBuilder {
        KeyBuilder(Sha256::new()).add("kind", kind)
    }

    /// Returns the key as it stands in file names.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects the inputs of a [`Key`].
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Adds a named input.
    #[must_use]
    pub fn add(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        // Lengths first: no two lists of inputs give the same bytes.
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Returns the key of the inputs added.
    pub fn finish(self) -> Key {
        let digest = self.0.finalize();
        Key(digest[..10]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[(&str, &str)]) -> Key {
        parts
            .iter()
            .fold(Key::builder("test"), |key, (name, value)| {
                key.add(name, value)
            })
            .finish()
    }

    #[test]
    fn a_key_depends_on_where_one_input_ends_and_the_next_begins() {
        assert_eq!(key(&[("a", "bc")]), key(&[("a", "bc")]));
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "d")]), key(&[("a", "bcd")]));
    }

    #[test]
    fn an_entry_is_built_once_and_a_failed_one_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let key = key(&[("a", "b")]);
        let failed = cache.entry("kind", &key, |dir, _| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        let entry = cache
            .entry("kind", &key, |dir, _| {
                assert!(!dir.join("half").exists());
                Ok(fs::write(dir.join("file"), "whole")?)
            })
            .unwrap();
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "whole");
        cache
            .entry("kind", &key, |_, _| anyhow::bail!("built twice"))
            .unwrap();
    }

    #[test]
    fn a_child_keeps_the_lock_of_a_parent_that_dropped_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let lock = cache.lock("name").unwrap();
        let mut command = Command::new("cat");
        command.stdin(std::process::Stdio::piped());
        lock.share_with(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        drop(lock);
        let other = File::open(dir.path().join("lock/name")).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
