"""Videos -> the frames that the frame cache keeps, here or in processes that can be ended when a decoder hangs. Imports
no torch: its workers start fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from operators.errors import ErrorCode, PipelineError, SourceError, StageError
from operators.media.sampling import SamplingRule
from operators.media.view import Viewer
from operators.records import FrameBatch, Source
from pipeline.run.pools import KillableProcess
from pipeline.steering.read_queue import MAX_DEATHS
from pipeline.training.frame_cache import ClipFrames, Read, StepReader

if TYPE_CHECKING:
    from operators.media.decode import ReadLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipReader:
    """Reads one video: the frames of inference, and as many others as there are candidates to choose among."""

    num_steps: int
    candidates: int
    viewer: Viewer
    pad: str = "last"
    limits: ReadLimits | None = None
    clock: Callable[[], float] = time.time

    def __call__(self, source: Source) -> ClipFrames:
        return last_step(self.steps(source))

    def steps(self, source: Source) -> Iterator[ClipFrames | None]:
        # Stages can be trained where there is no decoder, from frames that are there already.
        from operators.media.decode import FileReader

        # Two samples cost one decode: inference's frames, and a denser one to draw from.
        dense = self.num_steps * self.candidates if self.candidates > 1 else None
        sampling = SamplingRule(num_frames=self.num_steps, num_focus_frames=dense, pad=self.pad)
        with FileReader(
            source=source, sampling=sampling, viewer=self.viewer, clock=self.clock, limits=self.limits
        ) as reader:
            batch = yield from only_batch(reader.read(), source)
        yield ClipFrames(
            pixels=batch.pixels,
            frame_index=np.asarray(batch.frame_index, np.int64),
            num_frames=max(batch.facts.num_frames, int(batch.frame_index[-1]) + 1),
            view_yxhw=batch.view_yxhw,
        )


def last_step(steps: Iterator[ClipFrames | None]) -> ClipFrames:
    """What a reader's steps come to, without a look at the time that each of them takes."""
    return next(step for step in steps if step is not None)


def only_batch(items: Iterator[FrameBatch | None], source: Source) -> Generator[None, None, FrameBatch]:
    """The one clip that a video gives. Yields None for each step on the way to it."""
    batches = []
    for item in items:
        if item is not None:
            batches.append(item)
        yield None
    if len(batches) != 1:
        raise SourceError(f"{source.shown_uri} gave {len(batches)} clips where one was wanted", code=ErrorCode.INTERNAL)
    return batches[0]


class ReadInProcesses:
    """`read_many` for the frame cache: several videos at a time, results in order, a bounded number ahead.

    A video on which its process makes no progress for `timeout_s` is given up, and so is one that ends its process as
    often as an archive's source may: both are results that say why, and the others go on.
    """

    def __init__(self, num_workers: int, *, timeout_s: float, max_total_s: float = 3600.0) -> None:
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._max_total_s = max_total_s

    def __call__(self, read: Read, sources: Iterable[Source]) -> Generator[ClipFrames | SourceError, None, None]:
        left = enumerate(sources)
        found: dict[int, ClipFrames | SourceError] = {}
        idle = [_Reader(read, self._timeout_s, self._max_total_s) for _ in range(self._num_workers)]
        busy: list[_Reader] = []
        due = 0
        num_begun = 0
        try:
            while True:
                while idle and num_begun < due + 4 * self._num_workers and (item := next(left, None)) is not None:
                    num_begun += 1
                    busy.append(idle.pop())
                    busy[-1].begin(*item)
                if not busy:
                    return
                wait([reader.call for reader in busy], timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for reader in list(busy):
                    result = reader.result_so_far()
                    if result is not None:
                        found[reader.number] = result
                        busy.remove(reader)
                        idle.append(reader)
                while due in found:
                    yield found.pop(due)
                    due += 1
        finally:
            for reader in [*busy, *idle]:
                reader.close()


class _Reader:
    """One process that reads, and the video that it is reading."""

    def __init__(self, read: Read, timeout_s: float, max_total_s: float) -> None:
        self._read = read
        self._timeout_s = timeout_s
        self._max_total_s = max_total_s
        self._process: KillableProcess | None = None
        self._num_stillborn = 0

    def begin(self, number: int, source: Source) -> None:
        self.number = number
        self._source = source
        self._num_deaths = 0
        self._begin()

    def _begin(self) -> None:
        self._reading_since_s: float | None = None
        self._go_on(is_new=True)

    def _go_on(self, *, is_new: bool) -> None:
        self._waiting_since_s: float | None = None
        try:
            if self._process is None:
                self._process = KillableProcess()
            self.call = self._process.submit(_read_on, self._read, self._source, is_new)
        except BrokenProcessPool as exc:
            # It died between two calls; what it was asked now comes back as a death like any other.
            self.call = Future()
            self.call.set_exception(exc)

    def result_so_far(self) -> ClipFrames | SourceError | None:
        """The frames of the video, or why there are none; None while it is being read."""
        assert self._process is not None
        if self.call.done():
            try:
                result = self.call.result()
            except BrokenProcessPool:
                return self._died()
            self._num_stillborn = 0
            if result is None:
                self._go_on(is_new=False)
            return result
        if self._process.is_ready:
            now_s = time.monotonic()
            self._reading_since_s = self._reading_since_s or now_s
            self._waiting_since_s = self._waiting_since_s or now_s
            if now_s - self._waiting_since_s > self._timeout_s:
                return self._given_up(f"the decoder made no progress within {self._timeout_s:g} s and was ended")
            if now_s - self._reading_since_s > self._max_total_s:
                return self._given_up(f"reading took longer than {self._max_total_s:g} s")
        return None

    def _died(self) -> SourceError | None:
        assert self._process is not None
        is_stillborn = self._process.is_stillborn
        self.close()
        if is_stillborn:
            self._num_stillborn += 1
            if self._num_stillborn >= MAX_DEATHS:
                raise StageError(
                    f"a process that reads training videos died {MAX_DEATHS} times while it started: "
                    "is there enough memory?"
                )
        else:
            self._num_deaths += 1
            if self._num_deaths >= MAX_DEATHS:
                message = f"{self._source.shown_uri}: reading it ended {MAX_DEATHS} processes"
                return SourceError(message, code=ErrorCode.WORKER_DIED)
        self._begin()
        return None

    def _given_up(self, why: str) -> SourceError:
        self.close()
        return SourceError(f"{self._source.shown_uri}: {why}", code=ErrorCode.TIMEOUT)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


_POLL_S = 0.2
"""The time between two checks whether a reader is late."""
_SLICE_S = 1.0
"""A reader that makes progress comes back after this time."""


_under_way: Iterator[ClipFrames | None] = iter(())
"""In a process that reads: the video that it is reading."""


def _read_on(read: Read, source: Source, is_new: bool) -> ClipFrames | SourceError | None:
    """A slice of a video's reading; None where there is more to read."""
    global _under_way
    if is_new:
        _under_way = read.steps(source) if isinstance(read, StepReader) else _one_step(read, source)
    until_s = time.monotonic() + _SLICE_S
    try:
        for step in _under_way:
            if step is not None:
                return step
            if time.monotonic() > until_s:
                return None
        raise SourceError(f"{source.shown_uri} gave no clip", code=ErrorCode.NO_FRAMES)
    except SourceError as exc:
        return exc
    except PipelineError:
        raise
    except Exception as exc:
        # A bug of ours or of a library on this one video.
        return SourceError(f"{source.shown_uri}: {type(exc).__name__}: {exc}", code=ErrorCode.INTERNAL)


def _one_step(read: Read, source: Source) -> Iterator[ClipFrames | None]:
    yield read(source)
