# SPDX-License-Identifier: GPL-2.0-or-later
# cowd-nbd: connects a kernel nbd device and keeps it connected. A program of its own, as it
# outlives cowd and needs the network, which cowd.service has not.

BINS += cowd-nbd
cowd-nbd_SRCS   := $(sort $(wildcard cowd/nbd/*.cc))
cowd-nbd_LDLIBS := $(CORE_LDLIBS) -lgnutls
cowd-nbd_DIR    := sbin
build/bin/cowd-nbd: $(CORE_LIB)
