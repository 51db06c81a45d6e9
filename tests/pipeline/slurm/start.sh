#!/usr/bin/env bash
# Start one daemon of the SLURM in STATE and note its id and start time for down.sh. up.sh does so, and a test whose node comes back.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 STATE NAME COMMAND..." >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/sbin
state=$1 name=$2
shift 2
setsid "$@" >"$state/log/$name.out" 2>&1 </dev/null &
id=$!
sleep 0.1
[ -e /proc/$id/stat ] || { cat "$state/log/$name.out" >&2; echo "slurm: $name did not start." >&2; exit 1; }
echo "$name $id $(sed 's/.*) //' /proc/$id/stat | cut -d' ' -f20)" >>"$state/pids"
