# SPDX-License-Identifier: GPL-2.0
#
# Enters the staged root filesystem from a guest that has the host's filesystem as its root.
# The argument is the directory; nothing but busybox, which is in it, is used.

root=$1
busybox=$root/bin/busybox
for dir in proc sys dev; do
	$busybox mount --bind "/$dir" "$root/$dir"
done
for dir in tmp sbin; do
	$busybox mount -t tmpfs tmpfs "$root/$dir"
done
$busybox chroot "$root" /bin/busybox --install -s /sbin
$busybox chroot "$root" /bin/busybox mount -t debugfs debug /sys/kernel/debug 2>/dev/null
exec $busybox chroot "$root" /bin/busybox sh /lab/level.sh </dev/null >/dev/null 2>&1
