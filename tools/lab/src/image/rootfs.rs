// SPDX-License-Identifier: GPL-2.0

//! A root filesystem as a description, and as a directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::archive::Toolroot;

/// What is at a path of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// The content and the mode of a file of the host.
    File(PathBuf),
    /// A text of ours.
    Text { content: String, executable: bool },
    /// A symbolic link to the path given.
    Link(PathBuf),
    /// An empty directory, for example a mount point.
    Directory,
}

/// Files of a guest by their absolute paths there.
#[derive(Clone, Debug, Default)]
pub struct Rootfs {
    entries: BTreeMap<PathBuf, Entry>,
}

/// Where the libraries of a Debian program are searched.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

impl Rootfs {
    fn insert(&mut self, guest: &str, entry: Entry) -> &mut Self {
        self.entries.insert(PathBuf::from(guest), entry);
        self
    }

    /// Adds a file of the host.
    pub fn file(&mut self, guest: &str, host: &Path) -> &mut Self {
        self.insert(guest, Entry::File(host.to_owned()))
    }

    /// Adds a text.
    pub fn text(&mut self, guest: &str, content: &str) -> &mut Self {
        self.insert(
            guest,
            Entry::Text {
                content: content.into(),
                executable: false,
            },
        )
    }

    /// Adds a script that can be executed.
    pub fn script(&mut self, guest: &str, content: &str) -> &mut Self {
        self.insert(
            guest,
            Entry::Text {
                content: content.into(),
                executable: true,
            },
        )
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, guest: &str, target: &str) -> &mut Self {
        self.insert(guest, Entry::Link(target.into()))
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, guest: &str) -> &mut Self {
        self.insert(guest, Entry::Directory)
    }

    /// Adds a program of the tool root with its loader and all its libraries.
    pub fn program(&mut self, guest: &str, tools: &Toolroot, program: &str) -> Result<&mut Self> {
        let closure = tools.closure(program)?;
        let (first, libraries) = closure
            .split_first()
            .with_context(|| format!("{program} has no file"))?;
        self.file(guest, first);
        for library in libraries {
            let name = library
                .file_name()
                .and_then(|name| name.to_str())
                .with_context(|| format!("a library without a name: {}", library.display()))?;
            // The loader's path is in each program; everything else is found by its name.
            let dir = if name.starts_with("ld-linux") {
                "/lib64"
            } else {
                LIBRARIES
            };
            self.file(&format!("{dir}/{name}"), library);
        }
        Ok(self)
    }

    /// Adds all that another description has; its entries win.
    pub fn extend(&mut self, other: &Self) -> &mut Self {
        self.entries.extend(
            other
                .entries
                .iter()
                .map(|(path, entry)| (path.clone(), entry.clone())),
        );
        self
    }

    /// Returns the paths and those of the directories above them, parents first, without `/`.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut all = std::collections::BTreeSet::new();
        for path in self.entries.keys() {
            all.extend(
                path.ancestors()
                    .filter(|dir| *dir != Path::new("/"))
                    .map(Path::to_owned),
            );
        }
        all.into_iter().collect()
    }

    /// Makes the directory tree; its files share their content with those of the host if possible.
    pub fn stage(&self, dir: &Path) -> Result<()> {
        for (guest, entry) in &self.entries {
            let path = inside(dir, guest)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            match entry {
                Entry::File(host) => place(host, &path)?,
                Entry::Text {
                    content,
                    executable,
                } => {
                    fs::write(&path, content)?;
                    let mode = if *executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
                }
                Entry::Link(target) => symlink(target, &path)?,
                Entry::Directory => fs::create_dir_all(&path)?,
            }
        }
        Ok(())
    }
}

/// Returns where a guest's path is below `dir`; anything but plain components is refused.
fn inside(dir: &Path, guest: &Path) -> Result<PathBuf> {
    let mut path = dir.to_owned();
    for component in guest.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => path.push(name),
            _ => bail!("{} is no absolute path of a guest", guest.display()),
        }
    }
    ensure!(guest.is_absolute(), "{} is not absolute", guest.display());
    Ok(path)
}

/// Links or copies a file of the host.
fn place(host: &Path, path: &Path) -> Result<()> {
    // A link would otherwise point to a path that the guest does not have.
    let real = host
        .canonicalize()
        .with_context(|| format!("no file {}", host.display()))?;
    if fs::hard_link(&real, path).is_err() {
        // Another filesystem, or a file of another user.
        fs::copy(&real, path).with_context(|| format!("copying {}", real.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_becomes_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        fs::write(&host, "content").unwrap();
        symlink(&host, dir.path().join("linked")).unwrap();
        let mut root = Rootfs::default();
        root.file("/usr/bin/program", &dir.path().join("linked"))
            .script("/init", "#!/bin/sh\n")
            .link("/bin", "usr/bin")
            .directory("/proc");
        let tree = dir.path().join("tree");
        root.stage(&tree).unwrap();
        assert_eq!(
            fs::read_to_string(tree.join("bin/program")).unwrap(),
            "content"
        );
        assert!(tree.join("proc").is_dir());
        assert_eq!(
            fs::metadata(tree.join("init"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o755
        );
    }

    #[test]
    fn paths_contain_the_directories_above_them_first() {
        let mut root = Rootfs::default();
        root.text("/a/b/c", "");
        let paths: Vec<_> = root
            .paths()
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        assert!(inside(Path::new("/tree"), Path::new("/../etc")).is_err());
        assert!(inside(Path::new("/tree"), Path::new("relative")).is_err());
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut root = Rootfs::default();
        root.file("/x", Path::new("/nonexistent/file"));
        let error = root.stage(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/file"));
    }
}
