#!/bin/bash
# A run on a SLURM cluster, one process for each GPU. Before its time is up it saves, joins the
# queue again, and goes on. To be submitted from this folder; arguments go to train.py:
#
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 slurm.sh --outdir run1
#
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -uo pipefail
: "${SLURM_JOB_ID:?is not set; submit this script by sbatch}"
export PATH="$PWD/.venv/bin:$PATH" # where make has made it; else what sbatch was called in
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE=$SLURM_NTASKS

# scancel sends SIGTERM to this shell as well, and wants no new start. A time limit that is near
# reaches the processes alone.
cancelled=no
trap 'cancelled=yes' TERM
# These stop the processes, which save; this shell must live on to put the job back into the queue,
# also where the whole job is signalled, as by scancel --full. Ignored ('') would be inherited.
trap : HUP USR1 USR2

# The processes end by themselves where one has died: killing the others could cut a save short.
# shellcheck disable=SC2016 # what stands in single quotes is for each process to fill in
srun --kill-on-bad-exit=0 --wait=60 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python train.py "$@"' \
    train.py --restore_dir auto "$@"
code=$?

if [ "$code" -eq 75 ] && [ "$cancelled" = no ]; then # stopped by a signal, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
