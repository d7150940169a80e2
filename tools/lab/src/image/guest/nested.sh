# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in `lab run`.

fact kernel "$(uname -r)"
for file in /sys/module/kvm_amd /sys/module/kvm_intel /sys/module/nested_svm /sys/module/nested_vmx; do
	[ -d "$file" ] || continue
	module=${file##*/}
	version=
	[ -f "$file/version" ] && version=$(cat "$file/version")
	fact "module $module" "${version:-loaded}"
done
nest
