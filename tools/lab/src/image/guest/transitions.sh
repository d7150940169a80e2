# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in the second run of `lab bench`: level 1 is the hypervisor whose instructions
# are counted, with each provider in turn, and level 3 is the guest's guest that it serves.

. /lab/bench.guest
trace=/sys/kernel/tracing
mount -t tracefs trace $trace || exit
# All rows of a provider, and what follows them until level 1 is gone.
echo 40960 >$trace/buffer_size_kb
for provider in c ours; do
	case $provider in
	c) : >/lab/modules.nested ;;
	ours) echo "$OUR_MODULE" >/lab/modules.nested ;;
	esac
	say "transitions: provider $provider"
	echo >$trace/trace
	for event in kvm_exit kvm_nested_vmexit; do
		echo 1 >$trace/events/kvm/$event/enable || exit
	done
	nest || exit
	for event in kvm_exit kvm_nested_vmexit; do
		echo 0 >$trace/events/kvm/$event/enable
	done
	relayed nested_benchmark transitions || exit
done
