#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A driver domain (xl devd), with block-dmu and cowd in it, which are not for driver
# domains yet: a disk with backend= is refused there by name, and nothing is left of it.

here=$(dirname "$0")
# shellcheck source=tests/xen/lib.sh
. "$here/lib.sh"

volumes tools=256M plain=16M
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
mkdir -p "$WORK"/root/{dev,proc,sys,run,tmp,bin,sbin,var/log/xen,var/run/xen,var/lock,var/lib/xen}
need provide /bin/bash /bin/busybox /usr/bin/xenstore-{read,write,exists,rm,list,ls} \
	/usr/lib/xen-4.17/bin/xl "$(command -v cowd)" "$(command -v cowctl)"
for dir in /etc/xen /usr/lib/xen-common /usr/local/lib/cowd /usr/local/etc/cowd; do
	[[ ! -e $dir ]] || need cp -aL --parents "$dir" "$WORK/root"
done
for library in "$WORK"/root/usr/local/lib/cowd/plugins/*.so "$WORK"/root/usr/local/lib/cowd/xen/*.so; do
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
check "the disk is refused" eval "! timeout 120 xl block-attach u \
	script=block-dmu,vdev=xvdb,access=w,backend=d,target=dscow:/dev/vg/cow:/dev/vg/base"
in_guest d sh 'chroot /mnt/xvda /bin/grep -o "driver domains are not served.*" /var/log/xen/xen-hotplug.log'
in_guest d sh 'cat /mnt/xvda/devd.log | tail -n 3'
in_guest u write xvda 7 0 1024
in_guest u verify xvda 7 0 1024
same_leftovers "nothing is left of it" "$before"
destroy u
destroy d
