// SPDX-License-Identifier: GPL-2.0

//! The kernel's log, from a position on.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{bail, Context, Result};
use rustix::fs::OFlags;

/// Largest record of `/dev/kmsg`, continuation lines included.
const RECORD: usize = 8192;

/// A position in the log.
pub struct Log(File);

impl Log {
    /// Returns the end of the log.
    pub fn end() -> Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg")
            .context("opening /dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// Returns the lines that the kernel itself has logged since, and goes to the end.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => lines.extend(parse(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    bail!("the kernel's log is too small for what it says during a test")
                }
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
    }

    /// Returns what a module has logged since, without its name.
    pub fn lines_of(&mut self, module: &str) -> Result<Vec<String>> {
        let prefix = format!("{module}: ");
        let lines = self.lines()?;
        let own = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
        // The loader says this once, about the first module that is not of the kernel's tree.
        let own = own.filter(|line| *line != "loading out-of-tree module taints kernel.");
        Ok(own.map(str::to_owned).collect())
    }
}

/// Returns the text of a record, unless a program wrote it.
fn parse(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let from_kernel = priority >> 3 == 0;
    from_kernel.then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_programs_are_left_out() {
        let kernel = "6,339,5140900,-;nested_svm: detached\n SUBSYSTEM=module\n";
        assert_eq!(parse(kernel).as_deref(), Some("nested_svm: detached"));
        assert_eq!(parse("12,340,5140901,-;| hello\n"), None);
    }
}
