#!/bin/bash
# One rank of `ups train`, where Slurm runs it:
#   srun -N2 --ntasks-per-node=4 --gpus-per-task=1 --kill-on-bad-exit=1 deployments/slurm/rank.sh CONFIG
set -eu
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
if [ -z "${MASTER_ADDR:-}" ]; then
    first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
    # a node's address, where its name is Slurm's alone
    MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR
fi
# the same for all ranks of a step, another one for each job
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
exec ${UPS:-ups} train "$@"
