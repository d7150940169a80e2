// SPDX-License-Identifier: GPL-2.0
/*
 * What nested-vmx needs of kvm-intel that Rust cannot express.
 *
 * What kvm-intel exports for us is referred to weakly: where it isn't loaded, or
 * doesn't have the interface, the module loads all the same and can say so.
 */
#include "vmx/nested.h"
#include "vmx/vmx.h"
#include "helpers.h"

#pragma weak vmx_attach_nested
#pragma weak vmx_detach_nested
#pragma weak vmx_nested_ops
#pragma weak enable_ept

bool nested_helper_vmx_attachable(void)
{
	return vmx_attach_nested;
}

int nested_helper_vmx_attach(const struct vmx_nested_ops *ops)
{
	return vmx_attach_nested(ops);
}

void nested_helper_vmx_detach(void)
{
	vmx_detach_nested();
}

const struct vmx_nested_ops *nested_helper_vmx_builtin_ops(void)
{
	return &vmx_nested_ops;
}

bool nested_helper_vmx_supported(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

bool nested_helper_vmx_ept_enabled(void)
{
	return enable_ept;
}

u64 nested_helper_vmx_capability(u32 msr)
{
	u64 value;

	return rdmsrq_safe(msr, &value) ? 0 : value;
}

u32 nested_helper_vmx_exit_reason(struct kvm_vcpu *vcpu)
{
	return vmx_get_exit_reason(vcpu).full;
}

bool nested_helper_vmx_reflect_vmexit(struct kvm_vcpu *vcpu)
{
	return vmx_nested_ops.reflect_vmexit(vcpu);
}

void nested_helper_vmx_setup_ctls_msrs(struct vmcs_config *vmcs_conf, u32 ept_caps)
{
	vmx_nested_ops.setup_ctls_msrs(vmcs_conf, ept_caps);
}
