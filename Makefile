# Two commands do everything: `make demo` and `make test`. Both make .venv first; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo-out
WORKERS ?= 2
# One more than the cores of a small machine: tests of Kafka wait for much of their time.
TEST_WORKERS ?= 3
SOAK := tests/promises/test_kills.py tests/promises/test_hostile_messages.py tests/promises/test_exactly_once.py \
  tests/promises/test_broker_faults.py tests/promises/test_groups.py tests/storage/maintenance/test_expiry.py \
  tests/learners/test_bounded.py tests/learners/response/test_later_runs.py tests/learners/test_threads.py \
  tests/promises/test_real_conditions.py tests/experiments/benchmark/test_benchmark.py tests/experiments/compare/test_compare.py

.PHONY: demo null demo-kafka test soak bench year tables lint setup check-python check-java clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        simulate six runs, stream them, learn them, write a report (no broker needed)"
	@echo "make null        the same on the stream where nothing differs: everything must stay at chance"
	@echo "make demo-kafka  the same as demo through a real Apache Kafka broker (needs JDK 17+ and Maven)"
	@echo "make test        all tests, linter and type checker (needs JDK 17+ and Maven)"
	@echo "make soak        the long forms of the promises: 500 kills, 100 000 fuzzed messages; prints the figures"
	@echo "make bench       what ingest, archive, experts, backbones, a training step and a run cost, as ratios within one run"
	@echo "make year        1000 runs through three learners: what they still know, and what a run costs by then (an hour and a half)"
	@echo "make tables      the tables of the README, from benchmarks/readme.toml: hours; goes on where it stopped (REUSE=FOLDER)"
	@echo "make setup       only make .venv and install"

demo: setup
	$(BIN)/dqmstream demo --out $(OUT)/moderate

null: setup
	$(BIN)/dqmstream demo --stream null --out $(OUT)/null

demo-kafka: check-java setup
	$(BIN)/python -m tools.broker run -- $(BIN)/dqmstream demo --kafka --out $(OUT)/kafka

test: check-java setup lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

soak: check-java setup
	DQMSTREAM_SOAK=1 $(BIN)/python -m pytest -s -p no:logging $(SOAK)

bench: check-java setup
	$(BIN)/python -m benchmarks.archive
	$(BIN)/python -m benchmarks.moe
	$(BIN)/python -m benchmarks.backbones
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.learner
	$(BIN)/python -m tools.broker run -- $(BIN)/python -m benchmarks.ingest

year: setup
	$(BIN)/python -m benchmarks.year --figure docs/year.png

tables: setup
	$(BIN)/dqmstream benchmark benchmarks/readme.toml --out benchmarks/results --workers $(WORKERS) $(addprefix --reuse ,$(REUSE))

lint: setup
	$(BIN)/ruff check dqmstream tests tools benchmarks
	$(BIN)/mypy

setup: check-python $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $(STAMP)

check-python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dqmstream needs Python 3.11 or newer with venv: apt-get install python3 python3-venv (or set PYTHON=python3.12)"; exit 1; }

check-java:
	@$(PYTHON) -m tools.broker check

clean:
	rm -rf $(VENV) .kafka $(OUT) *.egg-info
