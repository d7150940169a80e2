// SPDX-License-Identifier: GPL-2.0

//! Saving a vCPU and restoring it, as for live migration.

use anyhow::{ensure, Context, Result};
use kvm_bindings::{
    kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave, Msrs,
};
use kvm_ioctls::{Kvm, KvmNestedStateBuffer, VcpuFd};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// L2 runs.
pub const GUEST_MODE: u16 = 1;

/// The entry was executed, but L2 has not begun yet.
pub const RUN_PENDING: u16 = 2;

/// The global interrupt flag is set; with SVM only.
pub const GIF_SET: u16 = 0x100;

/// Bytes of the header of the nested state.
pub const HEADER: usize = 128;

/// Bytes of the nested state with a VMCB.
pub const FULL: usize = HEADER + 4096;

/// Bytes of the nested state with a VMCS and the one that L2 has itself, the most that there are.
pub const MOST: usize = FULL + 4096;

/// The format of a state of VMX.
const FORMAT_VMX: u16 = 0;

/// No address.
const NOWHERE: u64 = u64::MAX;

/// The capability MSRs of VMX.
const VMX_CAPABILITIES: std::ops::RangeInclusive<u32> = 0x480..=0x491;

/// The MSR that controls debugging.
const DEBUGCTL: u32 = 0x1d9;

const KVM_GET_SREGS2: u64 = 2 << 30 | (size_of::<kvm_sregs2>() as u64) << 16 | 0xaecc;
const KVM_SET_SREGS2: u64 = 1 << 30 | (size_of::<kvm_sregs2>() as u64) << 16 | 0xaecd;

fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: The request writes the structure that it gets.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS2, &raw mut sregs) };
    ensure!(result == 0, "KVM_GET_SREGS2 fails");
    Ok(sregs)
}

fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<()> {
    // SAFETY: The request reads the structure that it gets.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS2, &raw const *sregs) };
    ensure!(result == 0, "KVM_SET_SREGS2 fails");
    Ok(())
}

/// Parts of the nested state with SVM: the header, the control area, and what VMRUN saves of L1. The rest of
/// the state-save area is what the processor has left there.
const PARTS: [(usize, usize); 10] = [
    (0, HEADER),
    (HEADER, 0x400),
    (HEADER + 0x400, 0x40), // ES to DS
    (HEADER + 0x460, 0x10), // GDTR
    (HEADER + 0x480, 0x10), // IDTR
    (HEADER + 0x4d0, 8),    // EFER
    (HEADER + 0x548, 24),   // CR4, CR3, CR0
    (HEADER + 0x570, 16),   // RFLAGS, RIP
    (HEADER + 0x5d8, 8),    // RSP
    (HEADER + 0x5f8, 8),    // RAX
];

/// A nested state, as bytes.
#[derive(Clone, Copy)]
pub struct Nested(pub KvmNestedStateBuffer);

impl Nested {
    /// Asks KVM.
    pub fn read(vcpu: &VcpuFd) -> Result<Self> {
        let mut state = KvmNestedStateBuffer::empty();
        vcpu.nested_state(&mut state)
            .context("KVM_GET_NESTED_STATE")?;
        Ok(Self(state))
    }

    /// Returns the bytes that count.
    pub fn bytes(&self) -> &[u8] {
        let size = (self.0.size as usize).min(MOST);
        // SAFETY: The structure is one of plain bytes, and has as many.
        unsafe { std::slice::from_raw_parts((&raw const self.0).cast(), size) }
    }

    /// Returns all bytes, also those that do not count.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: The structure is one of plain bytes, and has as many.
        unsafe { std::slice::from_raw_parts_mut((&raw mut self.0).cast(), MOST) }
    }

    /// Makes it the state of a processor that does not use its extension.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.0.size = HEADER as u32;
        if self.0.format == FORMAT_VMX {
            self.0.flags = 0;
            self.0.hdr.vmx = Default::default();
            self.0.hdr.vmx.vmxon_pa = NOWHERE;
            self.0.hdr.vmx.vmcs12_pa = NOWHERE;
        } else {
            self.0.flags = GIF_SET;
        }
        self
    }

    /// Returns where it differs from another one, if it does.
    pub fn differences(&self, other: &Self) -> Option<String> {
        let (left, right) = (self.bytes(), other.bytes());
        if left.len() != right.len() {
            return Some(format!("{} and {} bytes", left.len(), right.len()));
        }
        // All but the linear address of the last exit, which is that of an exit to L0 while L2 runs.
        let linear = HEADER + 0x1a0;
        let of_vmx = [
            (0, linear),
            (linear + 8, left.len().saturating_sub(linear + 8)),
        ];
        let parts = if self.0.format == FORMAT_VMX {
            &of_vmx[..]
        } else {
            &PARTS[..]
        };
        let offsets = parts.iter().flat_map(|(start, size)| *start..start + size);
        let different = offsets
            .filter(|offset| *offset < left.len())
            .filter(|offset| left.get(*offset) != right.get(*offset));
        let words: Vec<String> = different
            .map(|offset| format!("{offset:#x}: {:#x}, {:#x}", left[offset], right[offset]))
            .take(8)
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Returns whether a flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.0.flags & flag != 0
    }
}

/// The MSRs that can be saved and restored.
pub fn msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    let works = |index: &u32| {
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let Ok(mut msrs) = Msrs::from_entries(&[entry]) else {
            return false;
        };
        matches!(vcpu.get_msrs(&mut msrs), Ok(1)) && matches!(vcpu.set_msrs(&msrs), Ok(1))
    };
    let list = list.as_slice().iter().copied();
    // KVM logs each write of DEBUGCTL on a processor without virtual LBRs, where it is 0 anyway.
    let list = list.filter(|index| *index != DEBUGCTL);
    // They cannot be written any more once the processor has used VMX, not even as they are.
    let list = list.filter(|index| !VMX_CAPABILITIES.contains(index));
    Ok(list.filter(works).collect())
}

/// Everything that a vCPU has.
pub struct Saved {
    /// General-purpose registers.
    pub regs: kvm_regs,
    sregs: kvm_sregs2,
    debug: kvm_debugregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    msrs: Msrs,
    /// The nested state.
    pub nested: Nested,
}

impl Saved {
    /// Saves a vCPU, whose last exit must be complete.
    pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self> {
        let entry = |index: &u32| kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        let entries: Vec<kvm_msr_entry> = indices.iter().map(entry).collect();
        let mut msrs = Msrs::from_entries(&entries)?;
        let count = vcpu.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
        ensure!(
            count == indices.len(),
            "KVM_GET_MSRS of {:x?}",
            indices.get(count)
        );
        Ok(Self {
            mp_state: vcpu.get_mp_state().context("KVM_GET_MP_STATE")?,
            events: vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
            regs: vcpu.get_regs().context("KVM_GET_REGS")?,
            sregs: sregs2(vcpu)?,
            debug: vcpu.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
            xsave: vcpu.get_xsave().context("KVM_GET_XSAVE")?,
            xcrs: vcpu.get_xcrs().context("KVM_GET_XCRS")?,
            nested: Nested::read(vcpu)?,
            msrs,
        })
    }

    /// Returns what was saved of an MSR.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let mut entries = self.msrs.as_slice().iter();
        let entry = entries.find(|entry| entry.index == index)?;
        Some(entry.data)
    }

    /// Restores all but the nested state.
    pub fn restore_others(&self, vcpu: &VcpuFd) -> Result<()> {
        set_sregs2(vcpu, &self.sregs)?;
        vcpu.set_xcrs(&self.xcrs).context("KVM_SET_XCRS")?;
        // SAFETY: The guest has no features whose state is larger than the structure.
        unsafe { vcpu.set_xsave(&self.xsave) }.context("KVM_SET_XSAVE")?;
        let count = vcpu.set_msrs(&self.msrs).context("KVM_SET_MSRS")?;
        ensure!(
            count == self.msrs.as_slice().len(),
            "KVM_SET_MSRS refuses {:x?}",
            self.msrs.as_slice().get(count)
        );
        vcpu.set_vcpu_events(&self.events)
            .context("KVM_SET_VCPU_EVENTS")?;
        vcpu.set_mp_state(self.mp_state)
            .context("KVM_SET_MP_STATE")?;
        vcpu.set_debug_regs(&self.debug)
            .context("KVM_SET_DEBUGREGS")?;
        vcpu.set_regs(&self.regs).context("KVM_SET_REGS")
    }

    /// Restores everything, in the order that KVM wants.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<()> {
        self.restore_others(vcpu)?;
        vcpu.set_nested_state(&self.nested.0)
            .context("KVM_SET_NESTED_STATE")
    }
}

/// How long machines run before they are replaced: a kernel that checks itself is so slow that L2
/// would never be reached in the usual time.
pub struct Pace {
    /// How many times the usual time they run.
    factor: u64,
    /// Moves since L2 was active.
    idle: u32,
}

impl Pace {
    /// The usual time.
    pub const USUAL: Self = Self { factor: 1, idle: 0 };

    /// Moves without L2 active after which machines run longer.
    const ENOUGH: u32 = 8;

    /// Returns the time for what usually takes some microseconds.
    pub fn time(&self, microseconds: u64) -> Duration {
        Duration::from_micros(microseconds * self.factor)
    }

    /// Counts a move.
    pub fn count(&mut self, in_l2: bool) {
        self.idle = if in_l2 { 0 } else { self.idle + 1 };
        if self.idle == Self::ENOUGH {
            *self = Self {
                factor: 2 * self.factor,
                idle: 0,
            };
        }
    }

    /// Returns how many times the usual time machines run.
    pub fn factor(&self) -> u64 {
        self.factor
    }
}
