# SPDX-License-Identifier: GPL-2.0-or-later
LIBS     += libdmu
EXAMPLES += dmu-stripe

libdmu_SRCS   := libdmu/channel.c libdmu/device.c libdmu/dm.c libdmu/error.c \
                 libdmu/list.c libdmu/message.c libdmu/spec.c libdmu/text.c
libdmu_MAP    := libdmu/libdmu.map
libdmu_LDLIBS := -ldevmapper -lpthread

dmu-stripe_SRCS := libdmu/examples/dmu-stripe.c
dmu-stripe_USES := libdmu

UNIT_TESTS += libdmu_test
libdmu_test_SRCS := tests/unit/libdmu_test.cc
libdmu_test_USES := libdmu

INSTALL_HEADERS      += libdmu/dmu.h
INSTALL_UAPI_HEADERS += kmod/include/uapi/linux/dm-userspace.h
INSTALL_PKGCONFIG    += libdmu/dmu.pc.in
MAN_PAGES            += libdmu/libdmu.3
