#!/usr/bin/env bash
# Makes .venv at the repository root, with everything that serving, training, evaluation and the tests need.
# A finished set-up is recognised within two seconds. After an interruption, run it again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv="$root/.venv"
stamp="$venv/research-stamp"   # fingerprint of a finished set-up; absent while one is under way
marker="$venv/research-device" # the device that .venv is being made for
uv_version=0.13.9
network_timeout_s=15

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--device cpu|gpu] [--python PATH]
  --device   which stack to install; default: RESEARCH_DEVICE, else that of .venv, else gpu when nvidia-smi
             lists one
  --python   the Python 3.11 or 3.12 to use; default: the first of python3.11, python3.12, python3, python that works
environment: RESEARCH_MIN_DISK_GB (required free space: 5 for cpu, 30 for gpu). Package indexes are pip's: pip config
list, PIP_* variables.
TEXT
}

say() { echo "set-up: $*"; }

fail() {
    echo "set-up: error: $*" >&2
    exit 2
}

read_arguments() {
    device=${RESEARCH_DEVICE:-}
    python=
    while (($#)); do
        case $1 in
            --device | --python)
                (($# > 1)) || fail "$1 needs a value; see scripts/setup.sh --help"
                if [[ $1 == --device ]]; then device=$2; else python=$2; fi
                shift 2
                ;;
            -h | --help) usage && exit 0 ;;
            *) fail "unknown argument '$1'; see scripts/setup.sh --help" ;;
        esac
    done
    [[ -n $device ]] || device=$(detect_device)
    [[ $device == cpu || $device == gpu ]] || fail "device is '$device', expected cpu or gpu (--device, RESEARCH_DEVICE)"
    requirements=$root/requirements.txt
    [[ $device == gpu ]] || requirements=$root/requirements-cpu.txt
}

detect_device() {
    if [[ -s $stamp && -s $marker ]]; then
        cat "$marker"
    elif nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo gpu
    else
        echo cpu
    fi
}

# "3.11" for a Python that runs, is 3.11 or 3.12 and can make environments; else empty. Some shims only fail.
usable_version() {
    "$1" -I -c 'import sys, ensurepip, venv
version = sys.version_info[:2]
print("%d.%d" % version if version in ((3, 11), (3, 12)) else "")' 2>/dev/null || true
}

describe_python() {
    local version
    version=$("$1" -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || version="does not run"
    echo "$1 ($version${2:-})"
}

choose_python() {
    local candidate found=()
    for candidate in ${python:+"$python"} $([[ -n $python ]] || echo python3.11 python3.12 python3 python); do
        command -v "$candidate" >/dev/null || continue
        if [[ -n $(usable_version "$candidate") ]]; then
            python=$candidate
            return
        fi
        found+=("$(describe_python "$candidate")")
        [[ ${found[-1]} != *"(3.1"[12].* ]] || found[-1]=$(describe_python "$candidate" " without venv and ensurepip")
    done
    local listing=", none"
    ((${#found[@]} == 0)) || listing=$(printf ', %s' "${found[@]}")
    fail "no usable Python 3.11 or 3.12; found: ${listing:2}. Install one with its venv module, or name it: --python PATH"
}

# Everything that a finished .venv depends on; the folder too, because its scripts and editable installs hold the path.
fingerprint() {
    {
        printf '%s\n' "$device" "$root" "$uv_version"
        "$venv/bin/python" -I -c 'import sys; print(sys.version)'
        cat "$requirements" "$root/flashrag/pyproject.toml" "$root/verl/pyproject.toml"
    } | sha256sum | cut -d' ' -f1
}

is_up_to_date() {
    [[ -s $stamp && -x $venv/bin/python ]] || return 1
    [[ -z $python || $(usable_version "$python") == "$(usable_version "$venv/bin/python")" ]] || return 1
    [[ $(cat "$stamp") == "$(fingerprint)" ]] || return 1
    local wrong
    wrong=$("$venv/bin/python" -I "$root/scripts/environment.py" check "$requirements") || {
        say "to repair: $wrong"
        return 1
    }
    "$venv/bin/python" -I -c 'import flashrag, verl_search' 2>/dev/null
}

free_gb() { df -Pk "$1" | awk 'NR == 2 {print int($4 / 1048576)}'; }

check_disk() {
    [[ ! -d $(echo "$venv"/lib/python3.*/site-packages/torch) ]] || return 0 # an update, not a first installation
    local needed=${RESEARCH_MIN_DISK_GB:-5} place free
    [[ -n ${RESEARCH_MIN_DISK_GB:-} || $device == cpu ]] || needed=30
    for place in "$root" "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-$root}/.cache}}"; do
        while [[ ! -d $place ]]; do place=$(dirname "$place"); done
        free=$(free_gb "$place")
        ((free >= needed)) || fail "$place has $free GB free, the $device stack needs about $needed GB." \
            "Free some space, or put the download cache elsewhere with UV_CACHE_DIR"
    done
}

make_venv() {
    local options=()
    if [[ -e $venv ]]; then
        if [[ -z $(usable_version "$venv/bin/python") ]] || ! "$venv/bin/python" -I -m pip --version &>/dev/null; then
            say ".venv does not work: making a new one"
            options=(--clear)
        elif [[ -s $marker && (! -s $stamp || $(cat "$marker") != "$device") ]]; then
            say ".venv is incomplete or for another device: making a new one"
            options=(--clear)
        elif [[ -n $python && $(usable_version "$python") != "$(usable_version "$venv/bin/python")" ]]; then
            say ".venv has another Python: making a new one"
            options=(--clear)
        fi
    fi
    if [[ ! -e $venv || ${#options[@]} -gt 0 ]]; then
        choose_python
        say "making .venv with $(describe_python "$python") for $device"
        "$python" -m venv ${options[@]+"${options[@]}"} "$venv" || fail "could not make $venv with $python (see above)"
    fi
    rm -f "$stamp"
    echo "$device" >"$marker"
}

get_uv() {
    uv=$venv/bin/uv
    [[ $("$uv" --version 2>/dev/null) == "uv $uv_version"* ]] && return
    timeout 300 "$venv/bin/python" -m pip install -qq --no-input --timeout "$network_timeout_s" --retries 1 \
        "uv==$uv_version" || fail "the package index cannot be reached, or lacks uv $uv_version (see above)." \
        "Check the network and pip's settings (pip config list): index-url, find-links, proxy, cert"
}

uv_install() { "$uv" pip install --python "$venv/bin/python" "$@"; }

# Sets torch_options, the source of the CPU build of torch; tried before anything large is fetched.
find_torch() {
    local pin
    pin=$(grep -oE '^torch==[^ ]+' "$requirements")
    torch_options=()
    if uv_install -q --dry-run --no-deps "$pin" 2>/dev/null; then
        say "$pin comes from the configured package index"
        return
    fi
    torch_options=(--torch-backend cpu)
    uv_install -q --dry-run --no-deps "${torch_options[@]}" "$pin" ||
        fail "$pin for $(describe_python "$venv/bin/python") is neither on the configured package index nor on PyTorch's" \
            "CPU index (see above). Allow that address, or put the wheel's folder into pip's find-links"
    say "$pin comes from PyTorch's CPU index"
}

install() {
    say "installing $(basename "$requirements")"
    if [[ $device == cpu ]]; then
        find_torch
        uv_install --no-deps ${torch_options[@]+"${torch_options[@]}"} -r "$requirements" || explain_failure
    else
        uv_install -r "$requirements" || explain_failure
    fi
    uv_install -q --no-deps -e "$root/flashrag" -e "$root/verl" || explain_failure
}

explain_failure() {
    (($(free_gb "$root") > 0)) || fail "the disk of $root is full; free some space and run this again"
    uv_install -q --dry-run --reinstall --no-deps six 2>/dev/null ||
        fail "the package index cannot be reached any more; check the network and run this again"
    fail "the installation failed (see above); if the cause is not clear, delete .venv and run this again"
}

verify() {
    "$venv/bin/python" -I - "$device" <<'TEXT' || fail "the installed packages do not work (see above); delete .venv and run this again"
import sys
import flashrag, torch, verl_search
if sys.argv[1] == "cpu" and torch.version.cuda:
    sys.exit(f"torch {torch.__version__} is a CUDA build on a machine set up for cpu")
TEXT
}

finish() {
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in $SECONDS s: .venv for $device, $("$venv/bin/python" --version)"
}

main() {
    unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
    export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-60}
    # Every process of a run imports torch, verl and vLLM. Without bytecode on disk, and where PYTHONDONTWRITEBYTECODE is
    # set, as in many containers, each one would compile them again: half of the time that a run takes to start.
    export UV_COMPILE_BYTECODE=1
    read_arguments "$@"
    exec 9<"$root" # the folder itself is the lock, so that nothing is left behind
    if command -v flock >/dev/null && ! flock -n 9; then
        say "another set-up is running here; waiting for it"
        flock 9
    fi
    if is_up_to_date; then
        say ".venv is complete ($device, $("$venv/bin/python" --version))"
        return
    fi
    [[ -z $python ]] || choose_python
    check_disk
    command -v c++ g++ clang++ >/dev/null || say "warning: no C++ compiler found; vLLM and torch compile at first use"
    make_venv
    eval "$("$venv/bin/python" -I "$root/scripts/environment.py" uv-settings)"
    get_uv
    install
    verify
    finish
}

main "$@"
