// SPDX-License-Identifier: GPL-2.0

//! Checks on TR and LDTR of L2.

use super::{Segment, SegmentContext};
use crate::vmx::check::Processor;

/// A local descriptor table.
const LDT: u32 = 2;
/// A busy task of 16 bits.
const BUSY_16BIT_TSS: u32 = 3;
/// A busy task of 32 bits, or of 64 bits in IA-32e mode.
const BUSY_TSS: u32 = 11;

consistency_checks! {
    /// Makes the checks on TR.
    pub(super) fn check_tr(
        tr: Segment,
        context: SegmentContext,
        processor: &Processor<'_>,
    ) -> Result<(), TaskRegisterCheck> {
        /// The selector refers to the GDT.
        Selector: tr.is_in_ldt(),
        /// The base is canonical.
        Base: !processor.is_canonical(tr.base),
        /// The type is that of a busy task.
        Type: tr.rights.kind() != BUSY_TSS
            && (context.ia32e || tr.rights.kind() != BUSY_16BIT_TSS),
        /// It is a segment of the system.
        System: tr.rights.is_code_or_data(),
        /// It is present.
        Present: !tr.rights.is_present(),
        /// Reserved bits are 0.
        Reserved: tr.rights.has_reserved(),
        /// The granularity fits the limit.
        Granularity: !tr.rights.can_express(tr.limit),
        /// There is a task.
        Unusable: tr.rights.is_unusable(),
    }
}

consistency_checks! {
    /// Makes the checks on LDTR.
    pub(super) fn check_ldtr(ldtr: Segment, processor: &Processor<'_>) -> Result<(), LdtrCheck> {
        /// The selector refers to the GDT.
        Selector: !ldtr.rights.is_unusable() && ldtr.is_in_ldt(),
        /// The base is canonical.
        Base: !ldtr.rights.is_unusable() && !processor.is_canonical(ldtr.base),
        /// The type is that of an LDT.
        Type: !ldtr.rights.is_unusable() && ldtr.rights.kind() != LDT,
        /// It is a segment of the system.
        System: !ldtr.rights.is_unusable() && ldtr.rights.is_code_or_data(),
        /// It is present.
        Present: !ldtr.rights.is_unusable() && !ldtr.rights.is_present(),
        /// Reserved bits are 0.
        Reserved: !ldtr.rights.is_unusable() && ldtr.rights.has_reserved(),
        /// The granularity fits the limit.
        Granularity: !ldtr.rights.is_unusable() && !ldtr.rights.can_express(ldtr.limit),
    }
}
