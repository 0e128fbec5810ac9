"""The curves of all stages as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.training.settings import TITLES

_LEFT = ("loss", "patch_loss", "reward", "return", "entropy")
"""Drawn against the left axis; percentages go against the right one."""


def draw_curves(path: Path, stages: Sequence[tuple[str, list[dict[str, Any]]]]) -> None:
    """One panel per stage that has metrics."""
    shown = [(stage, rows) for stage, rows in stages if rows]
    if not shown:
        return
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (stage, rows) in enumerate(shown):
        left = figure.add_subplot(1, len(shown), i + 1)
        right = left.twinx()
        names = [n for n in dict.fromkeys(name for row in rows for name in row)]
        for name in names:
            if name in ("stage", "done", "total", "seconds", "lr"):
                continue
            points = [(row["done"], row[name]) for row in rows if row.get(name) is not None]
            axis, style = (left, "-") if name in _LEFT else (right, "o--")
            axis.plot(*zip(*points, strict=True), style, label=name, markersize=3, linewidth=1.2)
        left.set_title(f"{stage}: {TITLES.get(stage, stage)}, {rows[-1]['seconds']:.0f} s", fontsize=10)
        left.set_xlabel("epoch")
        right.set_ylim(0, 102)
        right.set_ylabel("%")
        lines = [*left.get_lines(), *right.get_lines()]
        # A second set of colours for the right axis, so that no two lines of a panel look alike.
        for number, line in enumerate(lines):
            line.set_color(f"C{number}")
        if lines:
            left.legend(lines, [str(line.get_label()) for line in lines], fontsize=7)
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, dpi=110, format="png")
    os.replace(aside, path)
