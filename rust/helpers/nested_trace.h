/* SPDX-License-Identifier: GPL-2.0 */
/* The tracepoint of what the page tables of L2 do; the others are KVM's. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM nested

#if !defined(_NESTED_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _NESTED_TRACE_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>

TRACE_EVENT(nested_mmu,
	    TP_PROTO(struct kvm *kvm, const char *event, u64 count, gpa_t l2_gpa),
	    TP_ARGS(kvm, event, count, l2_gpa),

	    TP_STRUCT__entry(__field(pid_t, owner)
			     __string(event, event)
			     __field(u64, count)
			     __field(u64, l2_gpa)),

	    TP_fast_assign(__entry->owner = kvm->userspace_pid;
			   __assign_str(event);
			   __entry->count = count;
			   __entry->l2_gpa = l2_gpa;),

	    TP_printk("owner %d %s count %llu l2_gpa 0x%llx", __entry->owner,
		      __get_str(event), __entry->count, __entry->l2_gpa)
);

#endif /* _NESTED_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE nested_trace

#include <trace/define_trace.h>
