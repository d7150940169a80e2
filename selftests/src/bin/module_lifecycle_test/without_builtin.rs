// SPDX-License-Identifier: GPL-2.0

//! A KVM without nested code of its own: there is no nested virtualization, and KVM says so.

use anyhow::{ensure, Result};
use rustix::io::Errno;
use selftests::expect;
use selftests::kmsg::Log;
use selftests::tap::Point;
use selftests::vm::{self, Vm};

use crate::host::{Host, Vendor};

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let names = host.names();
    let (ours, kvm) = (names.ours_file, names.kvm_file);
    let mut points = vec![
        Point::new(
            format!("{kvm} says which module gives it nested virtualization"),
            says,
        ),
        Point::new("no nested virtualization is offered to guests", offers_none),
        Point::new("a VM runs, without nested virtualization", runs),
    ];
    points.extend(match host.vendor {
        Vendor::Amd => vec![
            Point::new(
                format!("{ours} gives nested virtualization, and takes it away"),
                attaches,
            ),
            Point::new(
                format!("a VM that is older than {ours} does not get it"),
                comes_late,
            ),
        ],
        Vendor::Intel => vec![Point::new(
            format!("{ours} is refused as long as it builds on KVM's own code"),
            refused,
        )],
    });
    points
}

fn says(host: &Host) -> Result<()> {
    let mut log = Log::end()?;
    host.load_kvm("nested=1")?;
    let lines = log.lines_of(host.names().kvm)?;
    let said = format!(
        "No built-in nested virtualization, load {} to get it",
        host.names().ours_file
    );
    let count = lines.iter().filter(|line| **line == said).count();
    ensure!(
        count == 1,
        "log of KVM: expected {said:?} once, saw {lines:?}"
    );
    Ok(())
}

fn offers_none(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.offers_no_nesting(&host.offer()?)
}

fn runs(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, false)
}

fn refused(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.refused(host.vendor, Errno::OPNOTSUPP, "CONFIG_KVM_NESTED_BUILTIN")?;
    host.offers_no_nesting(&host.offer()?)?;
    host.vm_runs()
}

fn attaches(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    host.offers_nesting(&host.offer()?)?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, true)?;
    drop(vm);
    host.detach()?;
    host.offers_no_nesting(&host.offer()?)
}

fn comes_late(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut vm = Vm::new(&vm::open()?)?;
    host.attach()?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, false)?;
    drop(vm);
    host.detach()
}
