// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions of KVM that both modules use.
 */
#include "regs.h"
#include "x86.h"
#include "cpuid.h"
#include "hyperv.h"
#include "irq.h"
#include "lapic.h"
#include "pmu.h"
#include "trace.h"
#include "helpers.h"

/* regs.h */

bool nested_helper_is_guest_mode(struct kvm_vcpu *vcpu)
{
	return is_guest_mode(vcpu);
}

void nested_helper_enter_guest_mode(struct kvm_vcpu *vcpu)
{
	enter_guest_mode(vcpu);
}

void nested_helper_leave_guest_mode(struct kvm_vcpu *vcpu)
{
	leave_guest_mode(vcpu);
}

bool nested_helper_is_paging(struct kvm_vcpu *vcpu)
{
	return is_paging(vcpu);
}

bool nested_helper_is_pae_paging(struct kvm_vcpu *vcpu)
{
	return is_pae_paging(vcpu);
}

unsigned long nested_helper_read_cr0(struct kvm_vcpu *vcpu)
{
	return kvm_read_cr0(vcpu);
}

unsigned long nested_helper_read_cr3(struct kvm_vcpu *vcpu)
{
	return kvm_read_cr3(vcpu);
}

unsigned long nested_helper_read_rax(struct kvm_vcpu *vcpu)
{
	return kvm_rax_read(vcpu);
}

unsigned long nested_helper_read_raw_rax(struct kvm_vcpu *vcpu)
{
	return kvm_rax_read_raw(vcpu);
}

void nested_helper_write_raw_rax(struct kvm_vcpu *vcpu, unsigned long value)
{
	kvm_rax_write_raw(vcpu, value);
}

u32 nested_helper_read_ecx(struct kvm_vcpu *vcpu)
{
	return kvm_ecx_read(vcpu);
}

u32 nested_helper_read_eax(struct kvm_vcpu *vcpu)
{
	return kvm_eax_read(vcpu);
}

unsigned long nested_helper_read_register(struct kvm_vcpu *vcpu, int number)
{
	return kvm_register_read(vcpu, number);
}

void nested_helper_write_register(struct kvm_vcpu *vcpu, int number, unsigned long value)
{
	kvm_register_write(vcpu, number, value);
}

unsigned long nested_helper_read_rsp(struct kvm_vcpu *vcpu)
{
	return kvm_rsp_read(vcpu);
}

void nested_helper_write_rsp(struct kvm_vcpu *vcpu, unsigned long value)
{
	kvm_rsp_write(vcpu, value);
}

unsigned long nested_helper_read_rip(struct kvm_vcpu *vcpu)
{
	return kvm_rip_read(vcpu);
}

void nested_helper_write_rip(struct kvm_vcpu *vcpu, unsigned long value)
{
	kvm_rip_write(vcpu, value);
}

unsigned long nested_helper_read_cr4(struct kvm_vcpu *vcpu)
{
	return kvm_read_cr4(vcpu);
}

void nested_helper_mark_cr3_dirty(struct kvm_vcpu *vcpu)
{
	kvm_register_mark_dirty(vcpu, VCPU_REG_CR3);
}

void nested_helper_mark_cr3_available(struct kvm_vcpu *vcpu)
{
	kvm_register_mark_available(vcpu, VCPU_REG_CR3);
}

bool nested_helper_is_64_bit_mode(struct kvm_vcpu *vcpu)
{
	return is_64_bit_mode(vcpu);
}

void nested_helper_reload_pdptrs(struct kvm_vcpu *vcpu)
{
	kvm_register_mark_for_reload(vcpu, VCPU_REG_PDPTR);
}

bool nested_helper_is_legal_cr4(struct kvm_vcpu *vcpu, unsigned long cr4)
{
	return __kvm_is_valid_cr4(vcpu, cr4);
}

/* kvm_host.h */

/* Returns the address in user space of a page of guest memory, or 0. */
unsigned long nested_helper_guest_page(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	gfn_t gfn = gpa_to_gfn(gpa);
	struct kvm_memory_slot *slot = __gfn_to_memslot(kvm_vcpu_memslots(vcpu), gfn);

	if (!slot || slot->flags & KVM_MEMSLOT_INVALID)
		return 0;
	return __gfn_to_hva_memslot(slot, gfn);
}

int nested_helper_read_user_u64(unsigned long address, u64 *value)
{
	return __get_user(*value, (u64 __user *)address);
}

/*
 * Returns the page of a cache, which is locked then, or NULL if the page is no
 * longer what it was.
 */
void *nested_helper_lock_page(struct gfn_to_pfn_cache *cache)
{
	read_lock(&cache->lock);
	if (kvm_gpc_check(cache, PAGE_SIZE))
		return cache->khva;
	read_unlock(&cache->lock);
	return NULL;
}

/* Who copies the guest's memory has to copy the page again, as it may have been written to. */
void nested_helper_unlock_page(struct kvm_vcpu *vcpu, struct gfn_to_pfn_cache *cache)
{
	if (kvm_slot_dirty_track_enabled(cache->memslot))
		kvm_vcpu_mark_page_dirty(vcpu, gpa_to_gfn(cache->gpa));
	read_unlock(&cache->lock);
}

/*
 * Returns false if mappings of guest memory are being invalidated. A mapping that
 * is made now is valid until one of the numbers is another, or this returns false.
 */
bool nested_helper_memory_epoch(struct kvm_vcpu *vcpu, u64 *sequence, u64 *generation)
{
	struct kvm *kvm = vcpu->kvm;

	if (READ_ONCE(kvm->mmu_invalidate_in_progress))
		return false;
	/* Pairs with the write barrier in kvm_mmu_invalidate_end(). */
	smp_rmb();
	*sequence = READ_ONCE(kvm->mmu_invalidate_seq);
	*generation = kvm_vcpu_memslots(vcpu)->generation;
	/* The mapping comes after that. */
	smp_rmb();
	return true;
}

/*
 * Returns false if the memslots are being changed.  A generation is another one
 * than the last 2^18.
 */
bool nested_helper_slot_generation(struct kvm_vcpu *vcpu, u64 *generation)
{
	u64 now = kvm_vcpu_memslots(vcpu)->generation;

	if (now & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
		return false;

	/* KVM says when 19 bits wrap around, of which the address space has one. */
	*generation = now / kvm_arch_nr_memslot_as_ids(vcpu->kvm);
	return kvm_arch_nr_memslot_as_ids(vcpu->kvm) > 1 || now < BIT_ULL(18);
}

/* cpuid.h */

bool nested_helper_is_legal_gpa(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	return kvm_vcpu_is_legal_gpa(vcpu, gpa);
}

bool nested_helper_is_legal_cr3(struct kvm_vcpu *vcpu, unsigned long cr3)
{
	return kvm_vcpu_is_legal_cr3(vcpu, cr3);
}

bool nested_helper_is_cpuid_allowed(struct kvm_vcpu *vcpu)
{
	return kvm_is_cpuid_allowed(vcpu);
}

/* pmu.h */

bool nested_helper_has_perf_global_ctrl(struct kvm_vcpu *vcpu)
{
	return kvm_pmu_has_perf_global_ctrl(vcpu_to_pmu(vcpu));
}

u64 nested_helper_perf_global_ctrl_reserved(struct kvm_vcpu *vcpu)
{
	return vcpu_to_pmu(vcpu)->global_ctrl_rsvd;
}

/* x86.h, kvm_host.h */

/* Requests have to be constants. */

#define REQUEST(name, number)						\
void nested_helper_request_##name(struct kvm_vcpu *vcpu)		\
{									\
	kvm_make_request(number, vcpu);					\
}

REQUEST(triple_fault, KVM_REQ_TRIPLE_FAULT)
REQUEST(mmu_sync, KVM_REQ_MMU_SYNC)
REQUEST(event, KVM_REQ_EVENT)
REQUEST(get_nested_state_pages, KVM_REQ_GET_NESTED_STATE_PAGES)
REQUEST(apicv_update, KVM_REQ_APICV_UPDATE)
REQUEST(tlb_flush_current, KVM_REQ_TLB_FLUSH_CURRENT)
REQUEST(tlb_flush_guest, KVM_REQ_TLB_FLUSH_GUEST)

void nested_helper_clear_triple_fault(struct kvm_vcpu *vcpu)
{
	kvm_clear_request(KVM_REQ_TRIPLE_FAULT, vcpu);
}

void nested_helper_clear_get_nested_state_pages(struct kvm_vcpu *vcpu)
{
	kvm_clear_request(KVM_REQ_GET_NESTED_STATE_PAGES, vcpu);
}

/* Returns whether there was the request. */
bool nested_helper_take_get_nested_state_pages(struct kvm_vcpu *vcpu)
{
	return kvm_check_request(KVM_REQ_GET_NESTED_STATE_PAGES, vcpu);
}

bool nested_helper_is_smm(struct kvm_vcpu *vcpu)
{
	return is_smm(vcpu);
}

void nested_helper_set_runnable(struct kvm_vcpu *vcpu)
{
	kvm_set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
}

void nested_helper_warn_on_run_pending(struct kvm_vcpu *vcpu)
{
	kvm_warn_on_nested_run_pending(vcpu);
}

void nested_helper_clear_event_queues(struct kvm_vcpu *vcpu)
{
	vcpu->arch.nmi_injected = false;
	kvm_clear_exception_queue(vcpu);
	kvm_clear_interrupt_queue(vcpu);
}

bool nested_helper_event_needs_reinjection(struct kvm_vcpu *vcpu)
{
	return kvm_event_needs_reinjection(vcpu);
}

bool nested_helper_init_is_pending(struct kvm_vcpu *vcpu)
{
	return lapic_in_kernel(vcpu) &&
	       test_bit(KVM_APIC_INIT, &vcpu->arch.apic->pending_events);
}

void nested_helper_take_init(struct kvm_vcpu *vcpu)
{
	clear_bit(KVM_APIC_INIT, &vcpu->arch.apic->pending_events);
}

bool nested_helper_sipi_is_pending(struct kvm_vcpu *vcpu)
{
	return lapic_in_kernel(vcpu) &&
	       test_bit(KVM_APIC_SIPI, &vcpu->arch.apic->pending_events);
}

u32 nested_helper_take_sipi(struct kvm_vcpu *vcpu)
{
	clear_bit(KVM_APIC_SIPI, &vcpu->arch.apic->pending_events);
	return vcpu->arch.apic->sipi_vector & 0xff;
}

bool nested_helper_init_or_sipi_is_pending(struct kvm_vcpu *vcpu)
{
	return kvm_apic_has_pending_init_or_sipi(vcpu);
}

void nested_helper_warn_on_lost_irq(struct kvm_vcpu *vcpu)
{
	kvm_warn_on_lost_irq(vcpu);
}

bool nested_helper_has_injectable_interrupt(struct kvm_vcpu *vcpu)
{
	return kvm_cpu_has_injectable_intr(vcpu);
}

void nested_helper_wait_for_sipi(struct kvm_vcpu *vcpu)
{
	kvm_set_mp_state(vcpu, KVM_MP_STATE_INIT_RECEIVED);
}

void nested_helper_hide_data_cache(struct kvm_vcpu *vcpu)
{
	kvm_request_l1tf_flush_l1d();
}

int nested_helper_get_cpu(void)
{
	return get_cpu();
}

void nested_helper_put_cpu(void)
{
	put_cpu();
}

bool nested_helper_has_quirk(struct kvm_vcpu *vcpu, u64 quirk)
{
	return kvm_check_has_quirk(vcpu->kvm, quirk);
}

/* Returns what the exit handler returns. */
int nested_helper_report_inaccessible(struct kvm_vcpu *vcpu)
{
	return kvm_handle_memory_failure(vcpu, X86EMUL_IO_NEEDED, NULL);
}

/* lapic.h */

bool nested_helper_apicv_is_active(struct kvm_vcpu *vcpu)
{
	return kvm_vcpu_apicv_active(vcpu);
}

bool nested_helper_apicv_is_activated(struct kvm_vcpu *vcpu)
{
	return kvm_apicv_activated(vcpu->kvm);
}

/* hyperv.h */

bool nested_helper_hv_hypercall_enabled(struct kvm_vcpu *vcpu)
{
	return kvm_hv_hypercall_enabled(vcpu);
}

int nested_helper_hv_verify_vp_assist(struct kvm_vcpu *vcpu)
{
	return kvm_hv_verify_vp_assist(vcpu);
}

void nested_helper_hv_transition_tlb_flush(struct kvm_vcpu *vcpu)
{
	kvm_hv_nested_transtion_tlb_flush(vcpu, true);
}

/* trace.h */

void nested_helper_trace_vmenter_failed(const char *check, u32 error)
{
	trace_kvm_nested_vmenter_failed(check, error);
}
