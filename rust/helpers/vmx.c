// SPDX-License-Identifier: GPL-2.0
/*
 * What nested-vmx needs of kvm-intel that Rust cannot express.
 *
 * What kvm-intel exports for us is referred to weakly: where it isn't loaded, or
 * doesn't have the interface, the module loads all the same and can say so.
 */
#include "regs.h"
#include "cpuid.h"
#include "hyperv.h"
#include "irq.h"
#include "mmu.h"
#include "pmu.h"
#include "trace.h"
#include "vmx/nested.h"
#include "vmx/posted_intr.h"
#include "vmx/sgx.h"
#include "vmx/vmx.h"
#include "helpers.h"

#pragma weak vmx_attach_nested
#pragma weak vmx_detach_nested
#pragma weak current_vmcs
#pragma weak enable_ept
#pragma weak enable_ept_ad_bits
#pragma weak enable_mbec
#pragma weak enable_pml
#pragma weak enable_unrestricted_guest
#pragma weak enable_vpid
#pragma weak flexpriority_enabled
#pragma weak pt_mode
#pragma weak vmcs_config
#pragma weak __kvm_is_using_evmcs
#pragma weak __vmx_guest_state_valid
#pragma weak __vmx_interrupt_blocked
#pragma weak alloc_loaded_vmcs
#pragma weak alloc_vmcs_cpu
#pragma weak allocate_vpid
#pragma weak ept_save_pdptrs
#pragma weak free_loaded_vmcs
#pragma weak free_vmcs
#pragma weak free_vpid
#pragma weak invvpid_error
#pragma weak nr_evmcs_1_fields
#pragma weak pt_update_intercept_for_msr
#pragma weak set_cr4_guest_host_mask
#pragma weak vmclear_error
#pragma weak vmcs_field_to_evmcs_1
#pragma weak vmptrld_error
#pragma weak vmread_error
#pragma weak vmwrite_error
#pragma weak vmx_capability
#pragma weak vmx_emulation_required
#pragma weak vmx_ept_load_pdptrs
#pragma weak vmx_find_uret_msr
#pragma weak vmx_get_cpl
#pragma weak vmx_get_interrupt_shadow
#pragma weak vmx_get_nmi_mask
#pragma weak vmx_get_rflags
#pragma weak vmx_get_supported_debugctl
#pragma weak vmx_guest_inject_ac
#pragma weak vmx_interrupt_blocked
#pragma weak vmx_nmi_blocked
#pragma weak vmx_set_constant_host_state
#pragma weak vmx_set_cr0
#pragma weak vmx_set_cr4
#pragma weak vmx_set_efer
#pragma weak vmx_set_host_fs_gs
#pragma weak vmx_set_interrupt_shadow
#pragma weak vmx_set_nmi_mask
#pragma weak vmx_set_rflags
#pragma weak vmx_update_exception_bitmap
#pragma weak vmx_vcpu_load_vmcs
#ifdef CONFIG_KVM_HYPERV
#pragma weak nested_enable_evmcs
#pragma weak nested_evmcs_check_controls
#pragma weak nested_evmcs_l2_tlb_flush_enabled
#pragma weak nested_get_evmcs_version
#pragma weak nested_get_evmptr
#pragma weak vmx_hv_inject_synthetic_vmexit_post_tlb_flush
#endif
#ifdef CONFIG_X86_SGX_KVM
#pragma weak enable_sgx
#pragma weak vmx_write_encls_bitmap
#endif

/* The module's life cycle. */

bool nested_helper_vmx_attachable(void)
{
	return vmx_attach_nested && vmx_vcpu_load_vmcs;
}

int nested_helper_vmx_attach(const struct vmx_nested_ops *ops)
{
	return vmx_attach_nested(ops);
}

void nested_helper_vmx_detach(void)
{
	vmx_detach_nested();
}

bool nested_helper_vmx_supported(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

/* Capabilities and parameters. */

#define PARAMETER(name)							\
bool nested_helper_vmx_##name(void)					\
{									\
	return name;							\
}

PARAMETER(enable_ept)
PARAMETER(enable_ept_ad_bits)
PARAMETER(enable_mbec)
PARAMETER(enable_pml)
PARAMETER(enable_unrestricted_guest)
PARAMETER(enable_vpid)
PARAMETER(flexpriority_enabled)

bool nested_helper_vmx_apicv_enabled(void)
{
	return enable_apicv;
}

const struct vmcs_config *nested_helper_vmx_config(void)
{
	return &vmcs_config;
}

bool nested_helper_vmx_sgx_enabled(void)
{
	return enable_sgx;
}

bool nested_helper_vmx_cet_supported(void)
{
	return kvm_cpu_cap_has(X86_FEATURE_SHSTK) || kvm_cpu_cap_has(X86_FEATURE_IBT);
}

bool nested_helper_vmx_umip_emulated(void)
{
	return vmx_umip_emulated();
}

bool nested_helper_vmx_has_shadow_vmcs(void)
{
	return cpu_has_vmx_shadow_vmcs();
}

bool nested_helper_vmx_has_apicv(void)
{
	return cpu_has_vmx_apicv();
}

bool nested_helper_vmx_mpx_supported(void)
{
	return kvm_mpx_supported();
}

u32 nested_helper_vmx_linear_address_width(void)
{
	return max_host_virt_addr_bits();
}

u64 nested_helper_vmx_host_efer(void)
{
	return kvm_host.efer;
}

bool nested_helper_vmx_has_tsc_control(void)
{
	return kvm_caps.has_tsc_control;
}

u64 nested_helper_vmx_capability(u32 msr)
{
	u64 value;

	return rdmsrq_safe(msr, &value) ? 0 : value;
}

/* Features of L1's virtual CPU. */

#define GUEST_HAS(name, feature)					\
bool nested_helper_vmx_guest_has_##name(struct kvm_vcpu *vcpu)		\
{									\
	return guest_cpu_cap_has(vcpu, X86_FEATURE_##feature);		\
}

GUEST_HAS(bus_lock_detect, BUS_LOCK_DETECT)
GUEST_HAS(ibt, IBT)
GUEST_HAS(lam, LAM)
GUEST_HAS(rtm, RTM)
GUEST_HAS(sgx, SGX)
GUEST_HAS(shadow_stack, SHSTK)
GUEST_HAS(vmx, VMX)

u64 nested_helper_vmx_supported_debugctl(struct kvm_vcpu *vcpu)
{
	return vmx_get_supported_debugctl(vcpu, false);
}

/* The current VMCS. */

u16 nested_helper_vmx_read16(u32 field)
{
	return vmcs_read16(field);
}

u32 nested_helper_vmx_read32(u32 field)
{
	return vmcs_read32(field);
}

u64 nested_helper_vmx_read64(u32 field)
{
	return vmcs_read64(field);
}

u64 nested_helper_vmx_readl(u32 field)
{
	return vmcs_readl(field);
}

void nested_helper_vmx_write16(u32 field, u16 value)
{
	vmcs_write16(field, value);
}

void nested_helper_vmx_write32(u32 field, u32 value)
{
	vmcs_write32(field, value);
}

void nested_helper_vmx_write64(u32 field, u64 value)
{
	vmcs_write64(field, value);
}

void nested_helper_vmx_writel(u32 field, u64 value)
{
	vmcs_writel(field, value);
}

/* Shadow VMCSes, which never are enlightened VMCSes of a hypervisor below KVM. */

u64 nested_helper_vmx_read_shadow(u32 field)
{
	return __vmcs_readl(field);
}

void nested_helper_vmx_write_shadow(u32 field, u64 value)
{
	__vmcs_writel(field, value);
}

void nested_helper_vmx_load(struct vmcs *vmcs)
{
	vmcs_load(vmcs);
}

void nested_helper_vmx_clear(struct vmcs *vmcs)
{
	vmcs_clear(vmcs);
}

/* Returns NULL if memory is short. */
struct vmcs *nested_helper_vmx_alloc_shadow_vmcs(void)
{
	return alloc_vmcs(true);
}

void nested_helper_vmx_free_vmcs(struct vmcs *vmcs)
{
	free_vmcs(vmcs);
}

int nested_helper_vmx_alloc_loaded_vmcs(struct loaded_vmcs *vmcs)
{
	return alloc_loaded_vmcs(vmcs);
}

void nested_helper_vmx_free_loaded_vmcs(struct loaded_vmcs *vmcs)
{
	free_loaded_vmcs(vmcs);
}

int nested_helper_vmx_allocate_vpid(void)
{
	return allocate_vpid();
}

void nested_helper_vmx_free_vpid(int vpid)
{
	free_vpid(vpid);
}

void nested_helper_vmx_flush_vpid(int vpid)
{
	vpid_sync_context(vpid);
}

void nested_helper_vmx_flush_vpid_address(int vpid, u64 address)
{
	vpid_sync_vcpu_addr(vpid, address);
}

/* To be called without preemption, after vmx->loaded_vmcs was changed. */
void nested_helper_vmx_load_vmcs(struct kvm_vcpu *vcpu, int cpu)
{
	vmx_vcpu_load_vmcs(vcpu, cpu);
}

void nested_helper_vmx_set_host_fs_gs(struct vmcs_host_state *to,
				      const struct vmcs_host_state *from)
{
	vmx_set_host_fs_gs(to, from->fs_sel, from->gs_sel, from->fs_base, from->gs_base);
}

void nested_helper_vmx_reset_registers(struct kvm_vcpu *vcpu)
{
	kvm_clear_available_registers(vcpu, VMX_REGS_LAZY_LOAD_SET);
	kvm_reset_dirty_registers(vcpu);
}

void nested_helper_vmx_set_constant_host_state(struct vcpu_vmx *vmx)
{
	vmx_set_constant_host_state(vmx);
}

void nested_helper_vmx_forget_segments(struct vcpu_vmx *vmx)
{
	vmx_segment_cache_clear(vmx);
}

/* Registers. */

unsigned long nested_helper_vmx_rflags(struct kvm_vcpu *vcpu)
{
	return vmx_get_rflags(vcpu);
}

void nested_helper_vmx_set_rflags(struct kvm_vcpu *vcpu, unsigned long rflags)
{
	vmx_set_rflags(vcpu, rflags);
}

int nested_helper_vmx_cpl(struct kvm_vcpu *vcpu)
{
	return vmx_get_cpl(vcpu);
}

void nested_helper_vmx_set_cr0(struct kvm_vcpu *vcpu, unsigned long cr0)
{
	vmx_set_cr0(vcpu, cr0);
}

void nested_helper_vmx_set_cr4(struct kvm_vcpu *vcpu, unsigned long cr4)
{
	vmx_set_cr4(vcpu, cr4);
}

void nested_helper_vmx_set_efer(struct kvm_vcpu *vcpu, u64 efer)
{
	vmx_set_efer(vcpu, efer);
}

void nested_helper_vmx_set_cr4_mask(struct vcpu_vmx *vmx)
{
	set_cr4_guest_host_mask(vmx);
}

unsigned long nested_helper_vmx_l1_owned_cr0_bits(void)
{
	return vmx_l1_guest_owned_cr0_bits();
}

void nested_helper_vmx_load_pdptrs(struct kvm_vcpu *vcpu)
{
	vmx_ept_load_pdptrs(vcpu);
}

void nested_helper_vmx_save_pdptrs(struct kvm_vcpu *vcpu)
{
	ept_save_pdptrs(vcpu);
}

u64 nested_helper_vmx_debugctl(void)
{
	return vmx_guest_debugctl_read();
}

void nested_helper_vmx_set_debugctl(struct kvm_vcpu *vcpu, u64 value)
{
	vmx_guest_debugctl_write(vcpu, value);
}

void nested_helper_vmx_reload_debugctl(struct kvm_vcpu *vcpu)
{
	vmx_reload_guest_debugctl(vcpu);
}

/* Returns EFER of the guest, if KVM switches it as a user-return MSR. */
u64 nested_helper_vmx_user_return_efer(struct vcpu_vmx *vmx)
{
	struct vmx_uret_msr *efer = vmx_find_uret_msr(vmx, MSR_EFER);

	return efer ? efer->data : kvm_host.efer;
}

bool nested_helper_vmx_guest_state_valid(struct kvm_vcpu *vcpu)
{
	return vmx_guest_state_valid(vcpu);
}

bool nested_helper_vmx_emulation_required(struct kvm_vcpu *vcpu)
{
	return vmx_emulation_required(vcpu);
}

void nested_helper_vmx_update_exception_bitmap(struct kvm_vcpu *vcpu)
{
	vmx_update_exception_bitmap(vcpu);
}

bool nested_helper_vmx_needs_page_faults(struct kvm_vcpu *vcpu)
{
	return vmx_need_pf_intercept(vcpu);
}

void nested_helper_vmx_write_encls_bitmap(struct kvm_vcpu *vcpu, struct vmcs12 *vmcs12)
{
	vmx_write_encls_bitmap(vcpu, vmcs12);
}

/* Processor trace and VMX operation of L1 exclude each other. */
void nested_helper_vmx_stop_trace(struct vcpu_vmx *vmx)
{
	if (vmx_pt_mode_is_host_guest()) {
		vmx->pt_desc.guest.ctl = 0;
		pt_update_intercept_for_msr(&vmx->vcpu);
	}
}

u64 nested_helper_vmx_physical_address(const void *address)
{
	return __pa(address);
}

/* Exits and events. */

u32 nested_helper_vmx_exit_reason(struct kvm_vcpu *vcpu)
{
	return vmx_get_exit_reason(vcpu).full;
}

u64 nested_helper_vmx_exit_qualification(struct kvm_vcpu *vcpu)
{
	return vmx_get_exit_qual(vcpu);
}

u32 nested_helper_vmx_exit_interruption(struct kvm_vcpu *vcpu)
{
	return vmx_get_intr_info(vcpu);
}

u32 nested_helper_vmx_interrupt_shadow(struct kvm_vcpu *vcpu)
{
	return vmx_get_interrupt_shadow(vcpu);
}

void nested_helper_vmx_clear_interrupt_shadow(struct kvm_vcpu *vcpu)
{
	vmx_set_interrupt_shadow(vcpu, 0);
}

bool nested_helper_vmx_nmi_mask(struct kvm_vcpu *vcpu)
{
	return vmx_get_nmi_mask(vcpu);
}

void nested_helper_vmx_mask_nmi(struct kvm_vcpu *vcpu)
{
	vmx_set_nmi_mask(vcpu, true);
}

bool nested_helper_vmx_nmi_is_pending(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.nmi_pending && !vmx_nmi_blocked(vcpu);
}

bool nested_helper_vmx_interrupt_is_pending(struct kvm_vcpu *vcpu)
{
	return kvm_cpu_has_interrupt(vcpu) && !vmx_interrupt_blocked(vcpu);
}

bool nested_helper_vmx_l2_interrupt_blocked(struct kvm_vcpu *vcpu)
{
	return __vmx_interrupt_blocked(vcpu);
}

bool nested_helper_vmx_injects_alignment_check(struct kvm_vcpu *vcpu)
{
	return vmx_guest_inject_ac(vcpu);
}

bool nested_helper_vmx_posted_test_and_clear(struct pi_desc *descriptor)
{
	return pi_test_and_clear_on(descriptor);
}

bool nested_helper_vmx_posted_test(struct pi_desc *descriptor)
{
	return pi_test_on(descriptor);
}

/* Returns a number below 0 if there is none. */
int nested_helper_vmx_posted_highest(struct pi_desc *descriptor)
{
	return pi_find_highest_vector(descriptor);
}

void nested_helper_vmx_posted_deliver(struct pi_desc *descriptor, void *apic, int *highest)
{
	__kvm_apic_update_irr(descriptor->pir, apic, highest);
}

void nested_helper_vmx_mark_apic_dirty(struct vcpu_vmx *vmx)
{
	kvm_vcpu_map_mark_dirty(&vmx->vcpu, &vmx->nested.virtual_apic_map);
	kvm_vcpu_map_mark_dirty(&vmx->vcpu, &vmx->nested.pi_desc_map);
}

void nested_helper_vmx_mark_pages_dirty(struct vcpu_vmx *vmx)
{
	kvm_vcpu_map_mark_dirty(&vmx->vcpu, &vmx->nested.apic_access_page_map);
	nested_helper_vmx_mark_apic_dirty(vmx);
}

/* Returns what the exit handler returns. */
int nested_helper_vmx_report_internal_error(struct kvm_vcpu *vcpu)
{
	vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	vcpu->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
	vcpu->run->internal.ndata = 0;
	return 0;
}

void nested_helper_vmx_setup_timer(struct hrtimer *timer,
				   enum hrtimer_restart (*function)(struct hrtimer *timer))
{
	hrtimer_setup(timer, function, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_PINNED);
}

void nested_helper_vmx_start_timer(struct hrtimer *timer, u64 nanoseconds)
{
	hrtimer_start(timer, ktime_add_ns(ktime_get(), nanoseconds), HRTIMER_MODE_ABS_PINNED);
}

s64 nested_helper_vmx_timer_remaining(struct hrtimer *timer)
{
	return ktime_to_ns(hrtimer_get_remaining(timer));
}

void nested_helper_vmx_kick(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_kick(vcpu);
}

u64 nested_helper_vmx_l1_tsc(struct kvm_vcpu *vcpu)
{
	return kvm_read_l1_tsc(vcpu, rdtsc());
}

#ifdef CONFIG_KVM_HYPERV
/* Hyper-V. */

bool nested_helper_vmx_has_evmcs(struct kvm_vcpu *vcpu)
{
	return guest_cpu_cap_has_evmcs(vcpu);
}

u64 nested_helper_vmx_evmptr(struct kvm_vcpu *vcpu)
{
	return nested_get_evmptr(vcpu);
}

bool nested_helper_vmx_evmcs_controls_are_valid(struct vmcs12 *vmcs12)
{
	return !nested_evmcs_check_controls(vmcs12);
}

void nested_helper_vmx_hv_set_ids(struct kvm_vcpu *vcpu, u64 assist_page, u64 vm_id, u32 vp_id)
{
	struct kvm_vcpu_hv *hv_vcpu = to_hv_vcpu(vcpu);

	if (hv_vcpu) {
		hv_vcpu->nested.pa_page_gpa = assist_page;
		hv_vcpu->nested.vm_id = vm_id;
		hv_vcpu->nested.vp_id = vp_id;
	}
}

bool nested_helper_vmx_hv_is_direct_flush(struct kvm_vcpu *vcpu)
{
	return guest_hv_cpuid_has_l2_tlb_flush(vcpu) &&
	       nested_evmcs_l2_tlb_flush_enabled(vcpu) &&
	       kvm_hv_is_tlb_flush_hcall(vcpu);
}

/* Returns an offset in the enlightened VMCS, below 0 if it does not have the field. */
int nested_helper_vmx_evmcs_field_offset(unsigned long field)
{
	return evmcs_field_offset(field, NULL);
}

u64 nested_helper_vmx_read_evmcs(struct hv_enlightened_vmcs *evmcs, unsigned long field, u16 offset)
{
	return evmcs_read_any(evmcs, field, offset);
}

int nested_helper_vmx_enable_evmcs(struct kvm_vcpu *vcpu, u16 *version)
{
	return nested_enable_evmcs(vcpu, version);
}

u16 nested_helper_vmx_evmcs_version(struct kvm_vcpu *vcpu)
{
	return nested_get_evmcs_version(vcpu);
}

void nested_helper_vmx_hv_exit_after_flush(struct kvm_vcpu *vcpu)
{
	vmx_hv_inject_synthetic_vmexit_post_tlb_flush(vcpu);
}
#endif /* CONFIG_KVM_HYPERV */

/* Tracepoints. */

void nested_helper_vmx_trace_vmenter(struct kvm_vcpu *vcpu)
{
	const struct vmcs12 *vmcs12 = get_vmcs12(vcpu);

	trace_kvm_nested_vmenter(kvm_rip_read(vcpu), to_vmx(vcpu)->nested.current_vmptr,
				 vmcs12->guest_rip, vmcs12->guest_intr_status,
				 vmcs12->vm_entry_intr_info_field,
				 vmcs12->secondary_vm_exec_control & SECONDARY_EXEC_ENABLE_EPT,
				 vmcs12->ept_pointer, vmcs12->guest_cr3, KVM_ISA_VMX);
}

void nested_helper_vmx_trace_vmexit(struct kvm_vcpu *vcpu)
{
	trace_kvm_nested_vmexit(vcpu, KVM_ISA_VMX);
}

void nested_helper_vmx_trace_reflected_vmexit(const struct vmcs12 *vmcs12)
{
	trace_kvm_nested_vmexit_inject(vmcs12->vm_exit_reason, vmcs12->exit_qualification,
				       vmcs12->idt_vectoring_info_field, vmcs12->vm_exit_intr_info,
				       vmcs12->vm_exit_intr_error_code, KVM_ISA_VMX);
}
