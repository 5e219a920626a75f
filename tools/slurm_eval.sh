#!/bin/sh
#SBATCH --job-name=samlad-eval
#SBATCH --cpus-per-task=8
# Many Slurm tasks run one data set and share the folder OUT; each task does its part of the test images.
#
#   sbatch --array=1-16 tools/slurm_eval.sh DATA OUT [options of samlad eval]
#   samlad eval --merge OUT            when all are done: write the tables
#
# Submit the same line again to resume tasks that were cut off (time limit, preemption); with #SBATCH --requeue Slurm
# does so itself. SAMLAD names the program (default: samlad).
set -e
[ $# -ge 2 ] || { sed -n '4,10p' "$0" >&2; exit 2; }
: "${SLURM_ARRAY_TASK_ID:?submit this as an array: sbatch --array=1-N}"
: "${SLURM_ARRAY_TASK_COUNT:?submit this as an array: sbatch --array=1-N}"
data=$1 out=$2
shift 2
# arrays may begin at any number and have steps: find the number of this task
first=${SLURM_ARRAY_TASK_MIN:-1} last=${SLURM_ARRAY_TASK_MAX:-$SLURM_ARRAY_TASK_COUNT}
step=1
[ "$SLURM_ARRAY_TASK_COUNT" -gt 1 ] && step=$(((last - first) / (SLURM_ARRAY_TASK_COUNT - 1)))
shard=$(((SLURM_ARRAY_TASK_ID - first) / step + 1))
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec "${SAMLAD:-samlad}" eval "$data" -o "$out" --shard "$shard/$SLURM_ARRAY_TASK_COUNT" "$@"
