#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# sequences.sh [COUNT [SEED]]: random sequences of a guest's operations on random images of
# every format that qemu-img knows, through the kernel; some over chains, some in two sessions. After
# each, qemu-img finds neither errors nor leaks, reads what the guest wrote, and sees the same map.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
count=${1:-12}
seed=${2:-7}
IMAGES=$WORK/images

volumes images=1G
need mkfs.ext4 -q "$(vol images)"
mkdir "$IMAGES"
need mount "$(vol images)" "$IMAGES"
start_cowd

# pick VARIABLE WORD...: not in $(), which has random numbers of its own.
pick() {
	local variable=$1
	shift "$((1 + RANDOM % ($# - 1)))"
	printf -v "$variable" %s "$1"
}

# What another program left in an image: written, zeroed and discarded runs.
fill() {
	local format=$1 file=$2 sectors=$3 i at length commands=()
	for ((i = RANDOM % 12; i > 0; i--)); do
		at=$(((RANDOM * 32768 + RANDOM) % sectors * 512))
		length=$((512 * (1 + RANDOM % 256)))
		((at + length <= sectors * 512)) || length=$((sectors * 512 - at))
		case $((RANDOM % 5)) in
		0) [[ $format == qcow2 ]] && commands+=(-c "write -z $at $length") ;;
		1) [[ $format == qcow2 ]] && commands+=(-c "write -zu $at $length") ;;
		*) commands+=(-c "write -P $((1 + RANDOM % 255)) $at $length") ;;
		esac
	done
	((${#commands[@]} == 0)) || need qemu-io -f "$format" "${commands[@]}" "$file"
}

# image THEIR-FORMAT FILE SECTORS [BASE BASE-FORMAT]: sets ours and made, what it was made by.
image() {
	local options='' option under=() disk=$3
	case $1 in
	qcow2)
		ours=qcow2
		pick option 512 4k 64k 64k 256k
		options=cluster_size=$option
		pick option compat=0.10 compat=1.1 compat=1.1,lazy_refcounts=on compat=1.1,refcount_bits=1 compat=1.1,refcount_bits=64
		options+=,$option
		;;
	vmdk)
		ours=vmdk
		options=subformat=monolithicSparse
		;;
	vpc)
		ours=vhd
		pick option dynamic dynamic fixed
		options=force_size=on,subformat=$option
		;;
	*) ours=$1 ;;
	esac
	[[ ! ${4-} ]] || under=(-b "$4" -F "$5")
	made="$1 ${options:-without options}${4:+ over $5}, $disk sectors"
	need qemu-img create -q -f "$1" ${options:+-o "$options"} "${under[@]}" "$IMAGES/$2" "$((disk * 512))"
	fill "$1" "$IMAGES/$2" "$disk"
}

# Without holes in the files, which qemu-img map tells as well.
whole() { cp --sparse=never "$1" "$1.whole" && mv "$1.whole" "$1"; }

# The map without what only one of the two says, and runs that go on put together.
plain_map() {
	jq -c '[.[] | {start, length, depth, present, zero, data, compressed: (.compressed // false)}]
		| reduce .[] as $e ([]; if length > 0 and (.[-1] | del(.start, .length)) == ($e | del(.start, .length))
		then .[-1].length += $e.length else . + [$e] end) | .[]'
}
same_map() {
	whole "$3" || return
	[[ ! -e $IMAGES/base ]] || whole "$IMAGES/base" || return
	diff <(qemu-img map --output=json -f "$1" "$3" | plain_map) <(ctl map --json "$2:$3" | plain_map)
}

session() {
	ctl attach --name disk "$1" || return
	blockplay /dev/mapper/disk "$IMAGES/contents" "$RANDOM" $((10 + RANDOM % 30))
	local status=$?
	ctl detach disk && return "$status"
}

sequence() {
	local theirs=$1 file=$IMAGES/top sessions
	RANDOM=$2
	need qemu-img convert -f "$theirs" -O raw "$file" "$IMAGES/contents"
	for ((sessions = 1 + RANDOM % 2; sessions > 0; sessions--)); do
		session "$ours:$file" || return
	done
	qemu-img check -q -f "$theirs" "$file"
	local status=$?
	((status == 0 || status == 63)) || { qemu-img check -f "$theirs" "$file"; return 1; }
	ctl check "$ours:$file" || return
	qemu-img convert -f "$theirs" -O raw "$file" "$IMAGES/after" &&
		cmp "$IMAGES/after" "$IMAGES/contents" && same_map "$theirs" "$ours" "$file"
}

for ((number = 1; number <= count; number++)); do
	RANDOM=$((seed * 1000 + number))
	sectors=$((64 + RANDOM % 16384))
	theirs='' base=''
	pick theirs qcow2 qcow2 qcow2 qcow vmdk vpc
	under=()
	if [[ $theirs == qcow2 ]] && ((RANDOM % 2)); then
		pick base raw qcow2 qcow2
		image "$base" base $((1 + RANDOM % (sectors * 3 / 2)))
		under=(base "$base")
	fi
	image "$theirs" top "$sectors" "${under[@]}"
	check "$number: $made" sequence "$theirs" "$RANDOM" || cp "$IMAGES/top" "${LAB_RESULTS:-$WORK}/sequence-$number" 2>/dev/null
	rm -f "$IMAGES"/{top,base,contents,after}
done
