#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Several hundred of what sequences.sh does twelve of.
exec "$(dirname "$0")/sequences.sh" 250 11
