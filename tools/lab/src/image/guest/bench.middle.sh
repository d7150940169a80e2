# SPDX-License-Identifier: GPL-2.0
#
# The work of level 1 in `lab bench`: how long its boot took, the rows for its guest, and a guest
# with an operating system.

. /lab/bench.guest
nested_benchmark clock | relay
measure L2 || exit
# Some rows only: without the boot.
[ -n "$ROWS" ] || nest
