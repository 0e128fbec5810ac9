"""The stages alone do the work of a run."""

from __future__ import annotations

import pytest

from pipeline import config as configuration
from pipeline.bench.alone import passes, slices
from pipeline.bench.limit import Stages, stage_seconds
from pipeline.bench.rivals import Files
from pipeline.plan.resolve import resolve
from pipeline.run.source_worker import SourceWorker
from pipeline.steering.messages import Slice
from tests.bench.samples import MACHINE


def test_rows_of_all_patches_are_found_again_in_their_passes() -> None:
    assert passes(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert slices(2, 9, 4) == (Slice(0, 2, 4), Slice(1, 0, 4), Slice(2, 0, 1))
    assert slices(4, 8, 4) == (Slice(1, 0, 4),)


def test_every_stage_alone_costs_something(files: Files, small: configuration.Config) -> None:
    plan = resolve(small, MACHINE)
    # Passes of three, so that no clip's four patches lie in one of them.
    found = stage_seconds(plan.worker_specs(), (2, 3), [str(path) for path in files.short[:3]])
    assert set(found.seconds) == {"source", "stream", "focus", "sink"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert len(found.sources) == 3 and sum(found.sources) == pytest.approx(3 * found.seconds["source"])


def test_a_video_that_is_read_in_many_slices_is_one_clip_of_the_stages_alone(
    files: Files, small: configuration.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourceWorker, "_has_room", lambda self, begun_s, batches: False)
    written: list[int] = []
    monkeypatch.setattr("pipeline.bench.limit.sink_seconds", lambda labels: written.append(len(labels)) or 0.1)
    stage_seconds(resolve(small, MACHINE).worker_specs(), (2, 3), [str(path) for path in files.short[:2]])
    assert written == [2]


def test_the_stages_of_one_file_are_its_own_source_and_the_rest_of_all() -> None:
    found = Stages(seconds={"source": 2.0, "focus": 3.0}, sources=(4.0, 1.0, 1.0))
    assert found.total_s == 5.0
    assert (found.total_with_s(found.sources[:1]), found.total_with_s(found.sources[1:])) == (7.0, 4.0)
