#!/usr/bin/env bash
# Runs the tests, after setting up when needed: the quick lane, or with --all the slow end-to-end runs too.
# Other arguments go to pytest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
lane=()
arguments=()
for argument in "$@"; do
    case $argument in
        --all) lane=(-m "not gpu") ;;
        -h | --help)
            echo "usage: scripts/test.sh [--all] [pytest arguments]"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done
"$root/scripts/setup.sh"
cd "$root"
exec .venv/bin/python -m pytest ${lane[@]+"${lane[@]}"} ${arguments[@]+"${arguments[@]}"}
