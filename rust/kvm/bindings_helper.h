/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: KVM's private headers and our helpers. */
#include <linux/kvm_host.h>
#include <linux/shrinker.h>
#include "x86.h"
#include "irq.h"
#include "mmu.h"
#include "pmu.h"
#include "vmx/vmx.h"
#include "vmx/nested.h"

/* Both vendors have inline functions of these names; no one else sees both. */
#define nested_exit_on_intr svm_nested_exit_on_intr
#define nested_exit_on_nmi svm_nested_exit_on_nmi
#include "svm/svm.h"

#include "../helpers/helpers.h"
