"""The scheduler: which call is made next, until sources have become frames, clips, patches, features and labels. Pure.

It takes `now_s` and the ends of calls, and touches no clock, process or pixel. Stages are served last to first: what is
nearly done leaves before anything new comes in. What waits to be read is in read_queue.py, what has frames in
clip_table.py, what has a label in label_parts.py; here it is decided which worker gets a call and who is to blame.

What happens when things die:
- A worker's death is noticed by a call that does not come back. What was in that call runs again alone, one call
  at a time per stage. A death alone counts against an item; after three it becomes a row with `worker_died`.
- Calls that only queued behind that call, and clips that had state on that worker, start again unblamed.
- An exception from our own code is no reason to try again: alone, it makes a row with `internal`.
- What went with the machine that held it is nobody's fault and is made again; but what is lost three times becomes a
  row, and what was lost twice runs alone. A call whose answer does not come back counts as lost.
- A worker that is not made gets no work; the others of its stage do it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

from operators.errors import StageError
from operators.records import ClipLabel, Source
from pipeline.steering.batching import Batcher
from pipeline.steering.clip_table import ClipTable, Frames
from pipeline.steering.executor import Call
from pipeline.steering.in_flight import FlowLimits, PlannedCall, StageCalls
from pipeline.steering.label_parts import LabelParts
from pipeline.steering.messages import (
    OpenRequest,
    ReadReply,
    ReadRequest,
    Reply,
    Slice,
    StepRequest,
    WriteRequest,
    distinct_payloads,
)
from pipeline.steering.read_queue import MAX_DEATHS, Reading, ReadQueue

SOURCE, STREAM, FOCUS, SINK = "source", "stream", "focus", "sink"


class Scheduler:
    """The state of a run between calls."""

    def __init__(
        self,
        *,
        workers: dict[str, int],
        limits: FlowLimits,
        batcher: Batcher,
        is_wanted: Callable[[str], bool] = lambda clip: True,
        on_label: Callable[[ClipLabel], None] = lambda label: None,
    ) -> None:
        """`is_wanted`: whether a clip has no label yet, neither from an earlier run nor from this one. `on_label` is
        called with every label as it is made, and from then on `is_wanted` is false for its clip."""
        self._limits = limits
        self._batcher = batcher
        self._stages = {
            stage: StageCalls.of_workers(count, depth=limits.focus_depth if stage == FOCUS else 1)
            for stage, count in workers.items()
        }
        self._reading = ReadQueue(
            num_workers=workers[SOURCE],
            sources_per_call=limits.sources_per_call,
            images_per_call=limits.images_per_call,
            stride_s=limits.stride_s,
            is_new=lambda clip: self._clips.is_new(clip),
            emit=self._emit,
        )
        self._clips = ClipTable(
            num_workers=workers[STREAM],
            max_open_clips=limits.max_open_clips,
            pieces_per_call=limits.pieces_per_call,
            batcher=batcher,
            is_wanted=is_wanted,
            emit=self._emit,
            on_end=self._reading.clip_ended,
        )
        self._numbers = itertools.count()
        self._num_running = 0
        self._num_being_read = 0
        self._pieces_per_source = limits.pieces_per_source
        self._bytes_per_source = limits.bytes_per_source
        self._parts = LabelParts(rows_per_part=limits.rows_per_part, part_age_s=limits.part_age_s)
        self._sources_ended = False
        self._draining = False
        self._is_given_up = False
        self._on_label = on_label
        self.num_done_before = 0
        """How many clips had a label from an earlier run."""

    @property
    def workers(self) -> dict[str, int]:
        """How many workers each stage has, made or not."""
        return {name: len(stage.running) for name, stage in self._stages.items()}

    # What comes in

    def wants_source(self) -> bool:
        return not self._sources_ended and not self._draining and self._reading.wants_source()

    def add_source(self, source: Source, *, first_window: int = 0) -> None:
        """`first_window`: the windows before it were labelled in an earlier run."""
        self._reading.add(source, first_window=first_window)
        self.num_done_before += first_window

    def end_sources(self) -> None:
        self._sources_ended = True

    def drain(self) -> None:
        """Begins nothing new from here on: what has been read is labelled, what has been labelled is committed."""
        self._draining = True
        self._reading.drain()

    def give_up(self) -> None:
        """Waits from here on only until what has a label is committed: the rest may never come."""
        self.drain()
        self._is_given_up = True

    def note_absent(self, absent: Collection[tuple[str, int]]) -> None:
        """Takes these workers as not made: they get no work, and what was open there is opened elsewhere."""
        for name, stage in self._stages.items():
            gone = {worker for place, worker in absent if place == name}
            if name == SOURCE:
                for worker in gone - stage.absent:
                    self._reading.worker_gone(worker)
            stage.note_absent(gone)

    def unwritten(self) -> list[WriteRequest]:
        """All that has a label and is not known to be committed, in parts as they would be sent (again)."""
        sent = [planned.call.requests[0] for planned in self._stages[SINK].running[0]]
        return sent + self._parts.all_waiting()

    @property
    def is_finished(self) -> bool:
        is_at_work = self._stages[SINK].running[0] if self._is_given_up else self._num_running
        return self._has_all_labels and not self._parts and not is_at_work

    @property
    def _has_all_labels(self) -> bool:
        if self._is_given_up:
            return True
        return (self._sources_ended or self._draining) and self._reading.num_active == 0

    @property
    def finished_sources(self) -> list[Source]:
        """Sources all of whose clips have a label, since the runner last emptied the list."""
        return self._reading.finished

    @property
    def num_patches_waiting(self) -> int:
        return len(self._batcher)

    @property
    def num_bytes_held(self) -> int:
        return self._clips.num_bytes

    @property
    def num_pieces_held(self) -> int:
        return self._clips.num_pieces

    # What goes out

    def next_call(self, now_s: float) -> PlannedCall | None:
        """The call to make now, or None if every worker that could help is busy."""
        planned = self._next_write(now_s)
        if planned is None and not self._is_given_up:
            planned = self._next_step() or self._next_open() or self._next_focus(now_s) or self._next_read()
        if planned is not None:
            self._stages[planned.call.stage].enter(planned)
            self._num_running += 1
            self._num_being_read += len(planned.readings)
        return planned

    def _plan(
        self, stage: str, worker: int, method: str, requests: Iterable[Any], handles: tuple[Any, ...] = (), **about: Any
    ) -> PlannedCall:
        call = Call(stage=stage, worker=worker, method=method, requests=tuple(requests), payloads=handles)
        return PlannedCall(call, self._stages[stage].epochs[worker], next(self._numbers), **about)

    def _next_write(self, now_s: float) -> PlannedCall | None:
        if not self._stages[SINK].idle:
            return None
        part = self._parts.next(now_s, is_last=self._has_all_labels)
        return None if part is None else self._plan(SINK, 0, "write", [part])

    def _next_step(self) -> PlannedCall | None:
        stage = self._stages[STREAM]
        for worker in stage.idle:
            if gone := self._clips.to_close(worker):
                return self._plan(STREAM, worker, "close", gone)
            stays = self._clips.to_step(worker, may_suspect=not stage.suspects_running)
            if not stays:
                continue
            handles, places = distinct_payloads([handle for stay in stays for _, handle, _, _ in stay.features])
            place = iter(places)
            requests = [
                StepRequest(
                    clip_id=stay.clip.ref.clip_id,
                    features=tuple(Slice(next(place), start, stop) for _, _, start, stop in stay.features),
                )
                for stay in stays
            ]
            for stay in stays:
                stay.features = []
            is_suspect = stays[0].clip.is_suspect
            return self._plan(STREAM, worker, "step", requests, handles, stays=stays, is_suspect=is_suspect)
        return None

    def _next_focus(self, now_s: float) -> PlannedCall | None:
        batcher = self._batcher
        stage = self._stages[FOCUS]
        if not len(batcher) or not (stage.idle or stage.depth > 1):
            return None
        worker = stage.first_to_idle()
        if worker is None:
            return None
        num_running = len(stage.running[worker])
        if batcher.is_suspect_next and not stage.suspects_running:
            # It is the oldest: nothing is queued until a worker has nothing else to do.
            rows = [] if num_running else batcher.take_suspect(now_s)
        elif num_running >= (1 if batcher.num_suspect_rows or stage.suspects_running else stage.depth):
            rows = []
        else:
            num_ahead = sum(planned.num_rows for planned in stage.running[worker])
            num_idle = 0 if self._limits.shares_cores and self._may_bring_patches else len(stage.idle)
            rows = batcher.take(now_s, num_idle=num_idle, num_ahead=num_ahead)
        if not rows:
            return None
        handles, places = distinct_payloads([r.handle for r in rows])
        requests = [Slice(place, r.start, r.stop) for place, r in zip(places, rows, strict=True)]
        stays = list({id(r.clip): r.clip for r in rows}.values())
        is_suspect = rows[0].is_suspect
        planned = self._plan(FOCUS, worker, "focus", requests, handles, rows=rows, stays=stays, is_suspect=is_suspect)
        planned.num_rows = sum(map(len, rows))
        return planned

    @property
    def _may_bring_patches(self) -> bool:
        """Whether something is being read, opened or stepped, of which patches may come."""
        return any(running for name in (SOURCE, STREAM) for running in self._stages[name].running)

    def _next_open(self) -> PlannedCall | None:
        stage = self._stages[STREAM]
        stays = self._clips.open(stage.idle, may_suspect=not stage.suspects_running)
        if not stays:
            return None
        pieces = {id(stay.clip.piece): stay.clip.piece for stay in stays}
        clip_ids: dict[int, list[str]] = {key: [] for key in pieces}
        for stay in stays:
            clip_ids[id(stay.clip.piece)].append(stay.clip.ref.clip_id)
        handles, places = distinct_payloads([piece.frames.handle for piece in pieces.values()])
        requests = [
            OpenRequest(frames=Slice(place, piece.row, piece.row + 1), clip_ids=tuple(clip_ids[key]))
            for place, (key, piece) in zip(places, pieces.items(), strict=True)
        ]
        is_suspect = stays[0].clip.is_suspect
        return self._plan(STREAM, stays[0].worker, "open", requests, handles, stays=stays, is_suspect=is_suspect)

    def _next_read(self) -> PlannedCall | None:
        stage = self._stages[SOURCE]
        room = self._room_to_read() if stage.idle else 0
        if room <= 0:
            return None
        chosen = self._reading.next(stage.idle, may_suspect=not stage.suspects_running, room=room)
        if chosen is None:
            return None
        worker, readings = chosen
        requests = [ReadRequest(source=r.source, first_window=r.first_window) for r in readings]
        is_suspect = readings[0].is_suspect
        return self._plan(SOURCE, worker, "read", requests, readings=readings, is_suspect=is_suspect)

    def _room_to_read(self) -> int:
        """How many more sources may be read: what is being read may bring as much as any source did so far."""
        limits, num_expected = self._limits, self._num_being_read
        # Where a stage has no worker, something will come of it when one is made.
        is_moving = self._num_running or any(len(s.absent) == len(s.running) for s in self._stages.values())
        if self._parts.is_far_behind and is_moving:
            return 0
        pieces_left = limits.max_pieces - self._clips.num_pieces
        bytes_left = limits.max_bytes - self._clips.num_bytes
        room = pieces_left // self._pieces_per_source - num_expected
        if self._bytes_per_source:
            room = min(room, bytes_left // self._bytes_per_source - num_expected)
        elif bytes_left <= 0:
            room = 0
        may_go_over = num_expected == 0 and pieces_left > 0 and bytes_left > 0
        # With nothing under way one is let through whatever the limits say: a run cannot stand still.
        return max(room, 1) if may_go_over or not is_moving else room

    # How calls end

    def on_done(self, planned: PlannedCall, reply: Reply, payload: Any, now_s: float) -> None:
        self._leave(planned)
        stage, worker = self._stages[planned.call.stage], planned.call.worker
        if planned.epoch == stage.epochs[worker]:
            stage.deaths_in_a_row = 0
        match planned.call.method:
            case "read":
                self._on_read(planned.readings, reply.rows, payload, worker, now_s)
            case "open" | "step":
                self._clips.advanced(planned.stays, reply.rows, payload, now_s)
            case "focus":
                self._clips.have_features(planned.rows, payload)

    def _on_read(
        self, readings: list[Reading], rows: tuple[ReadReply, ...], payload: Any, worker: int, now_s: float
    ) -> None:
        frames = Frames(handle=payload, num_bytes=sum(info.num_bytes for row in rows for info in row.pieces))
        for reading, row in zip(readings, rows, strict=True):
            self._pieces_per_source = max(self._pieces_per_source, len(row.pieces))
            self._bytes_per_source = max(self._bytes_per_source, sum(info.num_bytes for info in row.pieces))
            self.num_done_before += self._clips.add(reading, row.pieces, frames)
        for reading, row in zip(readings, rows, strict=True):
            self._reading.answered(reading, row, worker=worker, now_s=now_s)

    def on_died(self, planned: PlannedCall, now_s: float) -> bool:
        """Returns whether the worker has to be replaced: true for the first call that reports a death."""
        stage, worker = self._stages[planned.call.stage], planned.call.worker
        is_news = stage.note_death(planned)
        self._leave(planned)
        if planned.call.method == "write":
            _may_die_again(stage)
            self._parts.put_back(planned.call.requests[0])
        if planned.is_blamed and planned.is_excused:
            for reading in planned.readings:
                self._reading.unanswered(reading, worker=None, now_s=now_s)
            for stay in planned.stays:
                self._clips.lost_patches(stay, now_s)
        elif planned.is_blamed:
            for reading in planned.readings:
                self._reading.died(
                    reading,
                    is_alone=planned.is_alone,
                    timed_out=planned.timed_out,
                    is_doubtful=planned.is_doubtful,
                    now_s=now_s,
                )
            for stay in planned.stays:
                self._clips.died(stay, is_alone=planned.is_alone, now_s=now_s)
        else:
            self._clips.put_back(planned.rows)
        if is_news and planned.call.stage == STREAM:
            self._clips.worker_gone(worker)
        return is_news

    def on_idle_death(self, name: str) -> None:
        """Counts a death of a stage's only worker before any call was given to it."""
        self._stages[name].deaths_in_a_row += 1
        _may_die_again(self._stages[name])

    def on_failed(self, planned: PlannedCall, error: str, now_s: float) -> None:
        """Takes an exception from our own code. Alone it makes a row; in company each runs alone to see whose it is."""
        self._leave(planned)
        last_line = error.strip().splitlines()[-1] if error.strip() else "unknown error"
        if planned.call.stage == SINK:
            raise StageError(f"labels could not be written: {last_line}")
        for reading in planned.readings:
            self._reading.raised(reading, last_line, is_alone=planned.is_alone, now_s=now_s)
        for stay in planned.stays:
            self._clips.raised(stay, last_line, is_alone=planned.is_alone, now_s=now_s)

    def on_lost(self, planned: PlannedCall, now_s: float) -> None:
        """Has what the call was about made again: it went with the machine that held it, and nobody is to blame."""
        self._leave(planned)
        match planned.call.method:
            case "write":
                self._parts.put_back(planned.call.requests[0])
            case "open":
                for reading, refs in self._clips.lost_frames(planned.stays):
                    self._reading.lost(reading, refs, now_s)
            case "step" | "focus":
                for stay in planned.stays:
                    self._clips.lost_patches(stay, now_s)
            case "read":
                for reading in planned.readings:
                    self._reading.unanswered(reading, worker=planned.call.worker, now_s=now_s)

    def _leave(self, planned: PlannedCall) -> None:
        self._stages[planned.call.stage].leave(planned)
        self._num_running -= 1
        self._num_being_read -= len(planned.readings)

    def _emit(self, label: ClipLabel, now_s: float) -> None:
        self._parts.add(label, now_s)
        self._on_label(label)


def _may_die_again(sink: StageCalls) -> None:
    if sink.deaths_in_a_row >= MAX_DEATHS:
        raise StageError(
            f"the process that writes the labels died {sink.deaths_in_a_row} times in a row; "
            "what is committed is safe, run the command again to go on"
        )
