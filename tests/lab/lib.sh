# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# What the lab's programs share.  Sourced with `set -euo pipefail` in force.
#
#   build/lab/
#     apt/        package lists of the lab's own, so that the host's apt
#                 configuration is neither needed nor changed
#     kernels/R/  kernel R of Debian, unpacked: boot/, lib/modules/, usr/src/
#     roots/      root file systems, named by the hash of what made them
#     run/        the machine that is running: tree, job, disks, console
#     lock        held while a machine runs

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=${LAB_DIR:-$TOP/build/lab}
MIRROR=${LAB_MIRROR:-http://deb.debian.org/debian}
SECURITY_MIRROR=${LAB_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
ARCH=$(dpkg --print-architecture 2>/dev/null || echo amd64)

say() { printf 'lab: %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 125; }

# need PROGRAM PACKAGE
need() {
	command -v "$1" >/dev/null ||
		die "$1 is missing. On Debian: apt-get install $2, or: make setup"
}

# as_one FILE COMMAND...: no two of these at once.
as_one() {
	local lock=$1
	shift
	mkdir -p "$(dirname "$lock")"
	(
		flock 9
		"$@" 9>&-
	) 9>"$lock"
}

# An apt that sees a Debian suite with security, updates and backports, whatever
# the host has, and that leaves the host's own lists alone.
lab_apt() {
	local suite=$1 dir=$LAB/apt/$1 program=$2
	shift 2
	"$program" -qq \
		-o Dir::State="$dir" -o Dir::State::status=/dev/null \
		-o Dir::Cache="$dir/cache" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::SourceList="$dir/sources.list" \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o APT::Architecture="$ARCH" -o APT::Sandbox::User=root \
		-o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

sources_of() {
	local suite=$1 signed="[signed-by=$KEYRING]"
	echo "deb $signed $MIRROR $suite main"
	echo "deb $signed $MIRROR $suite-updates main"
	echo "deb $signed $MIRROR $suite-backports main"
	echo "deb $signed $SECURITY_MIRROR $suite-security main"
}

# Package lists of SUITE, fetched when there are none or they are a day old.
refresh_apt() {
	local suite=$1 dir=$LAB/apt/$1
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	sources_of "$suite" >"$dir/sources.list"
	if [[ $(find "$dir/fresh" -mmin -1440 2>/dev/null) ]]; then
		return
	fi
	say "fetching package lists of $suite"
	lab_apt "$suite" apt-get update
	touch "$dir/fresh"
}

# fetch_static PACKAGE PROGRAM: a static program from Debian, in $LAB, without
# installing it on the host.
fetch_static() {
	local suite=${LAB_SUITE:-bookworm} dir
	[[ -x $LAB/$2 ]] && return
	refresh_apt "$suite"
	dir=$(mktemp -d)
	(cd "$dir" && lab_apt "$suite" apt-get download "$1")
	dpkg-deb -x "$dir/$1"_*.deb "$dir"
	find "$dir" -name "$2" -type f -exec mv {} "$LAB/$2" \;
	rm -rf "$dir"
}

# Modules may be compressed (xz since Debian 13); insmod of busybox wants them plain.
copy_module() {
	case $1 in
	*.xz) xz -dc "$1" >"$2/$(basename "$1" .xz)" ;;
	*.zst) zstd -qdc "$1" >"$2/$(basename "$1" .zst)" ;;
	*) cp "$1" "$2/" ;;
	esac
}

# Hardware virtualisation only where the processor says so: /dev/kvm alone
# proves nothing.
can_kvm() {
	grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -r /dev/kvm && -w /dev/kvm ]]
}
