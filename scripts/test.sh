#!/usr/bin/env bash
# Runs the tests, after setting up when needed: the quick ones, or with --all the slow end-to-end runs after them.
# The quick tests run in a process for each core, at most four; the slow ones in one process, as the engines that they
# start use every core. Other arguments go to pytest: with `-n 0` the quick tests run in one process too.
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
.venv/bin/python -m pytest -m "slow and not gpu" ${arguments[@]+"${arguments[@]}"} || slow_status=$?
# Either lane may fail the whole. With 5 pytest says that the arguments chose no test: then the other lane decides.
((status != 5)) || status=$slow_status
((status != 0 || slow_status == 5)) || status=$slow_status
exit "$status"
