"""Figures as PNG files. Nothing here computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
