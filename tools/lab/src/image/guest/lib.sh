# SPDX-License-Identifier: GPL-2.0
#
# Functions of all levels. Everything is printed through /dev/kmsg: a record is one line on the
# console, whole and in order with the kernel's own messages, whatever else is being written.
# `| ` marks text of user space, `L1| ` a line of the console of level 1.

export PATH=/sbin:/bin:/usr/bin
. /lab/env

# say TEXT: prints a line.
say() {
	echo "<4>| $1" >/dev/kmsg
}

# fact NAME VALUE: reports something that the host wants to know.
fact() {
	say "fact: $1=$2"
}

# report_kernel: reports which kernel runs here, and which of its modules nesting depends on.
report_kernel() {
	fact kernel "$(uname -r)"
	for file in /sys/module/kvm_amd /sys/module/kvm_intel /sys/module/nested_svm /sys/module/nested_vmx; do
		[ -d "$file" ] || continue
		module=${file##*/}
		version=
		[ -f "$file/version" ] && version=$(cat "$file/version")
		fact "module $module" "${version:-loaded}"
	done
}

# relay: prints the lines of its input.
relay() {
	while IFS= read -r line || [ -n "$line" ]; do
		echo "<4>| $line"
		line=
	done >/dev/kmsg
}

# load_modules: inserts the modules of this level in order, with their parameters.
load_modules() {
	if [ "$LEVEL" = 0 ]; then
		cat /lab/modules.host >/tmp/modules
	elif [ $((LEVEL + 1)) = "$LAST" ]; then
		cat /lab/modules.guest >/tmp/modules
	else
		# The guest of this level is a hypervisor, too.
		cat /lab/modules.guest /lab/modules.nested >/tmp/modules
	fi
	while read -r module parameters; do
		# A kernel that has the other vendor's CPU refuses that module; the host lists
		# the right ones only, hence any failure is one.
		if ! insmod "$module" $parameters; then
			say "=== lab: fail insmod $module $parameters"
			return 1
		fi
	done </tmp/modules
}

# counters: prints the exit counters of all VMs that live now, if there are any.
counters() {
	for file in /sys/kernel/debug/nested/*/*; do
		[ -f "$file" ] || continue
		say "=== lab: counters $file"
		relay <"$file"
		say "=== lab: counters end"
	done
	if [ -x /bin/nested-top ] && [ -d /sys/kernel/debug/nested ]; then
		say "=== lab: counters nested-top"
		nested-top --once --json --interval 0.1 | fold -w 800 | relay
		say "=== lab: counters end"
	fi
}

# executed: prints how often each part of our module's code has run, if it was built to count that.
executed() {
	for file in /sys/module/nested_*/notes/__llvm_prf_cnts; do
		[ -f "$file" ] || continue
		say "=== lab: counters $file"
		od -An -v -tu8 "$file" | tr -s ' \n' ' ' | fold -s -w 800 | relay
		say "=== lab: counters end"
	done
}

# pack LIST: writes an initramfs of the files in LIST, taken from this level, to standard output.
pack() {
	(cd / && cpio -o -H newc <"$1")
}

# nest: boots the next level, prints its console, and returns 0 if it said that all went well.
#
# A level that is done waits to be ended. Until then it is alive, and with it what this level's
# kernel counts for it.
nest() {
	child=$((LEVEL + 1))
	list=/lab/next.list
	[ "$child" -lt "$LAST" ] || list=/lab/last.list
	eval "memory=\$MEMORY_$child"
	machine=$MACHINE
	words=$CMDLINE
	if [ "$child" -gt 2 ] && [ "$DILATION" -gt 1 ]; then
		# A TSC that seems to be faster makes all timers of the kernel slower. Without
		# kvm-clock it looks for a clock chip, for minutes if there is none.
		mhz=$(sed -n 's/^cpu MHz[^0-9]*\([0-9]*\).*/\1/p' /proc/cpuinfo | head -n 1)
		machine=$MACHINE,rtc=on
		words="$CMDLINE no-kvmclock tsc_early_khz=$((mhz * 1000 * DILATION))"
	fi
	if ! pack "$list" >/tmp/next.cpio 2>/tmp/pack.err; then
		relay </tmp/pack.err
		return 1
	fi
	rm -f /tmp/nest.status
	say "=== lab: start level=$child"
	kernel=/lab/bzImage
	[ "$child" = 1 ] && [ -f /lab/l1/bzImage ] && kernel=/lab/l1/bzImage
	"$QEMU" -L /usr/share/qemu -machine "$machine" -accel kvm -cpu "$PROCESSOR" \
		-smp "$SMP" -m "$memory" -nodefaults -no-user-config -display none \
		-serial stdio -no-reboot \
		-kernel "$kernel" -initrd /tmp/next.cpio \
		-append "$words lab.level=$child" -pidfile /tmp/nest.pid </dev/null 2>&1 |
		while IFS= read -r line; do
			line=${line%"$CR"}
			echo "<4>L$child| $line" >/dev/kmsg
			case $line in
			*"=== lab: done level=$child status="*)
				echo "${line##*status=}" >/tmp/nest.status
				counters
				kill "$(cat /tmp/nest.pid)"
				;;
			esac
		done
	if ! [ -f /tmp/nest.status ]; then
		say "=== lab: lost level=$child"
		return 1
	fi
	[ "$(cat /tmp/nest.status)" = 0 ]
}

CR=$(printf '\r')
LEVEL=0
read -r words </proc/cmdline
for word in $words; do
	case $word in
	lab.level=*) LEVEL=${word#*=} ;;
	esac
done
