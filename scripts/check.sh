#!/usr/bin/env bash
# Format, lint, types and shell scripts; every check runs, and the exit code says whether all passed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh"
cd "$root"
failed=()

check() {
    echo "check: $1"
    "${@:2}" || failed+=("$1")
}

mapfile -t shell_scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
check format .venv/bin/ruff format --check --quiet .
check lint .venv/bin/ruff check --quiet .
check types .venv/bin/pyrefly check --python-interpreter-path .venv/bin/python
check shell .venv/bin/shellcheck "${shell_scripts[@]}"
if ((${#failed[@]})); then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "check: all passed"
