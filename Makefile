.PHONY: help setup test check format faults methods long ci

help:    ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

setup:   ## make .venv, with what the tests need
	bash recipes/setup.sh --dev

test:    ## ruff, mypy, shellcheck and the tests
	bash tests/run.sh

check:   ## ruff, mypy, shellcheck and hadolint only
	bash tests/run.sh --check-only

format:  ## let ruff format the code
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

faults:  ## kills, faults, signals and a real SLURM, slow ones included
	FULL_FAULTS=1 .venv/bin/python -m pytest -n 2 --dist loadfile tests/faults tests/slurm tests/recipes/run/test_runner.py tests/recipes/processes/test_real_stop.py

methods: ## every method in the real host, slow ones included
	FULL_METHODS=1 .venv/bin/python -m pytest -n 2 --dist loadfile -m slow tests/host tests/recipes/run/test_real_methods.py tests/recipes/baselines/test_real_baselines.py \
		tests/recipes/baselines/test_real_pool.py tests/recipes/processes/test_real_resident.py \
		tests/recipes/growth/test_real_growth.py

long:    ## every shipped recipe on model folders of real shape, long reports and streams, fuzzing, kills (over an hour)
	FULL_LONG=1 APPEND_KILLS=20 .venv/bin/python -m pytest -n 2 --dist loadfile -m slow tests/eval tests/data_prep
	WATCH_KILLS=4 .venv/bin/python -m pytest -m slow tests/recipes/watch
	FULL_LONG=1 .venv/bin/python -m pytest -m slow --durations 0 -rP tests/real_shapes

ci:      ## everything, slow suites included
	bash .ci/run
