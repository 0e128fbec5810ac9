"""A run over an archive before its first clip: the plan, and the table that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configuration
from pipeline.plan.resolve import Plan
from pipeline.plan.tuning import Choice
from pipeline.run import archive
from pipeline.run.archive import Told, label_archive


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[Mapping[str, Any] | None]:
    """What each resolving of a plan was told of an earlier run. Nothing is measured: a measurement is cut short."""
    told: list[Mapping[str, Any] | None] = []
    resolve = archive.resolve

    def watched(*arguments: Any, remembered: Mapping[str, Any] | None, **options: Any) -> Plan:
        told.append(remembered)
        return resolve(*arguments, remembered=remembered, **options)

    def measured(*arguments: Any, precision: str, **options: Any) -> Choice:
        precision = "fp32" if precision == "auto" else precision
        form = {"precision": precision, "compile": "off", "glance_batch": 8, "focus_batch": 16}
        return Choice(**form, how="cut short", seconds={})

    monkeypatch.setattr(archive, "resolve", watched)
    monkeypatch.setattr("pipeline.plan.resolve.choose", measured)
    return told


def begin(out: Path, monkeypatch: pytest.MonkeyPatch, *, seen: dict[str, Any], found: dict[str, Any]) -> str:
    """A run without inputs; what it says of itself. `seen`, `found`: an earlier run's settings before the table is
    locked, and once it is."""
    open_sink = archive.open_sink
    lines: list[str] = []
    with monkeypatch.context() as changed:
        changed.setattr(archive, "read_identity", lambda out: {"config": seen} if seen else None)
        changed.setattr(
            archive,
            "open_sink",
            lambda *arguments: replace(open_sink(*arguments), identity={"config": found} if found else None),
        )
        told = Told(started=lambda plan: lines.append(plan.opening_line()))
        config = configuration.load("demo", settings=("run.executor=inline",))
        label_archive(config, lambda names: iter(()), out=out, told=told)
    (line,) = lines
    return line


@pytest.mark.parametrize("earlier", [{}, {"compute.precision": "bf16"}])
def test_a_run_measures_once_and_says_that_it_did(asked, tmp_path, monkeypatch, earlier):
    line = begin(tmp_path, monkeypatch, seen=earlier, found=earlier)
    assert asked == [earlier or None] and "cut short" in line
    assert f"networks in {earlier.get('compute.precision', 'fp32')}" in line


def test_what_another_run_left_while_this_one_waited_for_the_table_counts(asked, tmp_path, monkeypatch):
    later = {"compute.precision": "bf16"}
    assert "networks in bf16" in begin(tmp_path, monkeypatch, seen={}, found=later)
    assert asked == [None, later]
