// SPDX-License-Identifier: GPL-2.0
/*
 * A trampoline for each function of kvm.ko that the modules use, see imports.c:
 * a direct jump, as static calls have it, that has the name of the function.
 */
#include "imports.h"

#define KVM_NESTED_FUNCTION(func) DEFINE_STATIC_CALL_NULL(import_##func, func)
#define KVM_NESTED_VARIABLE(var)
#include "nested_imports.h"

#define KVM_NESTED_FUNCTION(func) \
	asm(".globl " #func "\n.set " #func ", " STATIC_CALL_TRAMP_STR(import_##func))
#define KVM_NESTED_VARIABLE(var)
#include "nested_imports.h"
