#!/usr/bin/env bash
# A one-node Slurm on this machine, for tests: no systemd, no control groups, no accounting. Debian or Ubuntu, as root.
#   slurm-localhost.sh up FOLDER     install if need be, configure, start, wait until a job has run
#   slurm-localhost.sh down FOLDER   stop the jobs and the daemons that it has started
# Everything lies in FOLDER; /etc/slurm gets a link, because jobs look for their configuration there.
set -euo pipefail
action=$1 folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

is_alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

install_slurm() {
  if ! command -v slurmctld slurmd munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
  fi
}

start_munge() {
  mkdir -p "$folder"
  munge -n >/dev/null 2>&1 && return
  if [ ! -s /etc/munge/munge.key ]; then
    install -d -m 700 -o munge -g munge /etc/munge
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  install -d -m 755 -o munge -g munge /run/munge
  install -d -m 700 -o munge -g munge /var/log/munge /var/lib/munge
  runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/slurm-localhost.pid
  mv /run/munge/slurm-localhost.pid "$folder/munged.pid"
}

configure() {
  local host memory
  host=$(hostname -s)
  memory=$(($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 - 512))
  mkdir -p "$folder"/{state,spool}
  getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=86400
KillWait=30
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
  mkdir -p /etc/slurm
  if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
    echo '/etc/slurm/slurm.conf: this machine has a Slurm of its own' >&2
    exit 1
  fi
  ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
}

case $action in
  up)
    install_slurm
    start_munge
    configure
    slurmctld -c
    slurmd -c
    for _ in $(seq 100); do
      [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && break
      sleep 0.2
    done
    timeout 30 srun -n1 -t1 true
    ;;
  down)
    if is_alive "$folder/slurmctld.pid"; then
      timeout 10 scancel --partition=main || true
      for _ in $(seq 200); do
        [ -z "$(timeout 10 squeue -h)" ] && break
        sleep 0.2
      done
    fi
    for name in slurmd slurmctld munged; do
      if is_alive "$folder/$name.pid"; then kill "$(cat "$folder/$name.pid")"; fi
    done
    if [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ]; then rm /etc/slurm/slurm.conf; fi
    ;;
  *)
    echo "usage: $0 up|down FOLDER" >&2
    exit 2
    ;;
esac
