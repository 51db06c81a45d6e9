#!/usr/bin/env bash
# End the SLURM that up.sh started in STATE: its jobs, then its daemons by recorded id and start time.
state=$(realpath -m "${1:?usage: $0 STATE}")
[ -e "$state/pids" ] || exit 0
export SLURM_CONF=$state/slurm.conf
timeout 10 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 20); do
    [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
    sleep 0.2
done
ours() { [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]; }
tac "$state/pids" | while read -r name id started; do
    ours "$id" "$started" || continue
    kill -TERM "$id"
    for _ in $(seq 50); do
        ours "$id" "$started" || break
        sleep 0.1
    done
    ! ours "$id" "$started" || { echo "slurm: $name $id had to be killed" >&2; kill -KILL "$id"; }
done
rm -f "$state/pids"
