#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
#
# What a level does once its filesystems are mounted: its modules, its work, its end marker.

. /lab/lib.sh
say "=== lab: up level=$LEVEL"

work() {
	if [ "$LEVEL" = 0 ]; then
		load_modules && . /lab/commands
	elif [ "$LEVEL" -lt "$LAST" ]; then
		load_modules && . /lab/middle
	else
		workload run "$SEED"
	fi
}

# A pipe loses the status of its first part.
{
	(work)
	echo $? >/tmp/status
} 2>&1 | relay
status=$(cat /tmp/status)

if [ "$LEVEL" = 0 ]; then
	executed
	say "=== lab: end status=$status"
else
	say "=== lab: done level=$LEVEL status=$status"
	# The level below ends this one when it has read what it counted.
	sleep 1000000
fi
