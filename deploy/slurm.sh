#!/usr/bin/env bash
# A Ray cluster inside a SLURM allocation, and one gradlens run on it:
#   sbatch --nodes=2 deploy/slurm.sh configs/mine.yaml --set train.num_workers=2
# The first argument is the config, the others go to `gradlens run`. The checkout (or GRADLENS_VENV) and the run folder must be on a file
# system that all nodes share. Options of sbatch (partition, account, GPUs) are given on its command line.
#SBATCH --job-name=gradlens
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=gradlens-%j.log
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch deploy/slurm.sh CONFIG [options of gradlens run]" >&2
  exit 2
fi
root=${SLURM_SUBMIT_DIR:-$PWD}
venv=${GRADLENS_VENV:-$root/.venv}
if [ ! -x "$venv/bin/gradlens" ]; then
  echo "no gradlens in $venv: run 'make setup' there first, or set GRADLENS_VENV" >&2
  exit 2
fi
export PATH="$venv/bin:$PATH"

# Ray runs whatever a client sends it, so every process of the cluster must show this token. It exists for this job only and travels in
# the environment, never on a command line, where other users of the node could read it.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# The first IPv4 address of the head node that is not loopback; a node with several networks can be told which: HEAD_IP=...
head_ip=${HEAD_IP:-$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | tr ' ' '\n' | grep -m1 -E '^[0-9.]+$')}
address=$head_ip:$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node do not meet
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}

steps=()
stop_ray() {
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
  wait
}
trap stop_ray EXIT

echo "Ray head on $head ($address); Ray's own words are in gradlens-$SLURM_JOB_ID-ray-*.log"
log=gradlens-%j-ray-%N.log
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" --output="$log" \
  ray start --head --node-ip-address="$head_ip" --port="${address#*:}" --num-cpus="$cpus" --include-dashboard=false --block &
steps+=($!)
for _ in $(seq 60); do
  ray health-check --address "$address" >/dev/null 2>&1 && break
  kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray's head on $head did not start, see its log" >&2; exit 1; }
  sleep 2
done
if [ ${#nodes[@]} -gt 1 ]; then
  workers=$((${#nodes[@]} - 1))
  srun --overlap --nodes="$workers" --ntasks="$workers" --ntasks-per-node=1 --exclude="$head" --output="$log" \
    ray start --address="$address" --num-cpus="$cpus" --block &
  steps+=($!)
fi

python3 - "$address" "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

address, expected = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False)
deadline = time.monotonic() + 180
while (alive := sum(node["Alive"] for node in ray.nodes())) < expected:
    if time.monotonic() > deadline:
        sys.exit(f"only {alive} of {expected} nodes joined the Ray cluster within 3 minutes")
    time.sleep(1)
print(f"{alive} of {expected} nodes have joined")
PYTHON

gradlens run "$@" --set ray.address="$address"
