// SPDX-License-Identifier: GPL-2.0

//! Checks on SS, DS, ES, FS and GS of L2, outside virtual-8086 mode.

use super::{code, Segment, SegmentContext};
use crate::vmx::check::Processor;

consistency_checks! {
    /// Makes the checks on SS.
    pub(super) fn check_stack(
        ss: Segment,
        cs: Segment,
        context: SegmentContext,
    ) -> Result<(), StackSegmentCheck> {
        /// SS is requested with the privilege level of CS.
        Rpl: !context.unrestricted && ss.rpl() != cs.rpl(),
        /// The base has 32 bits.
        Base: !ss.rights.is_unusable() && ss.base >> 32 != 0,
        /// The type is that of data which can be written and was accessed.
        Type: !ss.rights.is_unusable() && !matches!(ss.rights.kind(), 3 | 7),
        /// It is not a segment of the system.
        System: !ss.rights.is_unusable() && !ss.rights.is_code_or_data(),
        /// The privilege level is that of the selector. Unusable or not: it is that of L2.
        Dpl: !context.unrestricted && ss.rights.dpl() != ss.rpl(),
        /// Real mode has privilege level 0.
        DplInRealMode: (!context.protected || cs.rights.kind() == code::DATA)
            && ss.rights.dpl() != 0,
        /// It is present.
        Present: !ss.rights.is_unusable() && !ss.rights.is_present(),
        /// Reserved bits are 0.
        Reserved: !ss.rights.is_unusable() && ss.rights.has_reserved(),
        /// The granularity fits the limit.
        Granularity: !ss.rights.is_unusable() && !ss.rights.can_express(ss.limit),
    }
}

/// Where a data segment may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// DS and ES: where 32 bits reach.
    Low,
    /// FS and GS: anywhere. 64-bit mode uses the base even if the segment cannot be used.
    Anywhere,
}

consistency_checks! {
    /// Makes the checks on DS, ES, FS or GS.
    pub(super) fn check(
        segment: Segment,
        reach: Reach,
        context: SegmentContext,
        processor: &Processor<'_>,
    ) -> Result<(), DataSegmentCheck> {
        /// The base is within reach.
        Base: match reach {
            Reach::Low => !segment.rights.is_unusable() && segment.base >> 32 != 0,
            Reach::Anywhere => !processor.is_canonical(segment.base),
        },
        /// The segment was accessed.
        Accessed: !segment.rights.is_unusable() && segment.rights.kind() & 1 == 0,
        /// Code is readable.
        Readable: !segment.rights.is_unusable() && segment.rights.kind() & 0xa == 8,
        /// It is not a segment of the system.
        System: !segment.rights.is_unusable() && !segment.rights.is_code_or_data(),
        /// The privilege level is not above that of the selector, but for conforming code.
        Dpl: !segment.rights.is_unusable()
            && !context.unrestricted
            && segment.rights.kind() <= 11
            && segment.rights.dpl() < segment.rpl(),
        /// It is present.
        Present: !segment.rights.is_unusable() && !segment.rights.is_present(),
        /// Reserved bits are 0.
        Reserved: !segment.rights.is_unusable() && segment.rights.has_reserved(),
        /// The granularity fits the limit.
        Granularity: !segment.rights.is_unusable() && !segment.rights.can_express(segment.limit),
    }
}
