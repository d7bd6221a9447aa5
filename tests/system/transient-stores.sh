#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Transient stores in a real volume group and in a directory: made, saved, found, removed;
# what is not ours stays; a crash at any step leaves nothing that scan() does not find.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes base=64M other=16M
DIR=$WORK/stores
need mkdir -m 700 "$DIR"
printf '[devices]\nstore_directories = ["%s"]\n' "$DIR" >"$WORK/cowd.toml"
cowd_command+=(--config "$WORK/cowd.toml")
VM=c0ffee00-0000-4000-8000-000000000001

tool() { transient-tool "$@"; }
field() { jq -r "$1"; }
count() { tool scan "$DIR" 2>/dev/null | wc -l; }
lvs_of() { lvm_on lvs --noheadings -o "$1" -S "$2" "$VG" 2>/dev/null | xargs; }

# refuses NAME ERRNO COMMAND...
refuses() {
	local name=$1 errno=$2 said
	shift 2
	if said=$("$@" 2>&1); then
		not_ok "$name" "it was not refused: $said"
	elif [[ $said == *"$errno: "* ]]; then
		ok "$name"
		echo "# $name: $said"
	else
		not_ok "$name" "$said"
	fi
}

# --- in a volume group ---

# A cowd that starts removes what it takes for left by a crash: first of all, then.
start_cowd

check "nothing to begin with" test "$(count)" = 0
refuses "a group that is not there" ENOENT tool create nogroup 4096 "" ""
refuses "a group that is full" ENOSPC tool create "$VG" 100000000000000 "" ""
check "nothing is left of those" test "$(count)" = 0
store=$(tool create "$VG" 70000000 "$VM" xvda) || not_ok "create" "$store"
uuid=$(field .uuid <<<"$store")
path=$(field .path <<<"$store")
lv=$(field .lv_uuid <<<"$store")
check "made" test -b "$path"
check "its tags" test "$(lvs_of lv_tags "lv_uuid=$lv" | tr ',' '\n' | sort | xargs)" = \
	"cowd.boot=$(cat /proc/sys/kernel/random/boot_id) cowd.host=$(cat /etc/machine-id) cowd.store=$uuid cowd.transient cowd.vdev=xvda cowd.vm=$VM"
check "it is large enough" test "$(blockdev --getsize64 "$path")" -ge 70000000
check "it is zeroed where headers are" cmp -n 1048576 "$path" /dev/zero
check "it is not activated at boot" test "$(lvs_of lv_autoactivation "lv_uuid=$lv")" = ""
check "scan finds it" test "$(tool scan | field .uuid)" = "$uuid"
need ctl create -o "uuid=$uuid" "dscow:$path:$(vol base)"
check "and with a header" test "$(tool scan | field .problem)" = ""
need ctl attach --name first --durability transient "dscow:$path:$(vol base)"
refuses "one in use stays" EBUSY tool remove "$uuid"
need ctl detach first
check "save" tool save "$uuid"
check "it is saved" test "$(tool find "$VG" "$VM" xvda | field .uuid)" = "$uuid"
refuses "a saved one stays" EPERM tool remove "$uuid"
check "LVM's selection leaves it out, too" test -z "$(lvs_of lv_name "lv_uuid=$lv && lv_tags!=\"cowd.saved\"")"
tool find "$VG" "$VM" xvdb >/dev/null
check "not that of another disk" test $? = 3
need lvm_on lvchange -qq -an "$VG/${path##*/}"
check "it is found where it is not active" test "$(tool find "$VG" "$VM" xvda | field .problem)" = ""
check "and is active then" test -b "$path"
check "unsave" tool unsave "$uuid"
tool find "$VG" "$VM" xvda >/dev/null
check "it is not saved any more" test $? = 3
check "LVM's selection has it now" test -n "$(lvs_of lv_name "lv_uuid=$lv && lv_tags!=\"cowd.saved\"")"
check "remove" tool remove "$uuid"
check "it is gone" test ! -e "$path" -a "$(count)" = 0
refuses "twice is refused" ENOENT tool remove "$uuid"
uuid=$(tool create "$VG" 4194304 "$VM" xvda | field .uuid)
check "another one is saved" tool save "$uuid"
check "and deleted" tool delete "$uuid"
check "nothing is left of it" test "$(count)" = 0

# --- what stays ---

theirs=$(tool --host another create "$VG" 4194304 "$VM" xvda | field .uuid)
check "another host's is listed" test "$(tool scan | field .host)" = another
refuses "but not removed" EPERM tool remove "$theirs"
refuses "nor saved" EPERM tool save "$theirs"
check "by its own host it is" tool --host another remove "$theirs"

store=$(tool create "$VG" 8388608 "" "")
uuid=$(field .uuid <<<"$store")
path=$(field .path <<<"$store")
need mkfs.ext4 -q "$path"
check "one that holds something else is reported" grep -q "no dscow store" <<<"$(tool scan | field .problem)"
refuses "and stays" EUCLEAN tool remove "$uuid"
need wipefs -qa "$path"
need dd if=/dev/zero of="$path" bs=64K count=1 conv=fsync status=none
need ctl create --force -o size=1M -o uuid=00000000-0000-4000-8000-00000000000a "dscow:$path"
refuses "with another store's header, too" EUCLEAN tool remove "$uuid"
need ctl create --force -o size=1M "dscow:$path"
exec {held}<"$path"
refuses "one that somebody has open stays" EBUSY tool remove "$uuid"
exec {held}<&-
check "with a header that does not say which store it is, it is removed" tool remove "$uuid"

# The tags of a store on a volume of somebody else's: its header has the last word.
need lvm_on lvchange -qq --addtag cowd.transient --addtag "cowd.store=$uuid" \
	--addtag "cowd.host=$(cat /etc/machine-id)" "$VG/other"
need mkfs.ext4 -q "$(vol other)"
refuses "a volume that was tagged by mistake stays" EUCLEAN tool remove "$uuid"
need lvm_on lvchange -qq --deltag cowd.transient "$VG/other"

# LVM reads none of our devices, even where a guest made it a physical volume of a group of
# the same name.
need ctl create --force -o size=8M "dscow:$(vol other)"
need ctl attach --name guest "dscow:$(vol other)"
need lvm pvcreate -qq --config "devices{filter=[\"a|^/dev/mapper/guest$|\",\"r|.*|\"]}" /dev/mapper/guest
end_cowd KILL
began=$SECONDS
store=$(timeout 20 transient-tool create "$VG" 4194304 "" "")
check "a device without its cowd hangs nobody" test -n "$store"
check "and is not waited for" test $((SECONDS - began)) -lt 20
need timeout 20 transient-tool remove "$(field .uuid <<<"$store")"
start_cowd
need ctl detach guest
need wipefs -qa "$(vol other)"

# --- in a directory ---

# cowd, which was just started, takes what it finds for what a crash left: its first store comes
# after that look.
need ctl attach --name first "dscow:transient@$DIR:$(vol base)"
need ctl detach first
store=$(tool create "$DIR" 8388608 "$VM" xvda)
uuid=$(field .uuid <<<"$store")
path=$(field .path <<<"$store")
need ctl create -o "uuid=$uuid" -o size=4M "dscow:$path"
need ctl attach --name file "dscow:$path"
refuses "a file behind a loop device stays" EBUSY tool remove "$uuid" "$DIR"
need ctl detach file
check "save a file" tool save "$uuid" "$DIR"
check "it is found" test "$(tool find "$DIR" "$VM" xvda | field .uuid)" = "$uuid"
refuses "a saved file stays" EPERM tool remove "$uuid" "$DIR"
check "until it is deleted" tool delete "$uuid" "$DIR"
check "nothing of it stays" test -z "$(ls -A "$DIR")"

# --- as cowd makes them ---

stores() { ctl stores --json | field "$1"; }
state() { stores '.stores[].state'; }
none_left() { [[ $(stores '.stores | length') == 0 ]]; }

said=$(ctl attach --name none "dscow:transient@$MNT:$(vol base)" 2>&1)
check "a directory that is not configured is refused" grep -q "devices.store_directories" <<<"$said"
check "attach over a file" ctl attach --name passing "dscow:transient@$DIR:$(vol base)"
check "its store is in use" test "$(state)" = in-use
said=$(ctl delete "$(stores '.stores[].uuid')" 2>&1)
check "and not deleted then" grep -q "is in use" <<<"$said"
check "detach it" ctl detach passing
check "its store goes with it" none_left

uuid=$(tool create "$DIR" 4194304 "$VM" xvda | field .uuid)
check "what a crash left is listed" test "$(state)" = left
check "it may be deleted" ctl delete "$uuid"
uuid=$(tool create "$DIR" 4194304 "$VM" xvda | field .uuid)
need tool save "$uuid" "$DIR"
check "what is saved is listed" test "$(state)" = saved
check "it may be deleted as well" ctl delete "$uuid"
check "both are gone" none_left
uuid=$(tool create "$DIR" 4194304 "$VM" xvda | field .uuid)
need dd if=/dev/urandom of="$DIR/$uuid.store" bs=4K count=1 conv=notrunc,fsync status=none
check "what holds something else is listed" test "$(state)" = unreadable
check "with the reason" grep -q "no dscow store" <<<"$(ctl stores | tail -n 1)"
said=$(ctl delete "$uuid" 2>&1)
check "and not deleted" grep -q "leaves it alone" <<<"$said"
need rm "$DIR/$uuid.store" "$DIR/$uuid.json"

# What is in the way of a removal passes.
need ctl attach --name passing "dscow:transient@$VG:$(vol base)"
path=$(stores '.stores[].path')
exec {held}<"$path"
check "its device goes" ctl detach passing
check "a store that somebody has open is left" test "$(state)" = left
check "and said to be open" grep -q "is open" <<<"$(stores '.stores[].problem')"
exec {held}<&-
check "it is removed when that is over" until_true 90 none_left
check "which is an event" grep -q store-removed <<<"$(ctl events)"

# --- crashes ---

# crash SYSCALLS WHEN COMMAND...: killed as it enters the WHEN-th of these; fails if
# there were not as many.
crash() {
	local calls=$1 when=$2
	shift 2
	! strace -qq -o /dev/null -e "trace=$calls" -e "inject=$calls:signal=KILL:when=$when" \
		transient-tool "$@" >/dev/null 2>&1
}
leftovers() {
	[[ $1 == /* ]] && ls -A "$1"
	[[ $1 == /* ]] || lvs_of lv_name 'lv_name=~^cowd-'
}
# crashes NAME WHERE SYSCALLS: kills create and remove at each of them.
crashes() {
	local name=$1 where=$2 calls=$3 when steps=0 uuid command bad=
	for command in create remove; do
		for ((when = 1; when < 40; when++)); do
			if [[ $command == create ]]; then
				crash "$calls" "$when" create "$where" 4194304 "$VM" xvda || break
			else
				uuid=$(tool create "$where" 4194304 "$VM" xvda | field .uuid)
				crash "$calls" "$when" remove "$uuid" "$DIR" || break
			fi
			steps=$((steps + 1))
			tool scan "$DIR" 2>/dev/null | field .problem | grep -q . &&
				bad+=" a problem at $command $when;"
			for uuid in $(tool scan "$DIR" 2>/dev/null | field .uuid); do
				tool remove "$uuid" "$DIR" || bad+=" not removed at $command $when;"
			done
			[[ -z $(leftovers "$where") ]] || bad+=" left at $command $when: $(leftovers "$where");"
		done
		# The one that was not killed.
		for uuid in $(tool scan "$DIR" 2>/dev/null | field .uuid); do tool remove "$uuid" "$DIR"; done
	done
	check "$name: $steps crashes were real" test "$steps" -ge 6
	check "$name: nothing is left that cannot be found" test -z "$bad" || echo "# $bad"
}
crashes "in a directory" "$DIR" fsync,rename,renameat,renameat2,unlinkat,ftruncate
# Each child, before it is begun and when it has ended; and the zeroing.
crashes "in a volume group" "$VG" pidfd_open,wait4,pwrite64,fdatasync
