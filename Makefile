# Everything from a fresh clone: `make demo`, `make test`. The environment is made in .venv from constraints.txt, and
# made anew when that file or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := test,pretrained,cpu,nvrtc,tensorrt-rtx,bags,live,rerun,ros
CAMVID ?= ../shared/data/camvid
SOURCE ?= runs/camvid_source.safetensors

.DELETE_ON_ERROR:
.PHONY: demo test lint types unit bench venv clean

demo: $(STAMP)
	$(BIN)/edge-sfda demo

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest

bench: $(SOURCE)
	$(BIN)/python benchmarks/peers.py --pair dusk --data $(CAMVID) --source $(SOURCE) --jobs 2

$(SOURCE): | $(STAMP)
	mkdir -p $(@D)
	$(BIN)/python benchmarks/train_camvid_source.py --data $(CAMVID) -o $@

venv: $(STAMP)

# The stamp is written last, so an interrupted installation starts again. The build backend comes from the pins as well,
# hence no build isolation.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edge-sfda needs Python 3.10 or later, found " + sys.version + "; name one with make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling editables setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
