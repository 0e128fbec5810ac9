"""The sources that are under way: which are read next, and which are to blame when reading failed. Pure.

A source is under way from the moment it is given until the last of its clips has a label, so that it is read by one
worker at a time, and frames that were lost are read again when its reading has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from operators.errors import ErrorCode
from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.steering.messages import ClipRef, ReadReply

MAX_DEATHS = 3
"""How many deaths of workers, or losses, make a row with an error of what they happened to."""


@dataclass(slots=True, eq=False)
class Reading:
    """A source that waits to be read, is being read, or has clips without a label."""

    source: Source
    first_window: int = 0
    """The window where reading goes on; those before it have been handed over."""
    is_resumed: bool = False
    """Whether reading began behind windows that an earlier run labelled, and nothing has come out of it since."""
    is_reading: bool = True
    is_suspect: bool = False
    deaths: int = 0
    timeouts: int = 0
    """How often reading it alone took too long."""
    losses: int = 0
    """How often what was read of it went with the machine that held it."""
    has_clips: bool = False
    num_clips: int = 0
    """How many of its clips are under way."""
    lost: dict[str, ClipRef] = field(default_factory=dict)
    """The clips whose frames are gone and have to be read again, by their id."""


def failed_label(source: Source, *, code: ErrorCode, message: str, ref: ClipRef | None = None) -> ClipLabel:
    """The row of a clip that could not be labelled."""
    return ClipLabel(
        video_id=source.video_id,
        clip_id=ref.clip_id if ref else clip_id(source.source_id, 0.0),
        source_uri=source.shown_uri,
        truth=source.truth,
        start_s=ref.start_s if ref else 0.0,
        end_s=ref.end_s if ref else None,
        error_code=code,
        error=message,
    )


class ReadQueue:
    """Holds sources until they are read, and makes the rows of those that cannot be."""

    def __init__(
        self,
        *,
        num_workers: int,
        sources_per_call: int,
        images_per_call: int,
        stride_s: float,
        is_new: Callable[[str], bool],
        emit: Callable[[ClipLabel, float], None],
    ) -> None:
        """`is_new`: whether a clip has no label and is not under way. `emit` is given the row of a failed clip."""
        self._sources_per_call = sources_per_call
        self._images_per_call = images_per_call
        self._stride_s = stride_s
        self._is_new = is_new
        self._emit = emit
        self._ahead = 2 * num_workers * max(sources_per_call, images_per_call)
        self._waiting: deque[Reading] = deque()
        self._suspects: deque[Reading] = deque()
        self._going_on: list[deque[Reading]] = [deque() for _ in range(num_workers)]
        """The sources that are open on each worker. One that is made in its place opens them anew."""
        self._is_draining = False
        self.num_active = 0
        self.finished: list[Source] = []

    def wants_source(self) -> bool:
        return len(self._waiting) < self._ahead

    def add(self, source: Source, *, first_window: int) -> None:
        self._waiting.append(Reading(source=source, first_window=first_window, is_resumed=first_window > 0))
        self.num_active += 1

    def next(self, idle: Collection[int], *, may_suspect: bool, room: int) -> tuple[int, list[Reading]] | None:
        """Chooses a worker and at most `room` sources for it. Suspects are read alone, one at a time."""
        for worker in idle:
            going_on = self._going_on[worker]
            if going_on and going_on[0].is_suspect and not may_suspect:
                continue
            readings: list[Reading] = []
            if not going_on and self._suspects and may_suspect:
                readings.append(self._suspects.popleft())
            for queue in (going_on, self._waiting):
                while queue and len(readings) < room and self._may_join(queue[0], readings):
                    readings.append(queue.popleft())
            if readings:
                return worker, readings
        return None

    def _may_join(self, reading: Reading, readings: list[Reading]) -> bool:
        if readings and (reading.is_suspect or readings[0].is_suspect):
            return False
        are_images = all(r.source.media is Media.IMAGE for r in [reading, *readings])
        return len(readings) < (self._images_per_call if are_images else self._sources_per_call)

    def drain(self) -> None:
        """Reads nothing more from here on."""
        self._is_draining = True
        for readings in [self._waiting, self._suspects, *self._going_on]:
            for reading in readings:
                self._leave(reading)
            readings.clear()

    # What became of a call

    def answered(self, reading: Reading, row: ReadReply, *, worker: int, now_s: float) -> None:
        """Ends a reading or lets it go on, as the answer says, once its pieces have been taken.

        `worker`: the one that has the source open.
        """
        if row.failed is not None:
            self._fail(reading, row.failed, now_s)
        elif row.is_done:
            self._end(reading, now_s)
        else:
            self._go_on(reading, worker)

    def unanswered(self, reading: Reading, *, worker: int | None, now_s: float) -> None:
        """Reads a source again whose answer was lost on its way, which is nobody's fault: on the same worker, or on any
        where that one is gone."""
        reading.losses += 1
        if reading.losses >= MAX_DEATHS:
            message = f"what was read of it was lost {reading.losses} times"
            self._fail(reading, self._label(reading, ErrorCode.WORKER_DIED, message), now_s)
        elif worker is None:
            reading.is_suspect |= reading.losses == MAX_DEATHS - 1
            self._read_again(reading)
        else:
            self._go_on(reading, worker)

    def worker_gone(self, worker: int) -> None:
        """Lets whoever is free open anew what was open on a worker."""
        readings = list(self._going_on[worker])
        self._going_on[worker].clear()
        for reading in reversed(readings):
            self._read_again(reading)

    def died(
        self, reading: Reading, *, is_alone: bool, timed_out: bool, now_s: float, is_doubtful: bool = False
    ) -> None:
        """Reads a source again whose worker died over it, unless that happened too often.

        `is_doubtful`: it may be that the answer was lost, so that a first timeout proves nothing.
        """
        reading.is_suspect = True
        reading.deaths += is_alone
        reading.timeouts += is_alone and timed_out
        if is_alone and timed_out and (not is_doubtful or reading.timeouts > 1):
            self._fail(reading, self._label(reading, ErrorCode.TIMEOUT, _HANGS), now_s)
        elif reading.deaths >= MAX_DEATHS:
            message = f"reading it ended {reading.deaths} workers"
            self._fail(reading, self._label(reading, ErrorCode.WORKER_DIED, message), now_s)
        else:
            self._read_again(reading)

    def raised(self, reading: Reading, error: str, *, is_alone: bool, now_s: float) -> None:
        """Fails a source whose call raised an exception, or reads it again where others were in the call."""
        if is_alone:
            self._fail(reading, self._label(reading, ErrorCode.INTERNAL, error), now_s)
        else:
            reading.is_suspect = True
            self._read_again(reading)

    def clip_ended(self, reading: Reading) -> None:
        """Counts a clip of this source as labelled; the source is finished with its last one."""
        reading.num_clips -= 1
        if reading.num_clips == 0 and not reading.is_reading:
            self._finish(reading)

    def lost(self, reading: Reading, refs: Iterable[ClipRef], now_s: float) -> None:
        """Has these clips read again: their frames went with the machine that held them."""
        for ref in refs:
            reading.lost[ref.clip_id] = ref
            reading.num_clips -= 1
        if not reading.is_reading:
            reading.is_reading = True
            self._end(reading, now_s)

    # Ends

    def _go_on(self, reading: Reading, worker: int) -> None:
        if self._is_draining:
            self._leave(reading)
        else:
            self._going_on[worker].append(reading)

    def _label(self, reading: Reading, code: ErrorCode, message: str) -> ClipLabel:
        start_s = reading.first_window * self._stride_s
        ref = ClipRef(clip_id(reading.source.source_id, start_s), start_s, None, reading.first_window)
        return failed_label(reading.source, code=code, message=message, ref=ref)

    def _fail(self, reading: Reading, label: ClipLabel, now_s: float) -> None:
        if reading.is_resumed:
            # Did the earlier run get so far and write this failure down, as the row of the window before? Only
            # reading from there shows it: if it is that failure, its row is known.
            reading.is_resumed = False
            reading.first_window -= 1
            reading.deaths = 0
            return self._read_again(reading)
        if label.clip_id in reading.lost or self._is_new(label.clip_id):
            reading.lost.pop(label.clip_id, None)
            self._emit(label, now_s)
        return self._end(reading, now_s, code=label.error_code, message=label.error)

    def _end(
        self, reading: Reading, now_s: float, *, code: ErrorCode | None = None, message: str | None = None
    ) -> None:
        if reading.lost and reading.losses < MAX_DEATHS:
            reading.losses += 1
            reading.first_window = min(ref.window for ref in reading.lost.values())
            return self._read_again(reading)
        for ref in reading.lost.values():
            why = message or f"its frames were lost {reading.losses} times"
            self._emit(failed_label(reading.source, code=code or ErrorCode.WORKER_DIED, message=why, ref=ref), now_s)
        reading.lost.clear()
        if code is None and not reading.has_clips and not reading.is_resumed:
            # Every input has a row.
            label = self._label(reading, ErrorCode.NO_FRAMES, "it ended without a frame")
            if self._is_new(label.clip_id):
                self._emit(label, now_s)
        return self._leave(reading)

    def _read_again(self, reading: Reading) -> None:
        if self._is_draining:
            self._leave(reading)
        elif reading.is_suspect:
            self._suspects.append(reading)
        else:
            self._waiting.appendleft(reading)

    def _leave(self, reading: Reading) -> None:
        reading.is_reading = False
        if reading.num_clips == 0:
            self._finish(reading)

    def _finish(self, reading: Reading) -> None:
        self.num_active -= 1
        self.finished.append(reading.source)


_HANGS = "the decoder made no progress within decode.timeout_s and was ended"
