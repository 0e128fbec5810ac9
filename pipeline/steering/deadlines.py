"""How long the loop waits for a call, and for a worker that is not made. Pure: `now_s` is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Place = tuple[str, int]
"""A stage and a worker of it."""

SPARE_S = 60.0
"""The time that a call may take beyond four times the slowest."""
FIRST_S = 600.0
"""The time that the first call of a stage may take: networks may be compiled in it."""
STUCK_S = 3.0
"""The time after which a run that is to stop no longer waits for a call, unless its stage has seen slower ones."""
WAITS_S = 20.0
"""The time after which it is reported that a worker waits for a place."""
NONE_S = 120.0
"""The time after which a stage without any worker ends the run."""
MAKE_S = 600.0
"""The time after which a worker that has a place and is not made there is made anew."""


class Deadlines:
    """The time that a call may take: four times the slowest that its stage has seen, and a minute."""

    def __init__(self) -> None:
        self._slowest_s: dict[str, float] = {}
        self._free_s: dict[Place, float] = {}
        """When a worker was made or last ended a call; the next call in its line begins then."""

    def made(self, place: Place, now_s: float) -> None:
        self._free_s[place] = now_s

    def ended(self, place: Place, submitted_s: float, now_s: float) -> None:
        """Notes that a call came back in good order."""
        seconds = self.running_s(place, submitted_s, now_s)
        self._slowest_s[place[0]] = max(seconds, self._slowest_s.get(place[0], 0.0))
        self._free_s[place] = now_s

    def running_s(self, place: Place, submitted_s: float, now_s: float) -> float:
        return now_s - max(submitted_s, self._free_s.get(place, submitted_s))

    def is_late(self, place: Place, submitted_s: float, now_s: float) -> bool:
        """Whether a call is so late that its answer must be lost or its worker hang."""
        return self.running_s(place, submitted_s, now_s) > self.limit_s(place[0])

    def limit_s(self, stage: str) -> float:
        slowest_s = self._slowest_s.get(stage)
        return FIRST_S if slowest_s is None else 4 * slowest_s + SPARE_S

    def is_stuck(self, place: Place, submitted_s: float, now_s: float) -> bool:
        """Whether a call is so late that somebody who wants to stop need not wait for it."""
        slowest_s = self._slowest_s.get(place[0], 0.0)
        return self.running_s(place, submitted_s, now_s) > max(STUCK_S, 2 * slowest_s)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about the workers of a stage that are missing."""

    kind: str
    """waits: that is to be reported. none: the stage has no worker and the run ends. again: one is to be made anew."""
    stage: str
    workers: tuple[int, ...]
    num_here: int
    count: int


class Staffing:
    """Keeps which workers are not made and since when, and decides what follows from that."""

    def __init__(self, workers: Mapping[str, int]) -> None:
        self._workers = dict(workers)
        self._since_s: dict[Place, tuple[bool, float]] = {}
        """For each worker that is not made, whether it has a place, and since when that is so."""
        self._reported: set[Place] = set()

    def verdicts(self, missing: Mapping[Place, bool], now_s: float) -> list[Verdict]:
        """What is to be done now. `missing`: for each worker that is not made, whether it has a place and is being made
        there."""
        for place in [place for place in self._since_s if place not in missing]:
            del self._since_s[place]
            self._reported.discard(place)
        for place, is_placed in missing.items():
            if place not in self._since_s or self._since_s[place][0] != is_placed:
                self._since_s[place] = (is_placed, now_s)
        verdicts: list[Verdict] = []
        for stage in dict.fromkeys(stage for stage, _ in missing):
            verdicts += self._of_stage(stage, now_s)
        return verdicts

    def absent_s(self, stage: str, now_s: float) -> float:
        """For how long a stage has had no worker at all; 0 where it has one."""
        since = [since_s for (name, _), (_, since_s) in self._since_s.items() if name == stage]
        return now_s - max(since) if len(since) == self._workers.get(stage, 0) else 0.0

    def _of_stage(self, stage: str, now_s: float) -> Iterable[Verdict]:
        mine = {worker: state for (name, worker), state in self._since_s.items() if name == stage}
        count = self._workers.get(stage, len(mine))
        num_here = count - len(mine)
        waits = [worker for worker, (is_placed, since_s) in mine.items() if not is_placed and now_s - since_s > WAITS_S]
        if len(waits) == count and all(now_s - mine[worker][1] > NONE_S for worker in waits):
            yield Verdict("none", stage, tuple(waits), 0, count)
            return
        news = [worker for worker in waits if (stage, worker) not in self._reported]
        if news:
            self._reported.update((stage, worker) for worker in news)
            yield Verdict("waits", stage, tuple(waits), num_here, count)
        for worker, (is_placed, since_s) in mine.items():
            if is_placed and now_s - since_s > MAKE_S:
                self._since_s[stage, worker] = (is_placed, now_s)
                yield Verdict("again", stage, (worker,), num_here, count)
