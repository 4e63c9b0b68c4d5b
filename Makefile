# make demo     set up in .venv and score a drawn archive
# make test     set up and test             make check    lint and types
# make model    train the shipped model     make bench    speed and planning, as ratios
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format model bench setup clean
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crackbatch needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m crackbatch.demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: setup
	$(BIN)/python jobs/train.py --out crackbatch/models/concrete-resnet18 ../shared/data/metu.zip ../shared/data/sdnet.tar

bench: setup
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/plan.py

clean:
	rm -rf .venv demo build *.egg-info
