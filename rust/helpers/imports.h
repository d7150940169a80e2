/* SPDX-License-Identifier: GPL-2.0 */
/* Functions and variables of kvm.ko, see imports.c. */
#ifndef _NESTED_IMPORTS_H
#define _NESTED_IMPORTS_H

#include <linux/static_call.h>
#include "nested_provider.h"

#define KVM_NESTED_FUNCTION(func) \
	extern const struct kvm_nested_##func kvm_nested_##func __weak
#define KVM_NESTED_VARIABLE(var) \
	extern const struct kvm_nested_##var kvm_nested_##var __weak
#include "nested_imports.h"

#define KVM_NESTED_FUNCTION(func) DECLARE_STATIC_CALL(import_##func, func)
#define KVM_NESTED_VARIABLE(var)
#include "nested_imports.h"

#endif /* _NESTED_IMPORTS_H */
