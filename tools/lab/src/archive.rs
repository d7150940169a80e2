// SPDX-License-Identifier: GPL-2.0

//! Programs and sources of later Debian releases, kept apart from the user's system.
//!
//! A private apt configuration below the cache names the suites; its mirror is the one that
//! the user's own sources name. Nothing outside the cache is read for writing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::cache::{Cache, Key, write_atomic};
use crate::command;
use crate::step::{self, Step};

/// The release that the tools come from.
pub const SUITE: &str = "trixie";

/// Where the sources of Linux 7.3 and of current Rust releases are.
const BACKPORTS: &str = "trixie-backports";

/// Searched last, for a library source of a rustc newer than that of the backports.
const UNSTABLE: &str = "sid";

/// Package lists that are older than this are fetched again before they are used.
const LISTS_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The packages of the tool root: emulators, their firmware, and a static shell.
const TOOLS: &[&str] = &[
    "bochs",
    "bochs-term",
    "bochsbios",
    "vgabios",
    "qemu-system-x86",
    "ipxe-qemu",
    "busybox-static",
];

/// A package of one exact version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name of the binary package.
    pub name: String,
    /// Its Debian version.
    pub version: String,
}

/// A private apt configuration with fetched package lists.
pub struct Archive {
    config: PathBuf,
}

impl Archive {
    /// Opens the archive with the suites that everything but the Rust library comes from.
    pub fn stable(cache: &Cache) -> Result<Self> {
        Self::open(cache, &[SUITE, BACKPORTS])
    }

    /// Opens the archive with unstable searched too.
    pub fn with_unstable(cache: &Cache) -> Result<Self> {
        Self::open(cache, &[SUITE, BACKPORTS, UNSTABLE])
    }

    fn open(cache: &Cache, suites: &[&str]) -> Result<Self> {
        let dir = cache.root().join("apt").join(suites.join("-"));
        let _lock = cache.lock(&format!("apt-{}", suites.join("-")))?;
        let archive = Self {
            config: dir.join("apt.conf"),
        };
        let stamp = dir.join("updated");
        if is_recent(&stamp) {
            return Ok(archive);
        }
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        write_atomic(&archive.config, configuration(&dir).as_bytes())?;
        let mut failures = Vec::new();
        for mirror in mirrors()? {
            write_atomic(
                &dir.join("sources.list"),
                sources(&mirror, suites)?.as_bytes(),
            )?;
            let mut update = archive.apt("apt-get");
            // A transient error must not pass for success with old lists.
            update.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
            match command::logged(&mut update, &cache.log("apt-update")?, |_| ()) {
                Ok(()) => {
                    write_atomic(&stamp, b"")?;
                    return Ok(archive);
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!(
            "no source of this system's apt serves Debian's {}:\n{}",
            suites.join(", "),
            failures.join("\n")
        )
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Returns the newest version of a package in all suites.
    pub fn newest(&self, name: &str) -> Result<Package> {
        let versions = self.versions(name)?;
        versions.into_iter().next().with_context(|| {
            format!("the archive has no package {name}: its release of Linux or Debian moved on")
        })
    }

    /// Returns the oldest version of a package in all suites.
    pub fn oldest(&self, name: &str) -> Result<Package> {
        let versions = self.versions(name)?;
        let oldest = versions.into_iter().next_back();
        oldest.with_context(|| format!("the archive has no package {name}"))
    }

    /// Returns the names of the packages that a package depends on.
    pub fn depends(&self, package: &Package) -> Result<Vec<String>> {
        let which = format!("{}={}", package.name, package.version);
        let text = command::output(self.apt("apt-cache").args(["show", &which]))?;
        let list = text.lines().find_map(|line| line.strip_prefix("Depends: "));
        let names = list.unwrap_or_default().split(',');
        let names = names.filter_map(|name| name.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Returns the package whose upstream version is exactly the one given.
    pub fn version_of(&self, name: &str, upstream: &str) -> Result<Package> {
        let versions = self.versions(name)?;
        let found = versions
            .iter()
            .find(|package| upstream_of(&package.version) == upstream);
        found.cloned().with_context(|| {
            let known: Vec<&str> = versions.iter().map(|p| p.version.as_str()).collect();
            format!(
                "the archive has {name} in versions {}, not {upstream}",
                known.join(", ")
            )
        })
    }

    /// Returns the versions of a package, newest first.
    fn versions(&self, name: &str) -> Result<Vec<Package>> {
        let list = command::output(self.apt("apt-cache").args(["madison", name]))?;
        Ok(parse_madison(&list))
    }

    /// Downloads a package into a directory and returns the path of its file.
    pub fn download(&self, package: &Package, dir: &Path, step: &Step) -> Result<PathBuf> {
        // apt names the file itself: an empty directory tells which it is.
        let target = tempfile::Builder::new()
            .prefix(".download")
            .tempdir_in(dir)?;
        let mut download = self.apt("apt-get");
        download
            .args(["-q", "-o", "APT::Status-Fd=1", "download"])
            .arg(format!("{}={}", package.name, package.version))
            .current_dir(target.path());
        let log = target.path().join("apt.log");
        command::logged(&mut download, &log, |line| {
            if let Some(percent) = percent_of(line) {
                step.progress(&format!(
                    "{} {}: {percent:.0} %",
                    package.name, package.version
                ));
            }
        })?;
        for file in fs::read_dir(target.path())? {
            let file = file?;
            if file.path().extension().is_some_and(|ext| ext == "deb") {
                let path = dir.join(file.file_name());
                fs::rename(file.path(), &path)?;
                return Ok(path);
            }
        }
        bail!("apt-get download of {} left no file", package.name)
    }
}

fn is_recent(stamp: &Path) -> bool {
    let age = fs::metadata(stamp)
        .and_then(|metadata| metadata.modified())
        .map(|modified| SystemTime::now().duration_since(modified));
    matches!(age, Ok(Ok(age)) if age < LISTS_AGE)
}

/// Returns the text of the private apt configuration.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    let mut text = format!(
        "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State::lists \"{dir}/lists\";\n\
         Dir::Cache::archives \"{dir}/archives\";\n\
         Dir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Check-Valid-Until \"false\";\n"
    );
    if geteuid().is_root() {
        // The unprivileged user that apt downloads as cannot enter root's cache directory.
        text.push_str("APT::Sandbox::User \"root\";\n");
    }
    text
}

/// Returns the lines of a sources.list for suites of a mirror.
fn sources(mirror: &str, suites: &[&str]) -> Result<String> {
    let keyring = keyring()?;
    let line = |suite: &&str| format!("deb [signed-by={keyring}] {mirror} {suite} main\n");
    Ok(suites.iter().map(line).collect())
}

fn keyring() -> Result<&'static str> {
    const KEYRINGS: [&str; 2] = [
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/debian-archive-keyring.pgp",
    ];
    KEYRINGS
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .context("Debian's package debian-archive-keyring is not installed")
}

/// Returns the mirrors that the user's own sources name for this Debian release.
///
/// A third party's archive may use the same name of a release: the signature tells which one
/// is Debian's.
fn mirrors() -> Result<Vec<String>> {
    let os_release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release of Debian")?
        .trim_matches('"');
    // Without release information this works before the first `apt-get update`, too.
    let list = command::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let mirrors = parse_mirrors(&list, codename);
    if mirrors.is_empty() {
        bail!("the apt sources of this system name no mirror for {codename}");
    }
    Ok(mirrors)
}

fn parse_mirrors(list: &str, codename: &str) -> Vec<String> {
    let mut mirrors = Vec::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let release_matches = [codename, "stable", "oldstable", "testing", "unstable"]
            .contains(&release.trim_end_matches('/'));
        if release_matches && !mirrors.iter().any(|known| known == uri) {
            mirrors.push(uri.to_owned());
        }
    }
    mirrors
}

/// Parses `apt-cache madison`: `name | version | source`, newest first.
fn parse_madison(list: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = Vec::new();
    for line in list.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(name), Some(version), Some(source)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        if source.ends_with("Packages") && !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

/// Returns the upstream part of a Debian version: no epoch, no revision, no `+dfsg`.
fn upstream_of(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version.rsplit_once('-').map_or(version, |(rest, _)| rest);
    version.split_once('+').map_or(version, |(rest, _)| rest)
}

/// Returns the percentage in a line that apt writes to its status descriptor.
fn percent_of(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?
        .split(':')
        .nth(1)?
        .parse()
        .ok()
}

/// Programs of Debian 13 in a directory of their own.
#[derive(Clone, Debug)]
pub struct Toolroot {
    /// The root directory: `usr/bin`, `usr/lib`, `usr/share`.
    pub dir: PathBuf,
}

/// Returns the tool root; unpacks it where the cache has none.
pub fn toolroot(cache: &Cache) -> Result<Toolroot> {
    let key = Key::builder("toolroot")
        .add("suite", SUITE)
        .add("packages", TOOLS.join(" "))
        .finish();
    let entry = cache.entry("toolroot", &key, |dir, lock| {
        step::run("download emulators", |step| {
            // Updated lists prove which mirror is Debian's.
            let archive = Archive::stable(cache)?;
            let root = dir.join("root");
            let mut bootstrap = Command::new("mmdebstrap");
            bootstrap
                .args(["--variant=extract", "--format=directory"])
                .arg(format!("--include={}", TOOLS.join(",")))
                .arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
            if !geteuid().is_root() {
                // Needs no subordinate user ids, and leaves the files to their user.
                bootstrap.arg("--mode=chrootless");
            }
            for (name, value) in proxies()? {
                bootstrap.arg(format!("--aptopt={name} \"{value}\""));
            }
            let sources = archive.config.with_file_name("sources.list");
            let line = fs::read_to_string(sources)?;
            let line = line.lines().next().context("an empty sources.list")?;
            bootstrap.arg(SUITE).arg(&root).arg(line);
            lock.share_with(&mut bootstrap)?;
            command::logged(&mut bootstrap, &cache.log("toolroot")?, |line| {
                step.progress(line)
            })?;
            merge_usr(&root)?;
            let toolroot = Toolroot { dir: root };
            command::output(toolroot.command("qemu-system-x86_64").arg("--version"))?;
            Ok(())
        })
    })?;
    Ok(Toolroot {
        dir: entry.join("root"),
    })
}

/// Returns the proxies of the user's apt configuration, which mmdebstrap does not read.
fn proxies() -> Result<Vec<(String, String)>> {
    let dump = command::output(Command::new("apt-config").args([
        "dump",
        "--no-empty",
        "--format",
        "%f %v%n",
        "Acquire",
    ]))?;
    Ok(dump
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| name.contains("::Proxy"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Adds the links of a merged /usr where the packages chosen did not bring them.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let link = root.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("usr").join(name), &link)?;
        }
    }
    Ok(())
}

impl Toolroot {
    fn loader(&self) -> PathBuf {
        self.dir.join("lib64/ld-linux-x86-64.so.2")
    }

    fn libraries(&self) -> PathBuf {
        self.dir.join("usr/lib/x86_64-linux-gnu")
    }

    /// Returns the search path of libraries, private directories of packages included.
    fn library_path(&self) -> String {
        let main = self.libraries();
        // Libraries there are found by an absolute RUNPATH, which does not hold in this root.
        let private = ["pulseaudio", "systemd"].map(|sub| main.join(sub));
        let dirs: Vec<String> = std::iter::once(&main)
            .chain(&private)
            .filter(|dir| dir.is_dir())
            .map(|dir| dir.display().to_string())
            .collect();
        dirs.join(":")
    }

    /// Returns the path of a program's ELF file.
    ///
    /// Some packages have a script of that name, which starts `NAME-bin` by its absolute path.
    fn program(&self, program: &str) -> PathBuf {
        let names = [program.to_owned(), format!("{program}-bin")];
        names
            .iter()
            .flat_map(|name| ["usr/bin", "usr/sbin"].map(|dir| self.dir.join(dir).join(name)))
            .find(|path| interpreter(path).is_ok())
            .unwrap_or_else(|| self.dir.join("usr/bin").join(program))
    }

    /// Returns the words that start a program: loader, library path, program, data directory.
    fn words(&self, program: &str) -> Vec<String> {
        let path = self.program(program);
        if matches!(interpreter(&path), Ok(None)) {
            return vec![path.display().to_string()];
        }
        let mut words = vec![
            self.loader().display().to_string(),
            "--library-path".into(),
            self.library_path(),
            "--argv0".into(),
            program.into(),
            path.display().to_string(),
        ];
        if program.starts_with("qemu-system-") {
            // Firmware of other packages is reached by links that leave the first directory.
            for share in ["qemu", "seabios"] {
                words.push("-L".into());
                words.push(self.dir.join("usr/share").join(share).display().to_string());
            }
        }
        words
    }

    /// Returns the variables by which programs find their plug-ins in this root.
    fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("QEMU_MODULE_DIR", self.libraries().join("qemu")),
            ("LTDL_LIBRARY_PATH", self.libraries().join("bochs/plugins")),
        ]
    }

    /// Returns a command that runs a program of this root with the root's own libraries.
    pub fn command(&self, program: &str) -> Command {
        let words = self.words(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.variables());
        command
    }

    /// Returns the path of an executable file that runs a program of this root.
    pub fn wrapper(&self, program: &str) -> Result<PathBuf> {
        let parent = self.dir.parent().context("a tool root has a parent")?;
        let dir = parent.join("wrappers");
        fs::create_dir_all(&dir)?;
        let path = dir.join(program);
        let quoted: Vec<String> = self
            .variables()
            .iter()
            .map(|(name, value)| format!("{name}={}", command::quote(&value.to_string_lossy())))
            .chain(self.words(program).iter().map(|word| command::quote(word)))
            .collect();
        // The name by which the loader runs is for messages only; the shell's exec takes env.
        let script = format!("#!/bin/sh\nexec env {} \"$@\"\n", quoted.join(" "));
        if fs::read_to_string(&path).ok().as_deref() == Some(script.as_str()) {
            return Ok(path);
        }
        let file = tempfile::NamedTempFile::new_in(&dir)?;
        fs::write(file.path(), script)?;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o755))?;
        // The descriptor is closed first: a file that is open for writing cannot be executed.
        file.into_temp_path().persist(&path)?;
        Ok(path)
    }

    /// Returns a program's file, all shared libraries it needs, and the loader.
    pub fn closure(&self, program: &str) -> Result<Vec<PathBuf>> {
        let path = self.program(program);
        let mut list = Command::new(self.loader());
        list.arg("--library-path")
            .arg(self.library_path())
            .arg("--list")
            .arg(&path);
        let mut files = vec![path.clone()];
        if interpreter(&path)?.is_none() {
            return Ok(files);
        }
        let text = command::output(&mut list)?;
        for line in text.lines() {
            match library_of(line) {
                Library::At(file) if !files.contains(&file) => files.push(file),
                Library::At(_) | Library::Kernel => {}
                Library::Missing(name) => {
                    bail!("{program}: library {name} is not in the tool root")
                }
            }
        }
        let loader = self.loader();
        if !files.contains(&loader) {
            files.push(loader);
        }
        Ok(files)
    }
}

/// Returns the loader that an ELF file names, or none for a static program.
fn interpreter(path: &Path) -> Result<Option<String>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let elf = goblin::elf::Elf::parse(&bytes)
        .with_context(|| format!("{} is not an ELF file", path.display()))?;
    Ok(elf.interpreter.map(str::to_owned))
}

/// What a line of the loader's list says.
enum Library {
    At(PathBuf),
    Missing(String),
    /// The kernel's own object, which has no file.
    Kernel,
}

/// Parses a line of the loader's `--list`: `name => path (address)`.
fn library_of(line: &str) -> Library {
    let line = line.trim();
    let file = |text: &str| text.split(" (").next().unwrap_or(text).trim().to_owned();
    match line.split_once(" => ") {
        Some((name, "not found")) => Library::Missing(name.to_owned()),
        Some((_, target)) => Library::At(PathBuf::from(file(target))),
        None if line.starts_with('/') => Library::At(PathBuf::from(file(line))),
        None => Library::Kernel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_versions_are_told_from_debian_versions() {
        assert_eq!(upstream_of("1.95.0+dfsg1-2~bpo13+1"), "1.95.0");
        assert_eq!(upstream_of("7.3.4-1~bpo13+1"), "7.3.4");
        assert_eq!(upstream_of("1:10.0.2+ds-2"), "10.0.2");
    }

    #[test]
    fn only_the_release_of_this_system_names_a_mirror() {
        let list = "http://mirror/debian/ bookworm main\n\
                    http://mirror/debian/ bookworm-updates main\n\
                    http://mirror/security/ bookworm-security main\n\
                    http://other/ bookworm contrib\n";
        assert_eq!(parse_mirrors(list, "bookworm"), ["http://mirror/debian/"]);
    }

    #[test]
    fn madison_lists_versions_once_and_no_source_packages() {
        let list = " rust-src | 1.95.0-1 | http://m trixie/main amd64 Packages\n \
                    rust-src | 1.95.0-1 | http://m sid/main amd64 Packages\n \
                    rust-src | 1.94.0-1 | http://m sid/main Sources\n";
        let versions = parse_madison(list);
        assert_eq!(versions.len(), 1);
        assert_eq!(versions[0].version, "1.95.0-1");
    }

    #[test]
    fn the_loaders_list_gives_paths_and_names_what_is_missing() {
        let at = library_of("\tlibc.so.6 => /r/libc.so.6 (0x00007f)");
        assert!(matches!(at, Library::At(path) if path == Path::new("/r/libc.so.6")));
        assert!(
            matches!(library_of("\tlibx.so => not found"), Library::Missing(name) if name == "libx.so")
        );
        assert!(matches!(
            library_of("\tlinux-vdso.so.1 (0x00007)"),
            Library::Kernel
        ));
    }

    #[test]
    fn a_static_program_runs_without_the_loader_and_a_script_gives_way_to_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("usr/bin");
        fs::create_dir_all(&bin).unwrap();
        // The running test is an ELF file with a loader.
        fs::copy(std::env::current_exe().unwrap(), bin.join("tool-bin")).unwrap();
        fs::write(bin.join("tool"), "#!/bin/sh\n").unwrap();
        let root = Toolroot {
            dir: dir.path().to_owned(),
        };
        assert_eq!(root.program("tool"), bin.join("tool-bin"));
        assert!(root.words("tool")[0].ends_with("ld-linux-x86-64.so.2"));
        assert!(interpreter(&bin.join("tool")).is_err());
    }

    #[test]
    fn percentages_come_from_the_status_descriptor() {
        assert_eq!(percent_of("dlstatus:1:20.5:Retrieving"), Some(20.5));
        assert_eq!(percent_of("Get:1 something"), None);
    }
}
