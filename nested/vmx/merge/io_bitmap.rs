// SPDX-License-Identifier: GPL-2.0

//! Which I/O instructions of L2 exit to L1.

use crate::{address::Gpa, memory::GuestMemory, vmx::Vmcs12};

/// An access to I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The first port.
    pub port: u16,
    /// The number of ports: 1, 2 or 4.
    pub size: u8,
}

impl IoAccess {
    /// Decodes the exit qualification of an I/O instruction (SDM, "Basic VM-Exit Information").
    #[inline]
    pub fn from_qualification(qualification: u64) -> Self {
        let [low, _, port_low, port_high, ..] = qualification.to_le_bytes();

        Self {
            port: u16::from_le_bytes([port_low, port_high]),
            size: (low & 7).saturating_add(1),
        }
    }

    /// Returns the last port, unless the access wraps around the ports' 16 bits.
    const fn last_port(self) -> Option<u16> {
        self.port.checked_add((self.size as u16).saturating_sub(1))
    }
}

/// Returns whether an access to I/O ports exits to L1.
///
/// Each byte of the bitmaps is read at most once. What cannot be read exits: it is L1 that knows.
pub fn io_exits_to_l1(vmcs12: &Vmcs12, memory: &impl GuestMemory, access: IoAccess) -> bool {
    if !vmcs12.primary().io_bitmaps() {
        return vmcs12.primary().unconditional_io_exiting();
    }
    let Some(last_port) = access.last_port() else {
        return true;
    };

    // An access has at most eight ports: they are in one byte or in two.
    let Some(first) = Byte::read(vmcs12, memory, access.port) else {
        return true;
    };
    if first.holds(last_port) {
        return first.selects(access.port, last_port);
    }
    let Some(last) = Byte::read(vmcs12, memory, last_port) else {
        return true;
    };
    first.selects(access.port, last_port) || last.selects(access.port, last_port)
}

/// A byte of the bitmaps: the bits of eight ports.
struct Byte {
    first_port: u16,
    bits: u8,
}

impl Byte {
    /// Reads the byte that a port is in. Ports up to 0x7fff are in bitmap A.
    fn read(vmcs12: &Vmcs12, memory: &impl GuestMemory, port: u16) -> Option<Self> {
        let bitmap = if port < 0x8000 {
            vmcs12.io_bitmap_a
        } else {
            vmcs12.io_bitmap_b
        };
        let address = Gpa::from_raw(bitmap).checked_add(u64::from((port & 0x7fff) / 8))?;
        let mut bits = [0];

        memory.read(address, &mut bits).ok()?;
        let [bits] = bits;
        Some(Self {
            first_port: port & !7,
            bits,
        })
    }

    /// Returns whether the byte has a port's bit.
    const fn holds(&self, port: u16) -> bool {
        port & !7 == self.first_port
    }

    /// Returns whether the bit of a port in a range is set.
    fn selects(&self, first: u16, last: u16) -> bool {
        (first..=last)
            .filter(|&port| self.holds(port))
            .any(|port| self.bits & (1 << (port & 7)) != 0)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_io_bitmap))]
mod tests {
    use super::*;
    use crate::memory::Inaccessible;
    use crate::vmx::controls::Primary;
    use core::cell::Cell;

    const BITMAP_A: u64 = 0x1000;
    const BITMAP_B: u64 = 0x9000;

    /// Two bitmaps that select a single port, and a count of reads.
    struct OnePort {
        port: u16,
        reads: Cell<usize>,
    }

    impl OnePort {
        fn new(port: u16) -> Self {
            Self {
                port,
                reads: Cell::new(0),
            }
        }
    }

    impl GuestMemory for OnePort {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            let gpa = gpa.into_raw();
            let first_port = match gpa {
                BITMAP_A..=0x1fff => (gpa - BITMAP_A) * 8,
                BITMAP_B..=0x9fff => 0x8000 + (gpa - BITMAP_B) * 8,
                _ => return Err(Inaccessible),
            };

            self.reads.set(self.reads.get() + 1);
            for (byte, first_port) in bytes.iter_mut().zip((first_port..).step_by(8)) {
                let port = u64::from(self.port);

                *byte = if (first_port..first_port + 8).contains(&port) {
                    1 << (port & 7)
                } else {
                    0
                };
            }
            Ok(())
        }

        fn write(&self, _gpa: Gpa, _bytes: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    fn vmcs12(controls: u32) -> Vmcs12 {
        Vmcs12 {
            cpu_based_vm_exec_control: controls,
            io_bitmap_a: BITMAP_A,
            io_bitmap_b: BITMAP_B,
            ..Vmcs12::default()
        }
    }

    #[test]
    fn without_bitmaps_all_ports_are_treated_alike() {
        let memory = OnePort::new(0);
        let access = IoAccess { port: 0, size: 1 };

        assert!(!io_exits_to_l1(&vmcs12(0), &memory, access));
        assert!(io_exits_to_l1(
            &vmcs12(Primary::UNCOND_IO_EXITING.into_raw()),
            &memory,
            access
        ));
        assert_eq!(memory.reads.get(), 0);
    }

    #[test]
    fn bitmaps_override_unconditional_exiting() {
        let memory = OnePort::new(0x80);
        let vmcs12 =
            vmcs12(Primary::USE_IO_BITMAPS.into_raw() | Primary::UNCOND_IO_EXITING.into_raw());

        assert!(!io_exits_to_l1(
            &vmcs12,
            &memory,
            IoAccess { port: 0, size: 1 }
        ));
    }

    #[test]
    fn an_access_exits_if_one_of_its_ports_is_selected() {
        let vmcs12 = vmcs12(Primary::USE_IO_BITMAPS.into_raw());

        for selected in [
            0, 7, 8, 0x3f8, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfff8, 0xffff,
        ] {
            for size in [1u8, 2, 4] {
                for port in (0..=u16::MAX).filter(|port| port.abs_diff(selected) < 12) {
                    let memory = OnePort::new(selected);
                    let first = u32::from(port);
                    let ports = first..first + u32::from(size);
                    let expected = ports.contains(&u32::from(selected)) || ports.end > 0x1_0000;

                    assert_eq!(
                        io_exits_to_l1(&vmcs12, &memory, IoAccess { port, size }),
                        expected
                    );
                    assert!(memory.reads.get() <= 2);
                }
            }
        }
    }

    #[test]
    fn an_access_that_wraps_around_exits() {
        let vmcs12 = vmcs12(Primary::USE_IO_BITMAPS.into_raw());
        let memory = OnePort::new(0x80);
        let access = |port, size| io_exits_to_l1(&vmcs12, &memory, IoAccess { port, size });

        assert!(access(0xffff, 2));
        assert!(access(0xfffd, 4));
        assert!(!access(0xfffc, 4));
        assert!(!access(0xffff, 1));
    }

    #[test]
    fn a_bitmap_that_cannot_be_read_exits() {
        let memory = OnePort::new(0x80);
        let mut vmcs12 = vmcs12(Primary::USE_IO_BITMAPS.into_raw());
        vmcs12.io_bitmap_b = !0xfff;

        assert!(!io_exits_to_l1(
            &vmcs12,
            &memory,
            IoAccess {
                port: 0x7fff,
                size: 1
            }
        ));
        assert!(io_exits_to_l1(
            &vmcs12,
            &memory,
            IoAccess {
                port: 0x7fff,
                size: 2
            }
        ));
        assert!(io_exits_to_l1(
            &vmcs12,
            &memory,
            IoAccess {
                port: 0x8000,
                size: 1
            }
        ));
    }

    #[test]
    fn the_qualification_holds_port_and_size() {
        for (qualification, port, size) in [
            (0x0cf8_0003, 0xcf8, 4),
            (0xffff_0008, 0xffff, 1),
            (0x0080_0071, 0x80, 2),
        ] {
            assert_eq!(
                IoAccess::from_qualification(qualification),
                IoAccess { port, size }
            );
        }
    }
}
