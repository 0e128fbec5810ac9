"""Labels for the tests of the table, the sink that takes them, and the rows that are read back."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from operators.records import ClipLabel, clip_id
from operators.table.schema import part_paths
from operators.table.sink import ParquetSink

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["operators.table.sink"])

IDENTITY = {"model_id": "m1", "config_id": "c1", "config": {"focus.patch_px": 96, "compute.seed": 0}}


def clip(number: int, **changes: Any) -> ClipLabel:
    facts: dict[str, Any] = {
        "video_id": f"v{number}",
        "clip_id": clip_id("archive", float(number)),
        "source_uri": f"/videos/v{number}.mp4",
        "label": "cat",
        "label_id": 1,
        "score": 0.5,
        "frames_total": 16,
        "frames_focused": 4,
        "gmacs": 2.0,
        "gmacs_full": 8.0,
    }
    return ClipLabel(**facts | changes)


def failed(number: int, code: str = "corrupt") -> ClipLabel:
    nothing = {"label": None, "label_id": None, "score": None, "frames_total": 0, "frames_focused": 0}
    return clip(number, error_code=code, error="nothing to see", gmacs=0.0, gmacs_full=0.0, **nothing)


def seen(second: float, camera: str = "door") -> ClipLabel:
    return clip(0, clip_id=clip_id(camera, second), camera=camera, start_s=second, end_s=second + 1)


def sink(out: Path, run_id: str = "run1", **changes: Any) -> ParquetSink:
    return ParquetSink(out=out, run_id=run_id, **{"identity": IDENTITY} | changes)


def rows(out: Path) -> list[dict[str, Any]]:
    return ds.dataset(out / "labels", partitioning="hive").to_table().to_pylist() if part_paths(out / "labels") else []


def videos(out: Path) -> dict[str, str | None]:
    """Returns video_id -> error_code, and asserts that no video is there twice."""
    found = [(row["video_id"], row["error_code"]) for row in rows(out)]
    assert len(dict(found)) == len(found)
    return dict(found)


def files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "labels").iterdir())


def start_child(target: Callable[..., None], out: Path, *args: Any) -> Any:
    """Starts a process of its own; an int as the last argument kills it before that change to the disk, from 0 on."""
    step = args[-1] if args and isinstance(args[-1], int) else None
    child = processes.Process(target=run_child, args=(target, out, args if step is None else args[:-1], step))
    child.start()
    return child


def run_child(target: Callable[..., None], out: Path, args: tuple[Any, ...], step: int | None) -> None:
    left = itertools.count(step or 0, -1)

    def kill_at_step(event: str, _: Any) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.link", "ctypes.dlsym") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if step is not None:
        sys.addaudithook(kill_at_step)
    target(out, *args)
