// SPDX-License-Identifier: GPL-2.0
/*
 * What the modules use of kvm.ko, by its own names.
 *
 * kvm.ko exports pointers to its functions, to which the modules refer weakly:
 * they can be loaded where there are none, and say so. Variables, which don't
 * change any more once a vendor module is loaded, are copied.
 */
#include "imports.h"
#include "helpers.h"

bool allow_smaller_maxphyaddr;
bool enable_apicv;
struct kvm_caps kvm_caps;
u32 kvm_cpu_caps[NR_KVM_CPU_CAPS];
struct kvm_host_values kvm_host;

/* Enabled: whether a vCPU has an APIC is looked up each time. */
DEFINE_STATIC_KEY_FALSE(kvm_has_noapic_vcpu);

/* Returns whether there is a KVM to work with; if so, its functions can be called. */
bool nested_helper_import(void)
{
	if (!&kvm_nested_kvm_init_mmu)
		return false;

#define KVM_NESTED_FUNCTION(func) \
	static_call_update(import_##func, kvm_nested_##func.target)
#define KVM_NESTED_VARIABLE(var) \
	memcpy(&(var), kvm_nested_##var.target, sizeof(var))
#include "nested_imports.h"

	static_branch_enable(&kvm_has_noapic_vcpu);
	return true;
}
