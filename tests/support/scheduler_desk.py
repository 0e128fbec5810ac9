"""A scheduler whose calls a test answers one by one, for cases that are tried step by step.

No process, file or clock takes part.
"""

from __future__ import annotations

from typing import Any

from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.steering.batching import Batcher
from pipeline.steering.in_flight import FlowLimits, PlannedCall
from pipeline.steering.messages import Advance, ClipRef, PieceInfo, ReadReply, Reply
from pipeline.steering.read_queue import failed_label
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler
from tests.support.scheduler_workers import STRIDE_S


def name(number: int) -> str:
    return f"{number:032x}"


def source(number: int = 0, media: Media = Media.VIDEO) -> Source:
    return Source(source_id=name(number), uri=f"/{number}", video_id=str(number), media=media)


class Desk:
    """A scheduler whose calls are answered by hand, as the test says."""

    def __init__(self, *, done: tuple[str, ...] = (), max_rows: int = 64, workers: int = 1, **limits: Any) -> None:
        self.labels: list[ClipLabel] = []
        self.known = set(done)
        self.scheduler = Scheduler(
            workers={SINK: 1, SOURCE: workers, STREAM: workers, FOCUS: workers},
            limits=FlowLimits(**{"stride_s": STRIDE_S, **limits}),
            batcher=Batcher(max_rows=max_rows, max_wait_s=1.0),
            is_wanted=lambda clip: clip not in self.known,
            on_label=self._note,
        )

    def _note(self, label: ClipLabel) -> None:
        self.labels.append(label)
        self.known.add(label.clip_id)

    def next(self, method: str) -> PlannedCall:
        planned = self.scheduler.next_call(0.0)
        assert planned is not None and planned.call.method == method
        return planned

    def is_waiting(self) -> bool:
        return self.scheduler.next_call(0.0) is None

    def answer_read(self, planned: PlannedCall, *, windows: int = 1, is_done: bool = True, num_bytes: int = 1) -> None:
        rows, row = [], 0
        for request in planned.call.requests:
            key, pieces = request.source.source_id, []
            for window in range(request.first_window, request.first_window + windows):
                ref = ClipRef(clip_id(key, window * STRIDE_S), window * STRIDE_S, window * STRIDE_S + 1, window)
                pieces.append(PieceInfo(row=row, num_bytes=num_bytes, clips=(ref,)))
                row += 1
            rows.append(ReadReply(source_id=key, pieces=tuple(pieces), is_done=is_done))
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), object(), 0.0)

    def answer_failed(self, planned: PlannedCall, *, window: int) -> None:
        key = planned.call.requests[0].source.source_id
        ref = ClipRef(clip_id(key, window * STRIDE_S), window * STRIDE_S, window * STRIDE_S, window)
        failed = failed_label(source(), code="corrupt", message="as the test says", ref=ref)
        self.scheduler.on_done(planned, Reply(rows=(ReadReply(source_id=key, failed=failed),)), [], 0.0)

    def open_clips(self, num_clips: int, *, patches: int) -> None:
        """Brings clips of one source to where their patches wait."""
        self.scheduler.add_source(source())
        self.answer_read(self.next("read"), windows=num_clips)
        self.answer_open(self.next("open"), patches=patches)

    def answer_open(self, planned: PlannedCall, *, patches: int) -> None:
        clips = [clip for request in planned.call.requests for clip in request.clip_ids]
        rows = [Advance(clip_id=c, start=i * patches, stop=(i + 1) * patches) for i, c in enumerate(clips)]
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), object(), 0.0)

    def answer_label(self, planned: PlannedCall) -> None:
        clips = [stay.clip.ref.clip_id for stay in planned.stays]
        rows = [Advance(clip_id=c, label=ClipLabel(video_id="", clip_id=c, source_uri="")) for c in clips]
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), None, 0.0)

    def answer(self, planned: PlannedCall) -> None:
        self.scheduler.on_done(planned, Reply(rows=()), object(), 0.0)
