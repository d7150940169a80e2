// SPDX-License-Identifier: GPL-2.0

//! What the user's machine must have: Debian packages, the Rust toolchain, bindgen, virtme-ng.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use semver::Version;

use crate::archive::Archive;
use crate::cache::{Cache, Key, remove_all, write_atomic};
use crate::command;
use crate::options::default_jobs;
use crate::step;

/// The LLVM release that builds the kernel; Debian 12 and 13 have it both.
pub const LLVM: &str = "19";

/// The oldest rustc that builds Linux 7.3.
const MIN_RUSTC: Version = Version::new(1, 85, 0);

/// The oldest bindgen that builds Linux 7.3.
const MIN_BINDGEN: Version = Version::new(0, 71, 1);

/// The bindgen that is built where the machine has none.
const BINDGEN: &str = "0.73.2";

/// The virtme-ng release that is known to boot our kernels.
const VIRTME_NG: &str = "1.42";

/// Debian packages, each with what needs it.
const PACKAGES: &[&str] = &[
    // The kernel's build.
    "make",
    "gcc",
    "libc6-dev",
    "clang-19",
    "lld-19",
    "llvm-19",
    "libclang-19-dev",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "python3",
    "rsync",
    "xz-utils",
    "kmod",
    // The series and the static checks.
    "git",
    "patch",
    "perl",
    "python3-ply",
    "sparse",
    "python3-sphinx",
    // Machines: Debian 13's programs, initramfs, boot image, virtme-ng.
    "mmdebstrap",
    "debian-archive-keyring",
    "cpio",
    "gzip",
    "xorriso",
    "isolinux",
    "syslinux-common",
    "python3-venv",
];

/// Installs the Debian packages that are missing, and nothing else.
pub fn packages() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut install = vec!["apt-get", "install", "-y", "--no-install-recommends"];
    install.extend(&missing);
    let prefix: &[&str] = if geteuid().is_root() {
        &[]
    } else if sudo_works() {
        &["sudo", "-n"]
    } else {
        bail!(
            "Debian packages are missing; install them with\n    sudo {}",
            install.join(" ")
        );
    };
    step::note(&format!("installing {}", missing.join(" ")));
    step::run("install Debian packages", |step| {
        let run = |args: &[&str], log: &str| {
            let words: Vec<&str> = prefix.iter().chain(args).copied().collect();
            let mut command = Command::new(words[0]);
            command
                .args(&words[1..])
                .env("DEBIAN_FRONTEND", "noninteractive");
            let log = std::env::temp_dir().join(format!("lab-{log}-{}.log", std::process::id()));
            command::logged(&mut command, &log, |line| step.progress(line))?;
            fs::remove_file(&log).map_err(anyhow::Error::from)
        };
        // A fresh container has no package lists at all.
        let known = command::output(Command::new("apt-cache").args(["show", missing[0]])).is_ok();
        if !known {
            run(&["apt-get", "update"], "apt-update")?;
        }
        run(&install, "apt-install")
    })
}

fn missing_packages() -> Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(PACKAGES)
        .output()
        .context("dpkg-query: is this a Debian system?")?;
    Ok(missing_in(&String::from_utf8_lossy(&output.stdout)))
}

/// Returns the packages that dpkg-query's list does not show as installed.
fn missing_in(list: &str) -> Vec<&'static str> {
    PACKAGES
        .iter()
        .copied()
        .filter(|package| {
            !list
                .lines()
                .any(|line| line.split_once(' ') == Some((package, "installed")))
        })
        .collect()
}

fn sudo_works() -> bool {
    command::output(Command::new("sudo").args(["-n", "true"])).is_ok()
}

/// The programs that compile the kernel and our modules.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// `rustc --version`.
    pub rustc: String,
    /// The first line of `clang-19 --version`.
    pub clang: String,
    /// Path of bindgen.
    pub bindgen: PathBuf,
    /// `bindgen --version`.
    pub bindgen_version: String,
    /// Source of Rust's standard library, of exactly rustc's version.
    pub rust_lib_src: PathBuf,
    /// Directory of libclang, for bindgen.
    pub libclang: PathBuf,
}

impl Toolchain {
    /// Finds the toolchain; gets what is missing and can be kept in the cache.
    pub fn ensure(cache: &Cache) -> Result<Self> {
        let rustc = command::output(Command::new("rustc").arg("--version"))
            .context(RUSTC_ADVICE)?
            .trim()
            .to_owned();
        let version = version_in(&rustc)?;
        if version < MIN_RUSTC {
            bail!("{rustc} is too old: Linux 7.3 needs {MIN_RUSTC} or later.\n{RUSTC_ADVICE}");
        }
        let clang = format!("clang-{LLVM}");
        let clang = command::output(Command::new(clang).arg("--version"))?;
        let libclang = format!("llvm-config-{LLVM}");
        let libclang = command::output(Command::new(libclang).arg("--libdir"))?;
        let (bindgen, bindgen_version) = bindgen(cache)?;
        Ok(Self {
            rust_lib_src: rust_lib_src(cache, &version)?,
            rustc,
            clang: clang.lines().next().unwrap_or_default().to_owned(),
            bindgen,
            bindgen_version,
            libclang: PathBuf::from(libclang.trim()),
        })
    }

    /// Returns a `make` for kbuild in a directory, with this toolchain and a clean environment.
    ///
    /// The environment is an allow-list: kbuild reads dozens of variables, and the make that
    /// started us passes its own (`CONFIG_KVM_NESTED_BUILTIN=n` would be taken for the kernel's).
    pub fn make(&self, dir: &Path) -> Command {
        let mut make = clean("make");
        make.arg("-C")
            .arg(dir)
            .arg(format!("LLVM=-{LLVM}"))
            .arg(format!("BINDGEN={}", self.bindgen.display()))
            .env("RUST_LIB_SRC", &self.rust_lib_src)
            .env("LIBCLANG_PATH", &self.libclang)
            // Same input, same output; kernels say who built them and when.
            .env("KBUILD_BUILD_USER", "lab")
            .env("KBUILD_BUILD_HOST", "nested-kvm")
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_VERSION", "1");
        make
    }

    /// Returns what identifies the compilers in content keys.
    pub fn identity(&self) -> String {
        format!("{}\n{}\n{}", self.rustc, self.clang, self.bindgen_version)
    }
}

/// Returns a command with only those environment variables that finding programs needs.
pub fn clean(program: &str) -> Command {
    const KEPT: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "TMPDIR",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
    ];
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C.UTF-8");
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

const RUSTC_ADVICE: &str = "Install Rust by rustup (on Debian 12), or by \
    `apt-get install rustc cargo rustfmt rust-clippy rust-src` (on Debian 13)";

/// Returns the version in a line like `rustc 1.95.0 (59807616e 2026-04-14)`.
fn version_in(line: &str) -> Result<Version> {
    line.split_whitespace()
        .find_map(|word| Version::parse(word.trim_start_matches('v')).ok())
        .with_context(|| format!("no version number in `{line}`"))
}

fn bindgen_version(path: &Path) -> Result<(Version, String)> {
    let line = command::output(Command::new(path).arg("--version"))?
        .trim()
        .to_owned();
    Ok((version_in(&line)?, line))
}

/// Returns a bindgen that is new enough: the one on PATH, else one that cargo builds.
fn bindgen(cache: &Cache) -> Result<(PathBuf, String)> {
    if let Ok(path) = which::which("bindgen") {
        let (version, line) = bindgen_version(&path)?;
        if version >= MIN_BINDGEN {
            return Ok((path, line));
        }
        step::note(&format!(
            "{} is {version}, Linux 7.3 needs {MIN_BINDGEN}: building {BINDGEN} instead",
            path.display()
        ));
    }
    let key = Key::builder("bindgen").add("version", BINDGEN).finish();
    let entry = cache.entry("bindgen", &key, |dir, lock| {
        step::run("build bindgen", |step| {
            let mut cargo = Command::new("cargo");
            cargo
                .args(["install", "--locked", "--version", BINDGEN, "bindgen-cli"])
                .args(["--jobs", &default_jobs().to_string()])
                .arg("--root")
                .arg(dir)
                .env("CARGO_TARGET_DIR", dir.join("target"));
            lock.share_with(&mut cargo)?;
            command::logged(&mut cargo, &cache.log("bindgen")?, |line| {
                step.progress(line.trim())
            })?;
            remove_all(&dir.join("target"))
        })
    })?;
    let path = entry.join("bin/bindgen");
    let (_, line) = bindgen_version(&path)?;
    Ok((path, line))
}

/// Finds the source of Rust's standard library for rustc's exact version.
///
/// rustup's component and Debian's package are taken where they are installed; else Debian's
/// package is unpacked in the cache.
fn rust_lib_src(cache: &Cache, version: &Version) -> Result<PathBuf> {
    let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let installed = [
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"),
        PathBuf::from(format!("/usr/src/rustc-{version}/library")),
    ];
    for dir in installed {
        if dir.join("core/src/lib.rs").is_file() {
            return Ok(dir);
        }
    }
    let key = Key::builder("rust-src")
        .add("version", version.to_string())
        .finish();
    let entry = cache
        .entry("rust-src", &key, |dir, _| {
            step::run("download the Rust library source", |step| {
                let archive = Archive::with_unstable(cache)?;
                let package = archive.version_of("rust-src", &version.to_string())?;
                let deb = archive.download(&package, dir, step)?;
                command::output(Command::new("dpkg").arg("-x").arg(&deb).arg(dir))?;
                Ok(fs::remove_file(deb)?)
            })
        })
        .with_context(|| {
            format!(
                "rustc {version} has no source of its standard library. Give it one with\n    \
                 rustup component add rust-src        (a toolchain of rustup)\n    \
                 apt-get install rust-src             (Debian's rustc)"
            )
        })?;
    Ok(entry.join(format!("usr/src/rustc-{version}/library")))
}

/// Returns the directory with virtme-ng's programs (`vng`, `virtme-run`).
///
/// A virtual environment has its own path in its scripts and cannot be renamed into place:
/// it is made where it stays, and a stamp that is written last says that it is complete.
pub fn virtme_ng(cache: &Cache) -> Result<PathBuf> {
    let python = system_python()?;
    let python_version = command::output(Command::new(&python).arg("--version"))?;
    let key = Key::builder("virtme-ng")
        .add("version", VIRTME_NG)
        .add("python", python.as_os_str().as_encoded_bytes())
        .add("python version", python_version)
        .add("path", cache.root().as_os_str().as_encoded_bytes())
        .finish();
    let _lock = cache.lock(&format!("virtme-ng-{key}"))?;
    let dir = cache.work("virtme-ng", &key)?;
    let bin = dir.join("bin");
    let stamp = dir.join("complete");
    if stamp.is_file() {
        return Ok(bin);
    }
    remove_all(&dir)?;
    step::run("install virtme-ng", |step| {
        let mut venv = Command::new(&python);
        venv.args(["-m", "venv"]).arg(&dir);
        command::logged(&mut venv, &cache.log("virtme-ng-venv")?, |_| ())?;
        let mut pip = Command::new(bin.join("python3"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check"])
            .arg(format!("virtme-ng=={VIRTME_NG}"));
        command::logged(&mut pip, &cache.log("virtme-ng-pip")?, |line| {
            step.progress(line)
        })?;
        command::output(Command::new(bin.join("vng")).arg("--version"))?;
        write_atomic(&stamp, b"")
    })?;
    Ok(bin)
}

/// Returns Debian's Python, which python3-venv belongs to; a version manager may shadow it.
fn system_python() -> Result<PathBuf> {
    let debian = Path::new("/usr/bin/python3");
    if debian.is_file() {
        return Ok(debian.to_owned());
    }
    which::which("python3").context("python3 is missing")
}

/// Prepares everything that the other subcommands need and that does not depend on the tree.
pub fn setup(cache: &Cache) -> Result<()> {
    packages()?;
    let toolchain = Toolchain::ensure(cache)?;
    let toolroot = crate::archive::toolroot(cache)?;
    let vng = virtme_ng(cache)?;
    let qemu = command::output(toolroot.command("qemu-system-x86_64").arg("--version"))?;
    step::note(&toolchain.rustc);
    step::note(&toolchain.clang);
    step::note(&toolchain.bindgen_version);
    step::note(&format!(
        "Rust library {}",
        toolchain.rust_lib_src.display()
    ));
    step::note(qemu.lines().next().unwrap_or_default());
    step::note(&format!("virtme-ng {VIRTME_NG} in {}", vng.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let rustc = version_in("rustc 1.95.0 (59807616e 2026-04-14)").unwrap();
        assert_eq!(rustc, Version::new(1, 95, 0));
        assert_eq!(version_in("bindgen 0.73.2").unwrap().minor, 73);
        assert!(version_in("no number").is_err());
    }

    #[test]
    fn a_removed_package_with_configuration_left_counts_as_missing() {
        let list = PACKAGES
            .iter()
            .map(|package| match *package {
                "bc" => "bc config-files\n".to_owned(),
                other => format!("{other} installed\n"),
            })
            .collect::<String>();
        assert_eq!(missing_in(&list), ["bc"]);
    }

    #[test]
    fn the_build_environment_does_not_inherit_makes_variables() {
        let command = clean("make");
        let names: Vec<_> = command.get_envs().map(|(name, _)| name).collect();
        assert!(!names.iter().any(|name| *name == "MAKEFLAGS"));
        assert!(names.iter().any(|name| *name == "PATH"));
    }
}
