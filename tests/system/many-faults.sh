#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# faulty.sh with every mode over every disk that fails, and troubles of 10 seconds each.
COWD_ALL=yes COWD_BAD_SECONDS=10 exec "$(dirname "$0")/faulty.sh"
