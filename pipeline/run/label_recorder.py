"""Takes note of every label as it is made: its clip is done, the figures grow, and too many failures end the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from operators.records import ClipLabel
from pipeline.run.metrics import RunMetrics
from pipeline.steering.done_set import DoneSet


class LabelRecorder:
    """Keeps which clips are done and what was counted; the scheduler calls `add` with every label."""

    def __init__(
        self,
        *,
        done: DoneSet,
        metrics: RunMetrics,
        max_failed: int | None = None,
        on_failed: Callable[[ClipLabel], None] = lambda label: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_failed`: how many failed clips end the run. `on_failed` is called with the label of each."""
        self.done = done
        self.metrics = metrics
        self._max_failed = max_failed
        self._on_failed = on_failed
        self._clock = clock
        self.ended_early: str | None = None
        """Why the run is to end although there are more inputs; None where it is not."""

    def is_wanted(self, clip_id: str) -> bool:
        """Whether a clip that was given to this run has no label yet, neither from it nor from an earlier one."""
        return not self.done.meet(clip_id)

    def add(self, label: ClipLabel) -> None:
        self.done.add(label.clip_id)
        self.metrics.add_label(label, self._clock())
        if label.error_code is None:
            return
        self._on_failed(label)
        if self._max_failed is None or self.ended_early:
            return
        # With 0 the first failure ends it, not the first label.
        if self.metrics.failed >= self._max_failed:
            self.ended_early = f"{self.metrics.failed} items failed (run.max_failed={self._max_failed})"
