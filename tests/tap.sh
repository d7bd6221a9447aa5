# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Counting the cases of a test, the same way for unit and kernel tests.
#
# A test says `ok NAME` or `not ok NAME - why` a line (a number after ok is no
# matter), or it is a GoogleTest program, or it says neither and its exit status
# is its one case.  A test that dies, that has nothing to say, or that skips
# something has failed.  Its lines `# figure: ...` are shown whatever becomes of it.

passed=0
failed=0

# count_case ok|no TEST CASE: prints the line.
count_case() {
	if [[ $1 == ok ]]; then
		passed=$((passed + 1))
		[[ ${TAP_QUIET-} ]] || echo "ok $2${3:+: $3}"
	else
		failed=$((failed + 1))
		echo "not ok $2${3:+: $3}"
	fi
}

show_tail() {
	tail -n "${2:-40}" "$1" | sed 's/^/    | /'
}

show_figures() {
	sed -n 's/^# figure: /     /p' "$1"
}

# took WHAT SECONDS [MINUTES]: a line that says so, and that it should have been less; that
# fails nothing, as a busy machine is no fault of the tree.
took() {
	local over=
	((${3:-0} == 0 || $2 <= ${3:-0} * 60)) || over=': WARNING: longer than it should take'
	echo "$1 took $2 s${3:+ of $3 min}$over"
}

# count_test NAME LOG STATUS SECONDS: counts what is in LOG, one line for all
# that passed, the log's tail for what did not.
count_test() {
	local name=$1 log=$2 status=$3 seconds=$4 good bad skipped line why=
	good=$(grep -acE '^(ok\b|\[       OK \] )' "$log")
	bad=$(grep -acE '^(not ok\b|\[  FAILED  \] [^ ]+\.[^ ]+ \([0-9]+ ms\))' "$log")
	skipped=$(grep -acE '^(\[  SKIPPED \] [^ ]+ \(|ok\b.*# *(SKIP|skip))' "$log")
	if ((skipped)); then
		good=$((good - $(grep -acE '^ok\b.*# *(SKIP|skip)' "$log")))
		bad=$((bad + skipped))
		why="$skipped skipped"
	fi
	if ((status >= 128)); then
		why="died of signal $((status - 128))"
	elif ((status == 124)); then
		why="out of time"
	elif [[ ! -s $log ]]; then
		why="had nothing to say"
	elif ((status && !bad)); then
		why="exit status $status"
	elif ((good + bad == 0)); then
		good=1
	fi
	# However it ended, a bad end is a failure beside its cases.
	if [[ $why ]] && ((!bad)); then
		bad=1
	fi
	passed=$((passed + good))
	failed=$((failed + bad))
	if ((!bad)); then
		printf 'ok   %-32s %4d passed %5d s\n' "$name" "$good" "$seconds"
		show_figures "$log"
		return
	fi
	printf 'FAIL %-32s %4d passed, %d failed%s %5d s\n' "$name" "$good" "$bad" "${why:+ ($why)}" "$seconds"
	show_figures "$log"
	while IFS= read -r line; do
		printf '    %s\n' "$line"
	done < <(grep -aE '^(not ok\b|\[  FAILED  \] [^ ]+\.[^ ]+ \(|\[  SKIPPED \] [^ ]+ \()' "$log" | head -20)
	show_tail "$log"
}
