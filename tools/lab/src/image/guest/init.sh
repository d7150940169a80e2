#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
#
# The first process of a level that boots from an initramfs.

/bin/busybox --install -s /sbin
export PATH=/sbin:/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug
ip link set lo up
sh /lab/level.sh
poweroff -f
