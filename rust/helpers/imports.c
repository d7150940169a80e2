// SPDX-License-Identifier: GPL-2.0
/*
 * What the modules use of kvm.ko, by its own names.
 *
 * kvm.ko exports pointers to its functions, to which the modules refer weakly:
 * they can be loaded where there are none, and say so. Variables, which don't
 * change any more once a vendor module is loaded, are copied.
 */
#include <linux/static_call.h>
#include "nested_provider.h"
#include "helpers.h"

#define KVM_NESTED_FUNCTION(func)						\
	extern const struct kvm_nested_##func kvm_nested_##func __weak;	\
	DECLARE_STATIC_CALL(import_##func, func)
#define KVM_NESTED_VARIABLE(var) \
	extern const struct kvm_nested_##var kvm_nested_##var __weak
#include "nested_imports.h"

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
	memcpy(&var, kvm_nested_##var.target, sizeof(var))
#include "nested_imports.h"

	static_branch_enable(&kvm_has_noapic_vcpu);
	return true;
}
