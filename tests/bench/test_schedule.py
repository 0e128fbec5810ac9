"""What steering costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.errors import ConfigError
from pipeline.bench.null_run import FORMS, null_run
from pipeline.bench.schedule import bench_schedule, read_exits
from tests.bench.samples import quiet


def test_null_workers_label_every_clip() -> None:
    found = null_run(300, form=FORMS["schedule.clips_per_s"], executor="inline")
    assert len(found.rates) >= 1 and min(found.rates) > 0
    assert found.text.startswith("300 clips take ")


def test_bench_schedule_gives_the_names_that_others_read() -> None:
    found = bench_schedule(say=quiet, quick=True, executor="inline")
    names = {figure.name: figure for figure in found.figures}
    assert {"schedule.clips_per_s", "schedule.occupancy", "schedule.decisions_per_s"} <= set(names)
    assert 16.0 <= names["schedule.driver_bytes_per_clip"].value <= 17.0
    assert all(0.9 < names[f"schedule.occupancy_{n}"].value <= 1.0 for n in (1, 4, 16))


def test_exits_are_a_list_of_shares(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    path.write_text("[0.5, 0.25, 0.25]")
    assert read_exits(path) == (0.5, 0.25, 0.25)
    path.write_text("[0.5, -0.25]")
    with pytest.raises(ConfigError, match="not negative"):
        read_exits(path)
    path.write_text("half")
    with pytest.raises(ConfigError, match="no JSON list"):
        read_exits(path)
