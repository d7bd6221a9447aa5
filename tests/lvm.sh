# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash

# LVM must see our volumes and nothing else: it would hang on a device whose cowd is dead.
lvm_on() {
	local command=$1
	shift
	"$command" --devices "${LAB_DISKS// /,}" "$@"
}
