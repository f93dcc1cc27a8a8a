#!/usr/bin/env bash
# Prepares the Python environment; both README commands call it. Safe to run again: when nothing is
# missing it ends within seconds. An active environment that already satisfies requirements.txt (a
# cluster image) is used as it is and nothing is installed; otherwise .venv is made in the repository.
#
#   bash recipes/setup.sh [--dev] [--print-python]
#
#   --dev            also what the tests need (requirements-dev.txt)
#   --print-python   print the interpreter to use on stdout; everything else goes to stderr
#
# Environment: PYTHON          interpreter that makes .venv (default: python3)
#              TORCH_INDEX_URL package index for torch and torchvision (default: pip's own)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
torch_version=2.13.0
torchvision_version=0.28.0
dev=false
print_python=false
for argument in "$@"; do
  case $argument in
    --dev) dev=true ;;
    --print-python) print_python=true ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "setup: unknown option '$argument'; see --help" >&2; exit 2 ;;
  esac
done

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

wanted=("$root/requirements.txt")
alone=$root/requirements-no-deps.txt
if $dev; then wanted+=("$root/requirements-dev.txt"); fi

missing() { "$1" "$root/recipes/processes/missing_requirements.py" "${wanted[@]}" "${@:2}"; }

finish() {
  if $print_python; then printf '%s\n' "$1"; else say "ready: $1"; fi
  exit 0
}

# 1. An active environment, or .venv, that has everything.
active=$(command -v "${PYTHON:-python3}" || true)
[ -n "$active" ] || fail "no ${PYTHON:-python3} found; install Python 3.11 or set PYTHON"
venv="$root/.venv/bin/python"
needed=()  # a cluster image need not have the embedder: method smolora names it when it is missing
if $dev; then needed=("$alone"); fi
if missing "$active" ${needed[@]+"${needed[@]}"} > /dev/null 2>&1; then finish "$active"; fi
if [ -e "$root/.venv/.ready" ] && missing "$venv" "$alone" > /dev/null 2>&1; then finish "$venv"; fi

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
    grep -v '^WARNING' "$root/.venv/pip.log" | tail -n 5 >&2
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
# torchvision's wheels on a general index are built for CUDA; without dependencies they cannot
# replace the torch that is there, and the shim makes their pure-Python parts usable beside it.
if ! "$venv" -c 'import torchvision' > /dev/null 2>&1; then
  install "torchvision $torchvision_version" ${torch_index[@]+"${torch_index[@]}"} --no-deps \
    "torchvision==$torchvision_version"
fi
install "ms-swift, transformers, peft, deepspeed and the rest (about two minutes)" \
  ${constraints[@]+"${constraints[@]}"} "${files[@]}"
install "the sentence embedder of SMoLoRA" --no-deps -r "$alone"
if ! "$venv" -c 'import torchvision' > /dev/null 2>&1; then
  site=$("$venv" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp "$root/recipes/tools/torchvision_cpu_shim.py" "$site/"
  echo 'import torchvision_cpu_shim' > "$site/torchvision_cpu_shim.pth"
  "$venv" -c 'import torchvision' > /dev/null 2>&1 ||
    fail "torchvision cannot be imported beside torch; see: $venv -c 'import torchvision'"
fi
left=$(missing "$venv" "$alone" 2>&1) || fail "still missing after installation: $left"
touch "$root/.venv/.ready"
say "installed in $((SECONDS - started)) s"
finish "$venv"
