/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _NESTED_HELPERS_H
#define _NESTED_HELPERS_H

#include <linux/kvm_host.h>

struct svm_nested_ops;
struct vcpu_svm;
struct vmcs_config;
struct vmx_nested_ops;

/* vmx.c */
bool nested_helper_vmx_attachable(void);
int nested_helper_vmx_attach(const struct vmx_nested_ops *ops);
void nested_helper_vmx_detach(void);
const struct vmx_nested_ops *nested_helper_vmx_builtin_ops(void);
bool nested_helper_vmx_supported(void);
bool nested_helper_vmx_ept_enabled(void);
u64 nested_helper_vmx_capability(u32 msr);
u32 nested_helper_vmx_exit_reason(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_reflect_vmexit(struct kvm_vcpu *vcpu);
void nested_helper_vmx_setup_ctls_msrs(struct vmcs_config *vmcs_conf, u32 ept_caps);

/* svm.c */
bool nested_helper_svm_attachable(void);
int nested_helper_svm_attach(const struct svm_nested_ops *ops);
void nested_helper_svm_detach(void);
const struct svm_nested_ops *nested_helper_svm_builtin_ops(void);
bool nested_helper_svm_supported(void);
bool nested_helper_svm_npt_enabled(void);
u32 nested_helper_svm_cpu_features(void);
u32 nested_helper_svm_nested_features(void);
int nested_helper_svm_exit_special(struct vcpu_svm *svm);
int nested_helper_svm_exit_handled(struct vcpu_svm *svm);

#endif /* _NESTED_HELPERS_H */
