"""The scheduler at work in virtual time: no process, no network, no pixel; only who waits for whom, and how long.

It answers what can be known before anything runs: are the focus workers kept busy, are their batches full, and how
many clips per second could one driver steer.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from operators.records import ClipLabel, Source, clip_id
from pipeline.steering.batching import SHAPES, Batcher, round_to_shape
from pipeline.steering.executor import Call
from pipeline.steering.in_flight import FlowLimits, PlannedCall
from pipeline.steering.messages import Advance, ClipRef, PieceInfo, ReadReply, Reply
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler

VIEW_BYTES = 16 * 224 * 224 * 3
PIECES_PER_CALL = 8


@dataclass(frozen=True, kw_only=True)
class ServiceTimes:
    """How long the parts of a call take, in seconds."""

    call_s: float = 0.001
    """From handing a call over until its worker begins: 0.4 ms were measured for Ray, with arguments it is more."""
    read_s: float = 0.004
    """Seconds of a source worker for one source."""
    open_s: float = 0.001
    """Seconds of a stream worker to open one clip."""
    step_s: float = 0.0001
    """Seconds of a stream worker for one round of one clip."""
    pass_s: float = 0.002
    """Seconds of every pass of the focus network, whatever its size."""
    patch_s: float = 0.0005
    """Seconds of every row of a pass, padded rows too."""
    write_s: float = 0.05
    """Seconds of the sink for one part."""
    jitter: float = 0.2
    """Every time is multiplied by something within 1 - jitter and 1 + jitter."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulated run was like."""

    clips: int
    patches: int
    calls: int
    virtual_s: float
    control_s: float
    """Real time that the scheduler took for all its decisions."""
    occupancy: float
    """The share of the rows of all passes that are not padding."""
    focus_busy_share: float
    idle_while_waiting: float
    """The share of the time in which patches waited that the focus workers did nothing.

    It is taken between the label of a tenth of the clips and that of nine tenths: a run fills up and runs empty once.
    """
    mean_batch: float
    mean_wait_s: float
    """How long a patch waited until its batch was put together."""

    @property
    def decisions_per_s(self) -> float:
        """Decisions per second: a decision chooses a call and takes note of its end."""
        return self.calls / self.control_s

    @property
    def clips_per_s(self) -> float:
        """How many clips per second one driver could steer, if that were all it did."""
        return self.clips / self.control_s


def simulate(
    *,
    exits: Sequence[float],
    num_clips: int = 4000,
    num_focus_workers: int = 1,
    num_stream_workers: int | None = None,
    num_source_workers: int | None = None,
    steps_per_round: int = 1,
    batch_size: int = 64,
    shapes: Sequence[int] = SHAPES,
    max_wait_s: float = 0.2,
    limits: FlowLimits | None = None,
    times: ServiceTimes | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Simulated:
    """Runs `num_clips` clips through the real scheduler.

    `exits`: the share of clips that stop after step 1, 2, ..., as a calibration curve has it. Workers that are not
    given are so many that the focus workers are what the run waits for.
    """
    if num_clips < 1 or steps_per_round < 1 or min(exits) < 0 or sum(exits) <= 0:
        raise ValueError(f"{num_clips} clips, exits {list(exits)}, {steps_per_round} steps per round")
    times = times or ServiceTimes()
    sources, streams = workers_to_feed(num_focus_workers, exits=exits, steps_per_round=steps_per_round, times=times)
    workers = {
        SINK: 1,
        SOURCE: num_source_workers or sources,
        STREAM: num_stream_workers or streams,
        FOCUS: num_focus_workers,
    }
    # Two batches for every focus worker: one that is looked at, and one that comes together meanwhile.
    open_clips = -(-2 * batch_size * num_focus_workers // (workers[STREAM] * steps_per_round))
    limits = limits or FlowLimits(
        max_pieces=(open_clips + 16) * workers[STREAM],
        max_bytes=VIEW_BYTES * (open_clips + 16) * workers[STREAM],
        bytes_per_source=VIEW_BYTES,
        max_open_clips=open_clips,
        pieces_per_call=PIECES_PER_CALL,
        focus_depth=2,
    )
    batcher = Batcher(max_rows=batch_size, max_wait_s=max_wait_s, shapes=shapes)
    return _Simulation(exits, num_clips, steps_per_round, workers, limits, batcher, shapes, times, seed, clock).run()


def workers_to_feed(
    num_focus_workers: int, *, exits: Sequence[float], steps_per_round: int, times: ServiceTimes
) -> tuple[int, int]:
    """(source, stream) workers that could feed half as many focus workers again, so that these never want for clips."""
    rounds = [-(-step // steps_per_round) for step in range(1, len(exits) + 1)]
    mean_rounds = sum(share * n for share, n in zip(exits, rounds, strict=True)) / sum(exits)
    focus_s = mean_rounds * steps_per_round * times.patch_s
    source_s = times.read_s + times.call_s
    stream_s = times.open_s + mean_rounds * times.step_s + (1 + mean_rounds) * times.call_s / PIECES_PER_CALL
    sources, streams = (math.ceil(1.5 * num_focus_workers * each_s / focus_s) for each_s in (source_s, stream_s))
    return sources, streams


class _Simulation:
    def __init__(
        self,
        exits: Sequence[float],
        num_clips: int,
        steps_per_round: int,
        workers: dict[str, int],
        limits: FlowLimits,
        batcher: Batcher,
        shapes: Sequence[int],
        times: ServiceTimes,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        self._random = random.Random(seed)
        steps = self._random.choices(range(1, len(exits) + 1), weights=exits, k=num_clips)
        self._sources = [_source(number) for number in range(num_clips)]
        # A clip stops between rounds, so it pays for the steps of a round that it would not have needed.
        paid = [min(-(-n // steps_per_round) * steps_per_round, len(exits)) for n in steps]
        self._steps_left = {clip_id(s.source_id, 0.0): n for s, n in zip(self._sources, paid, strict=True)}
        self._steps_per_round = steps_per_round
        self._batcher = batcher
        self._shapes = tuple(shapes)
        self._times = times
        self._clock = clock
        self._done: set[str] = set()
        self._scheduler = Scheduler(
            workers=workers,
            limits=limits,
            batcher=batcher,
            is_wanted=lambda clip: clip not in self._done,
            on_label=lambda label: self._done.add(label.clip_id),
        )
        self._num_focus = workers[FOCUS]
        self._now_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, bool, PlannedCall, Any]] = []
        """(when, order, whether it is an end, call, answer)"""
        self._queues: dict[tuple[str, int], deque[tuple[PlannedCall, Any, float]]] = {
            (stage, worker): deque() for stage, count in workers.items() for worker in range(count)
        }
        self._busy_focus = 0
        self._control_s = self._busy_s = self._waiting_s = self._idle_s = 0.0
        self._num_calls = self._num_rows = self._num_padded = self._num_passes = 0

    def run(self) -> Simulated:
        waiting = iter(self._sources)
        while not self._scheduler.is_finished:
            for planned in self._decide(waiting):
                self._submit(planned)
            when_s, _, is_end, planned, answer = heapq.heappop(self._events)
            self._pass_time(when_s)
            if is_end:
                self._end(planned, answer)
            else:
                self._arrive(planned, answer)
        return Simulated(
            clips=len(self._done),
            patches=self._num_rows,
            calls=self._num_calls,
            virtual_s=self._now_s,
            control_s=self._control_s,
            occupancy=self._num_rows / (self._num_rows + self._num_padded),
            focus_busy_share=self._busy_s / (self._num_focus * self._now_s),
            idle_while_waiting=self._idle_s / self._waiting_s if self._waiting_s else 0.0,
            mean_batch=self._num_rows / self._num_passes,
            mean_wait_s=self._batcher.waited_s / self._batcher.num_taken,
        )

    def _decide(self, waiting: Any) -> list[PlannedCall]:
        begun_s = self._clock()
        while self._scheduler.wants_source():
            source = next(waiting, None)
            if source is None:
                self._scheduler.end_sources()
            else:
                self._scheduler.add_source(source)
        chosen = []
        while (planned := self._scheduler.next_call(self._now_s)) is not None:
            chosen.append(planned)
        self._control_s += self._clock() - begun_s
        return chosen

    def _pass_time(self, until_s: float) -> None:
        passed_s = until_s - self._now_s
        self._now_s = until_s
        self._busy_s += passed_s * self._busy_focus
        if self._scheduler.num_patches_waiting and 0.1 < len(self._done) / len(self._sources) < 0.9:
            self._waiting_s += passed_s * self._num_focus
            self._idle_s += passed_s * (self._num_focus - self._busy_focus)

    # Calls: they arrive, wait for their worker, and end

    def _submit(self, planned: PlannedCall) -> None:
        self._num_calls += 1
        answer = getattr(self, f"_{planned.call.method}")(planned.call)
        event = (self._now_s + self._times.call_s, next(self._order), False, planned, answer)
        heapq.heappush(self._events, event)

    def _arrive(self, planned: PlannedCall, answer: Any) -> None:
        queue = self._queues[planned.call.stage, planned.call.worker]
        spread = self._random.uniform(1 - self._times.jitter, 1 + self._times.jitter)
        queue.append((planned, answer, answer[2] * spread))
        if len(queue) == 1:
            self._begin(queue)

    def _begin(self, queue: deque[tuple[PlannedCall, Any, float]]) -> None:
        planned, answer, seconds = queue[0]
        self._busy_focus += planned.call.stage == FOCUS
        heapq.heappush(self._events, (self._now_s + seconds, next(self._order), True, planned, answer))

    def _end(self, planned: PlannedCall, answer: Any) -> None:
        queue = self._queues[planned.call.stage, planned.call.worker]
        queue.popleft()
        self._busy_focus -= planned.call.stage == FOCUS
        if queue:
            self._begin(queue)
        reply, payload, _ = answer
        begun_s = self._clock()
        self._scheduler.on_done(planned, reply, payload, self._now_s)
        self._control_s += self._clock() - begun_s

    # What the workers answer, and how long they take

    def _read(self, call: Call) -> Any:
        rows = []
        for number, request in enumerate(call.requests):
            ref = ClipRef(clip_id(request.source.source_id, 0.0), 0.0, 1.0)
            pieces = (PieceInfo(row=number, num_bytes=VIEW_BYTES, clips=(ref,)),)
            rows.append(ReadReply(source_id=request.source.source_id, pieces=pieces, is_done=True))
        return Reply(rows=tuple(rows)), object(), self._times.read_s * len(rows)

    def _open(self, call: Call) -> Any:
        clips = [clip for request in call.requests for clip in request.clip_ids]
        return *self._next_round(clips), self._times.open_s * len(clips)

    def _step(self, call: Call) -> Any:
        clips = [request.clip_id for request in call.requests]
        return *self._next_round(clips), self._times.step_s * len(clips)

    def _next_round(self, clips: list[str]) -> tuple[Reply, Any]:
        rows, start = [], 0
        for clip in clips:
            num_steps = min(self._steps_left[clip], self._steps_per_round)
            self._steps_left[clip] -= num_steps
            label = None if num_steps else ClipLabel(video_id="", clip_id=clip, source_uri="")
            rows.append(Advance(clip_id=clip, label=label, start=start, stop=start + num_steps))
            start += num_steps
        return Reply(rows=tuple(rows)), object()

    def _focus(self, call: Call) -> Any:
        num_rows = sum(rows.stop - rows.start for rows in call.requests)
        padded = round_to_shape(num_rows, self._shapes)
        self._num_rows += num_rows
        self._num_padded += padded - num_rows
        self._num_passes += 1
        return Reply(rows=()), object(), self._times.pass_s + self._times.patch_s * padded

    def _write(self, call: Call) -> Any:
        return Reply(rows=()), None, self._times.write_s


def _source(number: int) -> Source:
    return Source(source_id=f"{number:032x}", uri=f"/{number}", video_id=str(number))
