#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# fuzz_channel with more than a million messages, of other seeds than its short form.
FUZZ_MESSAGES=1250000 FUZZ_SEED=2 exec "$(dirname "$0")/../../build/tests/kernel/fuzz_channel"
