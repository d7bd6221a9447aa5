#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# log-writes.sh: what a power cut leaves of a store, at many points, on the kernel's own terms:
# dm-log-writes lies under the store while a load runs whose every step is fsynced and then
# marked in the log. Of the log the store is made as it may have been left at each of so many
# points, half of them just where something was acknowledged: it must attach, all that was
# acknowledged be there, its file system be sound and its check find nothing. On ext4 and xfs,
# with flush and always. Then once more with a cowd that does not flush: a loss must be found.
# COWD_POINTS: of each file system and mode.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../system/lib.sh"

POINTS=${COWD_POINTS:-13}
RECORDS=${COWD_RECORDS:-$((POINTS * 4 < 60 ? 60 : POINTS * 4))}
SEED=${COWD_SEED:-$RANDOM}
logged="logged-store"

# dm-log-writes logs what a flush covers when that flush ends. Of two at once the one that was sent
# last may end first, and then the log has it before what it covers too. So cowd does not commit
# by its clock here, only when it is asked.
printf '[devices]\ncommit_interval = "60s"\n' >"$WORK/cowd.toml"
cowd_command+=(--config "$WORK/cowd.toml")

# Power comes back: the same host, another boot.
boots=0
next_boot() {
	boots=$((boots + 1))
	umount /proc/sys/kernel/random/boot_id 2>/dev/null
	printf '%08d-0000-4000-8000-000000000000\n' "$boots" >"$WORK/boot_id"
	need mount --bind "$WORK/boot_id" /proc/sys/kernel/random/boot_id
	start_cowd
}

# write_log FS MODE: the load, with all its writes in the volume `log`.
write_log() {
	need wipefs -qa "$(vol base)"
	need "mkfs.$1" -q "$(vol base)"
	need blkdiscard -z "$(vol cow)"
	need dmsetup create "$logged" --table \
		"0 $(blockdev --getsz "$(vol cow)") log-writes $(vol cow) $(vol log)"
	need ctl create -o granule=4K "dscow:/dev/mapper/$logged:$(vol base)"
	need ctl attach --name disk --durability "$2" "dscow:/dev/mapper/$logged:$(vol base)"
	need mount "/dev/mapper/disk" "$MNT"
	need syncload run "$MNT" "$SEED" "$RECORDS" "$logged"
	need umount "$MNT"
	need ctl detach disk
	end_cowd TERM
	need udevadm settle
	need dmsetup remove "$logged"
}

fsck_of() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

# point FS MODE ENTRY ACKED
point() {
	local spec
	spec="dscow:$(vol cow):$(vol base)"
	blkdiscard -z "$(vol cow)" && logreplay point "$(vol log)" "$(vol cow)" "$3" "$SEED" || return
	ctl attach --name disk --durability "$2" "$spec" || return
	mount "/dev/mapper/disk" "$MNT" || return
	syncload verify "$MNT" "$SEED" "$4" || return
	umount "$MNT" || return
	fsck_of "$1" /dev/mapper/disk || return
	ctl detach disk || return
	ctl check "$spec"
}
put_down() {
	umount "$MNT"
	ctl detach disk
} >/dev/null 2>&1

# points FS MODE [first]: looks at all, or until the first that is not as it must be; how many were
# not is in `bad`.
points() {
	local entry acked said number=0
	bad=0 why=
	while read -r entry acked; do
		number=$((number + 1))
		said=$(point "$1" "$2" "$entry" "$acked" 2>&1 </dev/null) && continue
		bad=$((bad + 1))
		why="entry $entry, record $acked: $(tail -n 2 <<<"$said" | tr '\n' ' ')"
		put_down
		[[ ! ${3-} ]] || break
	done < <(logreplay points "$(vol log)" "$POINTS" "$SEED")
	looked=$number
}

volumes base=320M cow=352M log=1G
need modprobe dm-log-writes
echo "# seed $SEED, $RECORDS records"
for fs in ext4 xfs; do
	for mode in flush always; do
		next_boot
		write_log "$fs" "$mode"
		next_boot
		points "$fs" "$mode"
		end_cowd TERM
		if ((bad == 0 && looked == POINTS)); then
			ok "power cuts, $fs, $mode"
			echo "# figure: power cuts on $fs, $mode: $looked points, nothing lost"
		else
			not_ok "power cuts, $fs, $mode" "$bad of $looked points; the last: $why"
		fi
	done
done

# The control.
plain_command=("${cowd_command[@]}")
cowd_command=(env LD_PRELOAD="$TOP/build/tests/kernel/without-flush.so" "${cowd_command[@]}")
next_boot
write_log ext4 flush
cowd_command=("${plain_command[@]}")
next_boot
points ext4 flush first
if ((bad > 0)); then
	ok "power cuts without flushes lose something"
	echo "# figure: power cuts without flushes: the loss is found at point $looked: $why"
else
	not_ok "power cuts without flushes lose something" "nothing was missing at $looked points"
fi
end_cowd TERM
umount /proc/sys/kernel/random/boot_id
