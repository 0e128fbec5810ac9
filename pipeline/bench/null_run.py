"""Workers that do nothing behind the real loop and the real sink, over Ray or in this process: what steering costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.records import ClipLabel, Source, clip_id
from pipeline.plan.placement import this_machine
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.loop import Runner, StopRequest
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.run.session import call_worker
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.batching import Batcher
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Executor, WorkerSpec
from pipeline.steering.in_flight import FlowLimits
from pipeline.steering.messages import (
    Advance,
    CallCost,
    ClipRef,
    OpenRequest,
    PieceInfo,
    ReadReply,
    ReadRequest,
    Reply,
    StepRequest,
)
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler

PATCHES = 16
"""How many patches a clip of the null run has."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How many records share a call of the null run."""

    about: str
    limits: FlowLimits
    batch_size: int
    is_main: bool = False


_COMPANY = 64
FORMS = {
    "schedule.clips_per_s": Form(
        about=f"{_COMPANY} clips to a call",
        limits=FlowLimits(
            max_pieces=16 * _COMPANY,
            max_open_clips=4 * _COMPANY,
            pieces_per_call=_COMPANY,
            sources_per_call=_COMPANY,
            focus_depth=2,
        ),
        batch_size=PATCHES * _COMPANY,
        is_main=True,
    ),
    "schedule.clips_per_s_small_calls": Form(
        about="2 clips to a call, as where networks are slow",
        limits=FlowLimits(max_pieces=16, max_open_clips=8, pieces_per_call=2, sources_per_call=1, focus_depth=1),
        batch_size=2 * PATCHES,
    ),
}


class NullSource:
    def read(self, requests: tuple[ReadRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        rows = []
        for number, request in enumerate(requests):
            ref = ClipRef(clip_id(request.source.source_id, 0.0), 0.0, 1.0)
            pieces = (PieceInfo(row=number, num_bytes=1, clips=(ref,)),)
            rows.append(ReadReply(source_id=request.source.source_id, pieces=pieces, is_done=True))
        return Reply(rows=tuple(rows), work=CallCost(num_items=len(rows))), np.zeros(len(rows), np.uint8)


class NullStream:
    def open(self, requests: tuple[OpenRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        clips = [clip for request in requests for clip in request.clip_ids]
        rows = [
            Advance(clip_id=clip, start=number * PATCHES, stop=(number + 1) * PATCHES)
            for number, clip in enumerate(clips)
        ]
        return Reply(rows=tuple(rows), work=CallCost(num_items=len(rows))), np.zeros(len(rows), np.uint8)

    def step(self, requests: tuple[StepRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        rows = []
        for request in requests:
            label = ClipLabel(video_id=request.clip_id[:8], clip_id=request.clip_id, source_uri="/null", label="null")
            rows.append(Advance(clip_id=request.clip_id, label=label))
        return Reply(rows=tuple(rows), work=CallCost(num_items=len(rows))), None

    def close(self, requests: tuple[str, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        return Reply(rows=()), None


class NullFocus:
    def focus(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        num_rows = sum(rows.stop - rows.start for rows in requests)
        return Reply(rows=(), work=CallCost(num_items=num_rows)), np.zeros(1, np.uint8)


@dataclass(frozen=True, kw_only=True)
class NullRun:
    rates: list[float]
    """Clips per second in stretches of equal length, the first and the last left out."""
    text: str


def null_run(clips: int, *, form: Form, executor: str) -> NullRun:
    """Sends clips through workers that do nothing, and through the sink that really writes."""
    times: list[tuple[float, int]] = []

    def note(runner: Runner) -> None:
        times.append((time.perf_counter(), runner.metrics.labelled))

    sources = (
        Source(source_id=f"{number:032x}", uri=f"/null/{number}", video_id=str(number)) for number in range(clips)
    )
    metrics = RunMetrics(stages={stage: StageTime() for stage in (SOURCE, STREAM, FOCUS, SINK)})
    with tempfile.TemporaryDirectory() as folder:
        engine = _executor(executor)
        try:
            _start(engine, Path(folder))
            runner = _runner(engine, form, sources, metrics, note)
            begun_s = time.process_time()
            runner.run()
            driver_s = time.process_time() - begun_s
            call_worker(engine, Call(stage=SINK, worker=0, method="finish", requests=()))
        finally:
            engine.close()
    calls = sum(stage.calls for stage in metrics.stages.values())
    text = f"{clips} clips take {calls} calls, and each takes {1e6 * driver_s / clips:.0f} µs of the driver"
    return NullRun(rates=_rates(times, clips), text=text)


def _executor(name: str) -> Executor:
    if name == "inline":
        return InlineExecutor()
    from pipeline.run.ray_executor import RayExecutor

    return RayExecutor(num_cpus=max(4, this_machine().num_cores), store_bytes=256 << 20)


def _start(engine: Executor, out: Path) -> None:
    arguments = {"out": str(out), "run_id": "null", "resume": False, "retry_failed": False}
    engine.start(WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=arguments))
    call_worker(engine, Call(stage=SINK, worker=0, method="open", requests=()))
    call_worker(engine, Call(stage=SINK, worker=0, method="begin", requests=({},)))
    for stage, factory in ((SOURCE, "NullSource"), (STREAM, "NullStream"), (FOCUS, "NullFocus")):
        engine.start(WorkerSpec(stage=stage, factory=f"{__name__}:{factory}"))
    engine.wait_ready()


def _runner(
    engine: Executor, form: Form, sources: Iterator[Source], metrics: RunMetrics, note: Callable[[Runner], None]
) -> Runner:
    recorder = LabelRecorder(done=DoneSet(), metrics=metrics)
    scheduler = Scheduler(
        workers=dict.fromkeys((SINK, SOURCE, STREAM, FOCUS), 1),
        limits=form.limits,
        batcher=Batcher(max_rows=form.batch_size, max_wait_s=0.2),
        is_wanted=recorder.is_wanted,
        on_label=recorder.add,
    )
    return Runner(
        executor=engine,
        scheduler=scheduler,
        feed=SourceFeed(sources, ahead=4 * form.limits.sources_per_call + 256),
        recorder=recorder,
        stop=StopRequest(),
        deadline_s=60.0,
        on_progress=note,
    )


def _rates(times: list[tuple[float, int]], clips: int, *, stretches: int = 8) -> list[float]:
    """The rates of the stretches, without the first, which holds the start, and the last, in which stages run empty one
    after another."""
    when, counts = np.array([t for t, _ in times]), np.array([n for _, n in times])
    marks = np.linspace(0, clips, stretches + 1)[1:-1]
    at = np.searchsorted(counts, marks)
    spans = np.diff(when[at])
    return [float(n / s) for n, s in zip(np.diff(counts[at]), spans, strict=True) if s > 0]
