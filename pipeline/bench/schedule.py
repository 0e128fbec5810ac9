"""`bench schedule`: what steering costs. Workers that do nothing behind the real loop, over Ray and in this process;
and the scheduler in virtual time, where it must keep focus workers busy and their batches full.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import ConfigError
from operators.records import ClipLabel, Source, clip_id
from pipeline.bench.figures import Figure, Report, environment, measured, short
from pipeline.bench.simulation import Simulated, simulate
from pipeline.plan.placement import this_machine
from pipeline.run.archive import ask
from pipeline.run.loop import Runner, SourceFeed, StopRequest
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.scoring.read_labels import read_predictions
from pipeline.steering.batching import Batcher
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Executor, InlineExecutor, WorkerSpec
from pipeline.steering.messages import (
    Advance,
    ClipRef,
    OpenRequest,
    PieceInfo,
    ReadReply,
    ReadRequest,
    Reply,
    StepRequest,
    Work,
)
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Limits, Scheduler

Say = Callable[[str], None]
EXITS = (0.3805, 0.211, 0.1345, 0.112, 0.072, 0.0355, 0.0195, 0.035)
"""The share of clips that stop after each of 8 steps: the weights that ship, at a budget of 0.07 GMACs, on 2000 videos
of the synthetic archive that calibration had not seen. `--exits` takes another calibration's."""
PATCHES = 16
"""Per clip of the null run."""


def bench_schedule(
    *,
    say: Say,
    quick: bool = False,
    clips: int = 20_000,
    rounds: int = 5,
    minutes: float = 7.0,
    exits: Sequence[float] = EXITS,
    executor: str = "ray",
) -> Report:
    """`clips` go through the null workers in every round; rounds that would take beyond `minutes` are left out."""
    where = environment()
    if quick:
        clips, rounds, minutes = 400, 1, 1.0
    begun_s = time.monotonic()
    figures = _simulations(exits, 400 if quick else 8000, say)
    figures += _bytes_per_clip(50_000 if quick else 200_000)
    for name, form in FORMS.items():
        rates: list[float] = []
        lasted_s = 0.0
        for number in range(rounds):
            round_s = time.monotonic()
            if rates and round_s - begun_s + lasted_s > minutes * 60 * (0.65 if form.is_main else 0.95):
                break
            found = null_run(clips if form.is_main else clips // 4, form=form, executor=executor)
            rates += found.rates
            lasted_s = time.monotonic() - round_s
            say(f"{name}, round {number + 1} of {rounds}: {np.median(found.rates):.0f} clips/s; {found.text}")
        figures.append(
            measured(
                name,
                rates,
                unit="clips/s",
                goal=1000.0 if form.is_main else None,
                about=f"null workers on {executor}, {form.about}; {found.text}",
            )
        )
    by_name = {figure.name: figure for figure in figures}
    headline = (
        f"the control plane moves {short(by_name['schedule.clips_per_s'].value)} clips per second through all stages "
        f"on {executor} with {this_machine().num_cores} cores; simulated batches are "
        f"{by_name['schedule.occupancy'].value:.1%} full, focus workers idle at most "
        f"{by_name['schedule.focus_idle_share'].value:.2%} of the time while patches wait"
    )
    return Report(
        what="schedule",
        headline=headline,
        figures=tuple(figures),
        environment=where,
        settings={"clips": clips, "rounds": rounds, "exits": list(exits), "executor": executor, "quick": quick},
    )


def read_exits(path: Path) -> tuple[float, ...]:
    """The share of clips that stop after each step: a JSON list, or a folder of labels made with a stop rule."""
    if path.is_dir():
        stopped_at = read_predictions(path).stopped_at
        if stopped_at is None:
            raise ConfigError(f"{path}: its labels do not say where they stopped")
        return tuple(float(share) for share in np.bincount(stopped_at)[1:] / len(stopped_at))
    try:
        shares = tuple(float(share) for share in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(f"{path} is no JSON list of the shares of clips that stop after each step: {exc}") from exc
    if not shares or min(shares) < 0 or sum(shares) <= 0:
        raise ConfigError(f"{path}: shares are not negative, and at least one is positive")
    return shares


# The scheduler in virtual time


def _simulations(exits: Sequence[float], clips: int, say: Say) -> list[Figure]:
    figures: list[Figure] = []
    occupancy: list[float] = []
    idle: list[float] = []
    decisions: list[float] = []
    for workers in (1, 4, 16):
        found = [
            simulate(exits=exits, num_clips=clips, num_focus_workers=workers, steps_per_round=1, seed=seed)
            for seed in range(3)
        ]
        occupancy.append(float(np.median([s.occupancy for s in found])))
        idle.append(float(np.median([s.idle_while_waiting for s in found])))
        decisions += [s.decisions_per_s for s in found]
        say(f"simulation with {workers} focus workers: {_described(found[0])}")
        figures += [
            measured(
                f"schedule.occupancy_{workers}",
                [s.occupancy for s in found],
                unit="",
                limit=1.0,
                goal=0.95,
                about=f"real over padded patches, simulated, {workers} focus workers, {clips} clips",
            ),
            measured(
                f"schedule.focus_idle_share_{workers}",
                [s.idle_while_waiting for s in found],
                unit="",
                goal=0.02,
                goal_is="at_most",
                about="of the time in which patches wait",
            ),
        ]
    hungry = [
        simulate(exits=exits, num_clips=clips, num_focus_workers=16, num_stream_workers=16, seed=seed)
        for seed in range(3)
    ]
    say(f"simulation with 16 focus workers and only 16 stream workers: {_described(hungry[0])}")
    figures.append(
        measured(
            "schedule.focus_idle_share_16_hungry",
            [s.idle_while_waiting for s in hungry],
            unit="",
            goal_is="at_most",
            about="only 16 stream workers, which the run then waits for: small passes, so a call's way counts for more",
        )
    )
    about = "the worst of 1, 4 and 16 focus workers"
    return [
        *figures,
        measured("schedule.occupancy", [min(occupancy)], unit="", limit=1.0, goal=0.95, about=about),
        measured("schedule.focus_idle_share", [max(idle)], unit="", goal=0.02, goal_is="at_most", about=about),
        measured(
            "schedule.decisions_per_s", decisions, unit="calls/s", about="chosen and ended, by the scheduler alone"
        ),
    ]


def _described(found: Simulated) -> str:
    return (
        f"occupancy {found.occupancy:.3f}, idle {found.idle_while_waiting:.4f}, "
        f"{found.mean_batch:.1f} patches a pass, {found.clips_per_s:.0f} clips/s steered"
    )


def _bytes_per_clip(clips: int) -> list[Figure]:
    """What the driver keeps of a clip when it is done, counted in memory that it really holds."""
    done = DoneSet()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(clips):
        done.add(clip_id(f"{number:032x}", 0.0))
    done.extend(np.empty((0, 2), np.uint64))
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    about = (
        "of the set of labelled clips alone, the only thing the driver keeps of a clip that is done; 16 B are its id, "
        f"the goal leaves 1 B for the set's own tables; after {clips} clips"
    )
    # The last per mille is the 256 buckets themselves.
    return [
        measured(
            "schedule.driver_bytes_per_clip",
            [kept / clips],
            unit="B",
            limit=16.0,
            goal=17.0,
            goal_is="at_most",
            about=about,
        )
    ]


# Workers that do nothing


@dataclass(frozen=True, kw_only=True)
class Form:
    """How many records share a call of the null run."""

    about: str
    limits: Limits
    batch_size: int
    is_main: bool = False


_COMPANY = 64
FORMS = {
    "schedule.clips_per_s": Form(
        about=f"{_COMPANY} clips to a call",
        limits=Limits(
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
        limits=Limits(max_pieces=16, max_open_clips=8, pieces_per_call=2, sources_per_call=1, focus_depth=1),
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
        return Reply(rows=tuple(rows), work=Work(num_items=len(rows))), np.zeros(len(rows), np.uint8)


class NullStream:
    def open(self, requests: tuple[OpenRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        clips = [clip for request in requests for clip in request.clip_ids]
        rows = [
            Advance(clip_id=clip, start=number * PATCHES, stop=(number + 1) * PATCHES)
            for number, clip in enumerate(clips)
        ]
        return Reply(rows=tuple(rows), work=Work(num_items=len(rows))), np.zeros(len(rows), np.uint8)

    def step(self, requests: tuple[StepRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        rows = []
        for request in requests:
            label = ClipLabel(video_id=request.clip_id[:8], clip_id=request.clip_id, source_uri="/null", label="null")
            rows.append(Advance(clip_id=request.clip_id, label=label))
        return Reply(rows=tuple(rows), work=Work(num_items=len(rows))), None

    def close(self, requests: tuple[str, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        return Reply(rows=()), None


class NullFocus:
    def focus(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, Any]:
        num_rows = sum(rows.stop - rows.start for rows in requests)
        return Reply(rows=(), work=Work(num_items=num_rows)), np.zeros(1, np.uint8)


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
            ask(engine, Call(stage=SINK, worker=0, method="finish", requests=()))
        finally:
            engine.close()
    calls = sum(stage.calls for stage in metrics.stages.values())
    text = f"{clips} clips in {calls} calls, {1e6 * driver_s / clips:.0f} µs of the driver per clip"
    return NullRun(rates=_rates(times, clips), text=text)


def _executor(name: str) -> Executor:
    if name == "inline":
        return InlineExecutor()
    from pipeline.run.ray_executor import RayExecutor

    return RayExecutor(num_cpus=max(4, this_machine().num_cores), store_bytes=256 << 20)


def _start(engine: Executor, out: Path) -> None:
    arguments = {"out": str(out), "run_id": "null", "resume": False, "retry_failed": False}
    engine.start(WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=arguments))
    ask(engine, Call(stage=SINK, worker=0, method="open", requests=()))
    ask(engine, Call(stage=SINK, worker=0, method="begin", requests=({},)))
    for stage, factory in ((SOURCE, "NullSource"), (STREAM, "NullStream"), (FOCUS, "NullFocus")):
        engine.start(WorkerSpec(stage=stage, factory=f"{__name__}:{factory}"))
    engine.wait_ready()


def _runner(
    engine: Executor, form: Form, sources: Iterator[Source], metrics: RunMetrics, note: Callable[[Runner], None]
) -> Runner:
    done = DoneSet()
    scheduler = Scheduler(
        workers=dict.fromkeys((SINK, SOURCE, STREAM, FOCUS), 1),
        limits=form.limits,
        batcher=Batcher(max_rows=form.batch_size, max_wait_s=0.2),
        is_wanted=lambda clip: clip not in done,
    )
    return Runner(
        executor=engine,
        scheduler=scheduler,
        feed=SourceFeed(sources, ahead=4 * form.limits.sources_per_call + 256),
        done=done,
        metrics=metrics,
        stop=StopRequest(),
        deadline_s=60.0,
        on_progress=note,
    )


def _rates(times: list[tuple[float, int]], clips: int, *, stretches: int = 8) -> list[float]:
    """The first stretch holds the start, the last the end, where stages stand still one after another."""
    when, counts = np.array([t for t, _ in times]), np.array([n for _, n in times])
    marks = np.linspace(0, clips, stretches + 1)[1:-1]
    at = np.searchsorted(counts, marks)
    spans = np.diff(when[at])
    return [float(n / s) for n, s in zip(np.diff(counts[at]), spans, strict=True) if s > 0]
