#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# In domain 0: a guest appends records to a file on a persistent disk, each with an
# fsync, until the power is cut. What it was told to be safe is noted on the logged
# disk itself, so that the log says at each of its points how much that was.
# With LAB_WITHOUT=flush cowd's writes of metadata are not flushed.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/../xen/lib.sh"
tear_down() { systemctl stop cowd.socket cowd; }

RECORDS=${1:-150}
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
# So that nearly each record is in a granule that was not yet redirected.
need cowctl create -o granule=4K dscow:/dev/vg/cow:/dev/vg/base
note 0
create_from p "$TOP/xl-config-examples/persistent.cfg" || exit
in_guest p mount xvda || exit
ask p sh "mkdir /mnt/xvda/tree && sync" || exit
begin p '&' fsload xvda/tree 7 2 100000
exec {lines}< <(exec tail -c "+$((POSITION[p] + 1))" -f "$(console_of p)")
begin p append xvda 5 100000
while IFS= read -r -t 60 line <&"$lines"; do
	line=${line%$'\r'}
	[[ $line =~ ^"guest: 5 acked "([0-9]+)$ ]] || continue
	acked=${BASH_REMATCH[1]}
	# Those that came meanwhile need no notes of their own.
	note "$acked"
	if ((acked >= RECORDS)); then
		echo "# $acked records were acknowledged when the power was cut"
		echo "power cut" >"$LAB_VERDICT"
		sleep 60
	fi
done
not_ok "the guest appends" "it stopped at record ${acked-none}"
