"""Who runs next: sources become pieces, pieces clips, clips patches, patches features, features labels. Pure.

The scheduler holds the queues and says which call to make; it takes `now_s` and the ends of calls, and touches no
clock, process or pixel. Stages are served last to first: what is nearly done leaves before anything new comes in.

What happens when things die:
- A worker's death is noticed by a call that does not come back. What was in that call runs again alone, one call
  at a time per stage. A death alone counts against an item; after three it becomes a row with `worker_died`.
- A lost stream worker takes the state of its clips with it: they start again from their frames, unblamed.
- An exception from our own code is no reason to try again: alone, it makes a row with `internal`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from operators.errors import StageError
from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.batching import Batcher, PatchRows
from pipeline.executor import Call, count_payloads
from pipeline.messages import (
    Advance,
    ClipRef,
    OpenRequest,
    ReadReply,
    ReadRequest,
    Reply,
    Slice,
    StepRequest,
    WriteRequest,
)

SOURCE, STREAM, FOCUS, SINK = "source", "stream", "focus", "sink"
MAX_DEATHS = 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be in flight. Bytes are those of views; nothing else that is large is held."""

    max_pieces: int = 32
    max_bytes: int = 512 << 20
    max_open_clips: int = 16
    """Clips with state on one stream worker."""
    sources_per_call: int = 1
    images_per_call: int = 16
    """Still images are read in company: a call costs more than a small picture."""
    stride_s: float = 0.0
    """From the start of one window of a source to the next."""
    pieces_per_call: int = 1
    rows_per_part: int = 2048
    part_age_s: float = 15.0
    focus_depth: int = 1
    """Calls handed to one focus worker at a time."""


@dataclass(slots=True, eq=False)
class Reading:
    """A source that is being read."""

    source: Source
    first_window: int = 0
    is_suspect: bool = False
    deaths: int = 0
    worker: int | None = None
    """Where it is open; None while it waits."""
    is_resumed: bool = False
    """The windows before `first_window` were labelled in an earlier run."""


@dataclass(slots=True, eq=False)
class Piece:
    """Frames of a source that wait for labels. They are held until the last of their clips has one."""

    number: int
    reading: Reading
    handle: Any
    row: int
    num_bytes: int
    clips: dict[str, ClipRef]
    open_clips: dict[str, Clip] = field(default_factory=dict)
    worker: int | None = None
    is_suspect: bool = False
    deaths: int = 0

    def __lt__(self, other: Piece) -> bool:
        return self.number < other.number


@dataclass(slots=True, eq=False)
class Clip:
    """A clip with state on a stream worker, for as long as that state lives."""

    piece: Piece
    ref: ClipRef
    is_gone: bool = False
    patches_left: int = 0
    features: list[tuple[int, Any, int, int]] = field(default_factory=list)
    """(first patch row, handle, start, stop), in the order in which they arrived."""


@dataclass(slots=True, eq=False)
class Planned:
    """A call and what it is about."""

    call: Call
    epoch: int
    is_suspect: bool
    readings: list[Reading] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    rows: list[PatchRows] = field(default_factory=list)
    timed_out: bool = False

    @property
    def is_alone(self) -> bool:
        return len(self.readings) + len(self.pieces) <= 1


@dataclass(slots=True)
class _Stage:
    """Calls in flight per worker, and how often each worker has been replaced."""

    depth: int
    running: list[int]
    epochs: list[int]
    suspects_running: int = 0
    deaths_in_a_row: int = 0

    def idle(self) -> list[int]:
        return [w for w, n in enumerate(self.running) if n == 0]

    def free(self) -> list[int]:
        """Workers that may take another call, the least busy first."""
        free = (worker for worker, num_calls in enumerate(self.running) if num_calls < self.depth)
        return sorted(free, key=lambda worker: self.running[worker])


def failed_label(source: Source, *, code: str, message: str, ref: ClipRef | None = None) -> ClipLabel:
    """The row of a clip that could not be labelled."""
    return ClipLabel(
        video_id=source.video_id,
        clip_id=ref.clip_id if ref else clip_id(source.source_id, 0.0),
        source_uri=source.shown_uri,
        truth=source.truth,
        camera=source.camera,
        start_s=ref.start_s if ref else 0.0,
        end_s=ref.end_s if ref else 0.0,
        error_code=code,
        error=message,
    )


class Scheduler:
    """The state of a run between calls."""

    def __init__(
        self,
        *,
        workers: dict[str, int],
        limits: Limits,
        batcher: Batcher,
        is_wanted: Callable[[str], bool] = lambda clip: True,
    ) -> None:
        self._limits = limits
        self._batcher = batcher
        self._is_wanted = is_wanted
        self._stages = {
            stage: _Stage(
                depth=limits.focus_depth if stage == FOCUS else 1, running=[0] * count, epochs=[0] * count
            )
            for stage, count in workers.items()
        }
        self._to_read: deque[Reading] = deque()
        self._suspect_readings: deque[Reading] = deque()
        self._going_on: dict[int, list[Reading]] = {}
        self._to_open: list[Piece] = []
        self._suspect_pieces: list[Piece] = []
        self._to_step: dict[int, list[Clip]] = {w: [] for w in range(workers[STREAM])}
        self._to_close: dict[int, list[str]] = {w: [] for w in range(workers[STREAM])}
        self._open_clips = [0] * workers[STREAM]
        self._pieces: set[Piece] = set()
        self._in_flight: set[str] = set()
        self._bytes = 0
        self._labels: list[ClipLabel] = []
        self._labels_since_s = 0.0
        self._writing = 0
        self._unsent_writes: deque[WriteRequest] = deque()
        self._sequence = itertools.count()
        self._numbers = itertools.count()
        self._running: set[Planned] = set()
        self._sources_ended = False
        self._draining = False
        self.num_active_sources = 0
        self.finished_sources: list[Source] = []
        """Sources that ended since the runner last emptied the list."""
        self.counts: Counter[str] = Counter()

    # What comes in

    def wants_source(self) -> bool:
        ahead = 2 * self._limits.sources_per_call * len(self._stages[SOURCE].running)
        return not self._sources_ended and not self._draining and len(self._to_read) < ahead

    def add_source(self, source: Source, *, first_window: int = 0) -> None:
        self._to_read.append(Reading(source=source, first_window=first_window, is_resumed=first_window > 0))
        self.num_active_sources += 1

    def end_sources(self) -> None:
        self._sources_ended = True

    def drain(self) -> None:
        """Nothing new is begun; what has been read is labelled, what has been labelled is committed."""
        self._draining = True
        for reading in [*self._to_read, *self._suspect_readings]:
            self._end_reading(reading)
        self._to_read.clear()
        self._suspect_readings.clear()
        for readings in self._going_on.values():
            for reading in readings:
                self._end_reading(reading)
        self._going_on.clear()

    @property
    def is_finished(self) -> bool:
        return (
            (self._sources_ended or self._draining)
            and self.num_active_sources == 0
            and not self._labels
            and not self._unsent_writes
            and not self._running
        )

    @property
    def num_patches_waiting(self) -> int:
        return len(self._batcher)

    @property
    def num_bytes_held(self) -> int:
        return self._bytes

    # What goes out

    def next_call(self, now_s: float) -> Planned | None:
        """The call to make now, or None if every worker that could help is busy."""
        planned = (
            self._next_write(now_s)
            or self._next_step()
            or self._next_focus(now_s)
            or self._next_open()
            or self._next_read()
        )
        if planned is not None:
            stage = self._stages[planned.call.stage]
            stage.running[planned.call.worker] += 1
            stage.suspects_running += planned.is_suspect
            self._running.add(planned)
        return planned

    def _plan(self, stage: str, worker: int, method: str, requests: Iterable[Any], **about: Any) -> Planned:
        handles = about.pop("handles", ())
        call = Call(
            stage=stage, worker=worker, method=method, requests=tuple(requests), payloads=tuple(handles)
        )
        items: list[Any] = [*about.get("readings", ()), *about.get("pieces", ())]
        is_suspect = any(item.is_suspect for item in items)
        return Planned(call=call, epoch=self._stages[stage].epochs[worker], is_suspect=is_suspect, **about)

    def _next_write(self, now_s: float) -> Planned | None:
        if not self._stages[SINK].idle():
            return None
        if not self._unsent_writes and self._labels:
            is_due = (
                len(self._labels) >= self._limits.rows_per_part
                or now_s - self._labels_since_s >= self._limits.part_age_s
                or ((self._sources_ended or self._draining) and self.num_active_sources == 0)
            )
            if not is_due:
                return None
            part = self._labels[: self._limits.rows_per_part]
            del self._labels[: len(part)]
            self._labels_since_s = now_s
            self._unsent_writes.append(WriteRequest(sequence=next(self._sequence), labels=tuple(part)))
        if not self._unsent_writes:
            return None
        return self._plan(SINK, 0, "write", [self._unsent_writes.popleft()])

    def _next_step(self) -> Planned | None:
        stage = self._stages[STREAM]
        for worker in stage.idle():
            if self._to_close[worker]:
                gone, self._to_close[worker] = self._to_close[worker], []
                return self._plan(STREAM, worker, "close", gone)
            ready = self._to_step[worker]
            if not ready:
                continue
            clips = [clip for clip in ready if not clip.piece.is_suspect]
            if not clips:
                if stage.suspects_running:
                    continue
                clips = [clip for clip in ready if clip.piece is ready[0].piece]
            taken = set(map(id, clips))
            self._to_step[worker] = [clip for clip in ready if id(clip) not in taken]
            handles, places = count_payloads([handle for clip in clips for _, handle, _, _ in clip.features])
            place = iter(places)
            requests = [
                StepRequest(
                    clip_id=clip.ref.clip_id,
                    features=tuple(
                        Slice(next(place), start, stop) for _, _, start, stop in clip.features
                    ),
                )
                for clip in clips
            ]
            pieces = list({id(clip.piece): clip.piece for clip in clips}.values())
            for clip in clips:
                clip.features = []
            return self._plan(STREAM, worker, "step", requests, handles=handles, pieces=pieces)
        return None

    def _next_focus(self, now_s: float) -> Planned | None:
        stage = self._stages[FOCUS]
        for worker in stage.free():
            if self._batcher.has_suspect() and not stage.suspects_running and stage.running[worker] == 0:
                rows = self._batcher.take_suspect()
            else:
                rows = self._batcher.take(now_s, worker_idles=stage.running[worker] == 0)
            if not rows:
                return None
            handles, places = count_payloads([r.handle for r in rows])
            requests = [Slice(place, r.start, r.stop) for place, r in zip(places, rows, strict=True)]
            pieces = list({id(r.clip.piece): r.clip.piece for r in rows}.values())
            return self._plan(FOCUS, worker, "focus", requests, handles=handles, pieces=pieces, rows=rows)
        return None

    def _next_open(self) -> Planned | None:
        stage = self._stages[STREAM]
        for worker in sorted(stage.idle(), key=lambda w: self._open_clips[w]):
            if self._suspect_pieces and not stage.suspects_running:
                pieces = [heapq.heappop(self._suspect_pieces)]
            else:
                pieces = []
                num_open = self._open_clips[worker]
                while self._to_open and len(pieces) < self._limits.pieces_per_call:
                    num_open += len(self._to_open[0].clips)
                    if num_open > self._limits.max_open_clips and (pieces or self._open_clips[worker]):
                        break
                    pieces.append(heapq.heappop(self._to_open))
            if not pieces:
                continue
            handles, places = count_payloads([piece.handle for piece in pieces])
            requests = []
            for place, piece in zip(places, pieces, strict=True):
                piece.worker = worker
                piece.open_clips = {c: Clip(piece=piece, ref=ref) for c, ref in piece.clips.items()}
                self._open_clips[worker] += len(piece.open_clips)
                frames = Slice(place, piece.row, piece.row + 1)
                requests.append(OpenRequest(frames=frames, clip_ids=tuple(piece.clips)))
            return self._plan(STREAM, worker, "open", requests, handles=handles, pieces=pieces)
        return None

    def _next_read(self) -> Planned | None:
        stage = self._stages[SOURCE]
        is_full = (
            len(self._pieces) + sum(stage.running) * self._limits.sources_per_call >= self._limits.max_pieces
            or self._bytes >= self._limits.max_bytes
            or len(self._labels) >= 2 * self._limits.rows_per_part
        )
        # Nothing runs and nothing else can: one item is let through, whatever the limits say.
        if is_full and self._running:
            return None
        for worker in stage.idle():
            readings = self._going_on.pop(worker, [])
            if not readings and self._suspect_readings and not stage.suspects_running:
                readings = [self._suspect_readings.popleft()]
            while self._to_read and self._may_join(self._to_read[0], readings):
                readings.append(self._to_read.popleft())
            if not readings:
                continue
            for reading in readings:
                reading.worker = worker
            requests = [ReadRequest(source=r.source, first_window=r.first_window) for r in readings]
            return self._plan(SOURCE, worker, "read", requests, readings=readings)
        return None

    def _may_join(self, reading: Reading, readings: list[Reading]) -> bool:
        if any(r.is_suspect for r in readings):
            return False
        are_images = all(r.source.media is Media.IMAGE for r in [reading, *readings])
        return len(readings) < (self._limits.images_per_call if are_images else self._limits.sources_per_call)

    # How calls end

    def on_done(self, planned: Planned, reply: Reply, payload: Any, now_s: float) -> None:
        self._leave(planned)
        if planned.epoch != self._stages[planned.call.stage].epochs[planned.call.worker]:
            # The worker died after answering: its answer stands, its state does not.
            if planned.call.stage == STREAM:
                return
        else:
            self._stages[planned.call.stage].deaths_in_a_row = 0
        match planned.call.method:
            case "read":
                self._on_read(planned, reply.rows, payload, now_s)
            case "open" | "step":
                for advance in reply.rows:
                    self._on_advance(planned, advance, payload, now_s)
            case "focus":
                self._on_features(planned, payload)
            case "write":
                self.counts["committed"] += len(planned.call.requests[0].labels)

    def on_died(self, planned: Planned, now_s: float) -> bool:
        """Says whether the worker has to be replaced: true for the first call that tells of a death."""
        self._leave(planned)
        stage, worker = self._stages[planned.call.stage], planned.call.worker
        is_news = planned.epoch == stage.epochs[worker]
        if is_news:
            stage.epochs[worker] += 1
            stage.deaths_in_a_row += 1
            self.counts[f"{planned.call.stage}_deaths"] += 1
        reason = "timeout" if planned.timed_out else "worker_died"
        if planned.call.method == "write":
            if stage.deaths_in_a_row >= MAX_DEATHS:
                raise StageError(
                    f"the process that writes the labels died {stage.deaths_in_a_row} times in a row; "
                    "what is committed is safe, run the command again to go on"
                )
            self._unsent_writes.appendleft(planned.call.requests[0])
        for reading in planned.readings:
            self._blame_reading(reading, is_alone=planned.is_alone, reason=reason, now_s=now_s)
        for piece in planned.pieces:
            self._blame_piece(piece, is_alone=planned.is_alone, now_s=now_s)
        if planned.call.stage == STREAM and is_news:
            for piece in [p for p in self._pieces if p.worker == worker]:
                self._start_again(piece)
            self._to_close[worker].clear()
        if planned.call.stage == SOURCE and is_news:
            for reading in self._going_on.pop(worker, []):
                self._read_again(reading)
        return is_news

    def on_failed(self, planned: Planned, error: str, now_s: float) -> None:
        """An exception from our own code. Alone it makes a row; in company each runs alone to see whose it is."""
        self._leave(planned)
        self.counts["exceptions"] += 1
        last_line = error.strip().splitlines()[-1] if error.strip() else "unknown error"
        if planned.call.stage == SINK:
            raise StageError(f"labels could not be written: {last_line}")
        for reading in planned.readings:
            if planned.is_alone:
                self._fail_reading(reading, "internal", last_line, now_s)
            else:
                reading.is_suspect = True
                self._read_again(reading)
        for piece in planned.pieces:
            self._close(piece)
            if planned.is_alone:
                self._fail_piece(piece, "internal", last_line, now_s)
            else:
                piece.is_suspect = True
                self._start_again(piece)

    def on_lost(self, planned: Planned, now_s: float) -> None:
        """Frames or patches went with the machine that held them: their sources are read again."""
        self._leave(planned)
        if planned.call.stage == SINK:
            self._unsent_writes.appendleft(planned.call.requests[0])
        for reading in planned.readings:
            self._blame_reading(reading, is_alone=planned.is_alone, reason="worker_died", now_s=now_s)
        for piece in planned.pieces:
            if piece not in self._pieces:
                continue
            self._close(piece)
            reading = piece.reading
            self._in_flight.difference_update(piece.clips)
            self._forget(piece)
            again = Reading(
                source=reading.source,
                first_window=min((ref.window for ref in piece.clips.values()), default=0),
                deaths=reading.deaths,
            )
            self.num_active_sources += 1
            self._blame_reading(again, is_alone=True, reason="worker_died", now_s=now_s)

    def _leave(self, planned: Planned) -> None:
        stage = self._stages[planned.call.stage]
        stage.running[planned.call.worker] -= 1
        stage.suspects_running -= planned.is_suspect
        self._running.discard(planned)

    # Reading

    def _on_read(self, planned: Planned, rows: tuple[ReadReply, ...], payload: Any, now_s: float) -> None:
        for reading, row in zip(planned.readings, rows, strict=True):
            for info in row.pieces:
                reading.is_resumed = False
                reading.first_window = max(reading.first_window, *(c.window + 1 for c in info.clips))
                clips = {
                    ref.clip_id: ref
                    for ref in info.clips
                    if ref.clip_id not in self._in_flight and self._is_wanted(ref.clip_id)
                }
                self.counts["done_before"] += len(info.clips) - len(clips)
                if not clips:
                    continue
                self._in_flight.update(clips)
                piece = Piece(
                    number=next(self._numbers),
                    reading=reading,
                    handle=payload,
                    row=info.row,
                    num_bytes=info.num_bytes,
                    clips=clips,
                    is_suspect=reading.is_suspect,
                )
                self._pieces.add(piece)
                self._bytes += piece.num_bytes
                self.num_active_sources += 1
                self._queue_open(piece)
            if row.failed is not None:
                # A source that was done in part before, and now gives nothing more, has its rows already.
                if not reading.is_resumed:
                    self._emit(row.failed, now_s)
                self._end_reading(reading)
            elif row.is_done or self._draining:
                self._end_reading(reading)
            else:
                reading.deaths = 0
                self._going_on.setdefault(planned.call.worker, []).append(reading)

    def _end_reading(self, reading: Reading) -> None:
        self.num_active_sources -= 1
        self.finished_sources.append(reading.source)

    def _read_again(self, reading: Reading) -> None:
        reading.worker = None
        if self._draining:
            self._end_reading(reading)
        elif reading.is_suspect:
            self._suspect_readings.append(reading)
        else:
            self._to_read.appendleft(reading)

    def _blame_reading(self, reading: Reading, *, is_alone: bool, reason: str, now_s: float) -> None:
        reading.is_suspect = True
        if is_alone:
            reading.deaths += 1
            if reason == "timeout":
                message = "the decoder made no progress within decode.timeout_s and was ended"
                return self._fail_reading(reading, "timeout", message, now_s)
            if reading.deaths >= MAX_DEATHS:
                message = f"reading it ended {reading.deaths} workers"
                return self._fail_reading(reading, "worker_died", message, now_s)
        return self._read_again(reading)

    def _fail_reading(self, reading: Reading, code: str, message: str, now_s: float) -> None:
        ref = ClipRef(
            clip_id=clip_id(reading.source.source_id, reading.first_window * self._limits.stride_s),
            start_s=reading.first_window * self._limits.stride_s,
            end_s=reading.first_window * self._limits.stride_s,
            window=reading.first_window,
        )
        self._emit(failed_label(reading.source, code=code, message=message, ref=ref), now_s)
        self._end_reading(reading)

    # Clips

    def _queue_open(self, piece: Piece) -> None:
        heapq.heappush(self._suspect_pieces if piece.is_suspect else self._to_open, piece)

    def _on_advance(self, planned: Planned, advance: Advance, payload: Any, now_s: float) -> None:
        clip = next(
            (p.open_clips[advance.clip_id] for p in planned.pieces if advance.clip_id in p.open_clips), None
        )
        if clip is None or clip.is_gone:
            return
        if advance.label is not None:
            self._close_clip(clip)
            piece = clip.piece
            del piece.clips[advance.clip_id]
            self._emit(advance.label, now_s)
            if not piece.clips:
                self._forget(piece)
            return
        clip.patches_left = advance.stop - advance.start
        self._batcher.add(
            PatchRows(
                clip=clip,
                handle=payload,
                start=advance.start,
                stop=advance.stop,
                since_s=now_s,
                is_suspect=clip.piece.is_suspect,
            )
        )

    def _on_features(self, planned: Planned, payload: Any) -> None:
        at = 0
        for rows in planned.rows:
            clip: Clip = rows.clip
            if not clip.is_gone:
                clip.features.append((rows.start, payload, at, at + len(rows)))
                clip.patches_left -= len(rows)
                if clip.patches_left == 0:
                    clip.features.sort(key=lambda feature: feature[0])
                    assert clip.piece.worker is not None
                    self._to_step[clip.piece.worker].append(clip)
            at += len(rows)

    def _close_clip(self, clip: Clip) -> None:
        clip.is_gone = True
        assert clip.piece.worker is not None
        self._open_clips[clip.piece.worker] -= 1
        del clip.piece.open_clips[clip.ref.clip_id]

    def _close(self, piece: Piece) -> None:
        """Gives up the state that the piece's clips have on a stream worker."""
        if piece.worker is None:
            return
        worker = piece.worker
        for clip in list(piece.open_clips.values()):
            self._to_close[worker].append(clip.ref.clip_id)
            self._close_clip(clip)
        self._to_step[worker] = [clip for clip in self._to_step[worker] if not clip.is_gone]
        self._batcher.drop(lambda clip: clip.is_gone)
        piece.worker = None

    def _start_again(self, piece: Piece) -> None:
        """From its frames: whatever state its clips had is gone."""
        if piece not in self._pieces:
            return
        if piece.worker is None and not piece.open_clips and self._is_queued(piece):
            return
        self._close(piece)
        self._queue_open(piece)

    def _is_queued(self, piece: Piece) -> bool:
        return piece in self._to_open or piece in self._suspect_pieces

    def _blame_piece(self, piece: Piece, *, is_alone: bool, now_s: float) -> None:
        if piece not in self._pieces:
            return
        piece.is_suspect = True
        self._close(piece)
        if is_alone:
            piece.deaths += 1
            if piece.deaths >= MAX_DEATHS:
                message = f"labelling it ended {piece.deaths} workers"
                return self._fail_piece(piece, "worker_died", message, now_s)
        return self._start_again(piece)

    def _fail_piece(self, piece: Piece, code: str, message: str, now_s: float) -> None:
        if piece not in self._pieces:
            return
        for ref in piece.clips.values():
            self._emit(failed_label(piece.reading.source, code=code, message=message, ref=ref), now_s)
        piece.clips.clear()
        self._forget(piece)

    def _forget(self, piece: Piece) -> None:
        self._pieces.discard(piece)
        self._bytes -= piece.num_bytes
        self.num_active_sources -= 1
        piece.handle = None

    def _emit(self, label: ClipLabel, now_s: float) -> None:
        if not self._labels:
            self._labels_since_s = now_s
        self._labels.append(label)
        self._in_flight.discard(label.clip_id)
        self.counts["failed" if label.error_code else "labelled"] += 1
        if label.error_code:
            self.counts[f"failed:{label.error_code}"] += 1
        self.on_label(label)

    def on_label(self, label: ClipLabel) -> None:
        """Told of every label as it is made; the runner takes note of it."""
