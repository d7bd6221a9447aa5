#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# NBD exports over TLS, by the kernel: both sides know one another by certificates, nothing
# goes in the clear, a server that comes back is talked to over TLS again.

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
volumes cow=80M
modprobe nbd nbds_max=4
BASE=$WORK/base.img
STORE=$WORK/top.img
PKI=$WORK/pki
truncate -s 64M "$BASE" "$STORE"
need mkfs.ext4 -q "$BASE"
mkdir "$PKI"
# Where cowctl, too, looks for named disks.
DISKS=/usr/local/etc/cowd/disks.d
need mkdir -p $DISKS

# authority FILE: a certificate that signs others.
authority() {
	certtool --generate-privkey --ecc --outfile "$PKI/$1-key.pem" &&
		printf 'cn = "%s"\nca\ncert_signing_key\n' "$1" >"$PKI/template" &&
		certtool --generate-self-signed --load-privkey "$PKI/$1-key.pem" \
			--template "$PKI/template" --outfile "$PKI/$1-cert.pem"
}
# certificate NAME WORDS...: of the authority "ca".
certificate() {
	local name=$1
	shift
	certtool --generate-privkey --ecc --outfile "$PKI/$name-key.pem" &&
		printf '%s\n' 'cn = "lab"' signing_key "$@" >"$PKI/template" &&
		certtool --generate-certificate --load-privkey "$PKI/$name-key.pem" \
			--load-ca-certificate "$PKI/ca-cert.pem" --load-ca-privkey "$PKI/ca-key.pem" \
			--template "$PKI/template" --outfile "$PKI/$name-cert.pem"
}
need authority ca
need authority other
need certificate server tls_www_server 'dns_name = "golden.example"'
need certificate host tls_www_client

serve() { # FILE EXPORT PORT OPTIONS...
	local file=$1 export=$2 port=$3
	shift 3
	qemu-nbd --persistent --shared=16 -f raw -x "$export" -p "$port" -b 127.0.0.1 \
		--pid-file "$WORK/$export.pid" --fork "$@" "$file"
}
tls() { # [PRIORITY]
	echo --tls-creds=t --object="tls-creds-x509,id=t,endpoint=server,dir=$PKI,verify-peer=yes${1:+,priority=$1}"
}
end_server() {
	local pid
	pid=$(cat "$WORK/$1.pid")
	kill -KILL "$pid"
	tail --pid="$pid" -f /dev/null
}
# named NAME URL WORDS...: a named disk with TLS.
named() {
	local file=$DISKS/$1.toml
	printf '%s\n' "spec = \"$2\"" '[tls]' "${@:3}" >"$file"
}
# refused NAME WORDS: attaching @NAME is, with these.
refused() {
	local said
	said=$(ctl attach --name none "@$1" 2>&1) && said="It was not refused."
	check "$3" grep -q -- "$2" <<<"$said"
	echo "# $said"
}

ca="ca = \"$PKI/ca-cert.pem\""
name='server_name = "golden.example"'
host=("certificate = \"$PKI/host-cert.pem\"" "key = \"$PKI/host-key.pem\"")
url=nbd://127.0.0.1:10810/base
# shellcheck disable=SC2046 # two options
need serve "$BASE" base 10810 --read-only $(tls)
# shellcheck disable=SC2046 # two options
need serve "$STORE" top 10811 $(tls NORMAL:-VERS-TLS1.3)
need serve "$BASE" clear 10812 --read-only
start_cowd

said=$(ctl attach --read-only --name none "raw:$url" 2>&1)
check "without TLS it is refused" grep -q "wants TLS" <<<"$said"
echo "# $said"
named disk "raw:nbd://127.0.0.1:10812/clear" "$ca" "$name" "${host[@]}"
refused disk "does not do TLS" "so is a server that has none"
named disk "raw:nbd://127.0.0.1:10811/top" "ca = \"$PKI/other-cert.pem\"" "$name" "${host[@]}"
refused disk "does not prove to be 'golden.example'" "so is one whose authority is unknown"
named disk "raw:nbd://127.0.0.1:10811/top" "$ca" "${host[@]}"
refused disk "does not prove to be '127.0.0.1'" "so is one of another name"
named disk "raw:nbd://127.0.0.1:10811/top" "$ca" "$name"
refused disk "see certificate and key in \[tls\]" "the server wants a certificate, too"
chmod 644 "$PKI/host-key.pem"
named disk "raw:nbd://127.0.0.1:10811/top" "$ca" "$name" "${host[@]}"
refused disk "chmod 600" "a key that others may read is refused"
chmod 600 "$PKI/host-key.pem"
named disk "raw:nbd://127.0.0.1:10811/top" "ca = \"$PKI/none.pem\"" "$name"
refused disk "No certificate of an authority" "a missing file is named"
check "nothing stays connected after that" eval "! grep -q cowd /sys/block/nbd*/backend"

# --- TLS 1.3, under a dscow store here ---
rm "$DISKS/disk.toml"
named base "dscow:$(vol cow):$url" "$ca" "$name" "${host[@]}"
check "create over it" ctl create --force @base
check "attach" ctl attach --name one @base
check "the kernel does TLS 1.3" eval "ss -tniH dport = :10810 | grep 'tcp-ulp-tls.*version: 1.3'"
check "reads the base" cmp -n 67108864 /dev/mapper/one "$BASE"
reader() { for _ in {1..2}; do dd if=/dev/mapper/one of=/dev/null bs=1M iflag=direct status=none || return; done; }
reader >"$WORK/reader" 2>&1 &
reading=$!
end_server base
kill -0 "$reading"
check "the reader waits for a server that was killed" test $? = 0
# shellcheck disable=SC2046 # two options
need serve "$BASE" base 10810 --read-only $(tls)
ended "it reads on when the server is back" "$reading" "$WORK/reader"
check "over TLS" eval "ss -tniH dport = :10810 | grep tcp-ulp-tls"
check "what it should" cmp -n 67108864 /dev/mapper/one "$BASE"
need ctl detach one

# --- TLS 1.2, written to ---
named disk "raw:nbd://127.0.0.1:10811/top" "$ca" "$name" "${host[@]}"
check "attach an export of an older server as top" ctl attach --name top @disk
check "the kernel does TLS 1.2" eval "ss -tniH dport = :10811 | grep 'tcp-ulp-tls.*version: 1.2'"
check "write to it" dd if=/dev/urandom of=/dev/mapper/top bs=1M count=32 oflag=direct conv=fsync status=none
sum=$(sum_of /dev/mapper/top)
need ctl detach top
check "it is on the server" test "$(sha256sum <"$STORE" | cut -d ' ' -f 1)" = "$sum"
check "nothing was taken for forged" grep -qE 'TlsDecryptError[[:space:]]+0$' /proc/net/tls_stat
end_server base
end_server top
end_server clear
rm "$DISKS/disk.toml" "$DISKS/base.toml"
