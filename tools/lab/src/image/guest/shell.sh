# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in `lab shell`.

cat >/tmp/profile <<'EOF'
. /lab/lib.sh
PS1='L0# '
EOF
dmesg -n 5
{
	cat /lab/motd
	# A session of its own, so that the shell has a controlling terminal and job control.
	ENV=/tmp/profile setsid -c sh -i
} </dev/ttyS0 >/dev/ttyS0 2>&1
# Bochs stops at power-off, with a message that is no failure.
poweroff -f
