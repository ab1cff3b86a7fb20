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
# Where this is a stage of a whole path, that is the command of the path.
if [[ -z ${RESEARCH_COMMAND:-} ]]; then
    printf -v RESEARCH_COMMAND ' %q' bash "$0" "${arguments[@]}"
fi
export RESEARCH_COMMAND="${RESEARCH_COMMAND# }"

# The folder of the CPU stack, on which the demo runs: beside .venv where that is, or will be, the GPU's.
cpu_environment() {
    local device
    device=$(cat "$root/.venv/research-device" 2>/dev/null) || device=${RESEARCH_DEVICE:-}
    if [[ $device == gpu ]] || { [[ -z $device ]] && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }; then
        echo "$root/.venv-cpu"
    else
        echo "$root/.venv"
    fi
}

# The folders training/ and evaluation/ are imported from the repository, whatever the working directory.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if ((${#arguments[@]} == 0)) || [[ "${arguments[0]}" == --demo ]]; then
    environment=$(cpu_environment)
    bash "$root/scripts/setup.sh" --device cpu --venv "$environment"
    exec "$environment/bin/python" -m training.demo.run "${arguments[@]:1}"
fi
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" -m training.launch "${arguments[@]}"
