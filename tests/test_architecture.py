"""The import plan: what may import what, and which file each library lives in."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("operators", "policies", "pipeline")
HOMES = {
    "av": {
        "operators/media/camera.py",
        "operators/media/camera_connection.py",
        "operators/media/encode.py",
        "operators/media/container.py",
        "operators/media/indexing.py",
        "operators/media/opening.py",
        "operators/media/painter.py",
        "operators/media/redirects.py",
        "pipeline/bench/plain.py",
    },
    "cv2": {
        "operators/media/stills.py",
        "pipeline/synthetic/archive.py",
        "pipeline/synthetic/scene.py",
        "pipeline/synthetic/sheet.py",
        "pipeline/bench/plain.py",
    },
    "decord": {"pipeline/bench/readers.py"},
    "torchcodec": {"pipeline/bench/readers.py"},
    "pyarrow": {
        "operators/table/schema.py",
        "pipeline/inputs/lists.py",
        "pipeline/families/truth.py",
        "pipeline/scoring/read_labels.py",
        "pipeline/synthetic/archive.py",
    },
    "yaml": {"pipeline/config/files.py", "pipeline/config/settings.py"},
    "click": {
        "run_pipeline.py",
        "pipeline/commands/label.py",
        "pipeline/commands/live.py",
        "pipeline/commands/options.py",
        "pipeline/commands/score.py",
        "pipeline/commands/train.py",
        "pipeline/bench/commands.py",
    },
    "ray": {"pipeline/run/ray_calls.py", "pipeline/run/ray_cluster.py", "pipeline/run/ray_executor.py"},
    "prometheus_client": {"pipeline/live/prometheus.py"},
    "rich": {
        "pipeline/commands/label_display.py",
        "pipeline/commands/live_display.py",
        "pipeline/commands/terminal.py",
        "pipeline/commands/training_display.py",
    },
    "safetensors": {"operators/weights/checkpoints.py"},
    "matplotlib": {"pipeline/scoring/plots.py"},
    "pydantic": {
        "operators/weights/header.py",
        "pipeline/config/cameras.py",
        "pipeline/config/settings.py",
        "pipeline/commands/reference.py",
        "pipeline/config/sections.py",
        "pipeline/config/training.py",
        "pipeline/config/training_motion.py",
    },
}
MAY_IMPORT = {
    # config takes the table of names from families, whose first file imports nothing of the pipeline.
    "config": ["families"],
    "inputs": [],
    "steering": [],
    "families": ["config", "steering"],
    "plan": ["config", "families", "inputs", "steering"],
    "run": ["config", "families", "inputs", "plan", "steering"],
    "live": ["config", "families", "plan", "run", "steering"],
    "scoring": ["config", "families", "plan", "run"],
    "synthetic": ["run"],
    "training": ["config", "families", "inputs", "plan", "run", "scoring", "steering"],
    "bench": ["commands", "config", "families", "inputs", "live", "plan", "run", "scoring", "steering", "synthetic"],
    "commands": ["config", "inputs", "live", "plan", "run", "scoring", "steering", "synthetic", "training"],
}
"""What each room of the pipeline may import; run_pipeline.py alone may import them all."""
LIGHT = (
    "operators/media/decode.py",
    "operators/media/frame_plan.py",
    "operators/media/view.py",
    "operators/media/camera.py",
    "pipeline/run/source_worker.py",
    "pipeline/run/focus_worker.py",
)


def sources() -> list[Path]:
    files = [ROOT / "run_pipeline.py"]
    for folder in OURS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports of ours are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("*/**/*.py")), ids=place)
def test_rooms_import_only_the_rooms_below_them(path: Path) -> None:
    room = room_of(place(path).removesuffix(".py").replace("/", "."))
    names = (name for name in imported(path) if name.startswith("pipeline."))
    # What stands in the package's own first file is no room, and is there for all of them.
    seen = {room_of(name) for name in names} & set(MAY_IMPORT)
    wrong = seen - {room, *MAY_IMPORT[room]}
    assert not wrong, f"{place(path)} may not import pipeline.{sorted(wrong)}"


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_no_room_of_the_pipeline_is_without_a_line_in_the_table() -> None:
    there = {path.stem for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert there - {"__init__"} == set(MAY_IMPORT)
    assert len(there) <= 13


@pytest.mark.parametrize("path", sources(), ids=place)
def test_imports_flow_down(path: Path) -> None:
    ours = {name for name in imported(path) if name.split(".")[0] in (*OURS, "run_pipeline", "tests", "configs")}
    match place(path).split("/")[0]:
        case "operators":
            wrong = {name for name in ours if not name.startswith("operators")}
        case "policies":
            wrong = {
                name
                for name in ours
                if not name.startswith(("policies", "operators.records", "operators.errors")) and name != "operators"
            }
        case "pipeline":
            wrong = {name for name in ours if name.split(".")[0] not in OURS}
        case _:
            wrong = {name for name in ours if name.split(".")[0] in ("tests", "run_pipeline")}
    assert not wrong, f"{place(path)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("library", HOMES)
def test_every_library_has_its_homes_and_no_home_is_empty(library: str) -> None:
    users = {place(path) for path in sources() if library in {name.split(".")[0] for name in imported(path)}}
    assert users == HOMES[library]


@pytest.mark.parametrize("path", sources(), ids=place)
def test_no_module_takes_a_standard_name_or_a_vague_one(path: Path) -> None:
    assert path.stem not in sys.stdlib_module_names or path.stem == "__init__"
    assert path.stem not in {"utils", "helpers", "common", "misc", "manager", "ray", "av", "torch"}


@pytest.mark.parametrize("name", LIGHT)
def test_source_workers_start_without_torch(name: str) -> None:
    """They start fast, and a hundred of them fit: torch alone takes a second and 200 MB."""
    seen: set[str] = set()
    waiting = [ROOT / name]
    while waiting:
        path = waiting.pop()
        for module in imported_at_the_top(path):
            assert module.split(".")[0] not in ("torch", "pydantic", "pyarrow", "ray"), f"{place(path)}: {module}"
            file = ROOT / (module.replace(".", "/") + ".py")
            if module not in seen and module.split(".")[0] in OURS and file.exists():
                seen.add(module)
                waiting.append(file)


def imported_at_the_top(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_configs_and_tests_are_imported_by_nobody() -> None:
    assert not list((ROOT / "configs").rglob("*.py"))
