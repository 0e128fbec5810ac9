"""The program installed from its wheel, in an environment of its own, where no checkout is in reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset as ds
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("pyproject.toml", "README.md", "run_pipeline.py", "pipeline", "operators", "policies", "configs")
QUICK = ("--set", "compute.precision=fp32", "--set", "compute.compile=off")


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`saccade` of an environment that has the wheel, and finds torch and the rest where the tests have them."""
    folder = tmp_path_factory.mktemp("installed")
    # Built from a copy: a build leaves folders beside its sources, and takes what an earlier one left there.
    (folder / "source").mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder / "dist", folder / "source"]
    run(*pip, *build)
    shutil.rmtree(folder / "source")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    (wheel,) = (folder / "dist").glob("saccade-*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A folder that a .pth file adds is searched, but its own .pth files, the one of this checkout among them, are not.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder / "venv/bin/saccade"


def run(*words: object, cwd: object = "/") -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [str(word) for word in words], cwd=str(cwd), env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def archive(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    run(program, "synth", "data", "--videos", 12, "-q", cwd=folder)
    return folder / "data"


def test_only_the_wheel_is_found(program: Path) -> None:
    names = "run_pipeline, pipeline, operators, policies"
    script = f"import {names}; print(*(m.__file__ for m in ({names})), sep=chr(10))"
    for place in run(program.with_name("python"), "-c", script).splitlines():
        assert Path(place).is_relative_to(program.parent.parent)


def test_it_knows_its_version_and_every_preset(program: Path, tmp_path: Path) -> None:
    script = "from pipeline import config as c; print(*c.presets(), '|', *c.presets_with_weights())"
    expected = " ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
    assert run(program.with_name("python"), "-c", script, cwd=tmp_path) == f"{expected} | demo live\n"
    script = "from importlib.metadata import version; print(version('saccade'))"
    version = run(program.with_name("python"), "-c", script)
    assert run(program, "--version") == f"saccade, version {version}"


def test_it_labels_on_ray_from_any_folder_with_a_preset_by_its_name(program: Path, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "still.png"), np.zeros((40, 60, 3), np.uint8))
    summary = run(program, "label", "still.png", "-o", "out", "--config", "demo", "--json", *QUICK, cwd=tmp_path)
    assert json.loads(summary)["clips"] == 1
    (row,) = ds.dataset(str(tmp_path / "out/labels"), format="parquet").to_table().to_pylist()
    assert row["error_code"] is None and row["label"]


def test_it_watches_a_file_as_a_camera(program: Path, archive: Path, tmp_path: Path) -> None:
    video = next((archive / "videos").rglob("*.mp4"))
    arguments = ("--executor", "inline", "--set", "live.window_s=1", "--set", "live.stride_s=0.5", *QUICK)
    lines = run(program, "live", video, "-o", "out", "--json", "-q", *arguments, cwd=tmp_path)
    assert json.loads(lines.splitlines()[0])["camera"] == "camera_1"


def test_train_finds_its_preset_and_the_classes(program: Path, archive: Path, tmp_path: Path) -> None:
    arguments = ("--videos", archive / "videos", "-o", "training", "--stage", "0a", "--limit", 2, "-q")
    run(program, "train", archive / "annotations.json", *arguments, "--set", "train.glance.epochs=1", cwd=tmp_path)
    assert (tmp_path / "training/checkpoint.safetensors").is_file()
