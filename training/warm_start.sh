#!/usr/bin/env bash
# Teach a model the form of searching, by supervised fine-tuning on transcripts, before training/run.sh trains it.
#   bash training/warm_start.sh --actor_model_path M --train_data_path T --search_url U --save_path S [flags] [key=value …]
#   bash training/warm_start.sh --actor_model_path M --trajectories RUN --save_path S [flags] [key=value …]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -z ${RESEARCH_COMMAND:-} ]]; then # else that of the whole path in which this is a stage
    printf -v RESEARCH_COMMAND ' %q' bash "$0" "$@"
fi
export RESEARCH_COMMAND="${RESEARCH_COMMAND# }"
bash "$root/scripts/setup.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -m training.warm_start.run "$@"
