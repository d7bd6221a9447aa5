#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Where cowd logs to: a file, opened again on SIGHUP, and syslog; and how much, by
# cowctl log-level. (tests/kernel/cowd-service.sh looks at the journal.)

# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
modprobe -a dm-userspace loop
file=$WORK/cowd.log
syslog=$WORK/syslog
cat >"$WORK/cowd.toml" <<-END
	[log]
	targets = ["console", "file", "syslog"]
	file = "$file"
END
cowd_command=(cowd --config "$WORK/cowd.toml" --run-dir "$RUN" --plugin-dir "$TOP/build/plugins")

# This machine has no syslogd: we are it.
[[ ! -e /dev/log ]] || not_ok "log: nobody listens on /dev/log yet" "$(ls -l /dev/log)"
: >"$syslog"
socat -u UNIX-RECV:/dev/log "OPEN:$syslog,append" 2>"$WORK/socat" &
syslogd=$!
need until_true 20 test -S /dev/log

# has FILE REGEX [TIMES]
has() { (($(grep -cE -- "$2" "$1") >= ${3:-1})); }
# Each target is written by a thread of its own.
comes() { until_true 20 has "$@"; }
# What comes to /dev/log does not end its lines; no message of cowd's has a "<".
in_syslog() { comes "$syslog" "<$1>[^<]*cowd(\[[0-9]+\])?: [^<]*$2"; }

start_cowd
line='^[0-9-]+T[0-9:.]+Z info cowd [0-9.]+ has started\.$'
check "log: the file has the start" comes "$file" "$line"
check "log: so has the console" comes "$LOG" "$line"
check "log: and syslog, as a daemon's, of level info" in_syslog 30 'cowd [0-9.]+ has started\.'

# What logrotate does.
need mv "$file" "$file.1"
from=$(stat -c %s "$LOG")
kill -HUP "$cowd_pid"
need wait_for_line "$LOG" "$from" "The log was opened again"
check "log: a file that was renamed is made anew on SIGHUP" comes "$file" 'The log was opened again'
size=$(stat -c %s "$file.1")

# A line that is no request: of no interest to an administrator, so a debug line.
nonsense() { printf 'nonsense\n' | socat -u - "UNIX-CONNECT:$RUN/control.sock"; }
debug=' debug A control connection ended\. A line on the control socket is not a JSON object'
need nonsense
need ctl list
check "log: at level info no debug line" test "$(grep -c ' debug ' "$file")" = 0
check "log: cowctl log-level debug" ctl log-level debug
need nonsense
check "log: then there is one" comes "$file" "$debug"
check "log: in syslog too, of level debug" in_syslog 31 'A control connection ended'
check "log: cowctl log-level error" ctl log-level error
need nonsense
kill -HUP "$cowd_pid"
check "log: SIGHUP takes the level of the configuration again" comes "$file" 'The log was opened again' 2
end_cowd TERM
check "log: the end is in the file" has "$file" 'info cowd has stopped\.'
check "log: nothing more came to the one that was renamed" test "$(stat -c %s "$file.1")" = "$size"
check "log: one debug line in all" test "$(grep -c "$debug" "$file")" = 1
kill "$syslogd" 2>/dev/null
rm -f /dev/log
