#!/usr/bin/env bash
# Sets up the environment, checks the code and runs the tests: `bash tests/run.sh [pytest options]`.
#   --check-only   ruff, mypy, import-linter, shellcheck and hadolint, no tests
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash recipes/setup.sh --dev --print-python)
scripts=()
while IFS= read -r script; do scripts+=("$script"); done < <(git ls-files '*.sh' .ci/run ':!tests/fixtures')  # fixtures: as people reported them

echo "== ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .
echo "== mypy"
"$python" -m mypy
echo "== import-linter"
"$(dirname "$python")/lint-imports" --no-logo --no-cache
echo "== shellcheck"
"$(dirname "$python")/shellcheck" "${scripts[@]}"
echo "== hadolint"
"$(dirname "$python")/hadolint" Dockerfile
if [ "${1:-}" = --check-only ]; then exit 0; fi

echo "== pytest"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m pytest -m "not slow" -n 2 --dist loadfile "$@"
