// SPDX-License-Identifier: GPL-2.0
/*
 * What nested-svm needs of kvm-amd that Rust cannot express.
 *
 * What kvm-amd exports for us is referred to weakly: where it isn't loaded, or
 * doesn't have the interface, the module loads all the same and can say so.
 */
#include <asm/cpuid/api.h>
#include "regs.h"
#include "cpuid.h"
#include "irq.h"
#include "trace.h"
#include "pmu.h"
#include "svm/svm.h"
#include "svm/hyperv.h"
#include "helpers.h"

#pragma weak svm_attach_nested
#pragma weak svm_detach_nested
#pragma weak svm_nested_features
#pragma weak npt_enabled
#pragma weak gmet_enabled
#pragma weak intercept_smi
#pragma weak vgif
#pragma weak vnmi
#pragma weak snp_safe_alloc_page_node
#pragma weak svm_alloc_permissions_map
#pragma weak svm_copy_vmrun_state
#pragma weak svm_interrupt_blocked
#pragma weak svm_nmi_blocked
#pragma weak svm_set_cr0
#pragma weak svm_set_cr4
#pragma weak svm_set_efer
#pragma weak svm_set_gif
#pragma weak svm_skip_emulated_instruction
#pragma weak svm_smi_blocked
#pragma weak svm_switch_vmcb
#pragma weak svm_update_lbrv
#pragma weak svm_vcpu_free_msrpm
#pragma weak svm_write_tsc_multiplier

/* The module's life cycle. */

bool nested_helper_svm_attachable(void)
{
	return svm_attach_nested && svm_switch_vmcb;
}

int nested_helper_svm_attach(const struct svm_nested_ops *ops)
{
	return svm_attach_nested(ops);
}

void nested_helper_svm_detach(void)
{
	svm_detach_nested();
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

/* Features of L1's virtual CPU. */

#define GUEST_HAS(name, feature)					\
bool nested_helper_svm_guest_has_##name(struct kvm_vcpu *vcpu)		\
{									\
	return guest_cpu_cap_has(vcpu, X86_FEATURE_##feature);		\
}

GUEST_HAS(eraps, ERAPS)
GUEST_HAS(invpcid, INVPCID)
GUEST_HAS(lbrv, LBRV)
GUEST_HAS(npt, NPT)
GUEST_HAS(nrips, NRIPS)
GUEST_HAS(pause_filter, PAUSEFILTER)
GUEST_HAS(pause_filter_threshold, PFTHRESHOLD)
GUEST_HAS(rdpru, RDPRU)
GUEST_HAS(rdtscp, RDTSCP)
GUEST_HAS(sev_es, SEV_ES)
GUEST_HAS(shadow_stack, SHSTK)
GUEST_HAS(skinit, SKINIT)
GUEST_HAS(tsc_ratio, TSCRATEMSR)
GUEST_HAS(vgif, VGIF)
GUEST_HAS(vmload_vmsave, V_VMSAVE_VMLOAD)
GUEST_HAS(vnmi, VNMI)
GUEST_HAS(xsave, XSAVE)

bool nested_helper_svm_guest_has_gmet(struct kvm_vcpu *vcpu)
{
	return gmet_enabled && guest_cpu_cap_has(vcpu, X86_FEATURE_GMET);
}

/* Functions and parameters of kvm-amd. */

bool nested_helper_svm_intercept_smi(void)
{
	return intercept_smi;
}

bool nested_helper_svm_vnmi(void)
{
	return vnmi;
}

bool nested_helper_svm_flush_by_asid(void)
{
	return cpu_feature_enabled(X86_FEATURE_FLUSHBYASID);
}

/*
 * Returns whether a transition between L1 and L2 has to flush, whatever ASIDs
 * they have: all VMCBs of an SEV guest have the same, and Hyper-V flushes the
 * nested page tables that the vCPU is using, not those that it has used.
 */
bool nested_helper_svm_transitions_flush(struct vcpu_svm *svm)
{
#if IS_ENABLED(CONFIG_HYPERV)
	const struct hv_vmcb_enlightenments *hve = &svm->vmcb01.ptr->control.hv_enlightenments;

	if (hve->hv_enlightenments_control.enlightened_npt_tlb)
		return true;
#endif
	return is_sev_guest(&svm->vcpu);
}

bool nested_helper_svm_gif(struct vcpu_svm *svm)
{
	return gif_set(svm);
}

void nested_helper_svm_set_gif(struct vcpu_svm *svm, bool gif)
{
	svm_set_gif(svm, gif);
}

void nested_helper_svm_switch_vmcb(struct vcpu_svm *svm, struct kvm_vmcb_info *vmcb)
{
	svm_switch_vmcb(svm, vmcb);
}

void nested_helper_svm_set_efer(struct kvm_vcpu *vcpu, u64 efer)
{
	svm_set_efer(vcpu, efer);
}

void nested_helper_svm_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0)
{
	svm_set_cr0(vcpu, cr0);
}

void nested_helper_svm_set_cr4(struct kvm_vcpu *vcpu, unsigned long cr4)
{
	svm_set_cr4(vcpu, cr4);
}

void nested_helper_svm_update_lbrv(struct kvm_vcpu *vcpu)
{
	svm_update_lbrv(vcpu);
}

void nested_helper_svm_write_tsc_multiplier(struct kvm_vcpu *vcpu)
{
	svm_write_tsc_multiplier(vcpu);
}

u64 nested_helper_svm_default_tsc_ratio(void)
{
	return kvm_caps.default_tsc_scaling_ratio;
}

bool nested_helper_svm_has_tsc_control(void)
{
	return kvm_caps.has_tsc_control;
}

void nested_helper_svm_copy_vmrun_state(struct vmcb_save_area *to, struct vmcb_save_area *from)
{
	svm_copy_vmrun_state(to, from);
}

int nested_helper_svm_skip_instruction(struct kvm_vcpu *vcpu)
{
	return svm_skip_emulated_instruction(vcpu);
}

bool nested_helper_svm_smi_is_pending(struct kvm_vcpu *vcpu)
{
#ifdef CONFIG_KVM_SMM
	return vcpu->arch.smi_pending && !svm_smi_blocked(vcpu);
#else
	return false;
#endif
}

bool nested_helper_svm_nmi_is_pending(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.nmi_pending && !svm_nmi_blocked(vcpu);
}

bool nested_helper_svm_interrupt_is_pending(struct kvm_vcpu *vcpu)
{
	return kvm_cpu_has_interrupt(vcpu) && !svm_interrupt_blocked(vcpu);
}

void nested_helper_svm_pmu_transition(struct vcpu_svm *svm, bool defer)
{
	__svm_pmu_handle_nested_transition(svm, defer);
}

/* Memory. */

/* Returns NULL if memory is short. */
struct vmcb *nested_helper_svm_alloc_vmcb(unsigned long *pa)
{
	struct page *page = snp_safe_alloc_page();

	if (!page)
		return NULL;

	*pa = __sme_set(page_to_pfn(page) << PAGE_SHIFT);
	return page_address(page);
}

void nested_helper_svm_free_vmcb(struct vmcb *vmcb)
{
	__free_page(virt_to_page(vmcb));
}

/* Returns NULL if memory is short. */
void *nested_helper_svm_alloc_msr_map(void)
{
	return svm_vcpu_alloc_msrpm();
}

void nested_helper_svm_free_msr_map(void *map)
{
	svm_vcpu_free_msrpm(map);
}

u64 nested_helper_svm_physical_address(void *address)
{
	return __sme_set(__pa(address));
}

/* Hyper-V. */

void nested_helper_svm_hv_update_ids(struct kvm_vcpu *vcpu)
{
	nested_svm_hv_update_vm_vp_ids(vcpu);
}

bool nested_helper_svm_hv_is_direct_flush(struct kvm_vcpu *vcpu)
{
	return nested_svm_is_l2_tlb_flush_hcall(vcpu);
}

/* Tracepoints. */

void nested_helper_svm_trace_vmenter(struct vcpu_svm *svm, u64 vmcb12)
{
	const struct vmcb_ctrl_area_cached *control = &svm->nested.ctl;
	const struct vmcb_save_area_cached *save = &svm->nested.save;

	trace_kvm_nested_vmenter(svm->vmcb->save.rip, vmcb12, save->rip,
				 control->int_ctl, control->event_inj,
				 control->misc_ctl, control->nested_cr3,
				 save->cr3, KVM_ISA_SVM);
	trace_kvm_nested_intercepts(control->intercepts[INTERCEPT_CR] & 0xffff,
				    control->intercepts[INTERCEPT_CR] >> 16,
				    control->intercepts[INTERCEPT_EXCEPTION],
				    control->intercepts[INTERCEPT_WORD3],
				    control->intercepts[INTERCEPT_WORD4],
				    control->intercepts[INTERCEPT_WORD5]);
}

void nested_helper_svm_trace_vmexit(const struct vmcb *vmcb02, u32 event, u32 error_code)
{
	const struct vmcb_control_area *control = &vmcb02->control;

	trace_kvm_nested_vmexit_inject(control->exit_code, control->exit_info_1,
				       control->exit_info_2, event, error_code,
				       KVM_ISA_SVM);
}

void nested_helper_svm_trace_interrupt(struct vcpu_svm *svm)
{
	trace_kvm_nested_intr_vmexit(svm->vmcb->save.rip);
}

void nested_helper_svm_trace_invlpga(struct vcpu_svm *svm, u32 asid, u64 address)
{
	trace_kvm_invlpga(svm->vmcb->save.rip, asid, address);
}

void nested_helper_svm_trace_skinit(struct vcpu_svm *svm, u32 slb)
{
	trace_kvm_skinit(svm->vmcb->save.rip, slb);
}
