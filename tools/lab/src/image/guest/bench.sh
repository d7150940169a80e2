# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in `lab bench`: the rows for its guest, then those for the guest's guest with
# each provider in turn, first of programs of level 0's.

. /lab/bench.guest
measure L1 || exit
for provider in c ours; do
	case $provider in
	ours) insmod "$OUR_MODULE" || exit ;;
	esac
	say "bench: provider $provider"
	say "=== lab: step rows of page tables"
	relayed nested_paging_benchmark $ROWS || exit
	nest || exit
	case $provider in
	ours) rmmod "$OUR_MODULE" || exit ;;
	esac
done
