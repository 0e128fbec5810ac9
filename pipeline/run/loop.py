"""The loop of a run: sources go in, calls go out, ends of calls come back, until every source has its rows.

Decisions are the scheduler's and execution is the executor's; what is here is time, deadlines and stopping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from operators.errors import ClusterGone, SinkError, StageError
from operators.records import Source, clip_id
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.metrics import RunMetrics
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.deadlines import STUCK_S, Deadlines, Place, Staffing, Verdict
from pipeline.steering.executor import Call, Completion, Executor
from pipeline.steering.in_flight import PlannedCall
from pipeline.steering.messages import WriteRequest
from pipeline.steering.scheduler import SINK, SOURCE, Scheduler

LOCK_S = 120.0
"""How long a sink that takes a dead one's place waits for the lock that the other may still hold."""

@dataclass(slots=True)
class StopRequest:
    """A request to end the run in good order, made by a signal handler."""

    is_set: bool = False
    signal_number: int = 2


class Runner:
    """One run of an archive over an executor."""

    def __init__(
        self,
        *,
        executor: Executor,
        scheduler: Scheduler,
        feed: SourceFeed,
        recorder: LabelRecorder,
        stop: StopRequest,
        deadline_s: float,
        stride_s: float = 0.0,
        revive: Mapping[str, Call] | None = None,
        rescue: Callable[[Sequence[WriteRequest]], None] | None = None,
        can_kill: bool = True,
        say: Callable[[str], None] = lambda text: None,
        on_progress: Callable[[Runner], None] = lambda runner: None,
        note: Callable[..., None] = lambda event, **facts: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`recorder`: the one that `scheduler` hands its labels to. `deadline_s`: how long a source worker may take to
        come back. `stride_s`: 0 for one clip per source.

        `revive`: by stage, what a worker that takes a dead one's place is asked before anything else, and again for as
        long as it answers that it waits for a lock. `rescue` commits labels without any worker, when the cluster's
        head is gone. `can_kill`: workers are processes, so that a call that does not come back can be given up.
        `note(event, **facts)` is called with what a person may want to know afterwards.
        """
        self._executor = executor
        self._scheduler = scheduler
        self.feed = feed
        self._recorder = recorder
        self._stop = stop
        self._deadline_s = deadline_s
        self._stride_s = stride_s
        self._revive = revive or {}
        self._rescue = rescue
        self._can_kill = can_kill
        self._say = say
        self._deadlines = Deadlines()
        self._staffing = Staffing(scheduler.workers)
        self._absent: set[Place] = set()
        self._reviving: dict[int, tuple[Call, float]] = {}
        self._reviving_since_s: dict[str, float] = {}
        """Since when the worker that takes a dead one's place waits for a lock."""
        self._drained_s: float | None = None
        self._on_progress = on_progress
        self._note = note
        self._clock = clock
        self._running: dict[int, tuple[PlannedCall, float]] = {}
        self._active: set[str] = set()
        self.was_stopped = False

    def run(self) -> None:
        try:
            self._run()
        except ClusterGone:
            parts = self._scheduler.unwritten()
            if self._rescue is not None and parts:
                self._rescue(parts)
                self.metrics.committed += sum(len(part.labels) for part in parts)
            raise

    @property
    def metrics(self) -> RunMetrics:
        return self._recorder.metrics

    @property
    def ended_early(self) -> str | None:
        """Why the run ended before all inputs were labelled; None where it did not, or was stopped by a signal."""
        return self._recorder.ended_early

    @property
    def sink_is_here(self) -> bool:
        return (SINK, 0) not in self._absent

    def _run(self) -> None:
        is_draining = False
        while not self._scheduler.is_finished:
            if not is_draining and (self._stop.is_set or self.ended_early):
                is_draining = True
                self._drained_s = self._clock()
                self.was_stopped = self._stop.is_set
                self._note("stopping", why="a signal" if self.was_stopped else self.ended_early)
                self.feed.close()
                self._scheduler.drain()
            if not is_draining:
                self._add_sources()
            now_s = self._clock()
            self._note_missing(now_s)
            if self._drained_s is not None and self._can_kill and self._is_stuck(now_s):
                self._note("given_up", why="what is under way does not come back")
                if not self.sink_is_here:
                    self._say("the process that writes the labels is not there: the last of them are not committed")
                    return
                self._scheduler.give_up()
            while (planned := self._scheduler.next_call(now_s)) is not None:
                self._running[self._executor.submit(planned.call)] = (planned, now_s)
            self._collect()
            self._end_hanging()
            self._on_progress(self)

    def _note_missing(self, now_s: float) -> None:
        """Keeps work from workers that are not made, and reports it where one waits for a place."""
        missing = self._executor.missing()
        absent = {*missing, *((call.stage, call.worker) for call, _ in self._reviving.values())}
        if absent != self._absent:
            for place in self._absent - absent:
                self._deadlines.made(place, now_s)
            self._absent = absent
            self._scheduler.note_absent(absent)
        for verdict in self._staffing.verdicts(missing, now_s):
            if verdict.kind == "again":
                self._executor.replace(verdict.stage, verdict.workers[0])
                continue
            text = _short_of(verdict, self._executor.why_missing(verdict.stage))
            if verdict.kind == "none":
                raise StageError(text)
            self._note("waits", text=text)
            self._say(text)

    def _is_stuck(self, now_s: float) -> bool:
        """Whether a run that is to stop would wait for something that may never come."""
        assert self._drained_s is not None
        if now_s - self._drained_s < STUCK_S:
            return False
        stages = {stage for stage, _ in self._absent}
        if any(self._staffing.absent_s(stage, now_s) > STUCK_S for stage in stages) or self._reviving:
            return True
        return any(
            self._deadlines.is_stuck((planned.call.stage, planned.call.worker), since_s, now_s)
            for planned, since_s in self._running.values()
        )

    def _add_sources(self) -> None:
        while self._scheduler.wants_source():
            try:
                source = self.feed.next()
            except StopIteration:
                self._scheduler.end_sources()
                return
            if source is None:
                return
            # Its first clip stands for a source that was given before, however long ago.
            if source.source_id in self._active or self._recorder.done.is_given(clip_id(source.source_id, 0.0)):
                self.metrics.duplicates += 1
                continue
            window = self._first_window(source)
            if window is None:
                self.metrics.done_before += 1
                continue
            self._active.add(source.source_id)
            self._scheduler.add_source(source, first_window=window)

    def _first_window(self, source: Source) -> int | None:
        """The first window that has no label yet; None where the only one has."""
        if self._stride_s <= 0:
            return None if self._recorder.done.meet(clip_id(source.source_id, 0.0)) else 0
        window = 0
        while self._recorder.done.meet(clip_id(source.source_id, window * self._stride_s)):
            window += 1
        return window

    def _collect(self) -> None:
        # With nothing under way there is only a slow listing, or a part that is not old enough, to wait for.
        if not self._running and not self._absent:
            time.sleep(0.005)
            return
        for completion in self._executor.poll(0.05):
            if completion.ticket in self._reviving:
                self._revived(self._reviving.pop(completion.ticket)[0], completion)
                continue
            planned, since_s = self._running.pop(completion.ticket)
            place = (planned.call.stage, planned.call.worker)
            now_s = self._clock()
            match completion.outcome:
                case "done":
                    self._deadlines.ended(place, since_s, now_s)
                    self.metrics.add_work(planned.call.stage, completion.reply.work)
                    self._scheduler.on_done(planned, completion.reply, completion.payload, now_s)
                    if completion.reply.is_spent:
                        self._executor.replace(*place)
                    if planned.call.method == "write":
                        self.metrics.committed += len(planned.call.requests[0].labels)
                case "died":
                    if not planned.timed_out and not self._executor.machine_answered(*place, for_s=0.0):
                        planned.is_excused = True
                    if self._scheduler.on_died(planned, now_s):
                        self.metrics.stages[planned.call.stage].deaths += 1
                        self._note("died", **_place(planned), why=completion.error)
                        self._remake(place)
                case "lost":
                    self._scheduler.on_lost(planned, now_s)
                case _:
                    self._note("exception", **_place(planned), trace=completion.error)
                    self._scheduler.on_failed(planned, completion.error, now_s)
        for source in self._scheduler.finished_sources:
            self._active.discard(source.source_id)
        self._scheduler.finished_sources.clear()

    def _remake(self, place: Place) -> None:
        self._executor.replace(*place)
        if place[0] in self._revive:
            call = self._revive[place[0]]
            self._reviving[self._executor.submit(call)] = (call, self._clock())

    def _revived(self, call: Call, completion: Completion) -> None:
        """Takes the first answer of a worker that is in a dead one's place: it has the lock, or waits for it."""
        now_s = self._clock()
        match completion.outcome:
            case "done" if completion.reply.rows and completion.reply.rows[0].waits_for is not None:
                waits_for = completion.reply.rows[0].waits_for
                since_s = self._reviving_since_s.setdefault(call.stage, now_s)
                if since_s == now_s:
                    self._note("waits", text=waits_for)
                    self._say(waits_for)
                elif now_s - since_s > LOCK_S:
                    raise SinkError(
                        f"{waits_for}, and that did not end within {LOCK_S:g} s; "
                        "what is committed is safe, run the command again to go on"
                    )
                self._reviving[self._executor.submit(call)] = (call, now_s)
            case "done":
                self._reviving_since_s.pop(call.stage, None)
            case "failed":
                raise StageError(f"{call.stage} worker could not {call.method}: {_last_line(completion.error)}")
            case _:
                self._scheduler.on_idle_death(call.stage)
                self._remake((call.stage, call.worker))

    def _end_hanging(self) -> None:
        """Ends workers that do not come back: a decoder that hangs, or an answer that was lost on its way."""
        now_s = self._clock()
        for ticket, (call, since_s) in list(self._reviving.items()):
            if not self._executor.is_ready(call.stage, call.worker):
                self._reviving[ticket] = (call, now_s)
            elif now_s - since_s > LOCK_S:
                self._executor.kill(call.stage, call.worker)
        for ticket, (planned, since_s) in self._running.items():
            place = (planned.call.stage, planned.call.worker)
            if planned.timed_out or planned.is_excused:
                continue
            if not self._executor.is_ready(*place):
                # Its process is still being made: the time has not begun.
                self._running[ticket] = (planned, now_s)
            elif place[0] == SOURCE and now_s - since_s > self._deadline_s:
                planned.timed_out = True
                planned.is_doubtful = not self._executor.is_here(*place)
                planned.is_excused = not self._executor.machine_answered(*place, for_s=now_s - since_s)
                self._note("hangs", **_place(planned), seconds=round(now_s - since_s, 1))
                self._executor.kill(*place)
            elif self._can_kill and self._deadlines.is_late(place, since_s, now_s):
                planned.is_excused = True
                self._note("hangs", **_place(planned), seconds=round(now_s - since_s, 1))
                self._executor.kill(*place)


def _place(planned: PlannedCall) -> dict[str, Any]:
    """Where a call ran, and which sources it was to read."""
    call, sources = planned.call, [reading.source.shown_uri for reading in planned.readings]
    return {"stage": call.stage, "worker": call.worker, "method": call.method, "sources": sources}


def _last_line(error: str) -> str:
    return (error.strip() or "unknown error").splitlines()[-1]


def _short_of(verdict: Verdict, why: str) -> str:
    """The message about a stage that has fewer workers than were planned."""
    many, of = len(verdict.workers), verdict.count
    who = f"{many} of {of} {verdict.stage} workers {'waits' if many == 1 else 'wait'}"
    if of == 1:
        who = f"the {verdict.stage} worker waits"
    if verdict.kind == "none":
        return f"{who} for {why}; what is committed is safe, run the command again when there is room"
    return f"{who} for {why}" + ("; the run goes on without" if verdict.num_here else "")
