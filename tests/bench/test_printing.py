"""A report as a table and as a plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.figures import Figure, measured
from pipeline.bench.printing import as_text, draw
from tests.bench.samples import report


def test_the_table_says_value_limit_share_and_goal() -> None:
    text = as_text(report(measured("decode.exact_s", [2.0], unit="s", limit=0.5, goal=1.0, goal_is="at_most")))
    assert text.splitlines()[0] == "fast enough"
    row = text.splitlines()[-1].split()
    assert row == ["decode.exact_s", "2", "s", "1", "0.5", "25%", "≤", "1", "NO"]


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", report(measured("a", [2.0, 3.0, 4.0], unit="x", goal=2.5)))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def shares(path: Path, *figures: Figure, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    """What a plot would show, and what is said beside it."""
    drawn: list[Any] = []
    monkeypatch.setattr("pipeline.scoring.plots.draw_shares", lambda path, rows, **form: drawn.extend(rows))
    return drawn, draw(path, report(*figures))


def test_what_is_not_positive_is_drawn_at_the_end_of_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slope = measured("slope", [-0.5, -2.0, 1.0], unit="", goal=1.0, goal_is="at_most")
    rate = measured("rate", [0.0, -1.0, 3.0], unit="", goal=2.0)
    drawn, notes = shares(tmp_path / "a.png", slope, rate, monkeypatch=monkeypatch)
    assert drawn == [("slope / goal 1", 10.0, 1.0, 10.0), ("rate / goal 2", 0.01, 0.01, 1.5)]
    assert notes == []


def test_a_goal_of_nothing_has_no_share_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = measured("dropped", [37.0], unit="frames", goal=0.0, goal_is="at_most")
    drawn, notes = shares(tmp_path / "a.png", dropped, measured("a", [1.0], unit="s"), monkeypatch=monkeypatch)
    assert drawn == []
    assert notes == [
        "not drawn: dropped, 37, whose goal is 0",
        "nothing to draw: no figure of bench decode is a share of a goal or a limit",
    ]


def test_a_quick_report_shows_its_limits_and_no_goals() -> None:
    found = report(measured("decode.exact_s", [2.0], unit="s", limit=0.5, goal=1.0, goal_is="at_most"))
    lines = as_text(replace(found, settings={"quick": True})).splitlines()
    assert lines[-2].split() == ["figure", "value", "95", "%", "n", "limit", "of", "it"]
    assert lines[-1].split() == ["decode.exact_s", "2", "s", "1", "0.5", "25%"]
