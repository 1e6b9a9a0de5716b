#!/bin/bash
# All stages at paper scale on several GPUs of a Slurm cluster: task 0 makes them, the others work for it. A worker that
# ends at its time limit loses the job that it is at; the same command goes on where the last one was.
#
#     sbatch tests/benchmarks/slurm_array.sh                            # from the root of the repository
#     sbatch --array=0-32 --export=ALL,SCALE=paper tests/benchmarks/slurm_array.sh
#
# It needs a disk that all nodes share, and `make setup EXTRAS=paper,cluster` on it.
#SBATCH --job-name=graphnas
#SBATCH --array=0-8
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail
scale=${SCALE:-paper}
told="data/$scale/.dask-${SLURM_ARRAY_JOB_ID:?start this by sbatch}.json" # where the scheduler says its address
mkdir -p "data/$scale"
if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then
  dask scheduler --scheduler-file "$told" --port 0 --no-dashboard &
  scheduler=$!
  trap 'kill "$scheduler" 2>/dev/null || true; rm -f "$told"' EXIT
  until [ -s "$told" ]; do sleep 1; done
  address=$(sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$told")
  python -m graphnas_lib run --all --scale "$scale" --dask "$address"
else
  until [ -s "$told" ]; do sleep 1; done
  dask worker --scheduler-file "$told" --nworkers 1 --nthreads 1 --no-dashboard --death-timeout 600
fi
