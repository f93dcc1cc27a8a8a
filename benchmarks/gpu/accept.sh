#!/usr/bin/env bash
# Tries the product on a machine with one GPU and no network, in the order of worth. Each step has its own
# time limit and writes its own JSON when it ends (and in between), so that a stop loses nothing.
#
#   bash benchmarks/gpu/accept.sh [--bundle FOLDER] [--only STEP[,STEP]] [--seconds N] [--results FOLDER] [--cpu]
#
#   --bundle FOLDER  what pack.sh made: installs its wheels into a temporary folder, unpacks the stream
#   --only a,c       these steps: a CUDA and recipe tiny, b compiled routing, c recipe internvl3.5-8b with
#                    random weights, d tuner speed, e evaluation speed, f resident worker, g ZeRO-2
#   --seconds N      stop all after N seconds; no step starts with less than 20 left
#   --results FOLDER default: $OUT where it is set, else benchmarks/gpu/results (--cpu: runs/accept-cpu)
#   --cpu            every step's small form without a GPU
#
# Exit status: 0 all goals met, 3 a goal missed, 1 a step failed or was stopped.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
bundle=
only=
total=100000
results=
cpu=()
while [ $# -gt 0 ]; do
  case $1 in
    --bundle | --only | --seconds | --results)
      [ $# -gt 1 ] || { echo "accept: $1 needs a value; see --help" >&2; exit 2; } ;;
  esac
  case $1 in
    --bundle) bundle=$(cd "$2" && pwd) || exit 2; shift ;;
    --only) only=$2; shift ;;
    --seconds) total=$2; shift ;;
    --results) results=$2; shift ;;
    --cpu) cpu=(--cpu) ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "accept: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$results" ]; then
  results=${OUT:-$here/results}
  if [ ${#cpu[@]} -gt 0 ]; then results=${OUT:-$root/runs/accept-cpu}; fi
fi
mkdir -p "$results" || exit 1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi
fi
more=()
if [ -n "$bundle" ]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  PYTHON=$python bash "$root/recipes/setup.sh" --from "$bundle/wheels" --into "$place/venv" || exit 1
  python=$place/venv/bin/python
  if [ ! -f "$root/data/mini-tiny/stream.json" ]; then
    mkdir -p "$root/data"
    tar xJf "$bundle/mini-tiny.tar.xz" -C "$root/data" || exit 1
  fi
  if [ -d "$bundle/tokenizer" ]; then more=(--tokenizer "$bundle/tokenizer"); fi
fi
if [ ! -f "$root/data/mini-tiny/stream.json" ]; then
  echo "accept: data/mini-tiny is missing; give --bundle, or: python -m data_prep.mini --out data/mini-tiny" >&2
  exit 1
fi
if [ ${#cpu[@]} -eq 0 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "accept: $python sees no GPU; --cpu runs the small forms" >&2
  exit 1
fi

steps=(a_tiny b_routing c_internvl_8b d_tuner e_evaluation f_resident g_zero2)
limits=(110 100 280 130 110 150 110)
status=0
for index in "${!steps[@]}"; do
  step=${steps[$index]}
  if [ -n "$only" ] && [[ ",$only," != *",${step%%_*},"* ]] && [[ ",$only," != *",$step,"* ]]; then continue; fi
  left=$((total - SECONDS))
  if [ "$left" -lt 20 ]; then
    echo "accept: $step left out, $left s left"
    status=1
    continue
  fi
  limit=${limits[$index]}
  if [ ${#cpu[@]} -gt 0 ]; then limit=1800; fi
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  echo "accept: $step, at most $limit s"
  started=$SECONDS
  timeout --kill-after=10 "$limit" "$python" "$here/steps/$step.py" --out "$results" \
    ${cpu[@]+"${cpu[@]}"} ${more[@]+"${more[@]}"}
  code=$?
  case $code in
    0) words="all goals met" ;;
    3) words="a goal missed"; if [ $status -eq 0 ]; then status=3; fi ;;
    124 | 137) words="stopped at its limit"; status=1 ;;
    *) words="failed with exit code $code"; status=1 ;;
  esac
  echo "accept: $step: $words, $((SECONDS - started)) s"
done
"$python" "$here/results.py" table "$results"
echo "accept: $SECONDS s in all; results in $results"
exit $status
