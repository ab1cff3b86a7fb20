#!/usr/bin/env bash
# Serves a trained model for the evaluation until Ctrl-C: serve_model.sh --model_path M (--help lists the rest)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m flashrag.system.model_server "$@"
