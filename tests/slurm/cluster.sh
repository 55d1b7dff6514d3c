#!/usr/bin/env bash
# A throw-away SLURM on this machine's loopback, for the tests of this folder. Needs root.
#
#   cluster.sh install   the Debian packages, if missing
#   cluster.sh up        start munged, slurmctld and the slurmds; print what a client exports
#   cluster.sh node N    (re)start the slurmd of node N
#   cluster.sh down      stop what `up` started, and nothing else
#
# Settings: SLURM_TEST_DIR (default /tmp/refseg-slurm), NODES (3), CPUS (4 a node), GPUS (2 a node, fake),
# BASE_PORT (21817). Each node is a slurmd of its own on another port; GPUs are plain character devices.
set -euo pipefail

dir=${SLURM_TEST_DIR:-/tmp/refseg-slurm}
nodes=${NODES:-3}
cpus=${CPUS:-4}
gpus=${GPUS:-2}
port=${BASE_PORT:-21817}
packages=(slurmctld slurmd slurm-client munge)
export SLURM_CONF=$dir/slurm.conf

installed() {
  command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged
} >/dev/null

install() {
  installed && return
  # Debian starts the daemons of a package unless this file says no.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    made=1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || true
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  [ -z "$made" ] || rm -f $policy
}

# A daemon that has stopped can stay as a zombie: a mere `kill -0` would call it alive.
running() {
  local pid state
  pid=$(cat "$1" 2>/dev/null) || return 1
  state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -c1) || return 1
  [ -n "$state" ] && [ "$state" != Z ]
}

configure() {
  local host n g
  host=$(hostname -s)
  # proctrack/linuxproc and task/none need no cgroups; config_overrides lets nodes claim what isn't there.
  # Job ids start from the clock: submitit names files by them, and an old folder must not be taken for new.
  cat >"$dir/slurm.conf" <<CONF
ClusterName=refsegtest
FirstJobId=$((($(date +%s) / 5) % 50000000 + 1))
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=2
MinJobAge=300
MaxArraySize=2001
InactiveLimit=0
SlurmdTimeout=5
SlurmctldTimeout=30
GresTypes=gpu
CONF
  : >"$dir/gres.conf"
  for n in $(seq 1 "$nodes"); do
    echo "NodeName=n$n NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + n)) CPUs=$cpus Boards=1" \
      "SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=4000 Feature=fast Gres=gpu:$gpus" >>"$dir/slurm.conf"
    for g in $(seq 0 $((gpus - 1))); do
      [ -e "$dir/dev/n$n-gpu$g" ] || mknod "$dir/dev/n$n-gpu$g" c 1 3
      echo "NodeName=n$n Name=gpu File=$dir/dev/n$n-gpu$g" >>"$dir/gres.conf"
    done
  done
  cat >>"$dir/slurm.conf" <<CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
CONF
}

node() {
  running "$dir/slurmd-$1.pid" || slurmd -N "$1"
}

up() {
  installed || { echo "SLURM is not installed: tests/slurm/cluster.sh install" >&2; exit 3; }
  mkdir -p "$dir"/{munge,state,spool,dev}
  chmod 755 "$dir" "$dir/munge"
  if [ ! -s "$dir/munge/key" ]; then
    head -c 1024 /dev/urandom >"$dir/munge/key"
    chmod 400 "$dir/munge/key"
  fi
  configure
  running "$dir/munge/pid" || munged --force --num-threads=2 --key-file="$dir/munge/key" \
    --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
  running "$dir/slurmctld.pid" || slurmctld -c
  local n
  for n in $(seq 1 "$nodes"); do node "n$n"; done
  for _ in $(seq 1 2400); do  # ten minutes: a busy machine may need some
    if [ "$(sinfo -h -N -p main -t idle,mix,alloc -o %N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]; then
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.25
  done
  tail -n 20 "$dir"/slurmctld.log "$dir"/slurmd-*.log >&2
  exit 1
}

down() {
  [ -d "$dir" ] || return 0
  timeout 10 scancel --quiet --user=root 2>/dev/null || true
  local file pid
  for file in "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
    running "$file" || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 1 50); do running "$file" || break; sleep 0.1; done
    if running "$file"; then kill -9 "$pid" 2>/dev/null || true; fi
  done
  rm -rf "$dir"
}

case ${1:-} in
  install) install ;;
  up) up ;;
  node) node "$2" ;;
  down) down ;;
  *) sed -n '2,10p' "$0"; exit 2 ;;
esac
