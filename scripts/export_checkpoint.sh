#!/usr/bin/env bash
# Writes a training checkpoint as a Hugging Face folder and checks that it loads: export_checkpoint.sh CHECKPOINT OUT
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m verl_search.trainer.export "$@"
