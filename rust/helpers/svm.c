// SPDX-License-Identifier: GPL-2.0
/*
 * What nested-svm needs of kvm-amd that Rust cannot express.
 *
 * What kvm-amd exports for us is referred to weakly: where it isn't loaded, or
 * doesn't have the interface, the module loads all the same and can say so.
 */
#include <asm/cpuid/api.h>
#include "svm/svm.h"
#include "helpers.h"

#pragma weak svm_attach_nested
#pragma weak svm_detach_nested
#pragma weak svm_nested_features
#pragma weak svm_nested_ops
#pragma weak npt_enabled

bool nested_helper_svm_attachable(void)
{
	return svm_attach_nested;
}

int nested_helper_svm_attach(const struct svm_nested_ops *ops)
{
	return svm_attach_nested(ops);
}

void nested_helper_svm_detach(void)
{
	svm_detach_nested();
}

const struct svm_nested_ops *nested_helper_svm_builtin_ops(void)
{
	return &svm_nested_ops;
}

bool nested_helper_svm_supported(void)
{
	return boot_cpu_has(X86_FEATURE_SVM);
}

bool nested_helper_svm_npt_enabled(void)
{
	return npt_enabled;
}

u32 nested_helper_svm_cpu_features(void)
{
	return cpuid_edx(0x8000000a);
}

u32 nested_helper_svm_nested_features(void)
{
	return svm_nested_features();
}

int nested_helper_svm_exit_special(struct vcpu_svm *svm)
{
	return svm_nested_ops.exit_special(svm);
}

int nested_helper_svm_exit_handled(struct vcpu_svm *svm)
{
	return svm_nested_ops.exit_handled(svm);
}
