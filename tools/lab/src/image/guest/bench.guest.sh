# SPDX-License-Identifier: GPL-2.0
#
# What the levels share that measure.

# relayed PROGRAM...: runs a program and prints what it prints before anything else goes on.
relayed() {
	{
		"$@"
		echo $? >/tmp/status.relayed
	} 2>&1 | relay
	[ "$(cat /tmp/status.relayed)" = 0 ]
}

# measure WHAT: measures operations of a guest of this level.
measure() {
	say "=== lab: step rows of $1"
	relayed nested_benchmark $ROWS
}
