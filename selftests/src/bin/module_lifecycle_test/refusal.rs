// SPDX-License-Identifier: GPL-2.0

//! Hosts that lack something: insmod fails, says why in one line, and leaves nothing.

use anyhow::Result;
use rustix::io::Errno;
use selftests::tap::Point;

use crate::host::Host;

/// The tests for a kernel without the provider patches.
pub fn by_a_stock_kernel(host: &Host) -> Vec<Point<Host>> {
    let ours = host.names().ours_file;
    let other = host.vendor.other().names().ours_file;
    vec![
        Point::new(
            format!("{ours} is refused by a KVM without the provider patches"),
            stock,
        ),
        Point::new(
            format!("{ours} is refused where KVM is not loaded"),
            nothing_loaded,
        ),
        Point::new(
            format!("{other} is refused on a processor of the other vendor"),
            other_vendor,
        ),
    ]
}

/// The tests for a kernel with the patches.
pub fn by_a_patched_kernel(host: &Host) -> Vec<Point<Host>> {
    let names = host.names();
    let (ours, kvm, paging) = (names.ours_file, names.kvm_file, names.paging);
    let other = host.vendor.other().names().ours_file;
    vec![
        Point::new(
            format!("{ours} is refused where KVM is not loaded"),
            nothing_loaded,
        ),
        Point::new(
            format!("{ours} is refused where {kvm} is not loaded"),
            vendor_not_loaded,
        ),
        Point::new(
            format!("{other} is refused on a processor of the other vendor"),
            other_vendor,
        ),
        Point::new(
            format!("{ours} is refused by {kvm} with nested=0"),
            nested_off,
        ),
        Point::new(
            format!("{ours} is refused by {kvm} with {paging}=0"),
            paging_off,
        ),
    ]
}

fn stock(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.refused(host.vendor, Errno::NODEV, "lacks the provider patches")?;
    host.vm_runs()
}

fn nothing_loaded(host: &Host) -> Result<()> {
    host.refused_by_loader(host.vendor)
}

fn vendor_not_loaded(host: &Host) -> Result<()> {
    host.load_common()?;
    let cause = format!("{} is not loaded", host.names().kvm_file);
    host.refused(host.vendor, Errno::NODEV, &cause)
}

fn other_vendor(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let other = host.vendor.other();
    let cause = format!("this processor has no {}", other.names().extension);
    host.refused(other, Errno::NODEV, &cause)?;
    host.vm_runs()
}

fn nested_off(host: &Host) -> Result<()> {
    host.load_kvm("nested=0")?;
    host.offers_no_nesting(&host.offer()?)?;
    host.refused(host.vendor, Errno::PERM, "nested=0")?;
    host.offers_no_nesting(&host.offer()?)?;
    host.vm_runs()
}

fn paging_off(host: &Host) -> Result<()> {
    host.load_kvm(&format!("{}=0", host.names().paging))?;
    let before = host.offer()?;
    let cause = format!("without {}", host.names().paging.to_uppercase());
    host.refused(host.vendor, Errno::OPNOTSUPP, &cause)?;
    host.offer()?.same_as(&before)
}
