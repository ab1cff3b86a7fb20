#!/usr/bin/env bash
# Train with search. Without an argument: the embedded demo (set-up, server, training, evaluation, report).
#   bash training/run.sh
#   bash training/run.sh --demo [--help | demo options]
#   bash training/run.sh --recipe help | --recipe NAME [flags …]
#   bash training/run.sh --actor_model_path M --search_url U --train_data_path T --dev_data_path D --save_path S \
#        [--wandb_api_key K] [published flags, --help lists them] [key=value …]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The key moves into the environment, so that it does not show in the process list.
arguments=()
while (($#)); do
    case "$1" in
        --wandb_api_key=*) export WANDB_API_KEY="${1#*=}" ;;
        --wandb_api_key)
            (($# > 1)) || { echo "error: --wandb_api_key needs a value" >&2; exit 2; }
            export WANDB_API_KEY="$2"
            shift
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

# The command to repeat after a stop (verl_search/trainer/stopping.py).
printf -v RESEARCH_COMMAND ' %q' bash "$0" "${arguments[@]}"
export RESEARCH_COMMAND="${RESEARCH_COMMAND# }"

bash "$root/scripts/setup.sh"
# The folders training/ and evaluation/ are imported from the repository, whatever the working directory.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if ((${#arguments[@]} == 0)); then
    exec "$root/.venv/bin/python" -m training.demo.run
elif [[ "${arguments[0]}" == --demo ]]; then
    exec "$root/.venv/bin/python" -m training.demo.run "${arguments[@]:1}"
fi
exec "$root/.venv/bin/python" -m training.launch "${arguments[@]}"
