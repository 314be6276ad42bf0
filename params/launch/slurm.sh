#!/usr/bin/env bash
# One run or a sweep on a Slurm machine. The checkout and its runs must be on a disk that all nodes share, and
# `make setup` must have been run.
#   sbatch params/launch/slurm.sh run --params params/h100.yaml
#   sbatch --nodes=2 params/launch/slurm.sh sweep --params params/sweep.yaml      # Ray over the nodes
# Two minutes before its time is up, the job saves and queues itself again, to continue.
# To pass a token, export HF_TOKEN before sbatch, which passes the environment on.
#SBATCH --job-name=medrescue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
target=${1:?what to do: run, prepare, train, export or sweep}
shift

module=lib.runs words=("$target" "$@")
if [ "$target" = sweep ]; then
    module=lib.runs.sweep words=("$@")
    if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
        head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        port=$((20000 + SLURM_JOB_ID % 20000))
        export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_kill_child_processes_on_worker_exit=0
        resources=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --disable-usage-stats --block)
        srun --nodes=1 --ntasks=1 --overlap -w "$head" \
            .venv/bin/ray start --head --node-ip-address "$head" --port "$port" --include-dashboard=false "${resources[@]}" &
        sleep 20
        srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --overlap --exclude "$head" \
            .venv/bin/ray start --address "$head:$port" "${resources[@]}" &
        sleep 20
        export RAY_ADDRESS="$head:$port"
    fi
fi

job='' stopped='' told=''
stop() {  # once: a second signal would not let it save
    stopped=1
    if [ -n "$job" ] && [ -z "$told" ]; then told=1; kill -TERM "$job"; fi
}
trap stop TERM  # set before the job starts: a signal in between would end only this script
.venv/bin/python -m "$module" "${words[@]}" &
job=$!
if [ -n "$stopped" ]; then stop; fi
code=0
wait "$job" || code=$?
if [ -n "$stopped" ]; then  # the signal ended the first wait, but the job is still saving
    code=0
    wait "$job" || code=$?
fi
if [ "$code" -eq 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
