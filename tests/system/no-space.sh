#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Stores that find no room, in a real thin pool and in a file with holes on a small ext4:
# cowd tells before, writes wait, a hook or the operator adds room, writes go on, and all
# that was written is there; also where cowd is killed, or the device suspended, meanwhile.

# shellcheck source=tests/system/lib.sh
# shellcheck disable=SC2016 # what eval is given
. "$(dirname "$0")/lib.sh"
modprobe dm-thin-pool || exit
volumes base=96M base2=96M small=48M
need mkfs.ext4 -q -m 0 "$(vol small)"
mkdir "$WORK/small"
need mount "$(vol small)" "$WORK/small"
SIZE=$((64 << 20))

# configure NO_SPACE [HOOK [COMMIT_INTERVAL]]
configure() {
	cat >"$WORK/cowd.toml" <<-END
		[devices]
		no_space = "$1"
		no_space_retry = "2s"
		commit_interval = "${3-500ms}"
		[space]
		interval = "1s"
		low = 60
		hook_interval = "1s"
		${2:+hook = \"$2\"}
	END
}
cowd_command+=(--config "$WORK/cowd.toml")

field() { ctl --json info disk | jq -r "$1"; }
waits() { [[ $(field .state) == waiting-for-space ]]; }
events() { ctl --json events | jq -r '.type'; }
sentences() { ctl --json events | jq -r "select(.type == \"$1\") | .message"; }
# come_in_order EVENT...: each after the one before, whatever is between.
come_in_order() {
	local at=0 found each list
	list=$(events)
	for each in "$@"; do
		found=$(tail -n "+$((at + 1))" <<<"$list" | grep -n -m 1 -x "$each" | cut -d : -f 1)
		[[ $found ]] || {
			echo "no $each behind line $at of: $(xargs <<<"$list")"
			return 1
		}
		at=$((at + found))
	done
}
# fill_disk MEGABYTES: writes so many, of which the pool or file system gets low; then, in
# the background, more than there is room for.
fill_disk() {
	need dd if=/dev/urandom of=/dev/mapper/disk bs=1M count="$1" seek=64 oflag=direct conv=fsync
	check "$2: space-low" until_true 60 come_in_order space-low
	rm -f "$WORK/state"
	blockload fill /dev/mapper/disk "$WORK/state" --bytes "$SIZE" >"$WORK/fill" 2>&1 &
	fill=$!
}
still_filling() { kill -0 "$fill"; }

# thin_store: a fresh pool of 32 MiB, and in it a store for a disk of 96 MiB.
thin_store() {
	lvm_on lvremove -qq -f -y "$VG/pool" >/dev/null 2>&1
	need lvm_on lvcreate -qq -y -Zn --type thin-pool -L 32M --chunksize 64k --poolmetadatasize 4M \
		-n pool "$VG"
	need lvm_on lvchange -qq --errorwhenfull y "$VG/pool"
	need lvm_on lvcreate -qq -y -Wn -V 128M --thinpool "$VG/pool" -n cow
	need ctl create --force "dscow:$(vol cow):$(vol base)"
	need ctl attach --name disk "dscow:$(vol cow):$(vol base)"
}

# --- a thin pool, and a hook ---

# Not before writes wait: the order is to be seen.
cat >"$WORK/hook" <<END
#!/bin/sh
echo "\$@" >>$WORK/hook-words
[ "\$1" = waiting ] || { echo "not yet" >&2; exit 3; }
exec $TOP/packaging/hooks/cowd-extend "\$@"
END
chmod 755 "$WORK/hook"
configure wait "$WORK/hook"
start_cowd
thin_store
check "thin: nothing waits at first" test "$(field .state)" = active
check "thin: nor is it low" eval '! events | grep -q space'
fill_disk 22 thin
ended "thin: the writer saw no error" "$fill" "$WORK/fill"
check "thin: all is there" blockload verify /dev/mapper/disk "$WORK/state"
check "thin: what waited goes on" until_true 60 come_in_order no-space-over
check "thin: low, the hook that will not, no room, the hook that does, on" \
	come_in_order space-low space-hook-failed no-space space-hook no-space-over
check "thin: space-low has figures and the device" \
	grep -qE "The thin pool $VG/pool is [0-9.]+ % full .* of disk" <<<"$(sentences space-low)"
check "thin: the hook's last line and status are told" \
	grep -q "status 3 and said: not yet" <<<"$(sentences space-hook-failed)"
check "thin: and how it ended well" \
	grep -q "status 0 after .* and said: $VG/pool was made larger" <<<"$(sentences space-hook)"
check "thin: its words" grep -qE "^waiting thin-pool $VG/pool [0-9]+ [0-9]+ disk$" "$WORK/hook-words"
check "thin: nothing waits any more" test "$(field .state)" = active
reattach cow base disk flush
check "thin: all is there after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
need ctl detach disk

# --- a hook that others may write is not run ---

chmod 777 "$WORK/hook"
rm -f "$WORK/hook-words"
check "hook: refused by --check-config" \
	eval '! cowd --config "$WORK/cowd.toml" --check-config'
end_cowd TERM
start_cowd
check "hook: and told of" until_true 10 come_in_order space-hook-failed
check "hook: with the way out" grep -q "others than root may write" <<<"$(sentences space-hook-failed)"

# --- no hook: cowd is killed, the device suspended, the operator extends ---

end_cowd TERM
configure wait
start_cowd
thin_store
fill_disk 22 operator
check "operator: writes wait" until_true 120 waits
check "operator: it is told where" test "$(field .waiting_for_space.destination)" = "$(vol cow)"
check "operator: and since when" test "$(date -d "$(field .waiting_for_space.since)" +%s)" -le "$EPOCHSECONDS"
check "operator: list says it" grep -q "disk: writes wait for room on $(vol cow) since" <<<"$(ctl list)"
check "operator: low came first" come_in_order space-low no-space
check "operator: the refused hook was not run" test ! -e "$WORK/hook-words"
check "operator: reads go on" dd if=/dev/mapper/disk of=/dev/null bs=64K count=16 iflag=direct status=none
end_cowd KILL
check "operator: killed, the writer waits" still_filling
start_cowd
check "operator: the next cowd finds the writes" until_true 60 waits
end_cowd TERM
check "operator: stopped, the writer waits" still_filling
start_cowd
check "operator: and once more" until_true 60 waits
check "operator: suspend ends" timeout 60 dmsetup suspend --noflush --nolockfs disk
need dmsetup resume disk
check "operator: and they wait again" until_true 60 waits
check "operator: pause ends" timeout 60 cowctl --socket "$RUN/control.sock" pause disk
check "operator: it is paused" test "$(field .state)" = paused
need ctl resume disk
check "operator: they wait still" until_true 60 waits
check "operator: the writer is there" still_filling
need lvm_on lvextend -qq -y -L 192M "$VG/pool"
ended "operator: the writer saw no error" "$fill" "$WORK/fill"
check "operator: all is there" blockload verify /dev/mapper/disk "$WORK/state"
check "operator: told" until_true 60 come_in_order no-space no-space-over
check "operator: and that there is room" until_true 60 come_in_order space-low space-ok
reattach cow base disk flush
check "operator: all is there after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
need ctl detach disk

# --- a file with holes on a file system of 48 MiB ---

COW=$WORK/small/cow
need ctl create "dscow:$COW:$(vol base2)"
need ctl attach --name disk "dscow:$COW:$(vol base2)"
fill_disk 30 file
check "file: writes wait" until_true 120 waits
check "file: it is told where" test "$(field .waiting_for_space.destination)" = "$COW"
check "file: space-low names the file system" \
	grep -qE "The file system $WORK/small is [0-9.]+ % full .* of disk" <<<"$(sentences space-low)"
check "file: the writer waits" still_filling
need lvm_on lvextend -qq -y -L 160M "$VG/small"
need resize2fs "$(vol small)"
ended "file: the writer saw no error" "$fill" "$WORK/fill"
check "file: all is there" blockload verify /dev/mapper/disk "$WORK/state"
check "file: told" until_true 60 eval 'test "$(ctl --json info disk | jq -r .state)" = active'
need ctl detach disk
need ctl attach --name disk "dscow:$COW:$(vol base2)"
check "file: all is there after detach and attach" blockload verify /dev/mapper/disk "$WORK/state"
need ctl detach disk
need rm "$COW"

# --- room for data, but none for the metadata that says where it is ---

# The disk's bits for what lies behind 256 MiB are in a page that is not there yet.
end_cowd TERM
configure wait "" 60s
start_cowd
truncate -s 512M "$WORK/large"
need dd if=/dev/urandom of="$WORK/pattern" bs=4K count=64
need ctl create "dscow:$COW:$WORK/large"
need ctl attach --name disk "dscow:$COW:$WORK/large"
need dd if=/dev/zero of=/dev/mapper/disk bs=4K count=1 oflag=direct conv=fsync,notrunc
dd if=/dev/zero of="$WORK/small/ballast" bs=1M conv=fsync 2>/dev/null
sync
truncate -s -64K "$WORK/small/ballast"
sync
dd if="$WORK/pattern" of=/dev/mapper/disk bs=4K seek=$((300 << 8)) oflag=direct conv=notrunc >"$WORK/dd" 2>&1 &
writer=$!
check "metadata: the writer fills what is left" until_true 60 waits
dd if=/dev/null of=/dev/mapper/disk conv=fsync,notrunc >"$WORK/sync" 2>&1 &
syncer=$!
check "metadata: it waits" until_true 60 eval '[[ $(field .waiting_for_space.metadata) == true ]]'
check "metadata: so does the fsync" kill -0 "$syncer"
said=$(timeout 60 cowctl --socket "$RUN/control.sock" pause disk 2>&1)
status=$?
check "metadata: pause is refused, and ends" test "$status" != 0 -a "$status" != 124
echo "# $said"
check "metadata: the fsync waits on" kill -0 "$syncer"
rm "$WORK/small/ballast"
ended "metadata: the writer saw no error" "$writer" "$WORK/dd"
ended "metadata: nor did the fsync" "$syncer" "$WORK/sync"
need ctl detach disk
need ctl attach --name disk "dscow:$COW:$WORK/large"
check "metadata: all is there after detach and attach" \
	cmp "$WORK/pattern" <(dd if=/dev/mapper/disk bs=4K skip=$((300 << 8)) count=64 iflag=direct status=none)
need ctl detach disk
need rm "$COW"

# --- no_space = "fail" ---

end_cowd TERM
configure fail
start_cowd
thin_store
said=$(dd if=/dev/urandom of=/dev/mapper/disk bs=1M count=64 oflag=direct 2>&1)
check "fail: ENOSPC" grep -q "No space left on device" <<<"$said"
check "fail: told" come_in_order no-space
check "fail: nothing waits" test "$(field .state)" = active
need ctl detach disk

# --- where nothing can run out nothing is looked at ---

need ctl create --force -o size=64M "dscow:$(vol base2)"
need ctl attach --name disk "dscow:$(vol base2)"
strace -f -qq -e trace=execve,statfs -o "$WORK/trace" -p "$cowd_pid" &
tracer=$!
sleep 4
check "plain: cowd is watched" kill -0 "$tracer"
kill "$tracer"
wait "$tracer" 2>/dev/null
check "plain: no lvs, no statfs" eval '! grep -E "lvs|statfs" "$WORK/trace"'
need ctl detach disk
need lvm_on lvremove -qq -f -y "$VG/pool"
