#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# daemon-life.sh with a cowd that is stopped for a minute, and 20 rounds of starts.
COWD_STOPPED=60 COWD_ROUNDS=20 exec "$(dirname "$0")/daemon-life.sh"
