# SPDX-License-Identifier: GPL-2.0-or-later

PLUGINS  += raw
raw_SRCS  = formats/raw/plugin.cc formats/raw/raw.cc $(formats-common)
raw_MAP   = formats/common/plugin.map

UNIT_TESTS    += test-raw
test-raw_SRCS  = tests/unit/raw.cc formats/raw/raw.cc $(formats-common) $(sim-sources)

MAN_PAGES += formats/raw/cowd-raw.5
