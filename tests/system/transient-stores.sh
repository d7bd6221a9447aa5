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
tool find "$VG" "$VM" xvdb >/dev/null
check "not that of another disk" test $? = 3
need lvm_on lvchange -qq -an "$VG/${path##*/}"
check "it is found where it is not active" test "$(tool find "$VG" "$VM" xvda | field .problem)" = ""
check "and is active then" test -b "$path"
check "unsave" tool unsave "$uuid"
tool find "$VG" "$VM" xvda >/dev/null
check "it is not saved any more" test $? = 3
check "remove" tool remove "$uuid"
check "it is gone" test ! -e "$path" -a "$(count)" = 0
refuses "twice is refused" ENOENT tool remove "$uuid"

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
