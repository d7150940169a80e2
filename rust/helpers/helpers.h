/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _NESTED_HELPERS_H
#define _NESTED_HELPERS_H

#include <linux/hrtimer.h>
#include <linux/kvm_host.h>

struct hv_enlightened_vmcs;
struct kvm_vmcb_info;
struct loaded_vmcs;
struct pi_desc;
struct svm_nested_ops;
struct vcpu_svm;
struct vmcb;
struct vmcb_save_area;
struct vcpu_vmx;
struct vmcs;
struct vmcs12;
struct vmcs_config;
struct vmcs_host_state;
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
u32 nested_helper_read_eax(struct kvm_vcpu *vcpu);
unsigned long nested_helper_read_register(struct kvm_vcpu *vcpu, int number);
void nested_helper_write_register(struct kvm_vcpu *vcpu, int number, unsigned long value);
unsigned long nested_helper_read_rsp(struct kvm_vcpu *vcpu);
void nested_helper_write_rsp(struct kvm_vcpu *vcpu, unsigned long value);
unsigned long nested_helper_read_rip(struct kvm_vcpu *vcpu);
void nested_helper_write_rip(struct kvm_vcpu *vcpu, unsigned long value);
unsigned long nested_helper_read_cr4(struct kvm_vcpu *vcpu);
void nested_helper_mark_cr3_dirty(struct kvm_vcpu *vcpu);
void nested_helper_mark_cr3_available(struct kvm_vcpu *vcpu);
bool nested_helper_is_64_bit_mode(struct kvm_vcpu *vcpu);
void nested_helper_reload_pdptrs(struct kvm_vcpu *vcpu);
bool nested_helper_is_legal_cr4(struct kvm_vcpu *vcpu, unsigned long cr4);
unsigned long nested_helper_guest_page(struct kvm_vcpu *vcpu, gpa_t gpa);
int nested_helper_read_user_u64(unsigned long address, u64 *value);
void *nested_helper_lock_page(struct gfn_to_pfn_cache *cache);
void nested_helper_unlock_page(struct kvm_vcpu *vcpu, struct gfn_to_pfn_cache *cache);
bool nested_helper_memory_epoch(struct kvm_vcpu *vcpu, u64 *sequence, u64 *generation);
bool nested_helper_slot_generation(struct kvm_vcpu *vcpu, u64 *generation);
bool nested_helper_is_legal_gpa(struct kvm_vcpu *vcpu, gpa_t gpa);
bool nested_helper_is_legal_cr3(struct kvm_vcpu *vcpu, unsigned long cr3);
bool nested_helper_is_cpuid_allowed(struct kvm_vcpu *vcpu);
bool nested_helper_has_perf_global_ctrl(struct kvm_vcpu *vcpu);
u64 nested_helper_perf_global_ctrl_reserved(struct kvm_vcpu *vcpu);
void nested_helper_request_triple_fault(struct kvm_vcpu *vcpu);
void nested_helper_request_mmu_sync(struct kvm_vcpu *vcpu);
void nested_helper_request_event(struct kvm_vcpu *vcpu);
void nested_helper_request_get_nested_state_pages(struct kvm_vcpu *vcpu);
void nested_helper_request_apicv_update(struct kvm_vcpu *vcpu);
void nested_helper_request_tlb_flush_current(struct kvm_vcpu *vcpu);
void nested_helper_request_tlb_flush_guest(struct kvm_vcpu *vcpu);
void nested_helper_clear_triple_fault(struct kvm_vcpu *vcpu);
void nested_helper_clear_get_nested_state_pages(struct kvm_vcpu *vcpu);
bool nested_helper_take_get_nested_state_pages(struct kvm_vcpu *vcpu);
bool nested_helper_is_smm(struct kvm_vcpu *vcpu);
void nested_helper_set_runnable(struct kvm_vcpu *vcpu);
void nested_helper_warn_on_run_pending(struct kvm_vcpu *vcpu);
void nested_helper_clear_event_queues(struct kvm_vcpu *vcpu);
bool nested_helper_event_needs_reinjection(struct kvm_vcpu *vcpu);
bool nested_helper_init_is_pending(struct kvm_vcpu *vcpu);
void nested_helper_take_init(struct kvm_vcpu *vcpu);
bool nested_helper_sipi_is_pending(struct kvm_vcpu *vcpu);
u32 nested_helper_take_sipi(struct kvm_vcpu *vcpu);
bool nested_helper_init_or_sipi_is_pending(struct kvm_vcpu *vcpu);
void nested_helper_warn_on_lost_irq(struct kvm_vcpu *vcpu);
bool nested_helper_has_injectable_interrupt(struct kvm_vcpu *vcpu);
void nested_helper_wait_for_sipi(struct kvm_vcpu *vcpu);
void nested_helper_hide_data_cache(struct kvm_vcpu *vcpu);
int nested_helper_get_cpu(void);
void nested_helper_put_cpu(void);
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
bool nested_helper_vmx_supported(void);
bool nested_helper_vmx_enable_ept(void);
bool nested_helper_vmx_enable_ept_ad_bits(void);
bool nested_helper_vmx_enable_mbec(void);
bool nested_helper_vmx_enable_pml(void);
bool nested_helper_vmx_enable_unrestricted_guest(void);
bool nested_helper_vmx_enable_vpid(void);
bool nested_helper_vmx_flexpriority_enabled(void);
bool nested_helper_vmx_apicv_enabled(void);
const struct vmcs_config *nested_helper_vmx_config(void);
bool nested_helper_vmx_sgx_enabled(void);
bool nested_helper_vmx_cet_supported(void);
bool nested_helper_vmx_umip_emulated(void);
bool nested_helper_vmx_has_shadow_vmcs(void);
bool nested_helper_vmx_has_apicv(void);
bool nested_helper_vmx_mpx_supported(void);
u32 nested_helper_vmx_linear_address_width(void);
u64 nested_helper_vmx_host_efer(void);
bool nested_helper_vmx_has_tsc_control(void);
u64 nested_helper_vmx_capability(u32 msr);
bool nested_helper_vmx_guest_has_bus_lock_detect(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_ibt(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_lam(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_rtm(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_sgx(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_shadow_stack(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_guest_has_vmx(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_supported_debugctl(struct kvm_vcpu *vcpu);
u16 nested_helper_vmx_read16(u32 field);
u32 nested_helper_vmx_read32(u32 field);
u64 nested_helper_vmx_read64(u32 field);
u64 nested_helper_vmx_readl(u32 field);
void nested_helper_vmx_write16(u32 field, u16 value);
void nested_helper_vmx_write32(u32 field, u32 value);
void nested_helper_vmx_write64(u32 field, u64 value);
void nested_helper_vmx_writel(u32 field, u64 value);
u64 nested_helper_vmx_read_shadow(u32 field);
void nested_helper_vmx_write_shadow(u32 field, u64 value);
void nested_helper_vmx_load(struct vmcs *vmcs);
void nested_helper_vmx_clear(struct vmcs *vmcs);
struct vmcs *nested_helper_vmx_alloc_shadow_vmcs(void);
void nested_helper_vmx_free_vmcs(struct vmcs *vmcs);
int nested_helper_vmx_alloc_loaded_vmcs(struct loaded_vmcs *vmcs);
void nested_helper_vmx_free_loaded_vmcs(struct loaded_vmcs *vmcs);
int nested_helper_vmx_allocate_vpid(void);
void nested_helper_vmx_free_vpid(int vpid);
void nested_helper_vmx_flush_vpid(int vpid);
void nested_helper_vmx_flush_vpid_address(int vpid, u64 address);
void nested_helper_vmx_load_vmcs(struct kvm_vcpu *vcpu, int cpu);
void nested_helper_vmx_set_host_fs_gs(struct vmcs_host_state *to,
				      const struct vmcs_host_state *from);
void nested_helper_vmx_reset_registers(struct kvm_vcpu *vcpu);
void nested_helper_vmx_set_constant_host_state(struct vcpu_vmx *vmx);
void nested_helper_vmx_forget_segments(struct vcpu_vmx *vmx);
unsigned long nested_helper_vmx_rflags(struct kvm_vcpu *vcpu);
void nested_helper_vmx_set_rflags(struct kvm_vcpu *vcpu, unsigned long rflags);
int nested_helper_vmx_cpl(struct kvm_vcpu *vcpu);
void nested_helper_vmx_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0);
void nested_helper_vmx_set_cr4(struct kvm_vcpu *vcpu, unsigned long cr4);
void nested_helper_vmx_set_efer(struct kvm_vcpu *vcpu, u64 efer);
void nested_helper_vmx_set_cr4_mask(struct vcpu_vmx *vmx);
unsigned long nested_helper_vmx_l1_owned_cr0_bits(void);
void nested_helper_vmx_load_pdptrs(struct kvm_vcpu *vcpu);
void nested_helper_vmx_save_pdptrs(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_debugctl(void);
void nested_helper_vmx_set_debugctl(struct kvm_vcpu *vcpu, u64 value);
void nested_helper_vmx_reload_debugctl(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_user_return_efer(struct vcpu_vmx *vmx);
bool nested_helper_vmx_guest_state_valid(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_emulation_required(struct kvm_vcpu *vcpu);
void nested_helper_vmx_update_exception_bitmap(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_needs_page_faults(struct kvm_vcpu *vcpu);
void nested_helper_vmx_write_encls_bitmap(struct kvm_vcpu *vcpu, struct vmcs12 *vmcs12);
void nested_helper_vmx_stop_trace(struct vcpu_vmx *vmx);
u64 nested_helper_vmx_physical_address(const void *address);
u32 nested_helper_vmx_exit_reason(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_exit_qualification(struct kvm_vcpu *vcpu);
u32 nested_helper_vmx_exit_interruption(struct kvm_vcpu *vcpu);
u32 nested_helper_vmx_interrupt_shadow(struct kvm_vcpu *vcpu);
void nested_helper_vmx_clear_interrupt_shadow(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_nmi_mask(struct kvm_vcpu *vcpu);
void nested_helper_vmx_mask_nmi(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_nmi_is_pending(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_interrupt_is_pending(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_l2_interrupt_blocked(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_injects_alignment_check(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_posted_test_and_clear(struct pi_desc *descriptor);
bool nested_helper_vmx_posted_test(struct pi_desc *descriptor);
int nested_helper_vmx_posted_highest(struct pi_desc *descriptor);
void nested_helper_vmx_posted_deliver(struct pi_desc *descriptor, void *apic, int *highest);
void nested_helper_vmx_mark_apic_dirty(struct vcpu_vmx *vmx);
void nested_helper_vmx_mark_pages_dirty(struct vcpu_vmx *vmx);
int nested_helper_vmx_report_internal_error(struct kvm_vcpu *vcpu);
void nested_helper_vmx_setup_timer(struct hrtimer *timer,
				   enum hrtimer_restart (*function)(struct hrtimer *timer));
void nested_helper_vmx_start_timer(struct hrtimer *timer, u64 nanoseconds);
s64 nested_helper_vmx_timer_remaining(struct hrtimer *timer);
void nested_helper_vmx_kick(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_l1_tsc(struct kvm_vcpu *vcpu);
#ifdef CONFIG_KVM_HYPERV
bool nested_helper_vmx_has_evmcs(struct kvm_vcpu *vcpu);
u64 nested_helper_vmx_evmptr(struct kvm_vcpu *vcpu);
bool nested_helper_vmx_evmcs_controls_are_valid(struct vmcs12 *vmcs12);
void nested_helper_vmx_hv_set_ids(struct kvm_vcpu *vcpu, u64 assist_page, u64 vm_id, u32 vp_id);
bool nested_helper_vmx_hv_is_direct_flush(struct kvm_vcpu *vcpu);
int nested_helper_vmx_evmcs_field_offset(unsigned long field);
u64 nested_helper_vmx_read_evmcs(struct hv_enlightened_vmcs *evmcs, unsigned long field,
				 u16 offset);
int nested_helper_vmx_enable_evmcs(struct kvm_vcpu *vcpu, u16 *version);
u16 nested_helper_vmx_evmcs_version(struct kvm_vcpu *vcpu);
void nested_helper_vmx_hv_exit_after_flush(struct kvm_vcpu *vcpu);
#endif
void nested_helper_vmx_trace_vmenter(struct kvm_vcpu *vcpu);
void nested_helper_vmx_trace_vmexit(struct kvm_vcpu *vcpu);
void nested_helper_vmx_trace_reflected_vmexit(const struct vmcs12 *vmcs12);

/* trace.c */
void nested_helper_trace_mmu(struct kvm *kvm, const char *event, u64 count, gpa_t l2_gpa);

/* mmu.c */
void *nested_helper_alloc_table(u64 *physical);
void nested_helper_free_table(void *table);
void nested_helper_log_dirty(struct kvm *kvm, gfn_t gfn);
void nested_helper_mmu_read_lock(struct kvm *kvm);
void nested_helper_mmu_read_unlock(struct kvm *kvm);
void nested_helper_mmu_write_lock(struct kvm *kvm);
void nested_helper_mmu_write_unlock(struct kvm *kvm);
bool nested_helper_mmu_try_write_lock(struct kvm *kvm, int *srcu);
void nested_helper_mmu_end_try_write_lock(struct kvm *kvm, int srcu);
bool nested_helper_is_in_use(struct kvm *kvm);
bool nested_helper_read_entries(struct kvm_vcpu *vcpu, gpa_t first, bool small, bool resident,
				u64 *entries, u32 count);
#define NESTED_EXCHANGE_DONE		0
#define NESTED_EXCHANGE_CHANGED		1
#define NESTED_EXCHANGE_READ_ONLY	2
int nested_helper_exchange_entry(struct kvm_vcpu *vcpu, gpa_t gpa, bool small, u64 old, u64 new);
bool nested_helper_guest_has_gbpages(struct kvm_vcpu *vcpu);
bool nested_helper_has_ept(void);
u64 nested_helper_random(void);

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
bool nested_helper_svm_flush_by_asid(void);
bool nested_helper_svm_transitions_flush(struct vcpu_svm *svm);
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
