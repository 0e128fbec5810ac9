"""The workers of the source, focus and sink stages: an operator each, and the lists of records around it.

A worker runs in one process and one thread of its own; nothing here knows of Ray. The stream worker, which holds the
state of clips, is in stages.py, because it needs torch and these must start without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from operators.errors import ErrorCode, SourceError
from operators.records import ClipLabel, FrameBatch, PatchBatch, Source, clip_id
from pipeline.steering.messages import ClipRef, PieceInfo, ReadReply, ReadRequest, Reply, Slice, Work
from pipeline.steering.read_queue import failed_label


class Reader(Protocol):
    """What reads one source; FileReader is one. A context manager."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exc: Any) -> Any: ...

    def read(self) -> Iterator[FrameBatch | None]: ...


class SourceWorker:
    """Reads sources a slice of time at a go: a call that does not come back is one whose decoder hangs."""

    def __init__(
        self,
        *,
        open_reader: Callable[[Source, int], Reader],
        stride_s: float = 0.0,
        slice_s: float = 1.0,
        max_total_s: float = 3600.0,
        max_bytes: int = 64 << 20,
        retires_after: int = 5000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retires_after`: sources after which a fresh process is asked for: the bindings leak a little of each."""
        self._open_reader = open_reader
        self._stride_s = stride_s
        self._slice_s = slice_s
        self._max_total_s = max_total_s
        self._max_bytes = max_bytes
        self._sources_left = retires_after
        self._clock = clock
        self._open: dict[str, _OpenSource] = {}

    def read(self, requests: tuple[ReadRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, list[FrameBatch]]:
        begun_s = self._clock()
        batches: list[FrameBatch] = []
        rows: list[ReadReply] = []
        try:
            for request in requests:
                # The first source of a call always gets its turn, so that every call makes progress.
                if not rows or self._has_room(begun_s, batches):
                    rows.append(self._go_on(request, begun_s, batches))
                else:
                    rows.append(ReadReply(source_id=request.source.source_id))
        except Exception:
            # A bug of ours: each source of the call is read again from its beginning, so none may stay open.
            for request in requests:
                self._close(request.source.source_id)
            raise
        work = Work(busy_s=self._clock() - begun_s, num_items=len(batches))
        is_spent = self._sources_left <= 0 and not self._open
        return Reply(rows=tuple(rows), work=work, is_spent=is_spent), batches

    def _has_room(self, begun_s: float, batches: list[FrameBatch]) -> bool:
        return self._clock() - begun_s < self._slice_s and sum(b.num_bytes for b in batches) < self._max_bytes

    def _go_on(self, request: ReadRequest, begun_s: float, batches: list[FrameBatch]) -> ReadReply:
        """Reads a source on until it ends, or the call's time or room does; adds what it gave to `batches`."""
        key = request.source.source_id
        pieces: list[PieceInfo] = []
        since_s = self._clock()
        try:
            source = self._open.get(key)
            if source is not None and source.next_window != request.first_window:
                # What it gave last did not arrive.
                self._close(key)
                source = None
            if source is None:
                source = self._open[key] = _OpenSource(self._open_reader, request)
            while True:
                batch = next(source.frames, _END)
                if batch is _END:
                    self._close(key)
                    return ReadReply(source_id=key, pieces=tuple(pieces), is_done=True)
                if isinstance(batch, FrameBatch):
                    pieces.append(source.piece(batch, row=len(batches)))
                    batches.append(batch)
                if source.total_s + self._clock() - since_s > self._max_total_s:
                    raise SourceError(f"reading took longer than {self._max_total_s:g} s", code=ErrorCode.TIMEOUT)
                if not self._has_room(begun_s, batches):
                    source.total_s += self._clock() - since_s
                    return ReadReply(source_id=key, pieces=tuple(pieces))
        except SourceError as exc:
            window = self._open[key].next_window if key in self._open else request.first_window
            self._close(key)
            return ReadReply(source_id=key, pieces=tuple(pieces), failed=self._failed(request.source, window, exc))

    def _failed(self, source: Source, window: int, exc: SourceError) -> ClipLabel:
        start_s = window * self._stride_s
        ref = ClipRef(clip_id=clip_id(source.source_id, start_s), start_s=start_s, end_s=None, window=window)
        return failed_label(source, code=exc.code, message=str(exc), ref=ref)

    def _close(self, key: str) -> None:
        source = self._open.pop(key, None)
        if source is not None:
            self._sources_left -= 1
            source.close()

    def shutdown(self) -> None:
        for key in list(self._open):
            self._close(key)


_END: Any = object()


class _OpenSource:
    """A reader in the middle of its work."""

    def __init__(self, open_reader: Callable[[Source, int], Reader], request: ReadRequest) -> None:
        self._reader = open_reader(request.source, request.first_window)
        self.frames = self._reader.__enter__().read()
        self.next_window = request.first_window
        self.total_s = 0.0
        """Time spent on it in earlier calls."""

    def piece(self, batch: FrameBatch, *, row: int) -> PieceInfo:
        clips = []
        for window in batch.windows:
            clips.append(
                ClipRef(clip_id=window.clip_id, start_s=window.start_s, end_s=window.end_s, window=self.next_window)
            )
            self.next_window += 1
        return PieceInfo(row=row, num_bytes=batch.num_bytes, clips=tuple(clips))

    def close(self) -> None:
        self._reader.__exit__(None, None, None)


def gather_rows(requests: tuple[Slice, ...], arrays: list[np.ndarray]) -> np.ndarray:
    """Rows of several arrays as one; no copy where they are one run of one array."""
    parts = [arrays[r.payload][r.start : r.stop] for r in requests]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class FocusWorker:
    """Patches of any clips through the heavy network in one pass."""

    def __init__(
        self,
        *,
        focuser: Callable[[PatchBatch], Any],
        round_up: Callable[[int], int] = int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._focuser = focuser
        self._round_up = round_up
        self._clock = clock
        self._idle_since_s: float | None = None

    def focus(self, requests: tuple[Slice, ...], payloads: tuple[PatchBatch, ...]) -> tuple[Reply, Any]:
        begun_s = self._clock()
        waited_s = 0.0 if self._idle_since_s is None else begun_s - self._idle_since_s
        shifts = [p.shifts for p in payloads if p.shifts is not None]
        patches = PatchBatch(
            pixels=gather_rows(requests, [p.pixels for p in payloads]),
            shifts=gather_rows(requests, shifts) if shifts else None,
        )
        features = self._focuser(patches)
        num_rows = len(patches.pixels)
        self._idle_since_s = self._clock()
        work = Work(
            busy_s=self._idle_since_s - begun_s,
            wait_s=waited_s,
            num_items=num_rows,
            num_padded=self._round_up(num_rows) - num_rows,
        )
        return Reply(rows=(), work=work), features


def file_worker(
    *,
    sampling: Mapping[str, Any],
    view: Mapping[str, Any],
    limits: Mapping[str, Any],
    max_total_s: float,
    num_threads: int,
) -> SourceWorker:
    """The source worker of an archive. Plain values, so that its process needs neither pydantic nor torch."""
    from operators.media.decode import FileReader
    from operators.media.decode import Limits as ReadLimits
    from operators.media.frame_plan import Sampling
    from operators.media.view import Viewer

    wanted = Sampling(**sampling)
    viewer = Viewer(**view)
    read_limits = ReadLimits(**limits)

    def open_reader(source: Source, first_window: int) -> FileReader:
        return FileReader(
            source=source,
            sampling=wanted,
            viewer=viewer,
            limits=read_limits,
            num_threads=num_threads,
            # Of the wall: the records say when a source was opened.
            clock=time.time,
            first_window=first_window,
        )

    stride_s = 0.0 if wanted.kind == "whole" else wanted.stride_s
    return SourceWorker(open_reader=open_reader, stride_s=stride_s, max_total_s=max_total_s)
