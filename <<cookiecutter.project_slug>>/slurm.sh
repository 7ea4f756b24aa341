#!/bin/bash
# A run on a SLURM cluster, one process for each GPU. Before its time limit, the run saves a
# checkpoint; the job is requeued, and the run resumes. Submit this script from this folder; its
# arguments are passed to train.py:
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
: "${SLURM_JOB_ID:?is not set; submit this script with sbatch}"
export PATH="$PWD/.venv/bin:$PATH" # the environment created by make or, without one, that of sbatch
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it from sbatch
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE=$SLURM_NTASKS

# scancel also sends SIGTERM to this shell: the job must not be requeued. Before the time limit,
# only the processes get a signal.
cancelled=no
trap 'cancelled=yes' TERM
# The processes save a checkpoint and exit on these signals. This shell must survive the signals to
# requeue the job, even if the whole job is signalled, as by scancel --full. Use `trap :`, since the
# processes would inherit `trap ''` and ignore the signals.
trap : HUP USR1 USR2

# If a process dies, the others end by themselves. srun waits 60 seconds before it kills them, since
# killing them at once could interrupt a save.
# shellcheck disable=SC2016 # each process expands the variables in single quotes
srun --kill-on-bad-exit=0 --wait=60 \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python train.py "$@"' \
    train.py --restore_dir auto "$@"
code=$?

if [ "$code" -eq 75 ] && [ "$cancelled" = no ]; then # stopped by a signal, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
