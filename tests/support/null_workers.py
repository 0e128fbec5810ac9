"""Workers that do nothing, quickly: a clip is a name, a patch is a number, and a source's name says how it behaves."""

from __future__ import annotations

import os
import time
from typing import Any

from operators.errors import CheckpointError
from operators.records import ClipLabel, clip_id
from pipeline.steering.messages import Advance, CallCost, ClipRef, PieceInfo, ReadReply, Reply
from pipeline.steering.read_queue import failed_label

NUM_PATCHES = 2


class NullSource:
    """`corrupt-...` fails, `raises-...` raises, `kills-source-...` ends its process, `hangs-...` never comes back.

    Any other has its one clip, or `num_windows`.
    """

    def __init__(self, num_windows: int, stride_s: float) -> None:
        self._num_windows = num_windows
        self._stride_s = stride_s

    def read(self, requests: Any, payloads: Any) -> tuple[Reply, list[str]]:
        rows: list[ReadReply] = []
        batches: list[str] = []
        for request in requests:
            source, pieces, failed = request.source, [], None
            if source.video_id.startswith("raises"):
                raise RuntimeError(f"{source.video_id} raises")
            if source.video_id.startswith("kills-source"):
                os._exit(1)
            if source.video_id.startswith("hangs"):
                time.sleep(3600)
            if source.video_id.startswith("corrupt"):
                failed = failed_label(source, code="corrupt", message="not a video")
            else:
                for window in range(request.first_window, self._num_windows):
                    start_s = window * self._stride_s
                    ref = ClipRef(clip_id(source.source_id, start_s), start_s, start_s + 1, window)
                    pieces.append(PieceInfo(row=len(batches), num_bytes=100, clips=(ref,)))
                    batches.append(source.video_id)
            rows.append(
                ReadReply(source_id=source.source_id, pieces=tuple(pieces), is_done=failed is None, failed=failed)
            )
        return Reply(rows=tuple(rows), work=CallCost(busy_s=0.25, num_items=len(batches))), batches


class NullStream:
    """`kills-stream-...` ends its process when it is opened."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def open(self, requests: Any, payloads: Any) -> tuple[Reply, list[str]]:
        rows, num = [], 0
        patches: list[str] = []
        for request in requests:
            for clip in request.clip_ids:
                name = self._names[clip] = payloads[request.frames.payload][request.frames.start]
                if name.startswith("kills-stream"):
                    os._exit(1)
                rows.append(Advance(clip_id=clip, start=num, stop=num + NUM_PATCHES))
                num += NUM_PATCHES
                patches += [name] * NUM_PATCHES
        return Reply(rows=tuple(rows), work=CallCost(num_items=len(rows))), patches

    def step(self, requests: Any, payloads: Any) -> tuple[Reply, None]:
        rows = []
        for request in requests:
            assert sum(s.stop - s.start for s in request.features) == NUM_PATCHES
            name = self._names.pop(request.clip_id)
            label = ClipLabel(
                video_id=name,
                clip_id=request.clip_id,
                source_uri=name,
                truth=("cat",),
                label="cat" if name.startswith("cat") else "dog",
                frames_total=8,
                frames_focused=NUM_PATCHES,
                frames_skipped=1,
                stopped_at=3,
                gmacs=1.5,
                gmacs_full=6.0,
            )
            rows.append(Advance(clip_id=request.clip_id, label=label))
        return Reply(rows=tuple(rows)), None

    def close(self, requests: Any, payloads: Any) -> tuple[Reply, None]:
        for clip in requests:
            self._names.pop(clip, None)
        return Reply(rows=()), None


class NullFocus:
    """`kills-focus-...` ends its process."""

    def focus(self, requests: Any, payloads: Any) -> tuple[Reply, list[int]]:
        if any(name.startswith("kills-focus") for s in requests for name in payloads[s.payload][s.start : s.stop]):
            os._exit(1)
        num_rows = sum(s.stop - s.start for s in requests)
        work = CallCost(busy_s=1.0, wait_s=0.5, num_items=num_rows, num_padded=num_rows)
        return Reply(rows=(), work=work), list(range(num_rows))


class NullSink:
    """Keeps the labels that it is given."""

    def __init__(self, written: list[ClipLabel]) -> None:
        self._written = written

    def write(self, requests: Any, payloads: Any) -> tuple[Reply, None]:
        for request in requests:
            self._written.extend(request.labels)
        return Reply(rows=()), None


class NullCounter:
    """Answers every call with how many there have been."""

    def __init__(self) -> None:
        self._num_calls = 0

    def count(self, requests: Any, payloads: Any) -> tuple[Reply, None]:
        self._num_calls += 1
        return Reply(rows=(self._num_calls,)), None


def refused() -> None:
    raise CheckpointError("weights.pt: no such file; give --checkpoint")


def null_source(*, num_windows: int = 1, stride_s: float = 0.0) -> NullSource:
    return NullSource(num_windows, stride_s)


def null_stream() -> NullStream:
    return NullStream()


def null_focus() -> NullFocus:
    return NullFocus()


def null_counter() -> NullCounter:
    return NullCounter()


def null_sink(*, written: list[ClipLabel]) -> NullSink:
    return NullSink(written)
