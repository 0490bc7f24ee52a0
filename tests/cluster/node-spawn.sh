#!/bin/sh
# Starts a process of a node, inside of it: node-spawn.sh NAME CGROUP COMMAND…
# It runs in the node's own cgroup, and its id and log are where `ctl` finds them; process 1 of the node adopts it.
set -eu
name="$1" cgroup="$2"; shift 2
for procs in /sys/fs/cgroup/*"/$cgroup/system/cgroup.procs" "/sys/fs/cgroup/$cgroup/system/cgroup.procs"; do
    [ ! -e "$procs" ] || echo $$ >"$procs"
done
exec >>"/var/log/$name.log" 2>&1 </dev/null
# shellcheck disable=SC2016 # for the inner shell
setsid sh -c 'echo $$ >"/var/pids/$0"; exec "$@"' "$name" "$@" &
