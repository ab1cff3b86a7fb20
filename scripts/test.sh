#!/usr/bin/env bash
# Sets up if needed, then runs the quick tests; with --all the slow end-to-end runs follow. The quick tests run in one
# process per core, at most four; the slow ones in at most two, because a run that starts its engines, or that trains on
# a CPU, uses one core most of the time. The longest of them come first (tests/conftest.py), although their files hold
# few tests. Other arguments go to pytest: with `-n 0` everything runs in one process.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
slow=
arguments=()
for argument in "$@"; do
    case $argument in
        --all) slow=1 ;;
        -h | --help)
            echo "usage: scripts/test.sh [--all] [pytest arguments]"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done
"$root/scripts/setup.sh"
cd "$root"
status=0
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile ${arguments[@]+"${arguments[@]}"} || status=$?
[[ -n $slow ]] || exit "$status"
slow_status=0
.venv/bin/python -m pytest -m "slow and not gpu" -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder \
    ${arguments[@]+"${arguments[@]}"} || slow_status=$?
# A failure of either lane fails the whole. pytest's 5 means that no test was selected: then the other lane decides.
((status != 5)) || status=$slow_status
((status != 0 || slow_status == 5)) || status=$slow_status
exit "$status"
