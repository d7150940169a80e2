# SPDX-License-Identifier: GPL-2.0
#
# The work of level 1 in `lab bench`: how long its boot took, the rows for its guest, and a guest
# with an operating system, unless only some rows are wanted.

. /lab/bench.guest
relayed nested_benchmark clock
measure L2 || exit
[ -n "$ROWS" ] || nest
