"""The source worker: it reads sources a slice of time at a go, and gives their frames with the clips cut from them.

It runs in one process and one thread of its own, and starts without torch: there are many of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from operators.errors import ErrorCode, SourceError
from operators.records import ClipLabel, FrameBatch, Source, clip_id
from pipeline.steering.messages import CallCost, ClipRef, PieceInfo, ReadReply, ReadRequest, Reply
from pipeline.steering.read_queue import failed_label


class Reader(Protocol):
    """A context manager that reads one source, as FileReader does."""

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
        """`retires_after`: so many sources, then a fresh process is asked for: the bindings leak a little of each."""
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
        work = CallCost(busy_s=self._clock() - begun_s, num_items=len(batches))
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
    """A source that is being read, and the window that comes next."""

    def __init__(self, open_reader: Callable[[Source, int], Reader], request: ReadRequest) -> None:
        self._reader = open_reader(request.source, request.first_window)
        self.frames = self._reader.__enter__().read()
        self.next_window = request.first_window
        self.total_s = 0.0
        """The time that was spent on it in earlier calls."""

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


def file_worker(
    *,
    sampling: Mapping[str, Any],
    view: Mapping[str, Any],
    limits: Mapping[str, Any],
    max_total_s: float,
    num_threads: int,
) -> SourceWorker:
    """The source worker of an archive, made of plain values, so that its process needs neither pydantic nor torch."""
    from operators.media.decode import FileReader, ReadLimits
    from operators.media.sampling import SamplingRule
    from operators.media.view import Viewer

    wanted = SamplingRule(**sampling)
    viewer = Viewer(**view)
    read_limits = ReadLimits(**limits)

    def open_reader(source: Source, first_window: int) -> FileReader:
        return FileReader(
            source=source,
            sampling=wanted,
            viewer=viewer,
            limits=read_limits,
            num_threads=num_threads,
            # The clock of the wall, because the records say when a source was opened.
            clock=time.time,
            first_window=first_window,
        )

    stride_s = 0.0 if wanted.kind == "whole" else wanted.stride_s
    return SourceWorker(open_reader=open_reader, stride_s=stride_s, max_total_s=max_total_s)
