"""How the rivals of `bench archive` are measured: in parts, each with what it is compared with before and behind it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.bench.limit import Stages
from pipeline.bench.rivals import LEARNED, Files, Rivals, Say
from pipeline.bench.session import Beside, Burst
from pipeline.bench.sizes import Cost, Sizes
from pipeline.plan.placement import this_machine


@dataclass(slots=True)
class Seconds:
    """Samples of seconds per clip, in pairs: the n-th of ours was measured beside the n-th of the others."""

    mix: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """The seconds that the mix would take at the limit of the machine."""
    stages: list[Stages] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    plain_long: list[float] = field(default_factory=list)
    """The plain loop's seconds, measured beside `long` and beside `near`."""
    short: list[float] = field(default_factory=list)
    plain_short: list[float] = field(default_factory=list)
    inline: list[float] = field(default_factory=list)
    mix_beside_inline: list[float] = field(default_factory=list)
    policies: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of all stages by policy, the learned policy among them."""
    bursts: list[Burst] = field(default_factory=list)
    """The bursts of the mix."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sides that are measured together."""

    name: str
    sides: tuple[Callable[[], None], ...]
    """What runs, in the order of even rounds."""
    likely_s: float | None = None
    """How long a part that can be left out is likely to take; None where it must be measured."""


def take_parts(
    parts: Sequence[Part], *, rounds: int, until_s: float, say: Say, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Measures all parts, round after round; the order of a part's sides turns. A part that would end too late is left
    out, but what must be there is measured once. Returns the names of the parts that never were measured."""
    longest_s = {part.name: part.likely_s or 0.0 for part in parts}
    times = {part.name: 0 for part in parts}
    for number in range(rounds):
        before = sum(times.values())
        for part in parts:
            begun_s = clock()
            if (number or part.likely_s is not None) and begun_s + longest_s[part.name] > until_s:
                say(f"time is up after {number} of {rounds} rounds: {part.name}")
                continue
            for side in part.sides if number % 2 == 0 else reversed(part.sides):
                side()
            longest_s[part.name] = max(longest_s[part.name], clock() - begun_s)
            times[part.name] += 1
        if sum(times.values()) == before:
            break
    return [name for name, count in times.items() if not count]


class Rig:
    """Measures the rivals and keeps what was found."""

    def __init__(self, rivals: Rivals, files: Files, sizes: Sizes, cost: Cost, *, say: Say) -> None:
        self.rivals, self.files, self.sizes, self.cost, self._say = rivals, files, sizes, cost, say
        self.seconds = Seconds()

    def parts(self) -> list[Part]:
        def share(side: Callable[[int], None], number: int, of: int) -> Callable[[], None]:
            """A side that takes one of several shares of its samples."""
            count = self.sizes.stretches
            return functools.partial(side, count * (number + 1) // of - count * number // of)

        limit, plain_short, plain_long = self._limit, self._plain_short, self._plain_long
        inline = Part(name="inline", sides=(self._all_inline,), likely_s=self.cost.inline_s(self.sizes))
        return [
            # What a burst is measured against stands before it and behind it.
            Part(name="mix", sides=(share(limit, 0, 2), self._mix, share(limit, 1, 2))),
            Part(
                name="long",
                sides=(
                    share(plain_long, 0, 3), self._long, share(plain_long, 1, 3), self._keyframes,
                    share(plain_long, 2, 3),
                ),
            ),
            Part(name="short", sides=(share(plain_short, 0, 2), self._short, share(plain_short, 1, 2))),
            Part(name="policies", sides=(self._policies,), likely_s=self.cost.policies_s(self.sizes)),
            *([inline] if self.rivals.inline else []),
        ]  # fmt: skip

    def _stretches(self, run: Beside, paths: Sequence[Path], stretch: int, **form: Any) -> Burst:
        burst = run.timed(paths, stretch=stretch * self.cost.scale, count=self.sizes.stretches, **form)
        # Where all labels came at once, which only the tiny ones of --quick do, a stretch has no length.
        return replace(burst, stretches=tuple(s if s > 0 else burst.seconds_per_clip for s in burst.stretches))

    def _report(self, name: str, samples: Sequence[float]) -> None:
        if samples:
            self._say(f"{name}, seconds per clip: " + ", ".join(f"{s:.3f}" for s in samples))

    def _mix(self) -> None:
        group = len(self.files.groups[0])
        burst = self._stretches(self.rivals.exact, self.files.mix, self.sizes.groups * group, period=group)
        self.seconds.bursts.append(burst)
        self.seconds.mix += burst.stretches
        self._report("mix", burst.stretches)

    def _limit(self, count: int) -> None:
        """Takes one group out of each stretch, another one in the next lap: two laps of stretches take all files."""
        cores, groups, each = this_machine().num_cores, self.files.groups, self.sizes.groups
        for _ in range(count):
            first = len(self.seconds.limit) * each
            stages = self.rivals.aside.stages(
                self.rivals.exact.plan, groups[(first + first // len(groups) % each) % len(groups)]
            )
            self.seconds.stages.append(stages)
            self.seconds.limit.append(stages.total_s / cores)
            self._report("limit of the mix", self.seconds.limit[-1:])

    def _long(self) -> None:
        # Reading is what they wait for, so nothing piles up that would have to before it is steady.
        readers = self.rivals.exact.plan.placement.source_workers
        burst = self._stretches(self.rivals.exact, self.files.long, self.sizes.long, period=readers, lead=readers)
        self.seconds.long += burst.stretches
        self._report("long", burst.stretches)

    def _keyframes(self) -> None:
        burst = self._stretches(self.rivals.near, self.files.long, self.sizes.near, period=4)
        self.seconds.near += burst.stretches
        self._report("long by keyframes", burst.stretches)

    def _plain_long(self, count: int) -> None:
        for _ in range(count):
            path = self.files.long[len(self.seconds.plain_long) % len(self.files.long)]
            self.seconds.plain_long.append(self.rivals.aside.plain(self.rivals.exact.plan, [path], "long"))
            self._report("long, plain loop", self.seconds.plain_long[-1:])

    def _short(self) -> None:
        burst = self._stretches(self.rivals.exact, self.files.short, self.sizes.short, period=4)
        self.seconds.short += burst.stretches
        self._report("short", burst.stretches)

    def _plain_short(self, count: int) -> None:
        for _ in range(count):
            some = self._some(len(self.seconds.plain_short), self.sizes.plain_short)
            self.seconds.plain_short.append(self.rivals.aside.plain(self.rivals.exact.plan, some, "short"))
            self._report("short, plain loop", self.seconds.plain_short[-1:])

    def _some(self, sample: int, size: int) -> list[Path]:
        """The short files of a sample, which begin where those of the sample before ended."""
        return [self.files.short[place % len(self.files.short)] for place in range(sample * size, (sample + 1) * size)]

    def _policies(self) -> None:
        """Measures every policy, in an order that turns with every sample."""
        plans = self.rivals.plans()
        for _ in range(self.sizes.policy_samples):
            turn = len(self.seconds.policies.get(LEARNED, ()))
            some = self._some(turn, self.sizes.policy_short)
            for policy in plans if turn % 2 == 0 else reversed(plans):
                stages = self.rivals.aside.stages(plans[policy], some)
                self.seconds.policies.setdefault(policy, []).append(stages.total_s)
            found = [f"{policy} {samples[-1]:.3f}" for policy, samples in self.seconds.policies.items()]
            self._say(f"policies, CPU seconds per clip: {', '.join(found)}")

    def _all_inline(self) -> None:
        assert self.rivals.inline is not None
        run = self.rivals.inline()
        for _ in range(self.sizes.inline_samples):
            group = self.files.groups[len(self.seconds.inline) % len(self.files.groups)]
            # One stage after another: there is nothing to fill or to empty, and labels come when much else is done.
            self.seconds.inline.append(run.through(group) / len(group))
            self.seconds.mix_beside_inline.append(median(self.seconds.mix[-self.sizes.stretches :]))
            self._report("inline", self.seconds.inline[-1:])
