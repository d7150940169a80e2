# SPDX-License-Identifier: GPL-2.0
project = "nested-kvm"
author = "The nested-kvm developers"
html_theme = "alabaster"
nitpicky = True
exclude_patterns = []
