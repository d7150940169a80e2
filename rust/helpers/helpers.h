/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _NESTED_HELPERS_H
#define _NESTED_HELPERS_H

#include <linux/kvm_host.h>

struct kvm_vmcb_info;
struct svm_nested_ops;
struct vcpu_svm;
struct vmcb;
struct vmcb_save_area;
struct vmcs_config;
struct vmx_nested_ops;

/* imports.c */
bool nested_helper_import(void);

/* kvm.c */
bool nested_helper_is_guest_mode(struct kvm_vcpu *vcpu);
void nested_helper_enter_guest_mode(struct kvm_vcpu *vcpu);
void nested_helper_leave_guest_mode(struct kvm_vcpu *vcpu);
bool nested_helper_is_paging(struct kvm_vcpu *vcpu);
bool nested_helper_is_pae_paging(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_cr0(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_cr3(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_rax(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_raw_rax(struct kvm_vcpu *vcpu);
void nested_helper_write_raw_rax(struct kvm_vcpu *vcpu, unsigned long value);
u32 nested_helper_read_ecx(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_rsp(struct kvm_vcpu *vcpu);
void nested_helper_write_rsp(struct kvm_vcpu *vcpu, unsigned long value);
unsigned long nested_helper_read_rip(struct kvm_vcpu *vcpu);
void nested_helper_write_rip(struct kvm_vcpu *vcpu, unsigned long value);
void nested_helper_reload_pdptrs(struct kvm_vcpu *vcpu);
bool nested_helper_is_legal_cr4(struct kvm_vcpu *vcpu, unsigned long cr4);
bool nested_helper_is_legal_gpa(struct kvm_vcpu *vcpu, gpa_t gpa);
bool nested_helper_is_legal_cr3(struct kvm_vcpu *vcpu, unsigned long cr3);
void nested_helper_request_triple_fault(struct kvm_vcpu *vcpu);
void nested_helper_request_mmu_sync(struct kvm_vcpu *vcpu);
void nested_helper_request_event(struct kvm_vcpu *vcpu);
void nested_helper_request_get_nested_state_pages(struct kvm_vcpu *vcpu);
void nested_helper_request_apicv_update(struct kvm_vcpu *vcpu);
void nested_helper_request_tlb_flush_current(struct kvm_vcpu *vcpu);
void nested_helper_clear_triple_fault(struct kvm_vcpu *vcpu);
void nested_helper_clear_get_nested_state_pages(struct kvm_vcpu *vcpu);
bool nested_helper_is_smm(struct kvm_vcpu *vcpu);
void nested_helper_set_runnable(struct kvm_vcpu *vcpu);
void nested_helper_warn_on_run_pending(struct kvm_vcpu *vcpu);
void nested_helper_clear_event_queues(struct kvm_vcpu *vcpu);
bool nested_helper_event_needs_reinjection(struct kvm_vcpu *vcpu);
bool nested_helper_init_is_pending(struct kvm_vcpu *vcpu);
bool nested_helper_has_quirk(struct kvm_vcpu *vcpu, u64 quirk);
int nested_helper_report_inaccessible(struct kvm_vcpu *vcpu);
bool nested_helper_apicv_is_active(struct kvm_vcpu *vcpu);
bool nested_helper_apicv_is_activated(struct kvm_vcpu *vcpu);
bool nested_helper_hv_hypercall_enabled(struct kvm_vcpu *vcpu);
int nested_helper_hv_verify_vp_assist(struct kvm_vcpu *vcpu);
void nested_helper_hv_transition_tlb_flush(struct kvm_vcpu *vcpu);
void nested_helper_trace_vmenter_failed(const char *check, u32 error);

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
bool nested_helper_svm_supported(void);
bool nested_helper_svm_npt_enabled(void);
u32 nested_helper_svm_cpu_features(void);
u32 nested_helper_svm_nested_features(void);
bool nested_helper_svm_guest_has_eraps(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_gmet(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_invpcid(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_lbrv(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_npt(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_nrips(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_pause_filter(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_pause_filter_threshold(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_rdpru(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_rdtscp(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_sev_es(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_shadow_stack(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_skinit(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_tsc_ratio(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_vgif(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_vmload_vmsave(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_vnmi(struct kvm_vcpu *vcpu);
bool nested_helper_svm_guest_has_xsave(struct kvm_vcpu *vcpu);
bool nested_helper_svm_intercept_smi(void);
bool nested_helper_svm_vnmi(void);
bool nested_helper_svm_gif(struct vcpu_svm *svm);
void nested_helper_svm_set_gif(struct vcpu_svm *svm, bool gif);
void nested_helper_svm_switch_vmcb(struct vcpu_svm *svm, struct kvm_vmcb_info *vmcb);
void nested_helper_svm_set_efer(struct kvm_vcpu *vcpu, u64 efer);
void nested_helper_svm_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0);
void nested_helper_svm_set_cr4(struct kvm_vcpu *vcpu, unsigned long cr4);
void nested_helper_svm_update_lbrv(struct kvm_vcpu *vcpu);
void nested_helper_svm_write_tsc_multiplier(struct kvm_vcpu *vcpu);
u64 nested_helper_svm_default_tsc_ratio(void);
bool nested_helper_svm_has_tsc_control(void);
void nested_helper_svm_copy_vmrun_state(struct vmcb_save_area *to, struct vmcb_save_area *from);
int nested_helper_svm_skip_instruction(struct kvm_vcpu *vcpu);
bool nested_helper_svm_smi_is_pending(struct kvm_vcpu *vcpu);
bool nested_helper_svm_nmi_is_pending(struct kvm_vcpu *vcpu);
bool nested_helper_svm_interrupt_is_pending(struct kvm_vcpu *vcpu);
void nested_helper_svm_pmu_transition(struct vcpu_svm *svm, bool defer);
struct vmcb *nested_helper_svm_alloc_vmcb(unsigned long *pa);
void nested_helper_svm_free_vmcb(struct vmcb *vmcb);
void *nested_helper_svm_alloc_msr_map(void);
void nested_helper_svm_free_msr_map(void *map);
u64 nested_helper_svm_physical_address(void *address);
void nested_helper_svm_hv_update_ids(struct kvm_vcpu *vcpu);
bool nested_helper_svm_hv_is_direct_flush(struct kvm_vcpu *vcpu);
void nested_helper_svm_trace_vmenter(struct vcpu_svm *svm, u64 vmcb12);
void nested_helper_svm_trace_vmexit(const struct vmcb *vmcb02, u32 event, u32 error_code);
void nested_helper_svm_trace_interrupt(struct vcpu_svm *svm);
void nested_helper_svm_trace_invlpga(struct vcpu_svm *svm, u32 asid, u64 address);
void nested_helper_svm_trace_skinit(struct vcpu_svm *svm, u32 slb);

#endif /* _NESTED_HELPERS_H */
