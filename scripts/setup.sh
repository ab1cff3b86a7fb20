#!/usr/bin/env bash
# Makes .venv at the repository root, with everything that serving, training, evaluation and the tests need; or, beside it,
# an environment for what cannot share that one. A finished set-up is recognised within two seconds. After an interruption,
# run it again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
uv_version=0.13.9
network_timeout_s=15
new_folder= # the folder if this set-up made it, which is removed again if it stays empty

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--device cpu|gpu] [--sglang | --retrieval] [--venv DIR] [--python PATH]
  --device     which stack to install; default: RESEARCH_DEVICE, else that of the folder, else gpu when nvidia-smi
               lists one
  --sglang     SGLang, the other engine that serves a model, into .venv-sglang
  --retrieval  the retrieval server with faiss on GPUs, into .venv-retrieval; only with --device gpu
  --venv       the folder to install into, in place of .venv, .venv-sglang or .venv-retrieval
  --python     the Python 3.11 or 3.12 to use (SGLang for cpu: 3.11); default: the first of python3.11, python3.12,
               python3, python that works
environment: RESEARCH_MIN_DISK_GB (required free space: 5 for cpu, 30 for gpu). Package indexes are pip's: pip config
list, PIP_* variables.
TEXT
}

say() { echo "set-up: $*"; }

fail() {
    [[ -z $new_folder ]] || rmdir "$new_folder" 2>/dev/null || true
    echo "set-up: error: $*" >&2
    exit 2
}

read_arguments() {
    device=${RESEARCH_DEVICE:-}
    python=
    venv=
    stack=training
    while (($#)); do
        case $1 in
            --device | --python | --venv)
                [[ -n ${2:-} ]] || fail "$1 needs a value; see scripts/setup.sh --help"
                printf -v "${1#--}" %s "$2"
                shift 2
                ;;
            --sglang | --retrieval)
                [[ $stack == training || $stack == "${1#--}" ]] ||
                    fail "--sglang and --retrieval were both given; each has an environment of its own: run them in turn"
                stack=${1#--}
                shift
                ;;
            -h | --help) usage && exit 0 ;;
            *) fail "unknown argument '$1'; see scripts/setup.sh --help" ;;
        esac
    done
    name_folder
    [[ -n $device ]] || device=$(detect_device)
    [[ $device == cpu || $device == gpu ]] || fail "device is '$device', expected cpu or gpu (--device, RESEARCH_DEVICE)"
    choose_stack
}

name_folder() {
    local default=.venv-$stack
    [[ $stack != training ]] || default=.venv
    venv=${venv:-$root/$default}
    [[ $venv == /* ]] || venv=$PWD/$venv
    venv=${venv%/}
    name=${venv#"$root"/}
    stamp="$venv/research-stamp"   # fingerprint of a finished set-up; absent while one is under way
    marker="$venv/research-device" # the device that the folder is being made for; then the stack, unless it is for training
}

# What the stack is made of: a list of requirements, packages of this repository, the modules that show that it works.
choose_stack() {
    versions=(3.11 3.12)
    case $stack-$device in
        training-cpu) requirements=requirements-cpu.txt own=(flashrag verl) light="flashrag, verl_search" heavy=torch ;;
        training-gpu) requirements=requirements.txt own=(flashrag verl) light="flashrag, verl_search" heavy=torch ;;
        # torchvision 0.15, the newest that can be imported beside a CPU build of torch, has no build for Python 3.12.
        sglang-cpu) requirements=requirements-sglang-cpu.txt own=(scripts/sglang_cpu) light=sgl_kernel heavy=sglang versions=(3.11) ;;
        sglang-gpu) requirements=requirements-sglang.txt own=() light=sys heavy=sglang ;;
        retrieval-gpu) requirements=requirements-retrieval-gpu.txt own=(flashrag) light=flashrag heavy=faiss ;;
        *) fail "--retrieval is for GPUs, and the device is cpu; scripts/setup.sh --device cpu installs faiss for CPUs" ;;
    esac
    own=(${own[@]+"${own[@]/#/$root/}"})
    requirements=$root/$requirements
}

detect_device() {
    if [[ -s $stamp && -s $marker ]]; then
        cut -d' ' -f1 "$marker"
    elif nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo gpu
    else
        echo cpu
    fi
}

# "3.11" for a Python that runs, is of a version that the stack takes and can make environments; else empty. Some shims
# only fail.
usable_version() {
    "$1" -I -c 'import sys, ensurepip, venv
version = "%d.%d" % sys.version_info[:2]
print(version if version in sys.argv[1:] else "")' "${versions[@]}" 2>/dev/null || true
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
        [[ ! ${found[-1]} =~ \((3\.[0-9]+)\. || " ${versions[*]} " != *" ${BASH_REMATCH[1]} "* ]] ||
            found[-1]=$(describe_python "$candidate" " without venv and ensurepip")
    done
    local listing=", none" wanted=${versions[*]}
    ((${#found[@]} == 0)) || listing=$(printf ', %s' "${found[@]}")
    fail "no usable Python ${wanted/ / or }; found: ${listing:2}. Install one with its venv module, or name it: --python PATH"
}

# Everything that a finished set-up depends on; both folders too, because scripts and editable installs hold their paths.
fingerprint() {
    {
        printf '%s\n' "$device" "$root" "$venv" "$uv_version"
        "$venv/bin/python" -I -c 'import sys; print(sys.version)'
        cat "$requirements" ${own[@]+"${own[@]/%//pyproject.toml}"}
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
    "$venv/bin/python" -I -c "import $light" 2>/dev/null
}

free_gb() { df -Pk "$1" | awk 'NR == 2 {print int($4 / 1048576)}'; }

# Takes the folder itself as the lock, so that nothing is left behind. A set-up that failed may have removed it meanwhile.
lock_folder() {
    [[ ! -e $venv || -d $venv ]] || fail "$venv is a file; give a folder: --venv DIR"
    while :; do
        [[ -e $venv ]] || new_folder=$venv
        mkdir -p "$venv" 2>/dev/null || fail "the folder $venv cannot be made; give another one: --venv DIR"
        exec 9<"$venv"
        command -v flock >/dev/null || return 0
        if ! flock -n 9; then
            say "another set-up is running in $name; waiting for it"
            flock 9
        fi
        [[ ! $venv -ef /dev/fd/9 ]] || return 0
    done
}

is_empty() { [[ -z $(ls -A "$venv") ]]; }

check_folder() {
    local made_for
    if [[ -s $marker ]]; then
        made_for=$(cut -sd' ' -f2 "$marker")
        [[ ${made_for:-training} == "$stack" ]] ||
            fail "$name holds the ${made_for:-training} stack; give another folder for ${stack}: --venv DIR"
    elif [[ ! -e $venv/pyvenv.cfg ]]; then
        is_empty || fail "$venv holds other files than a Python environment; give a new folder: --venv DIR"
    fi
}

check_disk() {
    [[ ! -d $(echo "$venv"/lib/python3.*/site-packages/torch) ]] || return 0 # an update, not a first installation
    local needed=${RESEARCH_MIN_DISK_GB:-5} place free
    [[ -n ${RESEARCH_MIN_DISK_GB:-} || $device == cpu ]] || needed=30
    for place in "${venv%/*}" "${UV_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-$root}/.cache}}"; do
        while [[ ! -d $place ]]; do place=$(dirname "$place"); done
        free=$(free_gb "$place")
        ((free >= needed)) || fail "$place has $free GB free, the $device stack needs about $needed GB." \
            "Free some space, or put the download cache elsewhere with UV_CACHE_DIR"
    done
}

make_venv() {
    local wrong=
    if is_empty; then
        wrong=new
    elif [[ -z $(usable_version "$venv/bin/python") ]] || ! "$venv/bin/python" -I -m pip --version &>/dev/null; then
        wrong="does not work"
    elif [[ -s $marker && (! -s $stamp || $(cut -d' ' -f1 "$marker") != "$device") ]]; then
        wrong="is incomplete or for another device"
    elif [[ -n $python && $(usable_version "$python") != "$(usable_version "$venv/bin/python")" ]]; then
        wrong="has another Python"
    fi
    if [[ -n $wrong ]]; then
        [[ $wrong == new ]] || say "$name $wrong: making a new one"
        choose_python
        say "making $name with $(describe_python "$python") for $device"
        "$python" -m venv --clear "$venv" || fail "could not make $venv with $python (see above)"
    fi
    rm -f "$stamp"
    if [[ $stack == training ]]; then echo "$device"; else echo "$device $stack"; fi >"$marker"
}

get_uv() {
    uv=$venv/bin/uv
    [[ $("$uv" --version 2>/dev/null) == "uv $uv_version"* ]] && return
    timeout 300 "$venv/bin/python" -m pip install -qq --no-input --timeout "$network_timeout_s" --retries 1 \
        "uv==$uv_version" || fail "the package index cannot be reached, or lacks uv $uv_version (see above)." \
        "Check the network and pip's settings (pip config list): index-url, find-links, proxy, cert"
}

uv_install() { "$uv" pip install --python "$venv/bin/python" "$@"; }

# Sets torch, its pin, and torch_options, the source of its CPU build; tried before anything large is fetched.
find_torch() {
    torch=$(grep -oE '^torch==[^ ]+' "$requirements")
    torch_options=()
    if uv_install -q --dry-run --no-deps "$torch" 2>/dev/null; then
        say "$torch comes from the configured package index"
        return
    fi
    torch_options=(--torch-backend cpu)
    uv_install -q --dry-run --no-deps "${torch_options[@]}" "$torch" ||
        fail "$torch for $(describe_python "$venv/bin/python") is neither on the configured package index nor on PyTorch's" \
            "CPU index (see above). Allow that address, or put the wheel's folder into pip's find-links"
    say "$torch comes from PyTorch's CPU index"
}

install() {
    say "installing $(basename "$requirements")"
    if [[ $device == cpu ]]; then
        find_torch
        # torch alone: uv would look for its companions, such as torchvision and triton, on PyTorch's index too.
        uv_install -q --no-deps ${torch_options[@]+"${torch_options[@]}"} "$torch" || explain_failure
        uv_install --no-deps -r "$requirements" || explain_failure
    else
        uv_install -r "$requirements" || explain_failure
    fi
    ((${#own[@]} == 0)) || uv_install -q --no-deps "${own[@]/#/--editable=}" || explain_failure
}

explain_failure() {
    (($(free_gb "$venv") > 0)) || fail "the disk of $venv is full; free some space and run this again"
    uv_install -q --dry-run --reinstall --no-deps six 2>/dev/null ||
        fail "the package index cannot be reached any more; check the network and run this again"
    fail "the installation failed (see above); if the cause is not clear, delete $name and run this again"
}

verify() {
    "$venv/bin/python" -I -W ignore - "$device" "$light, $heavy" <<'TEXT' || fail "the installed packages do not work (see above); delete $name and run this again"
import sys
exec(f"import {sys.argv[2]}")
if sys.argv[1] == "cpu":
    import torch
    if torch.version.cuda:
        sys.exit(f"torch {torch.__version__} is a CUDA build on a machine set up for cpu")
TEXT
}

finish() {
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in $SECONDS s: $name for $device, $("$venv/bin/python" --version)"
}

main() {
    unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
    export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-60}
    # Every process of a run imports torch, verl and vLLM. Without bytecode on disk, and where PYTHONDONTWRITEBYTECODE is
    # set, as in many containers, each one would compile them again: half of the time that a run takes to start.
    export UV_COMPILE_BYTECODE=1
    read_arguments "$@"
    lock_folder
    check_folder
    if is_up_to_date; then
        say "$name is complete ($device, $("$venv/bin/python" --version))"
        return
    fi
    [[ -z $python ]] || choose_python
    check_disk
    command -v c++ g++ clang++ >/dev/null || say "warning: no C++ compiler found; engines and torch compile at first use"
    make_venv
    eval "$("$venv/bin/python" -I "$root/scripts/environment.py" uv-settings)"
    get_uv
    install
    verify
    finish
}

main "$@"
