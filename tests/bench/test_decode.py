"""Readers side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.bench.best_modes import SharedFiles
from pipeline.bench.decode import short_figures
from pipeline.bench.figures import Figure
from pipeline.bench.readers import reading, views
from pipeline.bench.rivals import Files
from pipeline.bench.workloads import QUICK_SHORT
from tests.bench.samples import quiet


def test_threads_do_not_change_what_is_read(files: Files) -> None:
    path = str(files.long[0])
    assert np.array_equal(views(path, num_threads=1), views(path, num_threads=2))
    assert views(path).shape == (16, 224, 224, 3)
    assert reading([path], seek="keyframe") > 0


def rivals(files: Files, ways: dict[str, Any]) -> tuple[list[Figure], list[str]]:
    """Figures of the short files, with one other library that has these modes."""
    notes: list[str] = []
    paths = [str(path) for path in files.short[:1]]
    shared = SharedFiles(paths=paths, rounds=2, budget_s=60.0, say=quiet, notes=notes)
    return short_figures(shared, {"decord": ways}, 1, QUICK_SHORT), notes


def test_a_library_that_fails_loses_its_own_figures(files: Files) -> None:
    asked: list[int] = []

    def broken(paths: list[str]) -> float:
        raise RuntimeError("no such codec")

    def broken_later(paths: list[str]) -> float:
        asked.append(1)
        return 0.001 if len(asked) <= 3 else broken(paths)

    found, notes = rivals(files, {"1 threads": broken, "2 threads": broken_later})
    names = [figure.name for figure in found]
    assert names == ["decode.short_clips_per_s", "decode.short_vs_best", "decode.short_vs_sequential"]
    assert notes == [f"decord, {n} threads failed and was left out: no such codec" for n in (1, 2)]
    assert len(asked) == 4, "two tries and two turns"
    found, notes = rivals(files, {"1 threads": broken, "2 threads": lambda paths: 0.001})
    assert found[1].about == "the best of the others is decord, 2 threads" and len(notes) == 1
