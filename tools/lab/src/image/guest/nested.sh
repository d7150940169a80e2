# SPDX-License-Identifier: GPL-2.0
#
# The work of level 0 in `lab run`.

report_kernel
nest
