#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# bench.sh [ROUNDS]: how long a hotplug script takes, from its start until the disk is
# connected: block-dmu with a dscow disk, and Xen's `block` with a volume (phy:), in turn.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

ROUNDS=${1:-15}
SCRIPTS=/etc/xen/scripts
TIMES=/run/bench-times
tear_down() {
	systemctl stop cowd.socket cowd
	rm -f "$SCRIPTS"/timed-* "$TIMES"
}

# A script ends when it has written hotplug-status.
for script in block block-dmu; do
	cat >"$SCRIPTS/timed-$script" <<-END
		#!/bin/bash
		began=\$EPOCHREALTIME
		$SCRIPTS/$script "\$@"
		status=\$?
		[[ \$1 != add ]] || echo "$script \$(((\${EPOCHREALTIME/./} - \${began/./}) / 1000))" >>$TIMES
		exit \$status
	END
	chmod +x "$SCRIPTS/timed-$script"
done
volumes base=64M cow=80M plain=64M
need systemctl start cowd.socket cowd
need cowctl create dscow:/dev/vg/cow:/dev/vg/base
config b 'phy:/dev/vg/plain,xvda,r'
create b || exit
for ((i = 0; i <= ROUNDS; i++)); do
	# The first round warms up.
	((i != 1)) || : >"$TIMES"
	need xl block-attach b 'script=timed-block-dmu,vdev=xvdb,access=w,target=dscow:/dev/vg/cow:/dev/vg/base'
	need xl block-detach b xvdb
	need timeout 20 bash -c 'while dmsetup info vm-b-xvdb; do sleep 0.1; done'
	need xl block-attach b 'script=timed-block,vdev=xvdb,access=r,target=/dev/vg/plain'
	need xl block-detach b xvdb
done
# LINES of one script, in the order of the rounds.
times() { awk -v s="$1" '$1 == s { print $2 }' "$TIMES"; }
# note CASE SUBJECT UNIT ROUND VALUE: for tests/bench/report.
note() {
	jq -nc --arg case "$1" --arg subject "$2" --arg unit "$3" --argjson round "$4" --argjson value "$5" \
		'{instrument: "wall"} + $ARGS.named' >>"$RESULTS/rounds"
}
: >"$RESULTS/rounds"
round=0
while read -r theirs ours; do
	round=$((round + 1))
	note vbd-attach lv ms "$round" "$theirs"
	note vbd-attach dscow-flush ms "$round" "$ours"
	note vbd-attach-to-block dscow-flush ratio "$round" "$(jq -n "$ours / $theirs")"
done < <(paste <(times block) <(times block-dmu))
for script in block block-dmu; do
	times "$script" | sort -n |
		awk -v s="$script" '{ t[NR] = $1 } END { print "# " s ": median " t[int((NR + 1) / 2)] " ms of " NR ", " t[1] " to " t[NR] }'
done
check "both scripts were timed $ROUNDS times" test "$(wc -l <"$TIMES")" = $((2 * ROUNDS))
destroy b
