#!/usr/bin/env bash
# The door: trains and evaluates one recipe, chunk after chunk. See --help.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

usage() {
    cat <<'TEXT'
usage: bash recipes/run_stream.sh RECIPE [key=value ...] [--dry-run | --validate | --status]

Trains a model on a stream chunk after chunk through ms-swift, evaluates all tasks after each chunk and writes
runs/<name>/ with adapters, predictions, scores, matrix.csv and report.html. Give the same command again after
any interruption: it goes on where it stopped.

  RECIPE       a shipped recipe (tiny, internvl3.5-8b, internvl3.5-4b, gemma3-4b) or a YAML file
  key=value    overrides, with dots between block and key: tuner.rank=32 schedule.later.learning_rate=1e-3
  --dry-run    print every command that would be run, and what this machine lacks; run nothing
  --validate   check the recipe; all mistakes are named at once
  --status     say where the run stands, also while it runs
  --no-setup   skip recipes/setup.sh and use $PYTHON, else .venv/bin/python, else python3
  --help       this text

Relative paths in a recipe and in overrides start at the repository's root.
Exit codes: 0 done, 1 the run failed, 2 the recipe is wrong, 128+n stopped by signal n.
TEXT
}

setup=yes
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            usage
            exit 0
            ;;
        --no-setup) setup=no ;;
        *) arguments+=("$argument") ;;
    esac
done

if [[ ${#arguments[@]} -eq 0 ]]; then
    usage >&2
    exit 2
fi

if [[ $setup == yes ]]; then
    python="$(bash "$here/setup.sh" --print-python)"
elif [[ -n ${PYTHON:-} ]]; then
    python="$PYTHON"
elif [[ -x "$root/.venv/bin/python" ]]; then
    python="$root/.venv/bin/python"
else
    python=python3
fi

# Found from anywhere, and not hidden by a package of the same name: eval is a common one.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m recipes.cli "${arguments[@]}"
