# SPDX-License-Identifier: GPL-2.0-or-later
KMODS += dm-userspace
INSTALL_DKMS += kmod/dkms.conf.in
INSTALL_DOCS += kmod/dm-userspace.rst docs/decisions.md
