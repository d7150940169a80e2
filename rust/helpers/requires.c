// SPDX-License-Identifier: GPL-2.0
/*
 * The loader resolves the symbols of a module in the order in which they occur
 * in its objects, and this object is the first: where KVM isn't loaded, or lacks
 * the provider patches, the first line in the log names the function that makes
 * the difference.
 */
#include <linux/kvm_host.h>

static const void * const required __used = kvm_set_nested_ops;
