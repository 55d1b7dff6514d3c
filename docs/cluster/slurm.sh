#!/bin/bash
# Workers of a frozen run as one SLURM array, without submitit: sbatch --export=ALL,RUN=/shared/runs/NAME slurm.sh
#SBATCH --job-name=refseg
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

srun refseg work "$RUN"
code=$?
# 75: there is more to do (the time limit came near, or another worker has the rest of this part).
if [ "$code" -eq 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
