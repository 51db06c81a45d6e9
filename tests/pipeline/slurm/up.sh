#!/usr/bin/env bash
# A real SLURM of one node (munged, slurmctld, slurmd) on 127.0.0.1 for tests; all its state lies in one folder, nothing in /etc, no systemd, no cgroups.
#
#   up.sh STATE        then: . STATE/env.sh; sbatch, squeue, nextflow ... talk to it
#   down.sh STATE      ends what was started here and nothing else
#
# With ISTSEG_SLURM_MEMKILL=1 a job that takes more memory than it asked for is ended (seen once a second; sites do that with cgroups, which need the machine to themselves).
# Needs root and the Debian packages slurm-wlm and munge.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 STATE" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
die() { echo "slurm: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "root is needed."
for command in munged mungekey slurmctld slurmd sinfo; do
    command -v $command >/dev/null || die "$command not found (apt-get install slurm-wlm munge)."
done
mkdir -p "$1"
state=$(cd "$1" && pwd)
[ ! -e "$state/pids" ] || die "$state/pids is there: run down.sh $state first."
mkdir -p "$state"/{controller,spool,log}

cpus=4              # may be more than the machine has
memory=12000        # MiB
gpus=2              # fake: they are scheduled, there is nothing behind them
port=16917
node=$(hostname -s)
accounting='JobAcctGatherType=jobacct_gather/none'
[ "${ISTSEG_SLURM_MEMKILL:-0}" = 0 ] || accounting='JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss'
umask 022
rm -f "$state/munge.key"
mungekey --create --keyfile "$state/munge.key"
chmod 600 "$state/munge.key"

cat >"$state/slurm.conf" <<CONF
ClusterName=istseg
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$state/munge.sock
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
$accounting
SlurmdTimeout=10
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
MinJobAge=600
KillWait=2
JobCompType=jobcomp/filetxt
JobCompLoc=$state/log/jobs.txt
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:fake:$gpus State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=UNLIMITED State=UP OverSubscribe=NO
CONF
: >"$state/gres.conf"
for ((i = 0; i < gpus; i++)); do
    [ -e "$state/gpu$i" ] || mknod "$state/gpu$i" c 1 3     # as /dev/null; SLURM wants a device
    echo "NodeName=$node Name=gpu Type=fake File=$state/gpu$i" >>"$state/gres.conf"
done
echo "CgroupAutomount=no" >"$state/cgroup.conf"
echo "export SLURM_CONF=$state/slurm.conf" >"$state/env.sh"
export SLURM_CONF=$state/slurm.conf
trap 'code=$?; [ $code = 0 ] || "$here/down.sh" "$state" >&2; exit $code' EXIT     # never half a cluster

start() { "$here/start.sh" "$state" "$@"; }    # NAME COMMAND...
start munged munged --foreground --force --num-threads 2 --key-file="$state/munge.key" --socket="$state/munge.sock" \
    --pid-file="$state/munged.pid" --log-file="$state/log/munged.log" --seed-file="$state/munge.seed"
for _ in $(seq 50); do [ -S "$state/munge.sock" ] && break; sleep 0.1; done
start slurmctld slurmctld -D -c -f "$SLURM_CONF"
start slurmd slurmd -D -f "$SLURM_CONF" -N "$node"

for _ in $(seq 150); do
    case $(sinfo -h -n "$node" -o %T 2>/dev/null) in
        idle* | mixed* | allocated*) exit 0 ;;
    esac
    sleep 0.2
done
tail -n 15 "$state"/log/*.log >&2
die "the node did not become idle in 30 s (logs above)."
