# SPDX-License-Identifier: GPL-2.0-or-later
# What format plugins share; linked into each.

formats-common := $(addprefix formats/common/,any_offset.cc backing.cc beneath.cc crc32c.cc \
  event.cc options.cc parallel.cc signatures.cc table_cache.cc)
# Of those that compress; they link -lz.
formats-inflate := formats/common/inflate.cc
