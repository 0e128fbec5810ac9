"""Networks that are timed in no time, for tests of how they are run."""

from __future__ import annotations

from pipeline.plan.measuring import Trial
from pipeline.plan.network_choice import NetworkWork

SMALL = NetworkWork(glance="small_glance", glance_px=32, glances=4, focus="small_focus", patch_px=24, patches=4)


class TimedTrial:
    """Images in a pass of n rows take 1 + 1/n units each, compiled ones half of it."""

    glance_macs, focus_macs = 300_000_000, 1_300_000_000

    def __init__(self, work: NetworkWork, device: str) -> None:
        pass

    def wake(self) -> None:
        pass

    def glance_s(self, precision: str, compile: str, rows: int) -> float:
        return (1 + 1 / rows) / (2 if compile == "on" else 1)

    def focus_s(self, precision: str, compile: str, rows: int) -> float:
        return self.glance_s(precision, compile, rows)

    def clip_s(self, precision: str, compile: str) -> float:
        return self.glance_s(precision, compile, 4)


class SlowTrials:
    """Makes trials in which a clock goes on: `wake_s` to wake the device, `timing_s` for every timing."""

    def __init__(self, *, wake_s: float = 0.0, timing_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._wake_s, self._timing_s = wake_s, timing_s

    def clock(self) -> float:
        return self.now_s

    def __call__(self, work: NetworkWork, device: str) -> Trial:
        passes = self._passes

        class SlowTrial(TimedTrial):
            def wake(self) -> None:
                passes(True)

            def glance_s(self, precision: str, compile: str, rows: int) -> float:
                passes(False)
                return super().glance_s(precision, compile, rows)

        return SlowTrial(work, device)

    def _passes(self, is_wake: bool) -> None:
        self.now_s += self._wake_s if is_wake else self._timing_s


def never(work: NetworkWork, device: str) -> Trial:
    """In place of a trial where nothing may be measured."""
    raise AssertionError("the networks are measured again")
