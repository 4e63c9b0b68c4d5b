# make demo           set up .venv and score a drawn archive
# make test           set up .venv and run the tests
# make test-slow      run the slow tests: trainings with several workers or with workers that die, and long runs
# make test-faults    run the fault tests: kills, crashes, full disks, failing storage; print the effect on the rows
# make test-cluster   run the cluster tests: jobs, nights, metrics and lost nodes on a Ray cluster of three nodes
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
METU ?= ../shared/data/metu.zip
# One source, so that a photograph whose tiles are in two archives is one group
SDNET ?= ../shared/data/sdnet*.tar
# Photographs that are kept for testing
PHOTOS ?= ../shared/data/photos/cells.csv

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable

.PHONY: demo test test-slow test-faults test-cluster check format model bench setup emulators browser clean
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

test-cluster: setup
	$(BIN)/python -m pytest -m cluster

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The weights that the training begins with: imagenet (torchvision's, which are downloaded), or the path of a state dict.
INIT ?= imagenet
TRAIN := $(BIN)/crackbatch train --workers 0
COARSE := --init $(INIT) --image-size 160 --learning-rate 0.01 --augmentation full+lines --weight metu.zip=0.3
FINE := --init build/coarse --epochs 4 --learning-rate 0.005 --augmentation light+lines
# Three hours on two cores. Two models, each trained on half of the photographs, find doubtful labels; the last training
# leaves these tiles out. What is shipped is the average of a model with them and one without.
model: .venv/user
	$(BIN)/python benchmarks/sdnet_split.py $(METU) '$(SDNET)' --out build/split
	$(TRAIN) $(METU) '$(SDNET)' $(COARSE) --epochs 5 --split build/split/split.parquet --out build/coarse
	$(TRAIN) $(METU) '$(SDNET)' $(FINE) --weight metu.zip=0.3 --split build/coarse --out build/all
	$(BIN)/python benchmarks/label_noise.py folds build/split/split.parquet --out build/noise
	for half in 0 1; do \
		$(TRAIN) $(METU) '$(SDNET)' $(COARSE) --epochs 4 --split build/noise/fold-$$half.parquet --out build/noise/model-$$half && \
		$(BIN)/crackbatch score $(METU) '$(SDNET)' --model build/noise/model-$$half --out build/noise/scores-$$half || exit 1; \
	done
	$(BIN)/python benchmarks/label_noise.py suspects build/noise
	$(TRAIN) build/noise/metu.csv build/noise/sdnet.csv $(FINE) --weight metu.csv=0.3 --split build/noise/clean.parquet --out build/clean
	$(BIN)/python benchmarks/soup.py build/clean build/all --data $(METU) '$(SDNET)' --split build/split/split.parquet --out build/soup
	$(BIN)/python benchmarks/sdnet_photos.py $(SDNET) --out build/photos --split build/split/split.parquet
	$(BIN)/crackbatch calibrate build/photos/cells.csv --model build/soup --ground-resolution 0.25 --out build/model
	cp build/model/model.safetensors build/model/model.json build/model/seen.parquet crackbatch/models/concrete-resnet18/
	$(BIN)/python benchmarks/model_card.py build/model --split build/split/split.parquet --data $(METU) '$(SDNET)' \
		--photos $(PHOTOS) --noise build/noise --out crackbatch/models/concrete-resnet18/MODEL_CARD.md

bench: setup
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/small.py
	$(BIN)/python benchmarks/photo.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf .venv tests/node_modules demo build *.egg-info
