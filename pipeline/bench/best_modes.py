"""Libraries that read the same files in turn, each in its best mode."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.bench.readers import Side
from pipeline.bench.turns import take_turns

Say = Callable[[str], None]
_WORTH_TWICE_S = 2.0
"""A mode that takes less is tried twice."""


@dataclass(frozen=True, kw_only=True)
class SharedFiles:
    """The files that all libraries read, and how often and how long they may."""

    paths: Sequence[str]
    rounds: int
    budget_s: float
    say: Say
    notes: list[str]
    """Notes of the report, to which what went wrong is added."""
    failed: set[str] = field(default_factory=set)

    def seconds(self, name: str, way: Side, *, may_fail: bool) -> float:
        """Reads the files in one way; NaN where another library fails or failed, which costs its own figures only."""
        if name in self.failed:
            return math.nan
        try:
            return way(self.paths)
        except Exception as exc:
            if not may_fail:
                raise
            why = " ".join(str(exc).split())[:200] or type(exc).__name__
            self.notes.append(f"{name} failed and was left out: {why}")
            self.say(self.notes[-1])
            self.failed.add(name)
            return math.nan


def in_turn(
    ours: dict[str, dict[str, Side]], others: dict[str, dict[str, Side]], files: SharedFiles
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The seconds of each library in its best mode, and which mode that is. Other libraries that fail are missing.

    Every mode is tried first, which also warms it up; the two best of each library take turns, and the one with the
    lower median counts. One try alone would pick by luck on a machine that has other work.
    """
    begun_s = time.monotonic()
    sides: dict[str, Callable[[], float]] = {}
    for library, ways in {**ours, **others}.items():
        runs = {
            mode: functools.partial(files.seconds, f"{library}, {mode}", way, may_fail=library in others)
            for mode, way in ways.items()
        }
        tried = {mode: run() for mode, run in runs.items()}
        for mode, seconds in tried.items():
            if seconds < _WORTH_TWICE_S:
                tried[mode] = min(seconds, runs[mode]())
        files.say(f"{library}: " + ", ".join(f"{mode} {value:.3g} s" for mode, value in tried.items()))
        tried = {mode: seconds for mode, seconds in tried.items() if f"{library}, {mode}" not in files.failed}
        if not tried:
            continue
        # What takes long and has no rival close by would only cost time.
        kept = [m for m in sorted(tried, key=lambda m: tried[m])[:2] if tried[m] <= 1.5 * min(tried.values())]
        for mode in kept if min(tried.values()) < 2 * _WORTH_TWICE_S else kept[:1]:
            sides[f"{library}, {mode}"] = runs[mode]
    left_s = files.budget_s - (time.monotonic() - begun_s)
    seconds_of = take_turns(sides, rounds=files.rounds, budget_s=left_s, say=files.say)
    best: dict[str, str] = {}
    for library in (*ours, *others):
        modes = [name for name in seconds_of if name.startswith(f"{library}, ") and name not in files.failed]
        if modes:
            best[library] = min(modes, key=lambda name: float(np.median(seconds_of[name])))
    modes_of = {library: name.removeprefix(f"{library}, ") for library, name in best.items()}
    return {library: seconds_of[name] for library, name in best.items()}, modes_of
