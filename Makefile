# make demo, make test: all that a fresh machine needs. Both install once, then nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two cores are enough for everything here; libraries left to their defaults oversubscribe them.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench install system-packages clean

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: install
	$(BIN)/python run_pipeline.py demo

test: install system-packages
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# About forty minutes: everything anew, and docs/benchmarks.md from it.
bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m pipeline.bench.page --measure

# Debian's ffmpeg makes the odd files of the frame oracle, GStreamer is the RTSP server of the camera tests.
system-packages:
	@sh tests/system_packages.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
