# SPDX-License-Identifier: GPL-2.0-or-later
# cowd's link to one version of Xen: loaded by name where that version runs.

ifneq ($(XEN_VERSION),)
xen-link := xen/$(XEN_VERSION)
PLUGINS += $(xen-link)
$(xen-link)_SRCS := cowd/xen/xen.cc cowd/xen/domains.c cowd/core/errno_name.cc
$(xen-link)_LDLIBS := -lxenstore -lxenctrl
$(xen-link)_LDFLAGS := -Wl,-z,defs
endif
