#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a restarted cowd makes of what it finds: devices in use, paused ones, notes without
# a device, a device without a note, a device that goes while cowd looks.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../system/lib.sh"
volumes base=64M cow=80M
need mkfs.ext4 -q "$(vol base)"
store="dscow:$(vol cow):$(vol base)"
start_cowd
new_store cow base disk flush 4K

state() { ctl --json info "$1" | grep -o '"state": *"[a-z]*"' | cut -d '"' -f 4; }
is() {
	if [[ $2 == "$3" ]]; then
		ok "$1"
	else
		not_ok "$1" "it is $2, not $3"
	fi
}

need mount /dev/mapper/disk "$MNT"
for signal in KILL TERM KILL; do
	need cp -r /etc "$MNT/$signal-$RANDOM"
	need sync -f "$MNT"
	need cp -r /etc "$MNT/unsynced-$RANDOM"
	end_cowd "$signal"
	start_cowd
	is "after SIG$signal it is served on" "$(state disk)" active
done
need umount "$MNT"
check "its file system is sound" e2fsck -fn /dev/mapper/disk

need ctl pause disk
end_cowd KILL
start_cowd
is "a paused device stays paused" "$(state disk)" paused
check "and can be resumed" ctl resume disk

end_cowd KILL
need dmsetup resume disk
need dmsetup suspend --noflush disk
start_cowd
is "one that was suspended in the middle of something goes on" "$(state disk)" active
check "it can be read" dd if=/dev/mapper/disk of=/dev/null bs=1M count=4 iflag=direct status=none

end_cowd KILL
need dmsetup remove disk
start_cowd
is "a note without its device is dropped" "$(ls "$RUN/devices.d")" ""
check "and its store is closed" ctl check "$store"
need ctl attach --name disk "$store"

end_cowd KILL
mv "$RUN/devices.d/disk.json" "$WORK/"
start_cowd
is "a device without a note is left alone" "$(ctl --json list | grep -c '"disk"')" 0
check "it is still there" dmsetup info disk
end_cowd KILL
mv "$WORK/disk.json" "$RUN/devices.d/"
start_cowd
is "with the note it is served again" "$(state disk)" active

end_cowd KILL
echo "e-00c0ffee backend/vbd/7/51712: No cowd was there." >"$RUN/left-events"
touch "$RUN/helper-killed"
start_cowd
check "what failed while no cowd answered is in its events" grep -q "No cowd was there.*e-00c0ffee" < <(ctl events)
is "and nothing of the one before is left" "$(find "$RUN" -name 'helper-*' -o -name 'left-events*')" ""

need dmsetup remove disk
check "cowd says that others removed it" timeout 30 grep -q -m 1 "not by cowd" \
	< <(ctl events --follow 2>/dev/null)
is "a device that others remove is forgotten" "$(ls "$RUN/devices.d")" ""
check "its store can be attached again" ctl attach --name disk "$store"
check "and be detached" ctl detach disk
