"""The loop of a live run: labels go from the workers that watch to the one that writes, until the run is to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from operators.errors import ClusterGone
from pipeline.live.record import LiveRecord
from pipeline.live.sink import LabelWriter
from pipeline.live.watchers import Watchers
from pipeline.live.worker import CameraPlan
from pipeline.run.loop import StopRequest
from pipeline.steering.executor import Executor
from pipeline.steering.messages import WriteRequest

_DRAIN_S = 3.5
"""What has arrived is still analysed for so long. The last part, and ending all processes, take the rest of 5 s."""
_GIVE_UP_S = 4.0
"""So long after a signal a sink that does not answer is still waited for."""


class LiveLoop:
    """Goes round between the workers of a live run, and decides when it is over."""

    def __init__(
        self,
        *,
        executor: Executor,
        shares: Sequence[tuple[CameraPlan, ...]],
        identity: Mapping[str, Any],
        record: LiveRecord,
        stop: StopRequest,
        rescue: Callable[[Sequence[WriteRequest]], None],
        can_kill: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shares`: the cameras of each worker. `rescue` commits labels without any worker, when the cluster's head is
        gone. `can_kill`: workers are processes, so that one that hangs can be ended."""
        self._executor = executor
        self._record = record
        self._stop = stop
        self._rescue = rescue
        self._clock = clock
        self._writer = LabelWriter(
            executor=executor, identity=identity, message=record.message, can_kill=can_kill, clock=clock
        )
        self._watchers = Watchers(
            executor=executor,
            shares=shares,
            record=record,
            writer=self._writer,
            can_kill=can_kill,
            clock=clock,
        )
        self._stopped_s: float | None = None
        """When the run began to drain, for whatever reason."""
        self._signalled_s: float | None = None
        self.has_given_up = False
        """Whether the sink was left without having answered."""

    def run(self, for_s: float | None) -> None:
        """Watches cameras for so long, or with None until they are over or the run is stopped."""
        try:
            self._run(for_s)
        except ClusterGone:
            if parts := self._writer.unwritten():
                self._rescue(parts)
            raise

    def _run(self, for_s: float | None) -> None:
        watchers = self._watchers
        watchers.begin()
        while not self._is_finished(self._clock(), for_s):
            self._collect()
            watchers.start_watching()
            self._check_workers(self._clock())
        self._record.summary.wall_s = 0.0 if watchers.begun_s is None else self._clock() - watchers.begun_s
        self._record_losses()

    def _is_finished(self, now_s: float, for_s: float | None) -> bool:
        """Whether all is done; begins what has to be done for that."""
        begun_s = self._watchers.begun_s
        is_enough = for_s is not None and begun_s is not None and now_s - begun_s >= for_s
        if self._stop.is_set and self._signalled_s is None:
            self._signalled_s = now_s
        if self._stopped_s is None and (self._stop.is_set or is_enough):
            self._stopped_s = now_s
            self._watchers.stop()
        is_over = self._is_over(now_s)
        self._writer.begin_due(now_s, is_over=is_over)
        if not self._writer.num_waiting and not self._writer.is_busy:
            return is_over
        if self._signalled_s is not None and now_s - self._signalled_s > _GIVE_UP_S:
            self.has_given_up = True
            self._writer.give_up()
        return self.has_given_up

    def _is_over(self, now_s: float) -> bool:
        if self._stopped_s is None:
            return self._watchers.are_over
        return now_s - self._stopped_s > _DRAIN_S or self._watchers.are_drained

    def _check_workers(self, now_s: float) -> None:
        """Ends workers that hang, and notes for the metrics that the loop goes on and how long anybody is silent."""
        self._record.beat(silent_s=max(self._writer.silent_s(now_s), self._watchers.silent_s(now_s)))
        self._writer.end_hanging(now_s)
        self._watchers.end_hanging(now_s)

    def _collect(self) -> None:
        for completion in self._executor.poll(0.05):
            if not self._writer.settle(completion):
                self._watchers.settle(completion)
        self._record_losses()

    def _record_losses(self) -> None:
        watchers, writer = self._watchers, self._writer
        self._record.set_losses(
            deaths=watchers.num_deaths + writer.num_deaths,
            lost=watchers.num_lost + writer.num_lost,
            dropped=writer.dropped,
        )
