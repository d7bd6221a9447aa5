#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# write.sh [RECORDS [flush]]: in domain 0: a guest appends records to a file on a
# persistent disk, each with an fsync, until the power is cut. What it was told to be safe
# is noted on the logged disk itself, so that the log says at each of its points how much
# that was. With `flush` cowd does without: its writes of metadata are not flushed.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/../xen/lib.sh"
tear_down() { systemctl stop cowd.socket cowd; }

RECORDS=${1:-60}
WITHOUT=${2-}
LAB_DISKS=${LAB_DISKS%% *} # the logged one

note() { printf '%-511s\n' "acked $1" | dd of=/dev/vg/acked oflag=direct conv=notrunc status=none; }

if [[ $WITHOUT == flush ]]; then
	mkdir -p /etc/systemd/system/cowd.service.d
	printf '[Service]\nEnvironment=LD_PRELOAD=%s\n' "$TOP/build/tests/kernel/without-flush.so" \
		>/etc/systemd/system/cowd.service.d/without-flush.conf
	systemctl daemon-reload
fi
# A store that is in use stays with its host.
cp /etc/machine-id "$RESULTS/"
volumes base=64M cow=80M acked=4M
# Nothing that a journal would have to mend.
need mke2fs -q -F -t ext4 -E nodiscard /dev/vg/base
need systemctl start cowd
[[ $WITHOUT != flush ]] || check "cowd does without flushes" grep -q without-flush "/proc/$(cowd_pid)/maps"
# So that nearly each record is in a granule that was not yet redirected.
need cowctl create -o granule=4K dscow:/dev/vg/cow:/dev/vg/base
note 0
create_from p "$TOP/xl-config-examples/persistent.cfg" || exit
in_guest p mount xvda || exit
# The next record comes when the one before is noted: nothing that the guest does may
# flush what should have been flushed already.
for ((record = 1; record <= RECORDS; record++)); do
	ask p record xvda 5 "$record" || {
		not_ok "record $record" "$SAID"
		exit
	}
	note "$record"
done
# In the middle of something.
begin p append xvda 6 100000
await p "guest: 6 acked 30" 60 || {
	not_ok "the guest appends" "$WHY"
	exit
}
echo "# $RECORDS records were acknowledged when the power was cut"
echo "power cut" >"$LAB_VERDICT"
sleep 60
