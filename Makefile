# The two commands of a newcomer, and what they need. Everything goes into .venv and runs/.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all lint native docs parity clean

help:
	@echo "make demo    install into .venv, then train, evaluate and predict on scikit-learn's digits (about 2 minutes)"
	@echo "make test    everything that must hold: style, types, tests"
	@echo "make test-all  the same, with the slow ones, some minutes more"
	@echo "make native  build native/, which makes JPEG crops faster, into .venv; needs a C compiler and libjpeg-turbo's headers"
	@echo "make parity  prove anew that models go to timm, Transformers and torchvision and back; writes results/parity.json"
	@echo "make docs    write the figures in README.md and docs/ anew from results/*.json"
	@echo "make clean   remove .venv and what the demo made"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# timm, Transformers and torchvision, to compare with, the drivers of two stores, Ray, which is large, and tritonclient, which binds
# older versions. Tests that need them are skipped where they do not install.
.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]' \
	    || echo "timm and Transformers did not install: the tests that compare with them will be skipped"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[elsewhere]' \
	    || echo "gcsfs and adlfs did not install: the tests of Google's and Azure's stores will be skipped"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]' \
	    || echo "Ray did not install: the tests of scoring over a cluster will be skipped"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[triton]' \
	    || echo "tritonclient did not install: the test that asks the server with it will be skipped"
	@touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python examples/demo_pictures.py runs/demo-pictures
	$(BIN)/resnet train runs/demo-pictures --recipe digits --out runs/demo
	$(BIN)/resnet evaluate runs/demo runs/demo-pictures/val
	$(BIN)/resnet predict runs/demo runs/demo-pictures/val/7 --top 3 | head -n 5
	@echo "the report: $(CURDIR)/runs/demo/report.html"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread for each process: several that take all cores each wait for one another.
test test-all: export OMP_NUM_THREADS = 1

test: lint .venv/peers
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow'

test-all: lint .venv/peers
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Tests of it are skipped where it is not installed.
native: .venv/installed
	@printf '#include <stdio.h>\n#include <jpeglib.h>\n' | $${CC:-cc} -E - >/dev/null 2>&1 \
	    || { echo "no C compiler, or no jpeglib.h; on Debian: apt-get install gcc libc6-dev libjpeg62-turbo-dev" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ./native

parity: .venv/peers
	$(BIN)/python -m pytest tests/test_peers_parity.py --record-parity
	$(BIN)/python docs/figures.py

docs: .venv/installed
	$(BIN)/python docs/figures.py

clean:
	rm -rf .venv runs/demo runs/demo-pictures
