# make demo           set up .venv and score a drawn archive
# make test           set up .venv and run the tests
# make test-slow      run the slow tests: trainings with several workers or with workers that die, and long runs
# make test-faults    run the fault tests: kills, crashes, full disks, failing storage; print the effect on the rows
# make check          run the linter and the type checker
# make format         format the code
# make emulators      install Azurite from npm, for the tests of Azure
# make browser        install Chromium with apt, for the tests of pages
# make model          train the shipped model
# make bench          measure scoring, planning and training; prints ratios
# make clean          remove .venv, demo, build and what npm installed
PYTHON ?= python3
BIN := .venv/bin
# METU and SDNET2018; the model card gives their addresses
DATA ?= ../shared/data/metu.zip ../shared/data/sdnet.tar
PHOTOS ?= ../shared/data/sdnet.tar ../shared/data/sdnet-rest.tar

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable

.PHONY: demo test test-slow test-faults check format model bench setup emulators browser clean
setup: .venv/dev

# What crackbatch itself needs.
.venv/user: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crackbatch needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(INSTALL) .
	touch $@

# What its tests and checks need in addition.
.venv/dev: .venv/user
	$(INSTALL) '.[dev]'
	touch $@

# Azurite for the tests of Azure. Without npm or its registry, those tests are skipped and the others run.
emulators: tests/node_modules/ready

tests/node_modules/ready: tests/package.json
	@if ! command -v npm > /dev/null; then echo "npm is not installed: the tests of Azure will be skipped"; \
	elif npm install --prefix tests --no-package-lock --no-audit --no-fund --fetch-retries=0 --loglevel=error; \
	then touch $@; else echo "Azurite cannot be installed: the tests of Azure will be skipped"; fi

# Chromium for the tests of pages, on Debian and as root. Elsewhere those tests are skipped unless it is installed.
browser:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then :; \
	elif ! { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; }; \
	then echo "Chromium is not installed: the tests of pages will be skipped"; \
	elif ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } > /dev/null; \
	then echo "Chromium cannot be installed: the tests of pages will be skipped"; fi

demo: .venv/user
	$(BIN)/python -m crackbatch.cli.demo

test: setup emulators
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations=10

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-faults: setup
	$(BIN)/python -m pytest -m faults

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model: .venv/user
	$(BIN)/crackbatch train $(DATA) --workers 0 --init none --epochs 18 --image-size 160 --learning-rate 0.1 \
		--weight metu.zip=0.3 --split concrete-resnet18 --out build/concrete-resnet18-160
	$(BIN)/crackbatch train $(DATA) --workers 0 --init build/concrete-resnet18-160 --epochs 4 --learning-rate 0.02 \
		--weight metu.zip=0.3 --split build/concrete-resnet18-160 --out build/concrete-resnet18-224
	$(BIN)/crackbatch train $(DATA) --workers 0 --init build/concrete-resnet18-224 --epochs 6 --learning-rate 0.02 \
		--augmentation light --split build/concrete-resnet18-224 --out build/concrete-resnet18
	$(BIN)/python benchmarks/sdnet_photos.py $(PHOTOS) --out build/photos
	$(BIN)/crackbatch calibrate build/photos/cells.csv --model build/concrete-resnet18 --ground-resolution 0.25 \
		--out build/concrete-resnet18-calibrated
	cp build/concrete-resnet18-calibrated/model.safetensors build/concrete-resnet18-calibrated/model.json \
		build/concrete-resnet18-calibrated/seen.parquet crackbatch/models/concrete-resnet18/

bench: setup
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/small.py
	$(BIN)/python benchmarks/photo.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf .venv tests/node_modules demo build *.egg-info
