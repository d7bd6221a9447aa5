# SPDX-License-Identifier: GPL-2.0-or-later
# What the installed tree needs beside its programs.
INSTALL_UNITS += packaging/systemd/cowd.service.in packaging/systemd/cowd.socket
INSTALL_MODULES_LOAD += packaging/systemd/dm-userspace.conf
INSTALL_UDEV_RULES += packaging/udev/56-dm-userspace.rules
INSTALL_HOOKS += packaging/hooks/cowd-extend
INSTALL_CONF += packaging/examples/cowd.toml
