# SPDX-License-Identifier: GPL-2.0
#
# Measuring, at level 0 and level 1.

# measure WHAT: measures operations of a guest of this level.
measure() {
	say "=== lab: step rows of $1"
	{
		nested_benchmark $ROWS
		echo $? >/tmp/status.bench
	} 2>&1 | relay
	[ "$(cat /tmp/status.bench)" = 0 ]
}
