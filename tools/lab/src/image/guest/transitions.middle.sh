# SPDX-License-Identifier: GPL-2.0
#
# The work of the levels above level 0 in the second run of `lab bench`.

. /lab/bench.guest
if [ "$LEVEL" = 1 ]; then
	nest
else
	measure L3
fi
