"""A report as a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from operators.errors import ConfigError
from pipeline.bench.figures import measured
from pipeline.bench.record import read, write
from tests.bench.samples import report


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(measured("decode.exact_s", [2.0, 1.0, 3.0], unit="s", limit=0.5, goal=4.0, goal_is="at_most"))
    write(tmp_path / "sub" / "a.json", written)
    found = read(tmp_path / "sub" / "a.json")
    assert found == written
    entry = json.loads((tmp_path / "sub" / "a.json").read_text())["figures"][0]
    wanted = {"name", "value", "unit", "low", "high", "n", "limit", "goal", "met"}
    assert wanted <= set(entry)
    assert (entry["value"], entry["low"], entry["high"], entry["n"]) == (2.0, 1.0, 3.0, 3)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write(path, report(measured("a", [1.0], unit="s")))
    before = path.read_text()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(path, report(measured("a", [2.0], unit="s")))
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"runs": []}')
    with pytest.raises(ConfigError, match=r"a\.json is no JSON file of `bench`"):
        read(tmp_path / "a.json")
