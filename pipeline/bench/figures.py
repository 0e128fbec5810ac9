"""Figures with their interval, their limit and their goal, and the report that holds those of one `bench` command.

A number without its limit beside it means little, and one without an interval may mean nothing. Ratios are taken round
by round, the two sides in turn, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

GoalIs = Literal["at_least", "at_most", "no_less", "neither"]
"""The direction in which a figure is good. `no_less` is a goal that is met unless the whole interval lies below it; it
is for what must not fall, where noise is no fall. `neither` is for what is no better when it is larger or smaller."""
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was measured. `low` and `high` bound the median with 95 % confidence; see `interval`."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    n: int
    """The number of samples behind the value."""
    limit: float | None = None
    """What the machine allows at best, in the same unit."""
    goal: float | None = None
    met: bool | None = None
    goal_is: GoalIs = "at_least"
    about: str = ""
    """A sentence that says what was measured, with the exact counts behind it."""
    samples: tuple[float, ...] = ()

    @property
    def share_of_limit(self) -> float | None:
        """The share of what can be had that was reached, 1 at best, whichever direction is better."""
        if self.limit is None or not self.value or not self.limit:
            return None
        return self.limit / self.value if self.goal_is == "at_most" else self.value / self.limit

    @property
    def better(self) -> Literal["less", "more", "neither"]:
        """Which direction is better. Time is better the shorter it is, whether or not there is a goal."""
        if self.goal_is == "neither":
            return "neither"
        return "less" if self.goal_is == "at_most" or self.unit.partition("/")[0] in ("s", "ms") else "more"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one `bench` command found."""

    what: str
    headline: str
    """One line that can be quoted; see `headline_of`."""
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The sizes and repeats, which decide the figures as well."""
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)

    @property
    def is_quick(self) -> bool:
        """Whether sizes were so tiny that the figures only show that the command runs."""
        return bool(self.settings.get("quick"))


def headline_of(text: str, *, quick: bool) -> str:
    """The line to quote, which says so where it must not be quoted."""
    return f"QUICK (tiny sizes show that it runs, not how fast): {text}" if quick else text


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median at 95 % whatever the distribution, from the order of the samples.

    Fewer than six samples cannot say so much; then it is their whole range, which holds the median with a probability
    of 1 - 2^(1-n): 75 % for three, 94 % for five.
    """
    ordered = sorted(samples)
    n = len(ordered)
    cut = 0
    while 1 - 2 * sum(math.comb(n, k) for k in range(cut + 1)) / 2**n >= CONFIDENCE:
        cut += 1
    cut = max(0, cut - 1)
    return ordered[cut], ordered[n - 1 - cut]


def measured(
    name: str,
    samples: Sequence[float],
    *,
    unit: str,
    about: str = "",
    limit: float | None = None,
    goal: float | None = None,
    goal_is: GoalIs = "at_least",
) -> Figure:
    """The figure whose value is the median of the samples."""
    if not samples:
        raise ValueError(f"{name}: no samples")
    value, (low, high) = statistics.median(samples), interval(samples)
    return Figure(
        name=name, value=value, unit=unit, low=low, high=high, n=len(samples), limit=limit, goal=goal,
        met=None if goal is None else _is_met(value, high, goal, goal_is),
        goal_is=goal_is, about=about, samples=tuple(samples),
    )  # fmt: skip


def _is_met(value: float, high: float, goal: float, goal_is: GoalIs) -> bool:
    match goal_is:
        case "at_least":
            return value >= goal
        case "at_most":
            return value <= goal
        case "no_less":
            return max(value, high) >= goal
        case "neither":
            raise ValueError(f"a goal of {goal:g} needs a direction")


def ratio(name: str, over: Sequence[float], under: Sequence[float], **form: Any) -> Figure:
    """The figure of over/under round by round: where both are seconds, how many times as fast the second is."""
    return measured(name, [a / b for a, b in zip(over, under, strict=True)], unit=form.pop("unit", "x"), **form)


def short(value: float) -> str:
    """A number in three digits, which are more than most measurements are worth."""
    if value and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}"
