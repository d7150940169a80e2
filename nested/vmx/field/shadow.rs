// SPDX-License-Identifier: GPL-2.0

//! Shadow VMCSs of the processor, which L1 reads and writes without exits.
//!
//! [`load_shadow()`](super::load_shadow) and [`store_shadow()`](super::store_shadow) are made of the
//! table of the fields: code without loops, in which the encoding and the place of each field are
//! constants. An access to a VMCS costs much more than one to memory. What the shadow VMCS holds is
//! therefore kept in memory too, so that only what an exit has changed is written.

/// A shadow VMCS of the processor, which is current.
pub trait ShadowVmcs {
    /// Reads a field that the processor has.
    fn read(&self, encoding: u16) -> u64;
    /// Writes as many low bits of `value` as the field has, which the processor does have.
    fn write(&mut self, encoding: u16, value: u64);
}

/// Which fields are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All: what the shadow VMCS holds is not known.
    All,
    /// Those that are others there.
    Changed,
}

/// Tests that need more memory than a kernel stack has.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::{
        field::{load_shadow, store_shadow, Allowed, Field, FieldSet, Shadow},
        Vmcs12,
    };
    use std::collections::BTreeMap;

    /// A shadow VMCS that counts how often it is written.
    #[derive(Default)]
    struct Fake {
        fields: BTreeMap<u16, u64>,
        writes: usize,
    }

    impl ShadowVmcs for Fake {
        fn read(&self, encoding: u16) -> u64 {
            self.fields[&encoding]
        }

        fn write(&mut self, encoding: u16, value: u64) {
            self.fields.insert(encoding, value);
            self.writes += 1;
        }
    }

    fn processor(allowed: u32) -> FieldSet {
        FieldSet::of_processor(&Allowed {
            pin: allowed,
            primary: allowed,
            secondary: allowed,
            entry: allowed,
        })
    }

    /// Gives each field another value, which fits into all of them.
    fn numbered(first: u64) -> Vmcs12 {
        let mut vmcs12 = Vmcs12::default();

        for (&field, value) in Field::ALL.iter().zip(first..) {
            field.write(&mut vmcs12, value & 0xff);
        }
        vmcs12
    }

    fn shadowed(exists: &FieldSet) -> impl Iterator<Item = Field> + '_ {
        exists
            .iter()
            .filter(|field| field.shadow() != Shadow::Trapped)
    }

    #[test]
    fn l1_reads_what_an_exit_has_written() {
        for allowed in [0, u32::MAX] {
            let (exists, vmcs12) = (processor(allowed), numbered(1));
            let (mut image, mut shadow) = (Vmcs12::default(), Fake::default());

            store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::All);
            assert_eq!(shadow.fields.len(), shadowed(&exists).count());
            for field in shadowed(&exists) {
                assert_eq!(shadow.read(field.encoding()), field.read(&vmcs12));
                assert_eq!(field.read(&image), field.read(&vmcs12));
            }
        }
    }

    #[test]
    fn only_what_has_changed_is_written_again() {
        let exists = processor(u32::MAX);
        let mut vmcs12 = numbered(1);
        let (mut image, mut shadow) = (Vmcs12::default(), Fake::default());
        store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::All);

        shadow.writes = 0;
        store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::Changed);
        assert_eq!(shadow.writes, 0);

        for field in shadowed(&exists) {
            shadow.writes = 0;
            let other = !field.read(&vmcs12) & 0xff;
            field.write(&mut vmcs12, other);
            store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::Changed);
            assert_eq!(shadow.writes, 1);
            assert_eq!(shadow.read(field.encoding()), field.read(&vmcs12));
        }
    }

    #[test]
    fn what_l1_writes_arrives_and_is_told_of() {
        let exists = processor(u32::MAX);
        let mut vmcs12 = numbered(1);
        let (mut image, mut shadow) = (Vmcs12::default(), Fake::default());
        store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::All);

        for field in shadowed(&exists) {
            let before = field.read(&vmcs12);
            let mut changed = Vec::new();

            shadow.write(field.encoding(), before ^ 1);
            load_shadow(&mut vmcs12, &mut image, &exists, &shadow, |field| {
                changed.push(field);
            });
            if field.shadow() == Shadow::ReadWrite {
                assert_eq!(changed, [field]);
                assert_eq!(field.read(&vmcs12), before ^ 1);
                assert_eq!(field.read(&image), before ^ 1);
            } else {
                // L1 cannot write it.
                assert!(changed.is_empty());
                assert_eq!(field.read(&vmcs12), before);
            }
        }
    }

    #[test]
    fn what_l1_has_written_is_not_taken_for_what_an_exit_has() {
        let exists = processor(u32::MAX);
        let mut vmcs12 = numbered(1);
        let (mut image, mut shadow) = (Vmcs12::default(), Fake::default());
        store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::All);

        // L1 writes, enters L2, and the exit restores the value from before.
        let rip = Field::GUEST_RIP;
        let before = rip.read(&vmcs12);
        shadow.write(rip.encoding(), 0x1234);
        load_shadow(&mut vmcs12, &mut image, &exists, &shadow, |_| {});
        rip.write(&mut vmcs12, before);
        store_shadow(&vmcs12, &mut image, &exists, &mut shadow, Extent::Changed);
        assert_eq!(shadow.read(rip.encoding()), before);
    }
}
