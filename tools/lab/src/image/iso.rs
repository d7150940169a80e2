// SPDX-License-Identifier: GPL-2.0

//! A CD image that boots a kernel and an initramfs with isolinux, for machines with a BIOS only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

use super::rootfs::Rootfs;

/// Where Debian's packages isolinux and syslinux-common put the two files of the boot loader.
const LOADER: [&str; 2] = [
    "/usr/lib/ISOLINUX/isolinux.bin",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
];

/// Longest kernel command line that isolinux passes on.
const LONGEST: usize = 2000;

/// Makes the image below `work`, a directory of the caller's.
pub fn create(work: &Path, kernel: &Path, initramfs: &Path, cmdline: &str) -> Result<PathBuf> {
    if cmdline.len() > LONGEST || cmdline.contains('\n') {
        bail!("the kernel command line is too long or has a line break: {cmdline}");
    }
    let mut tree = Rootfs::default();
    for path in LOADER {
        let name = path.rsplit('/').next().unwrap_or(path);
        tree.file(&format!("/{name}"), Path::new(path));
    }
    tree.file("/bzImage", kernel)
        .file("/initrd", initramfs)
        .text("/isolinux.cfg", &configuration(cmdline));
    let dir = work.join("iso");
    tree.stage(&dir)
        .context("packages isolinux and syslinux-common are needed")?;
    // isolinux.bin gets a table written into it: it must not be the package's own file.
    let loader = dir.join("isolinux.bin");
    let content = fs::read(&loader)?;
    fs::remove_file(&loader)?;
    fs::write(&loader, content)?;
    let image = work.join("boot.iso");
    let mut xorriso = Command::new("xorriso");
    xorriso
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(&image)
        .args(["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot"])
        .args(["-boot-load-size", "4", "-boot-info-table"])
        .arg(&dir);
    command::output(&mut xorriso)?;
    Ok(image)
}

fn configuration(cmdline: &str) -> String {
    format!("DEFAULT lab\nLABEL lab\n KERNEL /bzImage\n INITRD /initrd\n APPEND {cmdline}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_in_the_configuration() {
        assert!(configuration("console=ttyS0 x=y").ends_with(" APPEND console=ttyS0 x=y\n"));
    }

    #[test]
    fn a_command_line_that_isolinux_would_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(3000);
        assert!(create(dir.path(), Path::new("k"), Path::new("i"), &long).is_err());
    }
}
