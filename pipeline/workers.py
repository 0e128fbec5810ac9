"""The workers of the source, focus and sink stages: an operator each, and the lists of records around it.

A worker runs in one process and one thread of its own; nothing here knows of Ray. The stream worker, which holds the
state of clips, is in stages.py, because it needs torch and these must start without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from operators.errors import SourceError
from operators.records import FrameBatch, PatchBatch, Source, clip_id
from pipeline.messages import ClipRef, PieceInfo, ReadReply, ReadRequest, Reply, Slice, Work
from pipeline.scheduler import failed_label


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_reader = open_reader
        self._stride_s = stride_s
        self._slice_s = slice_s
        self._max_total_s = max_total_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._open: dict[str, _OpenSource] = {}

    def read(self, requests: tuple[ReadRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, list[FrameBatch]]:
        begun_s = self._clock()
        batches: list[FrameBatch] = []
        rows: list[ReadReply] = []
        for request in requests:
            pieces: list[PieceInfo] = []
            is_done, failed = False, None
            key = request.source.source_id
            # The first source of a call always gets its turn, so that every call makes progress.
            while not rows or self._clock() - begun_s < self._slice_s:
                try:
                    if key not in self._open:
                        self._open[key] = _OpenSource(self._open_reader, request)
                    source = self._open[key]
                    batch = next(source.frames, _END)
                    if source.spent_s(self._clock() - begun_s) > self._max_total_s:
                        raise SourceError(f"reading took longer than {self._max_total_s:g} s", code="timeout")
                except SourceError as exc:
                    failed = self._failed(request, pieces, exc)
                    break
                if batch is _END:
                    is_done = True
                    break
                if isinstance(batch, FrameBatch):
                    pieces.append(source.piece(batch, row=len(batches), stride_s=self._stride_s))
                    batches.append(batch)
                if self._clock() - begun_s >= self._slice_s or sum(b.num_bytes for b in batches) >= self._max_bytes:
                    break
            if (is_done or failed) and key in self._open:
                self._open.pop(key).close()
            elif key in self._open:
                self._open[key].total_s += self._clock() - begun_s
            rows.append(ReadReply(source_id=key, pieces=tuple(pieces), is_done=is_done, failed=failed))
        work = Work(busy_s=self._clock() - begun_s, num_items=len(batches))
        return Reply(rows=tuple(rows), work=work), batches

    def _failed(self, request: ReadRequest, pieces: list[PieceInfo], exc: SourceError) -> Any:
        window = self._open[request.source.source_id].next_window if request.source.source_id in self._open else 0
        window = max(window, request.first_window)
        start_s = window * self._stride_s
        ref = ClipRef(clip_id=clip_id(request.source.source_id, start_s), start_s=start_s, end_s=start_s, window=window)
        return failed_label(request.source, code=exc.code, message=str(exc), ref=ref)

    def shutdown(self) -> None:
        for source in self._open.values():
            source.close()
        self._open.clear()


_END: Any = object()


class _OpenSource:
    """A reader in the middle of its work."""

    def __init__(self, open_reader: Callable[[Source, int], Reader], request: ReadRequest) -> None:
        self._reader = open_reader(request.source, request.first_window)
        self.frames = self._reader.__enter__().read()
        self.next_window = request.first_window
        self.total_s = 0.0

    def spent_s(self, this_call_s: float) -> float:
        return self.total_s + this_call_s

    def piece(self, batch: FrameBatch, *, row: int, stride_s: float) -> PieceInfo:
        clips = []
        for window in batch.windows:
            clips.append(
                ClipRef(
                    clip_id=window.clip_id, start_s=window.start_s, end_s=window.end_s, window=self.next_window
                )
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
        patches = PatchBatch(
            pixels=gather_rows(requests, [p.pixels for p in payloads]),
            clip_ids=tuple(c for r in requests for c in payloads[r.payload].clip_ids[r.start : r.stop]),
            steps=gather_rows(requests, [p.steps for p in payloads]),
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
    from operators.decode import FileReader
    from operators.decode import Limits as ReadLimits
    from operators.plan import Sampling
    from operators.view import Viewer

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
            clock=time.monotonic,
            first_window=first_window,
        )

    stride_s = 0.0 if wanted.kind == "whole" else wanted.stride_s
    return SourceWorker(open_reader=open_reader, stride_s=stride_s, max_total_s=max_total_s)
