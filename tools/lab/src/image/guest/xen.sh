# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in `lab run` with Xen as level 1: its first domain is level 2.
#
# Xen itself prints lines that begin with (XEN). All others are those of the domain.

report_kernel
pack /lab/last.list >/tmp/domain.cpio
rm -f /tmp/nest.status
say "=== lab: start level=1"
qemu-system-x86_64 -L /usr/share/qemu -machine q35,kernel-irqchip=split -accel kvm \
	-device intel-iommu,intremap=on -cpu "$XEN_CPU" -m "$XEN_MEMORY" \
	-nodefaults -no-user-config -display none -vga none -serial stdio -no-reboot \
	-kernel /lab/l1/xen \
	-append "com1=115200,8n1 console=com1 dom0=pvh dom0_mem=512M iommu=force noreboot" \
	-initrd "/lab/l1/bzImage console=hvc0 $CMDLINE lab.level=2,/tmp/domain.cpio" \
	-pidfile /tmp/nest.pid </dev/null 2>&1 |
	while IFS= read -r line; do
		# Xen and its domain each add one.
		line=${line%%"$CR"*}
		case $line in
		"(XEN)"*) echo "<4>L1| $line" >/dev/kmsg ;;
		*) echo "<4>L2| $line" >/dev/kmsg ;;
		esac
		case $line in
		*"=== lab: done level=2 status="*)
			echo "${line##*status=}" >/tmp/nest.status
			counters
			kill "$(cat /tmp/nest.pid)"
			;;
		esac
	done
if ! [ -f /tmp/nest.status ]; then
	say "=== lab: lost level=1"
	return 1
fi
[ "$(cat /tmp/nest.status)" = 0 ]
