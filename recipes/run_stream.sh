#!/usr/bin/env bash
# The entry point: trains and evaluates one recipe, chunk after chunk. `bash recipes/run_stream.sh --help` lists
# all commands; the command line is read in recipes/arguments.py.
set -euo pipefail

# Also through a symbolic link; no `cd`, which CDPATH would lead elsewhere.
here="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
root="$(dirname "$here")"

setup=yes
help=no
prepare=()
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) help=yes ;;
        --no-setup) setup=no ;;
        --dry-run) # looks and writes nothing: no environment, no compiled Python files
            prepare=(--only-find)
            export PYTHONDONTWRITEBYTECODE=1
            arguments+=("$argument")
            ;;
        *) arguments+=("$argument") ;;
    esac
done

found_python() {
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
    elif [[ -x "$root/.venv/bin/python" ]]; then
        echo "$root/.venv/bin/python"
    else
        echo python3
    fi
}

# For the processes that are started later. The commands themselves run as a folder, recipes/__main__.py:
# with `-m`, an eval.py or a logging.py in the user's working directory would be imported first.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Help needs no package and must not wait for an installation.
if [[ $help == yes ]]; then
    exec "$(found_python)" "$here" ${arguments[@]+"${arguments[@]}"} --help
fi
if [[ ${#arguments[@]} -eq 0 ]]; then
    "$(found_python)" "$here" --help >&2
    exit 2
fi

if [[ $setup == yes ]]; then
    python="$(bash "$here/setup.sh" --print-python ${prepare[@]+"${prepare[@]}"})"
else
    python="$(found_python)"
fi
exec "$python" "$here" "${arguments[@]}"
