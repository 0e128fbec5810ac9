"""Sides of a comparison that are measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def take_turns(
    sides: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    budget_s: float,
    say: Callable[[str], None],
    at_least: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Runs every side once per round, in an order that turns from round to round, until the time is spent.

    A side runs and returns its sample. A round is begun only where one as long as the longest so far would still fit.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    begun_s, longest_s = clock(), 0.0
    for number in range(rounds):
        round_s = clock()
        if number >= at_least and round_s - begun_s + longest_s > budget_s:
            say(f"time is up after {number} of {rounds} rounds")
            break
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            samples[name].append(sides[name]())
        longest_s = max(longest_s, clock() - round_s)
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {s[-1]:.4g}" for name, s in samples.items()))
    return samples
