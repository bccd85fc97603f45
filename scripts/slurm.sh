#!/bin/bash
# Trains on several machines under Slurm, for as long as it takes: before the time limit the run saves and the job
# queues again; after a crash torchrun starts it again. Both go on from last.pt.
#
#     sbatch scripts/slurm.sh config/train_gpt2.py --out_dir=out-gpt2
#     sbatch --nodes=4 --time=4:00:00 scripts/slurm.sh config/train_gpt2.py --out_dir=out-gpt2 --parallel=fsdp
#
# Submit it from the project's folder, which all machines must share. If they have several networks, name the right
# one: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0.

#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a machine

requeue=
stop() { # signal B:USR1 comes 180 seconds before the time limit: the processes end their step and save
    requeue=1
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1

# how long torchrun lets them do so before it kills them; older PyTorch has no such option, and waits 30 seconds
patience=$(torchrun --help | grep -q -e --shutdown-timeout && echo --shutdown-timeout=150)

# srun inherits no --cpus-per-task since Slurm 22.05: without it, all of a machine's processes share one core
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" --max_restarts=3 $patience \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first:$port" train.py "$@" &
job=$!
status=
while [ -z "$status" ] || kill -0 "$job" 2>/dev/null; do # a signal ends `wait` early
    wait "$job"
    status=$?
done

if [ -n "$requeue" ] && [ "$status" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
