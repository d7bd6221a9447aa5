#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A driver domain (xl devd), with block-dmu and cowd in it, which are not for driver
# domains yet: a disk with backend= is refused there by name, and nothing is left of it.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

volumes tools=1G plain=16M
need mkfs.ext4 -q /dev/vg/tools
mkdir "$WORK/root"
need mount /dev/vg/tools "$WORK/root"

# provide FILE...: with the libraries that each needs.
provide() {
	local file
	for file in "$@"; do
		cp -L --parents "$file" "$WORK/root" || return
		ldd "$file" 2>/dev/null | grep -oE '/[^ ]+' | while read -r library; do
			[[ -e $WORK/root/$library ]] || cp -L --parents "$library" "$WORK/root" || return
		done
	done
}
copy_folder() { tar -C / -ch "${1#/}" | tar -x -C "$WORK/root"; }
mkdir -p "$WORK"/root/{dev,proc,sys,run,tmp,bin,sbin,var/log/xen,var/run/xen,var/lock,var/lib/xen}
need provide /bin/bash /bin/busybox /usr/bin/xenstore-{read,write,exists,rm,list,ls} \
	/usr/lib/xen-4.17/bin/xl /usr/local/sbin/cowd /usr/local/sbin/cowctl
for dir in /etc/xen /usr/lib/xen-common /usr/local/lib/cowd /usr/local/etc/cowd; do
	[[ ! -e $dir ]] || need copy_folder "$dir"
done
for library in "$WORK"/root/usr/local/lib/cowd/plugins/*.so "$WORK"/root/usr/local/lib/cowd/plugins/xen/*.so; do
	need provide "${library#"$WORK/root"}"
done
cat >"$WORK/root/begin" <<-'END'
	#!/bin/bash
	# What a driver domain's init does.
	export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	/bin/busybox --install -s /bin
	mkdir -p /run/cowd /run/xen /run/lock
	echo 0123456789abcdef0123456789abcdef >/etc/machine-id
	cowd >/cowd.log 2>&1 &
	/usr/lib/xen-4.17/bin/xl devd -F >/devd.log 2>&1 &
	for ((i = 0; i < 200; i++)); do
		if [[ -S /run/cowd/control.sock ]]; then echo serving; exit; fi
		sleep 0.1
	done
	tail -n 3 /cowd.log
	exit 1
END
chmod +x "$WORK/root/begin"
need umount "$WORK/root"

need systemctl start cowd.socket cowd
config d 'phy:/dev/vg/tools,xvda,w'
echo 'driver_domain = 1' >>"$WORK/d.cfg"
config u 'phy:/dev/vg/plain,xvda,w'
create d || exit
in_guest d driver xvda /begin
create u || exit
before=$(leftovers)
# libxl of domain 0 waits for the backend's driver alone; the script is run by the other one.
xl block-attach u script=block-dmu,vdev=xvdb,access=w,backend=d,target=dscow:/dev/vg/cow:/dev/vg/base
node=/local/domain/$(xl domid d)/backend/vbd/$(xl domid u)/51728
check "the disk is refused" timeout 60 bash -c "until xenstore-read $node/hotplug-error; do sleep 0.2; done"
check "and not connected" test "$(xenstore-read "$node/hotplug-status")" = error
in_guest d sh 'chroot /mnt/xvda /bin/grep -o "driver domains are not served.*" /var/log/xen/xen-hotplug.log'
in_guest d sh 'tail -n 20 /mnt/xvda/devd.log | tr "\\n" "|"'
check "xl block-detach" xl block-detach u xvdb
in_guest u write xvda 7 0 1024
in_guest u verify xvda 7 0 1024
same_leftovers "nothing is left of it" "$before" "cowd's threads"
destroy u
destroy d
