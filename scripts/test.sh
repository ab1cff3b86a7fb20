#!/usr/bin/env bash
# Sets up if needed, then runs the quick tests; with --all the slow end-to-end runs follow. The quick tests run in one
# process per core, at most four; the slow ones in at most two, because a run that starts its engines, or that trains on
# a CPU, uses one core most of the time. The longest of them come first (tests/conftest.py), although their files hold
# few tests. Other arguments go to pytest: with `-n 0` everything runs in one process.
# The GPU stack has two lanes of its own: --gpu-stack in .venv-gpu on any machine, --gpu in .venv on one with a GPU.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lane=quick
arguments=()
for argument in "$@"; do
    case $argument in
        --all | --gpu-stack | --gpu) lane=${argument#--} ;;
        -h | --help)
            echo "usage: scripts/test.sh [--all | --gpu-stack | --gpu] [pytest arguments]"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done
cd "$root"
case $lane in
    gpu-stack)
        scripts/setup.sh --device gpu --venv .venv-gpu
        # What runs here runs on the processor, also where there is a GPU.
        export VERL_PLATFORM=cpu CUDA_VISIBLE_DEVICES=
        exec .venv-gpu/bin/python -m pytest -m "not slow and not gpu" -n logical --maxprocesses 4 --dist loadfile \
            tests/gpu tests/verl_search ${arguments[@]+"${arguments[@]}"}
        ;;
    gpu)
        nvidia-smi -L 2>/dev/null | grep -q '^GPU' || {
            echo "test: error: --gpu needs a GPU, and nvidia-smi lists none; --gpu-stack tests the GPU stack without one" >&2
            exit 2
        }
        scripts/setup.sh --device gpu
        scripts/setup.sh --device gpu --retrieval
        exec .venv/bin/python -m pytest -v --tb=short -m gpu -n 0 tests/gpu ${arguments[@]+"${arguments[@]}"}
        ;;
esac
scripts/setup.sh
status=0
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile ${arguments[@]+"${arguments[@]}"} || status=$?
[[ $lane == all ]] || exit "$status"
slow_status=0
.venv/bin/python -m pytest -m "slow and not gpu" -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder \
    ${arguments[@]+"${arguments[@]}"} || slow_status=$?
# A failure of either lane fails the whole. pytest's 5 means that no test was selected: then the other lane decides.
((status != 5)) || status=$slow_status
((status != 0 || slow_status == 5)) || status=$slow_status
exit "$status"
