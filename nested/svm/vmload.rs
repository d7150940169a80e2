// SPDX-License-Identifier: GPL-2.0

//! VMLOAD and VMSAVE: state that a change of guests leaves to the hypervisor.

use core::mem::offset_of;

use super::{
    vmcb::{SaveArea, Vmcb},
    vmcb12::{Field, VmcbPage},
};

/// Calls `$action` with each field that VMLOAD and VMSAVE are for.
macro_rules! for_each_field {
    ($action:ident) => {
        $action! {
            fs gs tr ldtr kernel_gs_base star lstar cstar sfmask
            sysenter_cs sysenter_esp sysenter_eip
        }
    };
}

/// Reads the state from the VMCB in `page`.
pub fn load(save: &mut SaveArea, page: &(impl VmcbPage + ?Sized)) {
    macro_rules! load {
        ($($field:ident)*) => {
            $( save.$field = Field::load(page, offset_of!(Vmcb, save.$field)); )*
        };
    }
    for_each_field!(load);
}

/// Writes the state to the VMCB in `page`.
pub fn save(save: &SaveArea, page: &mut (impl VmcbPage + ?Sized)) {
    macro_rules! save {
        ($($field:ident)*) => {
            $( save.$field.store(page, offset_of!(Vmcb, save.$field)); )*
        };
    }
    for_each_field!(save);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{testing::vmcb01, vmcb12::fake::Page},
        *,
    };

    /// Sizes and offsets of the fields, as in the APM.
    const FIELDS: [(usize, usize); 12] = [
        (0x440, 16),
        (0x450, 16),
        (0x470, 16),
        (0x490, 16),
        (0x600, 8),
        (0x608, 8),
        (0x610, 8),
        (0x618, 8),
        (0x620, 8),
        (0x628, 8),
        (0x630, 8),
        (0x638, 8),
    ];

    #[test]
    fn what_is_loaded_is_saved_and_nothing_else() {
        let mut page = Page::new();
        for (index, byte) in page.bytes.iter_mut().enumerate() {
            *byte = (index * 5 + 1) as u8;
        }
        let mut vmcb = vmcb01().0;
        load(&mut vmcb.save, &page);
        let mut copy = Page::new();
        save(&vmcb.save, &mut copy);

        for offset in 0..4096 {
            let part = FIELDS
                .iter()
                .any(|&(start, size)| (start..start + size).contains(&offset));
            let expected = if part { page.bytes[offset] } else { 0 };
            assert_eq!(copy.bytes[offset], expected, "{offset:#x}");
        }
        assert_eq!(page.most_reads(), 1);
    }
}
