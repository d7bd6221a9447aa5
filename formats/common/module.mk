# SPDX-License-Identifier: GPL-2.0-or-later
# What format plugins share; linked into each.

formats-common := $(addprefix formats/common/,crc32c.cc options.cc parallel.cc signatures.cc)
