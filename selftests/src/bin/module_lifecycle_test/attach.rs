// SPDX-License-Identifier: GPL-2.0

//! insmod on a host that has everything: the module attaches, says so, and offers what it shall.

use anyhow::{ensure, Result};
use rustix::io::Errno;
use selftests::kmsg::Log;
use selftests::tap::Point;
use selftests::{expect, module};

use crate::host::Host;

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let names = host.names();
    let (ours, kvm, extension) = (names.ours_file, names.kvm_file, names.extension);
    vec![
        Point::new(
            format!("{ours} says its version and what it offers when it attaches"),
            says,
        ),
        Point::new(
            format!("{extension} is offered to guests while {ours} is attached"),
            offers,
        ),
        Point::new(format!("{ours} offers what the built-in code offers"), same),
        Point::new(
            format!("{kvm} cannot be removed while {ours} is attached"),
            holds_kvm,
        ),
        Point::new("a VM runs while the module is attached", runs),
    ]
}

fn says(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut log = Log::end()?;
    host.attach()?;
    let lines = log.lines_of(host.names().ours)?;
    let seen = || format!("the log has {lines:?}");
    expect(format_args!("number of lines; {}", seen()), lines.len(), 3)?;
    let suffix = format!(" attached to {}", host.names().kvm_file);
    let version = lines
        .iter()
        .find_map(|line| line.strip_prefix("version ")?.strip_suffix(&suffix));
    let version: Vec<&str> = version.unwrap_or_default().split('.').collect();
    let numbers = version
        .iter()
        .filter(|word| word.parse::<u32>().is_ok())
        .count();
    ensure!(
        numbers == 3 && version.len() == 3,
        "expected a line \"version N.N.N{suffix}\"; {}",
        seen()
    );
    let words = |prefix: &str| -> Vec<&str> {
        let list = lines.iter().find_map(|line| line.strip_prefix(prefix));
        list.unwrap_or_default()
            .split([' ', ','])
            .filter(|word| !word.is_empty())
            .collect()
    };
    let paging = host.names().paging.to_uppercase();
    for prefix in ["processor: ", "offered to L1: "] {
        let found = words(prefix)
            .iter()
            .any(|word| word.eq_ignore_ascii_case(&paging));
        ensure!(
            found,
            "expected a line {prefix:?} that lists {paging}; {}",
            seen()
        );
    }
    Ok(())
}

fn offers(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    host.offers_nesting(&host.offer()?)
}

fn same(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let builtin = host.offer()?;
    host.offers_nesting(&builtin)?;
    host.attach()?;
    host.offer()?.without_additions().same_as(&builtin)?;
    host.detach()?;
    host.offer()?.same_as(&builtin)
}

fn holds_kvm(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    let kvm = host.names().kvm;
    expect(
        format_args!("rmmod {kvm}"),
        module::remove(kvm)?,
        Err(Errno::WOULDBLOCK),
    )?;
    host.vm_runs()
}

fn runs(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    host.vm_runs()
}
