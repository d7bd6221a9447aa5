#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# kill50.sh four times, each with another load: 200 kills, and 40 while cowd starts.
status=0
for seed in 3 4 5 6; do
	COWD_SEED=$seed "$(dirname "$0")/kill50.sh" || status=1
done
exit "$status"
