// SPDX-License-Identifier: GPL-2.0

//! The patch series, applied so that make rebuilds only what a change of it concerns.
//!
//! # Invariants
//!
//! - A file of the tree has its original content, or its original is in the pristine
//!   directory (an empty file below `absent` for one that the original tree does not have).
//! - Only files whose content changes are written.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Key, remove_all};
use crate::command;
use crate::kernel::source::Source;

/// A patch file.
#[derive(Clone, Debug)]
struct Patch {
    name: String,
    path: PathBuf,
    content: Vec<u8>,
}

/// Patches in the order of their names, which git format-patch numbers.
#[derive(Clone, Debug, Default)]
pub struct Series {
    patches: Vec<Patch>,
}

/// What applying a series did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Files of the tree that were written or removed.
    pub changed: Vec<PathBuf>,
    /// Hunks that were found at another place than the patch says.
    pub notes: Vec<String>,
}

impl Series {
    /// Reads the patches of a directory; a directory that does not exist is an error.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut patches = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("patches in {}", dir.display()))? {
            let path = entry?.path();
            if path.extension() != Some(OsStr::new("patch")) {
                continue;
            }
            let name = path.file_name().unwrap_or_default();
            patches.push(Patch {
                name: name.to_string_lossy().into_owned(),
                content: fs::read(&path)?,
                path: path.canonicalize()?,
            });
        }
        patches.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { patches })
    }

    /// Returns the paths of the patches, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.patches.iter().map(|patch| patch.path.as_path())
    }

    /// Returns what identifies the series.
    pub fn key(&self) -> Key {
        let mut key = Key::builder("series");
        for patch in &self.patches {
            key = key.add(&patch.name, &patch.content);
        }
        key.finish()
    }

    /// Returns the files that the series changes, adds, removes or renames.
    pub fn touched(&self) -> Result<BTreeSet<PathBuf>> {
        let mut touched = BTreeSet::new();
        for patch in &self.patches {
            let list = command::output(git_apply(patch).args(["--numstat", "-z"]))
                .with_context(|| format!("{} is not a patch", patch.name))?;
            for record in list.split('\0').filter(|record| !record.is_empty()) {
                let path = record.splitn(3, '\t').nth(2).context("git's --numstat")?;
                touched.insert(safe_path(path)?);
            }
            // --numstat names the new path of a renamed file only.
            let text = String::from_utf8_lossy(&patch.content);
            for line in text.lines() {
                for prefix in ["rename from ", "copy from "] {
                    if let Some(path) = line.strip_prefix(prefix) {
                        touched.insert(safe_path(path)?);
                    }
                }
            }
        }
        Ok(touched)
    }

    /// Brings the tree of a source into the state that this series describes.
    ///
    /// The caller holds the lock of the source.
    pub fn apply(&self, source: &Source) -> Result<Applied> {
        let overlay = Overlay {
            tree: source.tree(),
            pristine: source.pristine(),
        };
        let staging = source.dir.join("staging");
        let applied = self.apply_in(&overlay, &staging);
        remove_all(&staging)?;
        applied
    }

    /// Applies the series to copies of the original files; returns hunks that need fuzz.
    ///
    /// The caller holds the lock of the source.
    pub fn check(&self, source: &Source) -> Result<Vec<String>> {
        let overlay = Overlay {
            tree: source.tree(),
            pristine: source.pristine(),
        };
        let staging = source.dir.join("staging");
        let notes = self.stage(&overlay, &self.touched()?, &staging);
        remove_all(&staging)?;
        notes
    }

    fn stage(
        &self,
        overlay: &Overlay,
        touched: &BTreeSet<PathBuf>,
        staging: &Path,
    ) -> Result<Vec<String>> {
        remove_all(staging)?;
        fs::create_dir_all(staging)?;
        for path in touched {
            if let Some(original) = overlay.original(path) {
                copy(&original, &staging.join(path))?;
            }
        }
        let mut notes = Vec::new();
        for patch in &self.patches {
            notes.extend(apply_one(patch, staging)?);
        }
        Ok(notes)
    }

    fn apply_in(&self, overlay: &Overlay, staging: &Path) -> Result<Applied> {
        let touched = self.touched()?;
        let mut applied = Applied {
            notes: self.stage(overlay, &touched, staging)?,
            changed: Vec::new(),
        };
        // All patches apply: from here on the tree changes.
        for path in &touched {
            overlay.save(path)?;
        }
        for path in overlay.saved()? {
            let wanted = if touched.contains(&path) {
                Some(staging.join(&path)).filter(|file| file.is_file())
            } else {
                overlay.original(&path)
            };
            if replace(&overlay.tree.join(&path), wanted.as_deref())? {
                applied.changed.push(path);
            }
        }
        Ok(applied)
    }
}

/// Returns `git apply` of a patch, outside any repository.
fn git_apply(patch: &Patch) -> Command {
    let mut git = Command::new("git");
    let dir = patch.path.parent().unwrap_or(Path::new("/"));
    git.arg("apply")
        .current_dir("/")
        // Below a repository git would take paths as relative to that repository.
        .env_remove("GIT_DIR")
        .env("GIT_CEILING_DIRECTORIES", dir)
        .arg(&patch.path);
    git
}

/// Refuses a path that leaves the tree.
fn safe_path(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    let plain = |c| matches!(c, std::path::Component::Normal(_));
    if path.components().all(plain) {
        Ok(path)
    } else {
        bail!("a patch names {}, outside the tree", path.display())
    }
}

/// Applies one patch in the staging directory; returns what it found at another place.
fn apply_one(patch: &Patch, staging: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("patch");
    command
        .args(["-p1", "--batch", "--forward", "--no-backup-if-mismatch"])
        // Stable updates change lines nearby. A fuzz of two could ignore short contexts whole.
        .arg("--fuzz=1")
        .args(["--reject-file=-", "-d"])
        .arg(staging)
        .arg("-i")
        .arg(&patch.path)
        .env("LC_ALL", "C");
    let (ok, text) = command::verdict(&mut command)?;
    if !ok {
        bail!(
            "patch {} does not apply:\n    {}",
            patch.name,
            failures(&text).join("\n    ")
        );
    }
    Ok(remarks(&patch.name, &text))
}

/// Returns the lines of patch's output that say which hunk of which file failed.
fn failures(text: &str) -> Vec<String> {
    let mut file = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("patching file ") {
            file = name;
        } else if line.contains("FAILED at") {
            lines.push(format!("{file}: {line}"));
        } else if line.contains("can't find file") || line.contains("Reversed (or previously") {
            lines.push(line.to_owned());
        } else if line.starts_with("|diff --git") {
            lines.push(line.trim_start_matches('|').to_owned());
        }
    }
    if lines.is_empty() {
        lines = text.lines().map(str::to_owned).collect();
    }
    lines
}

/// Returns the hunks that matched with fuzz; an offset alone is not worth a word.
fn remarks(name: &str, text: &str) -> Vec<String> {
    let mut file = "";
    let mut notes = Vec::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("patching file ") {
            file = path;
        } else if line.contains(" with fuzz ") {
            notes.push(format!("{name}: {file}: {line}"));
        }
    }
    notes
}

/// A tree and the originals of what was changed in it.
struct Overlay {
    tree: PathBuf,
    pristine: PathBuf,
}

impl Overlay {
    fn kept(&self, path: &Path) -> PathBuf {
        self.pristine.join("files").join(path)
    }

    fn absent(&self, path: &Path) -> PathBuf {
        self.pristine.join("absent").join(path)
    }

    /// Returns the file with the original content, or none if the original tree has none.
    fn original(&self, path: &Path) -> Option<PathBuf> {
        let kept = self.kept(path);
        if kept.is_file() {
            return Some(kept);
        }
        if self.absent(path).is_file() {
            return None;
        }
        Some(self.tree.join(path)).filter(|file| file.is_file())
    }

    /// Keeps the original of a file before it is changed for the first time.
    fn save(&self, path: &Path) -> Result<()> {
        let (kept, absent) = (self.kept(path), self.absent(path));
        if kept.is_file() || absent.is_file() {
            return Ok(());
        }
        let original = self.tree.join(path);
        if original.is_file() {
            copy(&original, &kept)
        } else {
            fs::create_dir_all(absent.parent().context("a path below the overlay")?)?;
            Ok(fs::write(absent, "")?)
        }
    }

    /// Returns all files whose original is kept.
    fn saved(&self) -> Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        for base in ["files", "absent"] {
            let base = self.pristine.join(base);
            if !base.is_dir() {
                continue;
            }
            for entry in walkdir::WalkDir::new(&base) {
                let entry = entry?;
                let temporary = entry.file_name().as_encoded_bytes().starts_with(b".lab-");
                if entry.file_type().is_file() && !temporary {
                    paths.insert(entry.path().strip_prefix(&base)?.to_owned());
                }
            }
        }
        Ok(paths)
    }
}

/// Copies a file with its permissions, by renaming the complete copy into place.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a file has a directory")?;
    fs::create_dir_all(parent)?;
    let temporary = tempfile::Builder::new()
        .prefix(".lab-")
        .tempfile_in(parent)?
        .into_temp_path();
    fs::copy(from, &temporary)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    temporary.persist(to)?;
    Ok(())
}

/// Gives a file the content of another, or removes it; returns whether that changed it.
fn replace(file: &Path, wanted: Option<&Path>) -> Result<bool> {
    let Some(wanted) = wanted else {
        let existed = file.exists();
        remove_all(file)?;
        return Ok(existed);
    };
    if file.is_file() && fs::read(file)? == fs::read(wanted)? {
        return Ok(false);
    }
    copy(wanted, file)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD_TO_A: &str = "Subject: one\n\n---\n a | 1 +\n\ndiff --git a/dir/a b/dir/a\n\
        --- a/dir/a\n+++ b/dir/a\n@@ -1,3 +1,4 @@\n 1\n+new\n 2\n 3\n";
    const NEW_FILE: &str = "diff --git a/dir/b b/dir/b\nnew file mode 100644\n--- /dev/null\n\
        +++ b/dir/b\n@@ -0,0 +1 @@\n+b\n";
    const RENAME: &str = "diff --git a/dir/a b/dir/c\nsimilarity index 100%\n\
        rename from dir/a\nrename to dir/c\n";

    struct Bench {
        dir: tempfile::TempDir,
        source: Source,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let source = Source {
                dir: dir.path().join("source"),
                key: Key::builder("test").finish(),
            };
            fs::create_dir_all(source.tree().join("dir")).unwrap();
            fs::write(source.tree().join("dir/a"), "1\n2\n3\n").unwrap();
            fs::create_dir(dir.path().join("patches")).unwrap();
            Self { dir, source }
        }

        fn patch(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join("patches").join(name), text).unwrap();
        }

        fn apply(&self) -> Result<Vec<PathBuf>> {
            let series = Series::read(&self.dir.path().join("patches"))?;
            Ok(series.apply(&self.source)?.changed)
        }

        fn read(&self, path: &str) -> Option<String> {
            fs::read_to_string(self.source.tree().join(path)).ok()
        }
    }

    #[test]
    fn a_series_writes_what_it_changes_and_nothing_the_second_time() {
        let bench = Bench::new();
        bench.patch("0001-a.patch", ADD_TO_A);
        bench.patch("0002-b.patch", NEW_FILE);
        let changed = bench.apply().unwrap();
        assert_eq!(changed, [Path::new("dir/a"), Path::new("dir/b")]);
        assert_eq!(bench.read("dir/a").unwrap(), "1\nnew\n2\n3\n");
        assert!(bench.apply().unwrap().is_empty());
    }

    #[test]
    fn a_patch_that_is_removed_leaves_the_original_files() {
        let bench = Bench::new();
        bench.patch("0001-a.patch", ADD_TO_A);
        bench.patch("0002-b.patch", NEW_FILE);
        bench.apply().unwrap();
        fs::remove_file(bench.dir.path().join("patches/0002-b.patch")).unwrap();
        assert_eq!(bench.apply().unwrap(), [Path::new("dir/b")]);
        assert_eq!(bench.read("dir/b"), None);
        fs::remove_file(bench.dir.path().join("patches/0001-a.patch")).unwrap();
        assert_eq!(bench.apply().unwrap(), [Path::new("dir/a")]);
        assert_eq!(bench.read("dir/a").unwrap(), "1\n2\n3\n");
    }

    #[test]
    fn a_rename_moves_the_file_and_can_be_taken_back() {
        let bench = Bench::new();
        bench.patch("0001-c.patch", RENAME);
        bench.apply().unwrap();
        assert_eq!(
            (bench.read("dir/a"), bench.read("dir/c")),
            (None, Some("1\n2\n3\n".into()))
        );
        fs::remove_file(bench.dir.path().join("patches/0001-c.patch")).unwrap();
        bench.apply().unwrap();
        assert_eq!(
            (bench.read("dir/a"), bench.read("dir/c")),
            (Some("1\n2\n3\n".into()), None)
        );
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named_with_its_hunk_and_changes_nothing() {
        let bench = Bench::new();
        bench.patch("0001-b.patch", NEW_FILE);
        bench.patch(
            "0002-a.patch",
            &ADD_TO_A
                .replace(" 2\n 3\n", " x\n y\n")
                .replace(" 1\n", " z\n"),
        );
        let error = bench.apply().unwrap_err().to_string();
        assert!(error.contains("0002-a.patch"), "{error}");
        assert!(error.contains("dir/a: Hunk #1 FAILED"), "{error}");
        assert_eq!(bench.read("dir/b"), None);
    }

    #[test]
    fn a_path_outside_the_tree_is_refused() {
        assert!(safe_path("../x").is_err());
        assert!(safe_path("/x").is_err());
        assert!(safe_path("arch/x86/kvm/x86.c").is_ok());
    }
}
