#!/bin/bash
# Several GPU nodes under SLURM, one process a node. In the repository, its environment activated:  sbatch THIS_FILE
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@HOSTS@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@DEVICES@
#SBATCH --exclusive
#SBATCH --time=2-00:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%j.log

set -u
cd "$SLURM_SUBMIT_DIR"
# jax.distributed finds the other processes in SLURM's variables; left alone it would take one GPU for each.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((@DEVICES@ - 1)))
export JAX_LOCAL_DEVICE_IDS

srun @COMMAND@
code=$?

# 0: done; 1 to 3: another start would end like this one. All others (pre-empted, stuck, a node lost): it resumes.
if [ "$code" -gt 3 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @RESTARTS@ ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
