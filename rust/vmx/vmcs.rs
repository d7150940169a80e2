// SPDX-License-Identifier: GPL-2.0

//! VMCSes that the processor uses.

use core::marker::PhantomData;
use kvm::bindings;
use nested::vmx::{
    exit::guest_state::Vmcs02,
    field::{
        Field,
        Width, //
    },
    merge::controls::{
        Vmcs01Controls,
        Vmcs02Controls, //
    }, //
};

/// Fields that vmcs12 does not have.
pub(crate) mod host_field {
    use kvm::bindings;

    /// The address of the area for information about virtualization exceptions.
    pub(crate) const VE_INFORMATION_ADDRESS: u32 = bindings::vmcs_field_VE_INFORMATION_ADDRESS;
    /// The longest time that a guest may take without a window for events.
    pub(crate) const NOTIFY_WINDOW: u32 = bindings::vmcs_field_NOTIFY_WINDOW;
    /// The bitmap of the fields that VMREAD of L1 reads without an exit.
    pub(crate) const VMREAD_BITMAP: u32 = bindings::vmcs_field_VMREAD_BITMAP;
    /// The bitmap of the fields that VMWRITE of L1 writes without an exit.
    pub(crate) const VMWRITE_BITMAP: u32 = bindings::vmcs_field_VMWRITE_BITMAP;
    /// The number of an error of VMLAUNCH or VMRESUME by L0.
    pub(crate) const VM_INSTRUCTION_ERROR: u32 = bindings::vmcs_field_VM_INSTRUCTION_ERROR;
}

/// The VMCS that the processor uses now.
///
/// # Invariants
///
/// `loaded` is what KVM knows of the VMCS that is current on this processor during `'a`.
pub(crate) struct Vmcs<'a> {
    loaded: *mut bindings::loaded_vmcs,
    current: PhantomData<&'a mut bindings::loaded_vmcs>,
}

/// Defines how a control word is read and written.
///
/// KVM has a copy of each word, so that a write of what is there already costs nothing.
macro_rules! control_words {
    ($( $(#[$meta:meta])* $get:ident, $set:ident: $member:ident = $field:ident; )*) => {
        impl Vmcs<'_> {
            $(
                $(#[$meta])*
                #[inline]
                pub(crate) fn $get(&self) -> u32 {
                    // SAFETY: By the type invariants.
                    unsafe { (*self.loaded).controls_shadow.$member }
                }

                $(#[$meta])*
                #[inline]
                pub(crate) fn $set(&mut self, value: u32) {
                    if self.$get() != value {
                        self.write32(u32::from(Field::$field.encoding()), value);
                        // SAFETY: By the type invariants.
                        unsafe { (*self.loaded).controls_shadow.$member = value };
                    }
                }
            )*
        }
    };
}

control_words! {
    /// The pin-based VM-execution controls.
    pin, set_pin: pin = PIN_BASED_VM_EXEC_CONTROL;
    /// The primary processor-based VM-execution controls.
    primary, set_primary: exec = CPU_BASED_VM_EXEC_CONTROL;
    /// The secondary processor-based VM-execution controls.
    secondary, set_secondary: secondary_exec = SECONDARY_VM_EXEC_CONTROL;
    /// The VM-exit controls.
    exit, set_exit: vm_exit = VM_EXIT_CONTROLS;
    /// The VM-entry controls.
    entry, set_entry: vm_entry = VM_ENTRY_CONTROLS;
}

impl Vmcs<'_> {
    /// Makes the VMCS of what KVM knows of it.
    ///
    /// # Safety
    ///
    /// `loaded` must be what KVM knows of the VMCS that is current on this processor, and stay that
    /// as long as the value lives.
    pub(crate) unsafe fn current(loaded: *mut bindings::loaded_vmcs) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            loaded,
            current: PhantomData,
        }
    }

    /// Reads a field.
    #[inline]
    pub(crate) fn read(&self, field: Field) -> u64 {
        let encoding = u32::from(field.encoding());

        match field.width() {
            Width::Bits16 => u64::from(self.read16(encoding)),
            Width::Bits32 => u64::from(self.read32(encoding)),
            Width::Bits64 => self.read64(encoding),
            Width::Natural => self.read_natural(encoding),
        }
    }

    /// Writes a field, with as many low bits of `value` as it has.
    #[inline]
    pub(crate) fn write(&mut self, field: Field, value: u64) {
        let encoding = u32::from(field.encoding());

        match field.width() {
            Width::Bits16 => self.write16(encoding, value as u16),
            Width::Bits32 => self.write32(encoding, value as u32),
            Width::Bits64 => self.write64(encoding, value),
            // SAFETY: By the type invariants the VMCS is current.
            Width::Natural => unsafe { bindings::nested_helper_vmx_writel(encoding, value) },
        }
    }

    fn write16(&mut self, encoding: u32, value: u16) {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_write16(encoding, value) }
    }

    /// Writes a field of 32 bits.
    #[inline]
    pub(crate) fn write32(&mut self, encoding: u32, value: u32) {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_write32(encoding, value) }
    }

    /// Writes a field of 64 bits.
    #[inline]
    pub(crate) fn write64(&mut self, encoding: u32, value: u64) {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_write64(encoding, value) }
    }

    /// Writes the control words.
    pub(crate) fn set_controls(&mut self, controls: &Vmcs02Controls) {
        self.set_pin(controls.pin);
        self.set_primary(controls.primary);
        if has_secondary_controls() {
            self.set_secondary(controls.secondary);
        }
        self.set_entry(controls.entry);
        self.set_exit(controls.exit);
    }

    /// Says whether it is known that the guest of this VMCS does not block NMIs.
    pub(crate) fn set_nmi_known_unmasked(&mut self, known: Known) {
        // SAFETY: By the type invariants.
        unsafe { (*self.loaded).nmi_known_unmasked = known == Known::Yes };
    }

    /// Returns the address of what the processor calls the VMCS.
    pub(crate) fn region(&self) -> *mut bindings::vmcs {
        // SAFETY: By the type invariants.
        unsafe { (*self.loaded).vmcs }
    }
}

impl Vmcs02 for Vmcs<'_> {
    #[inline]
    fn read16(&self, encoding: u32) -> u16 {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_read16(encoding) }
    }

    #[inline]
    fn read32(&self, encoding: u32) -> u32 {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_read32(encoding) }
    }

    #[inline]
    fn read64(&self, encoding: u32) -> u64 {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_read64(encoding) }
    }

    #[inline]
    fn read_natural(&self, encoding: u32) -> u64 {
        // SAFETY: By the type invariants the VMCS is current.
        unsafe { bindings::nested_helper_vmx_readl(encoding) }
    }
}

/// Whether something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// What KVM keeps in memory of a VMCS, which need not be current.
pub(crate) struct LoadedVmcs<'a>(&'a mut bindings::loaded_vmcs);

impl<'a> LoadedVmcs<'a> {
    pub(crate) fn new(loaded: &'a mut bindings::loaded_vmcs) -> Self {
        Self(loaded)
    }

    /// Returns the control words.
    pub(crate) fn controls(&self) -> Vmcs01Controls {
        let words = &self.0.controls_shadow;

        Vmcs01Controls {
            pin: words.pin,
            primary: words.exec,
            secondary: words.secondary_exec,
            exit: words.vm_exit,
            entry: words.vm_entry,
        }
    }
}

/// Returns what the processor has, as KVM uses it.
pub(crate) fn config() -> &'static bindings::vmcs_config {
    // SAFETY: kvm-intel is loaded as long as this module is attached to it.
    unsafe { &*bindings::nested_helper_vmx_config() }
}

/// Returns whether the processor has secondary processor-based VM-execution controls.
fn has_secondary_controls() -> bool {
    const ACTIVATE_SECONDARY_CONTROLS: u32 = 1 << 31;

    config().cpu_based_exec_ctrl & ACTIVATE_SECONDARY_CONTROLS != 0
}
