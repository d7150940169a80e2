// SPDX-License-Identifier: GPL-2.0
#include "helpers.h"

#define CREATE_TRACE_POINTS
#include "nested_trace.h"

void nested_helper_trace_mmu(struct kvm *kvm, const char *event, u64 count, gpa_t l2_gpa)
{
	trace_nested_mmu(kvm, event, count, l2_gpa);
}
