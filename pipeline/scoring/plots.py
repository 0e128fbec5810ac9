"""Figures as PNG files. Nothing here computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MOST_NAMES = 60
"""Classes up to which names are legible on an axis."""


def _figure(width_in: float, height_in: float) -> Figure:
    # Not pyplot: it keeps every figure, and looks for a display.
    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def draw_confusion(path: str | Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """matrix int [K,K]: rows are the truth. Each row is drawn as shares; small matrices show their counts."""
    num_classes = len(class_names)
    side = 3.0 + 0.32 * min(num_classes, _MOST_NAMES)
    figure = _figure(side + 1.2, side)
    axes = figure.add_subplot()
    shares = 100.0 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="% of the class", fraction=0.046)
    axes.set_xlabel("label")
    axes.set_ylabel("truth")
    if num_classes <= _MOST_NAMES:
        axes.set_xticks(range(num_classes), class_names, rotation=90, fontsize=7)
        axes.set_yticks(range(num_classes), class_names, fontsize=7)
    if num_classes <= 25:
        for row, column in np.argwhere(matrix > 0):
            tone = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=tone, fontsize=7)
    figure.savefig(path)


def draw_curves(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
) -> None:
    """One line with its points per name; (x, y) pairs."""
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    for name, points in curves.items():
        along = sorted(points)
        axes.plot([x for x, _ in along], [y for _, y in along], marker="o", markersize=3.5, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


_AGAINST_LEFT = ("loss", "patch_loss", "reward", "return", "entropy")
_NOT_DRAWN = ("stage", "done", "total", "seconds", "lr")


def draw_training(path: str | Path, stages: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
    """One panel per training stage (title, rows of metrics): losses on the left axis, percentages on the right."""
    shown = [(title, rows) for title, rows in stages if rows]
    if not shown:
        return
    figure = _figure(4.2 * len(shown), 3.4)
    for i, (title, rows) in enumerate(shown):
        left = figure.add_subplot(1, len(shown), i + 1)
        right = left.twinx()
        for name in dict.fromkeys(name for row in rows for name in row if name not in _NOT_DRAWN):
            points = [(row["done"], row[name]) for row in rows if row.get(name) is not None]
            axes, style = (left, "-") if name in _AGAINST_LEFT else (right, "o--")
            axes.plot([x for x, _ in points], [y for _, y in points], style, label=name, markersize=3, linewidth=1.2)
        lines = [*left.get_lines(), *right.get_lines()]
        # Each axis counts its colours from the first: no two lines of a panel may look alike.
        for number, line in enumerate(lines):
            line.set_color(f"C{number}")
        left.set_title(f"{title}, {rows[-1]['seconds']:.0f} s", fontsize=10)
        left.set_xlabel("epoch")
        right.set_ylim(0, 102)
        right.set_ylabel("%")
        if lines:
            left.legend(lines, [str(line.get_label()) for line in lines], fontsize=7)
    figure.savefig(path)


def draw_shares(
    path: str | Path, rows: Sequence[tuple[str, float, float, float]], *, title: str, x_label: str
) -> None:
    """One point per row (name, share, low, high), from top to bottom, with its interval, and a line at 1.

    The axis is logarithmic: half and twice lie equally far from the line.
    """
    figure = _figure(8.0, 1.6 + 0.28 * len(rows))
    axes = figure.add_subplot()
    for place, (_, share, low, high) in enumerate(rows):
        colour = "tab:green" if share >= 1 else "tab:blue"
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot([share], [place], "o", color=colour, markersize=5)
        axes.annotate(f"{share:.2f}", (share, place), xytext=(0, 4), textcoords="offset points", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(x_label)
    axes.set_title(title, fontsize=9, wrap=True)
    figure.savefig(path)
