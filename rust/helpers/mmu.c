// SPDX-License-Identifier: GPL-2.0
/*
 * What the page tables for L2 need of the kernel.
 */
#include <linux/random.h>
#include "regs.h"
#include "x86.h"
#include "cpuid.h"
#include "helpers.h"

/* Pages of page tables are counted as KVM counts its own. */

void *nested_helper_alloc_table(u64 *physical)
{
	void *table = (void *)__get_free_page(GFP_KERNEL_ACCOUNT);

	if (!table)
		return NULL;
	kvm_account_pgtable_pages(table, 1);
	*physical = __pa(table);
	return table;
}

void nested_helper_free_table(void *table)
{
	kvm_account_pgtable_pages(table, -1);
	free_page((unsigned long)table);
}

/* L2 has written to the page, whoever finds that out now. */
void nested_helper_log_dirty(struct kvm *kvm, gfn_t gfn)
{
	struct kvm_memory_slot *slot = __gfn_to_memslot(__kvm_memslots(kvm, 0), gfn);

	if (slot && slot->dirty_bitmap)
		set_bit_le(gfn - slot->base_gfn, slot->dirty_bitmap);
}

void nested_helper_mmu_read_lock(struct kvm *kvm)
{
	read_lock(&kvm->mmu_lock);
}

void nested_helper_mmu_read_unlock(struct kvm *kvm)
{
	read_unlock(&kvm->mmu_lock);
}

void nested_helper_mmu_write_lock(struct kvm *kvm)
{
	write_lock(&kvm->mmu_lock);
}

void nested_helper_mmu_write_unlock(struct kvm *kvm)
{
	write_unlock(&kvm->mmu_lock);
}

/* For those who may not wait; it protects memory slots, too. */
bool nested_helper_mmu_try_write_lock(struct kvm *kvm, int *srcu)
{
	*srcu = srcu_read_lock(&kvm->srcu);
	if (write_trylock(&kvm->mmu_lock))
		return true;

	srcu_read_unlock(&kvm->srcu, *srcu);
	return false;
}

void nested_helper_mmu_end_try_write_lock(struct kvm *kvm, int srcu)
{
	write_unlock(&kvm->mmu_lock);
	srcu_read_unlock(&kvm->srcu, srcu);
}

/* Returns whether the VM has users, i.e. isn't being destroyed. */
bool nested_helper_is_in_use(struct kvm *kvm)
{
	return refcount_read(&kvm->users_count);
}

/* Returns the slot of an entry of L1's page tables, and where it is in user space, or 0. */
static unsigned long entry_address(struct kvm_vcpu *vcpu, gpa_t gpa,
				   struct kvm_memory_slot **slot)
{
	gfn_t gfn = gpa_to_gfn(gpa);

	*slot = __gfn_to_memslot(kvm_vcpu_memslots(vcpu), gfn);
	if (!*slot || (*slot)->flags & KVM_MEMSLOT_INVALID)
		return 0;
	return __gfn_to_hva_memslot(*slot, gfn) + offset_in_page(gpa);
}

static bool read_entries(unsigned long address, bool small, u64 *entries, u32 count)
{
	u32 __user *from_small = (u32 __user *)address;
	u64 __user *from = (u64 __user *)address;
	u32 i = 0, value;

	if (!user_read_access_begin(from, count * (small ? sizeof(u32) : sizeof(u64))))
		return false;
	if (small) {
		for (; i < count; i++) {
			unsafe_get_user(value, &from_small[i], fault);
			entries[i] = value;
		}
	}
	/* A flush reads many. */
	for (; i + 4 <= count; i += 4) {
		unsafe_get_user(entries[i], &from[i], fault);
		unsafe_get_user(entries[i + 1], &from[i + 1], fault);
		unsafe_get_user(entries[i + 2], &from[i + 2], fault);
		unsafe_get_user(entries[i + 3], &from[i + 3], fault);
	}
	for (; i < count; i++)
		unsafe_get_user(entries[i], &from[i], fault);
	user_read_access_end();
	return true;

fault:
	user_read_access_end();
	return false;
}

/*
 * Reads entries of L1's page tables, each as a whole, of 4 bytes if @small.  If
 * @resident, it doesn't sleep: pages that aren't in memory can't be read.
 */
bool nested_helper_read_entries(struct kvm_vcpu *vcpu, gpa_t first, bool small, bool resident,
				u64 *entries, u32 count)
{
	struct kvm_memory_slot *slot;
	unsigned long address = entry_address(vcpu, first, &slot);
	bool done;

	if (!address)
		return false;
	if (!resident)
		return read_entries(address, small, entries, count);

	pagefault_disable();
	done = read_entries(address, small, entries, count);
	pagefault_enable();
	return done;
}

/* Replaces an entry of L1's page tables; returns NESTED_EXCHANGE_*, or an error. */
int nested_helper_exchange_entry(struct kvm_vcpu *vcpu, gpa_t gpa, bool small, u64 old, u64 new)
{
	struct kvm_memory_slot *slot;
	unsigned long address = entry_address(vcpu, gpa, &slot);
	u32 old_small = old;
	int result;

	if (!address)
		return -EFAULT;
	if (slot->flags & KVM_MEM_READONLY)
		return NESTED_EXCHANGE_READ_ONLY;

	if (small)
		result = __try_cmpxchg_user((u32 __user *)address, &old_small, (u32)new, small_end);
	else
		result = __try_cmpxchg_user((u64 __user *)address, &old, new, end);
	if (result < 0)
		return result;
	if (result)
		return NESTED_EXCHANGE_CHANGED;

	if (kvm_slot_dirty_track_enabled(slot))
		kvm_vcpu_mark_page_dirty(vcpu, gpa_to_gfn(gpa));
	return NESTED_EXCHANGE_DONE;
}

bool nested_helper_guest_has_gbpages(struct kvm_vcpu *vcpu)
{
	return guest_cpu_cap_has(vcpu, X86_FEATURE_GBPAGES);
}

bool nested_helper_has_ept(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

u64 nested_helper_random(void)
{
	return get_random_u64();
}
