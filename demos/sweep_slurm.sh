#!/bin/bash
# A sweep as a Slurm array: every element is a worker of the same study, on any node.
#
#   sbatch demos/sweep_slurm.sh
#
# The database must be reachable from all nodes (SQLite on a network folder is not safe), and the
# folder of the runs must be shared. A worker that Slurm preempts or that runs out of time gives
# its trial back (SIGTERM), or is missed after a minute (SIGKILL); another one continues the trial
# from its last checkpoint. Submitting the same script again goes on where the sweep was.
#SBATCH --job-name=tailor-sweep
#SBATCH --array=0-7
#SBATCH --time=04:00:00
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --output=sweep-%A-%a.log
set -euo pipefail

: "${STORAGE:?set STORAGE=postgresql://USER:PASSWORD@HOST/NAME, for example in ~/.bash_profile}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-4}"

# exec: the signal to the batch shell (B:) must reach the worker itself.
exec tailor sweep \
  --task svhn flowers102 dtd fgvc_aircraft --backbone resnet34 --px 224 \
  --method taps finetune probe --lam 0.03 0.1 0.3 1 3 --seed 0 1 2 \
  --epochs 10 --storage "$STORAGE" --study published --out runs/sweep
