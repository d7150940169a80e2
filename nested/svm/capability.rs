// SPDX-License-Identifier: GPL-2.0

//! What a processor, or KVM to L1, offers of SVM.

/// The word of `CPUID` function 8000_000Ah that enumerates features (APM, "SVM Features").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// The value of EDX.
    pub edx: u32,
}

feature_set! {
    /// Features of SVM that a hypervisor makes use of, by their names in `/proc/cpuinfo`.
    pub struct Features from Words {
        "npt": edx[0],
        "gmet": edx[17],
        "lbrv": edx[1],
        "nrip_save": edx[3],
        "tsc_scale": edx[4],
        "vmcb_clean": edx[5],
        "flushbyasid": edx[6],
        "decodeassists": edx[7],
        "pausefilter": edx[10],
        "pfthreshold": edx[12],
        "avic": edx[13],
        "x2avic": edx[18],
        "v_vmsave_vmload": edx[15],
        "vgif": edx[16],
        "vnmi": edx[25],
        "svme_addr_chk": edx[28],
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_svm_capability))]
mod tests {
    use super::*;

    #[test]
    fn each_feature_is_a_bit() {
        let mut features = 0;
        Features::new(Words { edx: 0 }).for_each(|_, _| features += 1);

        let mut found = 0;
        for bit in 0..32 {
            Features::new(Words { edx: 1 << bit }).for_each(|_, member| {
                found += usize::from(member);
            });
        }
        assert_eq!(found, features);
    }

    #[cfg(test)]
    #[test]
    fn names_are_listed_in_order() {
        assert_eq!(
            Features::new(Words { edx: 0x9 }).to_string(),
            "npt nrip_save"
        );
        assert_eq!(Features::new(Words { edx: 0 }).to_string(), "-");
    }
}
