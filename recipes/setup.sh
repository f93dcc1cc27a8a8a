#!/usr/bin/env bash
# Prepares the Python environment; both README commands call it. Safe to run again: when nothing is
# missing it ends within seconds. An active environment that already satisfies requirements.txt (a
# cluster image) is used as it is and nothing is installed; otherwise .venv is made in the repository.
#
#   bash recipes/setup.sh [--dev] [--print-python]
#   bash recipes/setup.sh --wheels FOLDER [--python 3.12] [--beside LIST]     where there is a network
#   bash recipes/setup.sh --from FOLDER [--into DIR]                          where there is none
#
#   --dev            also what the tests need (requirements-dev.txt)
#   --print-python   print the interpreter to use on stdout; everything else goes to stderr
#   --only-find      install nothing: take an environment that can read recipes, whatever else it lacks
#   --wheels FOLDER  install nothing: collect wheels of what an environment without a network lacks
#   --python X.Y     the Python there (default: that of the interpreter here)
#   --beside LIST    what is there: NAME or NAME==VERSION, with commas between (what they require counts
#                    as there, too), or a file of what `pip freeze` prints there, which is exact
#                    (default: torch,torchvision)
#   --from FOLDER    install collected wheels beside the packages of PYTHON, which stay as they are
#   --into DIR       the new virtual environment (default: .venv, which run_stream.sh finds by itself)
#
# Environment: PYTHON          interpreter that makes .venv (default: python3)
#              TORCH_INDEX_URL package index for torch and torchvision (default: pip's own)
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
export PYTHONSAFEPATH=1 # a pip.py or torchvision/ in the user's working directory is not imported
torch_version=2.13.0
torchvision_version=0.28.0
dev=false
print_python=false
only_find=false
wheels=
from=
into=
collecting=()

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --wheels | --python | --beside | --from | --into)
      [ $# -gt 1 ] || { say "error: $1 needs a value; see --help"; exit 2; } ;;
  esac
  case $1 in
    --dev) dev=true ;;
    --print-python) print_python=true ;;
    --only-find) only_find=true ;;
    --wheels) wheels=$2; shift ;;
    --python | --beside) collecting+=("$1" "$2"); shift ;;
    --from) from=$2; shift ;;
    --into) into=$2; shift ;;
    -h | --help) sed -n '2,23s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) say "unknown option '$1'; see --help"; exit 2 ;;
  esac
  shift
done
if [ -z "$wheels" ] && [ ${#collecting[@]} -gt 0 ]; then
  say "error: ${collecting[0]} belongs to --wheels FOLDER; see --help"
  exit 2
fi
if [ -z "$from" ] && [ -n "$into" ]; then
  say "error: --into belongs to --from FOLDER; see --help"
  exit 2
fi
if [ -n "$wheels" ] && [ -n "$from" ]; then
  say "error: --wheels or --from, not both; see --help"
  exit 2
fi
into=${into:-$root/.venv}

wanted=("$root/requirements.txt")
alone=$root/requirements-no-deps.txt
if $dev; then wanted+=("$root/requirements-dev.txt"); fi

missing() { "$1" "$root/recipes/processes/missing_requirements.py" "${wanted[@]}" "${@:2}"; }

finish() {
  if $print_python; then printf '%s\n' "$1"; else say "ready: $1"; fi
  exit 0
}

# torchvision's wheels on a general index are built for CUDA; the shim makes their pure-Python parts
# usable beside a torch without it.
mend_torchvision() {
  if "$1" -c 'import torchvision' > /dev/null 2>&1; then return; fi
  cp "$root/recipes/tools/torchvision_cpu_shim.py" "$2/"
  echo 'import torchvision_cpu_shim' > "$2/torchvision_cpu_shim.pth"
  "$1" -c 'import torchvision' > /dev/null 2>&1 ||
    fail "torchvision cannot be imported beside torch; see: $1 -c 'import torchvision'"
}

needs_pip() {
  "$1" -m pip --version > /dev/null 2>&1 || fail "$1 has no pip (Debian: python3-pip); or set PYTHON to another"
}

# The interpreter's own site-packages; PYTHONPATH, a folder of other packages perhaps, is left out.
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# 1. An active environment, or .venv, that has everything.
active=$(command -v "${PYTHON:-python3}" || true)
[ -n "$active" ] || fail "no ${PYTHON:-python3} found; install Python 3.11 or set PYTHON"
venv="$root/.venv/bin/python"
if [ -n "$wheels" ]; then
  collector=$active
  if [ -x "$venv" ] && [ -z "${PYTHON:-}" ]; then collector=$venv; fi
  needs_pip "$collector"
  PYTHONPATH=$root "$collector" -m recipes.wheels collect "$wheels" ${collecting[@]+"${collecting[@]}"}
  exit
fi
if [ -n "$from" ]; then
  started=$SECONDS
  needs_pip "$active"
  PYTHONPATH=$root "$active" -m recipes.wheels install "$from" --into "$into"
  mend_torchvision "$into/bin/python" "$(site_packages "$into/bin/python")"
  touch "$into/.ready" "$into/.from-wheels"
  say "installed in $((SECONDS - started)) s"
  finish "$into/bin/python"
fi
needed=()  # a cluster image need not have the embedder: method smolora names it when it is missing
if $dev; then needed=("$alone"); fi
if missing "$active" ${needed[@]+"${needed[@]}"} > /dev/null 2>&1; then finish "$active"; fi
if ! $dev && [ -e "$root/.venv/.from-wheels" ]; then needed=(); else needed=("$alone"); fi
if [ -e "$root/.venv/.ready" ] && missing "$venv" ${needed[@]+"${needed[@]}"} > /dev/null 2>&1; then
  finish "$venv"
fi
if $only_find; then
  for python in "$venv" "$active"; do
    if "$python" -c 'import jsonlines, omegaconf, pydantic, ruamel.yaml, safetensors' 2> /dev/null; then
      finish "$python"
    fi
  done
  say "there is no environment here that can read recipes; this makes one (.venv, 2 GB): bash recipes/setup.sh"
  exit 1
fi

# 2. Otherwise make .venv and install what is missing.
"$active" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
  fail "$active is $("$active" -V 2>&1), expected Python 3.10 to 3.13; set PYTHON"
started=$SECONDS
if [ ! -x "$venv" ]; then
  say "making .venv with $("$active" -V 2>&1)"
  "$active" -m venv "$root/.venv" ||
    fail "could not make .venv; install the venv module of your Python (Debian: python3-venv)"
fi

torch_index=()
if [ -n "${TORCH_INDEX_URL:-}" ]; then torch_index=(--index-url "$TORCH_INDEX_URL"); fi
install() {
  local what=$1
  shift
  say "installing $what"
  "$venv" -m pip install --quiet --disable-pip-version-check --no-input "$@" > "$root/.venv/pip.log" 2>&1 || {
    { grep -v '^WARNING' "$root/.venv/pip.log" || true; } | tail -n 5 >&2 # nothing where pip was killed
    fail "could not install $what (log: .venv/pip.log); check the network or pip's index settings"
  }
}

# torch comes first: any looser pin asked before it would pull another, larger build.
if ! "$venv" -c 'import torch' > /dev/null 2>&1; then
  install "torch $torch_version" ${torch_index[@]+"${torch_index[@]}"} "torch==$torch_version"
fi
constraints=()
if "$venv" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  constraints=(-c "$root/requirements.lock")
else
  say "note: requirements.lock was tested with Python 3.11 only; using the ranges"
fi
files=()
for file in "${wanted[@]}"; do files+=(-r "$file"); done
# Without dependencies, so that it cannot replace the torch that is there.
if ! "$venv" -c 'import torchvision' > /dev/null 2>&1; then
  install "torchvision $torchvision_version" ${torch_index[@]+"${torch_index[@]}"} --no-deps \
    "torchvision==$torchvision_version"
fi
install "ms-swift, transformers, peft, deepspeed and the rest (about two minutes)" \
  ${constraints[@]+"${constraints[@]}"} "${files[@]}"
install "the sentence embedder of SMoLoRA" --no-deps -r "$alone"
mend_torchvision "$venv" "$(site_packages "$venv")"
left=$(missing "$venv" "$alone" 2>&1) || fail "still missing after installation: $left"
touch "$root/.venv/.ready"
say "installed in $((SECONDS - started)) s"
finish "$venv"
