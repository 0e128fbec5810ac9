"""Two reports, A and B: which of them is better in each figure, by how much, and what else was not the same."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from operators.errors import ConfigError
from pipeline.bench.figures import CONFIDENCE, Figure, Report, short
from pipeline.bench.printing import rows_as_text

_ENOUGH = 6
"""Samples that each side needs: fewer bound no median at 95 %."""
_CONDITIONS = (
    "cpu", "cpu_flags", "cores", "gpu", "threads", "torch", "ray", "av", "ffmpeg", "opencv-python-headless",
    "torchcodec", "decord",
)  # fmt: skip
_EXTENT = ("rounds", "minutes", "sizes", "lasted_s")
"""Settings that say how often something was measured, not what."""
HEADER = ("figure", "B over A", "95 %", "better is", "")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure as both reports have it."""

    name: str
    first: float
    second: float
    better: Literal["less", "more", "neither"] = "more"
    """Which direction of the value is better."""
    ratio: float | None = None
    """B's value over A's; None where one of the two is not positive: then both are shown instead."""
    low: float | None = None
    high: float | None = None
    why_not: str = ""
    """Why there is no interval."""

    @property
    def verdict(self) -> str:
        """Which side is better and by how much, in words."""
        if self.ratio is None:
            is_same = self.first == self.second
            return "no difference" if is_same else f"{self._side}A has {short(self.first)}, B has {short(self.second)}"
        if self.low is None or self.high is None:
            return f"cannot say: {self.why_not}"
        if self.low <= 1.0 <= self.high:
            return "no difference"
        return f"{self._side}B has {abs(self.ratio - 1):.1%} {'more' if self.ratio > 1 else 'less'} than A"

    @property
    def _side(self) -> str:
        if self.better == "neither":
            return ""
        return f"{'B' if (self.second > self.first) == (self.better == 'more') else 'A'} is better: "


def compare(first: Report, second: Report) -> list[Difference]:
    """Every figure that both reports have in one unit."""
    return [_difference(figure, other) for figure, other in _pairs(first, second) if figure.unit == other.unit]


def _pairs(first: Report, second: Report) -> list[tuple[Figure, Figure]]:
    found = [(figure, second.figure(figure.name)) for figure in first.figures]
    return [(figure, other) for figure, other in found if other is not None]


def _difference(first: Figure, second: Figure) -> Difference:
    form: dict[str, Any] = {
        "name": first.name, "first": first.value, "second": second.value, "better": second.better,
    }  # fmt: skip
    if min(first.value, second.value) <= 0:
        return Difference(**form)
    for side, figure in (("A", first), ("B", second)):
        why_not = ""
        if len(figure.samples) < _ENOUGH:
            why_not = f"{side} has {len(figure.samples)} of the {_ENOUGH} samples that it takes"
        elif min(figure.samples) <= 0:
            why_not = f"not all samples of {side} are above 0"
        if why_not:
            return Difference(**form, ratio=second.value / first.value, why_not=why_not)
    ratio, low, high = _ratio_of_medians(first.samples, second.samples)
    return Difference(**form, ratio=ratio, low=low, high=high)


def _ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """second/first with its bounds, by drawing again from samples that were not taken in turn."""
    rng = np.random.default_rng(0)
    ours, theirs = (np.median(rng.choice(side, (4000, len(side))), axis=1) for side in (first, second))
    low, high = np.quantile(theirs / ours, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    ratio = statistics.median(second) / statistics.median(first)
    return ratio, min(float(low), ratio), max(float(high), ratio)


def compare_text(first: Report, second: Report) -> str:
    """The table of differences with A and B for the two reports, and below it what was not the same."""
    differences = compare(first, second)
    if not differences:
        raise ConfigError("the two files have no figure in common: compare those of the same `bench` command")
    rows: list[tuple[str, ...]] = [HEADER]
    for d in differences:
        quotient = "" if d.ratio is None else f"{d.ratio:.3f}"
        bounds = "" if d.low is None else f"{d.low:.3f} .. {d.high:.3f}"
        rows.append((d.name, quotient, bounds, d.better, d.verdict))
    return "\n".join([*rows_as_text(rows), *_left_out(first, second), *_other_conditions(first, second)])


def _left_out(first: Report, second: Report) -> list[str]:
    """Figures that there is nothing to compare with."""
    lines = [
        f"not in one unit: {figure.name}, {figure.unit or 'no unit'} in A and {other.unit or 'no unit'} in B"
        for figure, other in _pairs(first, second)
        if figure.unit != other.unit
    ]
    for side, one, another in (("A", first, second), ("B", second, first)):
        alone = [figure.name for figure in one.figures if another.figure(figure.name) is None]
        if alone:
            lines.append(f"only in {side}: {', '.join(alone)}")
    return lines


def _other_conditions(first: Report, second: Report) -> list[str]:
    """What was not the same when the two were measured, so that figures may differ for it."""

    def conditions(report: Report) -> dict[str, Any]:
        where = {name: report.environment.get(name) for name in _CONDITIONS}
        how = {name: value for name, value in report.settings.items() if name not in _EXTENT}
        return {**_flat(where), **_flat(how)}

    ours, theirs = conditions(first), conditions(second)
    return [
        f"not the same {name}: {_in_words(ours.get(name))} in A and {_in_words(theirs.get(name))} in B"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree's leaves by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _in_words(value: Any) -> str:
    if value is None:
        return "nothing"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
