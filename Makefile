# make demo, make test: all that a fresh machine needs. Both install once, then nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two cores are enough for everything here; libraries left to their defaults oversubscribe them.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench weights install system-packages clean

install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	$(BIN)/python run_pipeline.py demo

test: install system-packages
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# The weights that ship, from nothing: the archives, all stages, and the calibrations.
weights: install
	$(BIN)/python run_pipeline.py synth out/weights/data --videos 3500 --shares 2000 500 1000
	$(BIN)/python run_pipeline.py synth out/weights/calibration-data --videos 3000 --shares 0 1 0 --seed 1
	$(BIN)/python run_pipeline.py train out/weights/data/annotations.json --videos out/weights/data/videos \
		--truth out/weights/data/truth.parquet -o out/weights/training
	$(CALIBRATE) -o out/weights/calibration --checkpoint out/weights/training/checkpoint.safetensors \
		--write out/weights/calibrated.safetensors
	$(CALIBRATE) -o out/weights/calibration-skip --checkpoint out/weights/calibrated.safetensors \
		--set skip.kind=learned --write out/weights/calibrated-skip.safetensors
	$(CALIBRATE) -o out/weights/calibration-glance --checkpoint out/weights/calibrated-skip.safetensors \
		--set skip.kind=learned --set skip.sees=glance --write out/weights/small_synth.safetensors
# 500 clips do not tell a mean cost to five percent: it scatters by 1 to 4 % with them.
CALIBRATE = $(BIN)/python run_pipeline.py calibrate out/weights/calibration-data/annotations.json \
	--videos out/weights/calibration-data/videos --subset val

# About forty minutes: everything anew, and docs/benchmarks.md from it.
bench: install system-packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pipeline.bench.page --measure

# Debian's ffmpeg makes the odd files of the frame oracle, GStreamer is the RTSP server of the camera tests.
system-packages:
	@sh tests/system_packages.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
