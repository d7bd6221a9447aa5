#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# log-writes.sh with 500 points of each file system and mode.
COWD_POINTS=500 exec "$(dirname "$0")/log-writes.sh"
