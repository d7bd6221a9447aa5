#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What `make demo` shows works: it ends well, each step has its line, and the last line
# says what was proved. (It has a volume group, a cowd and a clean-up of its own.)

set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failures=0
# holds NAME CONDITION...
holds() {
	local name=$1
	shift
	if "$@"; then
		echo "ok demo: $name"
	else
		echo "not ok demo: $name - $(tail -n 3 "$log" | tr '\n' ' ')"
		failures=$((failures + 1))
	fi
}
steps_in_order() {
	local steps
	steps=$(sed -n 's/^demo: \([0-9]*\)\. .*/\1/p' "$log")
	[[ $steps == "$(seq "$(wc -l <<<"$steps")")" ]] && (($(wc -l <<<"$steps") >= 8))
}

"$(dirname "$0")/../lab/demo" >"$log" 2>&1
status=$?
sed 's/^/# /' "$log"
sed -n 's/^ *\(a new cowd has taken over after .*\)/# figure: \1/p' "$log"
holds "it ends well" test "$status" = 0
holds "its steps are announced" steps_in_order
holds "its last line says what was proved" test "$(tail -n 1 "$log" | cut -c 1-13)" = "demo: proved:"
exit "$((failures > 0))"
