"""`live`: cameras to labels until stopped. Workers watch, the sink commits about once a second, the driver counts."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, StageError
from operators.records import ClipLabel, without_password
from operators.sink import read_identity
from pipeline.archive import ask, make_executor, new_run_id, open_sink, remembered, write_run
from pipeline.build import Plan, resolve
from pipeline.camera_process import CameraSpec
from pipeline.config import Camera, Config
from pipeline.executor import Call, Executor, WorkerSpec
from pipeline.live_metrics import LiveMetrics, serve_metrics
from pipeline.live_worker import CameraNews, CameraPlan, LiveNews
from pipeline.messages import WriteRequest
from pipeline.placement import this_machine
from pipeline.runner import StopRequest
from pipeline.scheduler import MAX_DEATHS, SINK

WATCH = "live"
_SLICE_S = 0.1
_PART_S = 1.0
_FOLD_S = 20.0
_DRAIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class LiveTold:
    """What a live run says while it goes on."""

    message: Callable[[str], None] = lambda text: None
    label: Callable[[ClipLabel], None] = lambda label: None
    news: Callable[[Mapping[str, CameraNews]], None] = lambda cameras: None
    metrics_port: Callable[[int], None] = lambda port: None


@dataclass(slots=True)
class LiveSummary:
    labels: int = 0
    by_camera: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    """Of the last 100,000 labels."""
    cameras: dict[str, CameraNews] = field(default_factory=dict)
    wall_s: float = 0.0
    deaths: int = 0


def camera_plans(config: Config, cameras: Sequence[Camera]) -> list[CameraPlan]:
    """Each camera's own settings, or the run's."""
    plans = []
    for camera in cameras:
        live = config.live
        spec = CameraSpec(
            name=camera.name,
            uri=camera.url,
            transport=camera.transport or live.transport,
            analysis_fps=camera.analysis_fps or live.analysis_fps,
            resize_px=config.view.resize_px,
            crop_px=config.view.crop_px,
            square_pixels=config.view.square_pixels,
            interpolation=config.view.interpolation,
            open_timeout_s=live.open_timeout_s,
            read_timeout_s=live.watchdog_s,
            max_waiting=live.max_waiting_frames,
        )
        plans.append(
            CameraPlan(
                spec=spec, window_s=camera.window_s or live.window_s, stride_s=camera.stride_s or live.stride_s
            )
        )
    return plans


def check(config: Config, plan: Plan) -> None:
    """What cannot be had from cameras."""
    if plan.header.family != "adafocus":
        raise ConfigError(f"live labels need an adafocus checkpoint, not {plan.header.family}: frames come one by one")
    if config.stop.kind != "none":
        raise ConfigError("stop rules do not apply to windows that overlap: leave stop.kind at none")


def watch_cameras(
    config: Config,
    cameras: Sequence[Camera],
    *,
    out: Path,
    stop: StopRequest,
    told: LiveTold | None = None,
    for_s: float | None = None,
) -> LiveSummary:
    """Labels cameras until `stop` is set, or for so long, or until every one of them is over."""
    told = told or LiveTold()
    machine = this_machine()
    run_id = new_run_id()
    plan = resolve(config, machine, remembered=remembered(read_identity(out)))
    check(plan.config, plan)
    identity = {
        "model_id": plan.model_id,
        "config_id": plan.config.config_id(live=True),
        "config": plan.config.identity(live=True),
    }
    sink_arguments = {"out": str(out.resolve()), "run_id": run_id, "resume": True, "retry_failed": False}
    with make_executor(plan, machine) as executor:
        executor.start(
            WorkerSpec(stage=SINK, factory="pipeline.sink_worker:sink_worker", arguments=sink_arguments)
        )
        if open_sink(executor, told.message, stop) is None:
            return LiveSummary()
        ask(executor, Call(stage=SINK, worker=0, method="begin", requests=(identity,)))
        write_run(out, plan, run_id)
        watched = camera_plans(plan.config, cameras)
        count = min(len(watched), plan.placement.stream_workers)
        executor.start(
            WorkerSpec(
                stage=WATCH,
                factory="pipeline.build:live_worker",
                arguments=plan.live_arguments(),
                count=count,
                num_cpus=0,
                num_gpus=plan.placement.stream_gpus + plan.placement.focus_gpus,
            )
        )
        shares = [tuple(watched[i::count]) for i in range(count)]
        summary = LiveSummary()
        with _metrics(plan.config, told) as metrics:
            _Loop(executor, shares, identity, metrics, told, stop, summary).run(for_s)
        ask(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
    return summary


@contextmanager
def _metrics(config: Config, told: LiveTold) -> Iterator[LiveMetrics]:
    metrics = LiveMetrics(clock=time.time)
    port = config.live.metrics_port
    with nullcontext() if port is None else serve_metrics(metrics, port=port) as bound:
        if bound is not None:
            told.metrics_port(bound)
        yield metrics


class _Loop:
    """One slice after another from every worker, and a part now and then to the sink."""

    def __init__(
        self,
        executor: Executor,
        shares: Sequence[tuple[CameraPlan, ...]],
        identity: Mapping[str, Any],
        metrics: LiveMetrics,
        told: LiveTold,
        stop: StopRequest,
        summary: LiveSummary,
    ) -> None:
        self._executor = executor
        self._shares = shares
        self._identity = identity
        self._metrics = metrics
        self._told = told
        self._stop = stop
        self._summary = summary
        self._running: dict[int, Call] = {}
        self._waiting: list[ClipLabel] = []
        self._sequence = itertools.count()
        self._over = [False] * len(shares)
        self._deaths = [0] * len(shares)
        self._sink_deaths = 0
        self._unsent: list[Call] = []
        self._opened: dict[str, int] = {}
        self._dropped: dict[str, int] = {}

    def run(self, for_s: float | None) -> None:
        begun_s = flushed_s = folded_s = time.monotonic()
        stopped_s: float | None = None
        for share in self._shares:
            for plan in share:
                self._metrics.add_camera(plan.spec.name)
        for worker, share in enumerate(self._shares):
            self._submit(Call(stage=WATCH, worker=worker, method="begin", requests=share))
            self._submit(_watch(worker))
        while True:
            now_s = time.monotonic()
            is_wanted = not self._stop.is_set and (for_s is None or now_s - begun_s < for_s)
            if stopped_s is None and not is_wanted:
                stopped_s = now_s
                for worker in range(len(self._shares)):
                    self._submit(Call(stage=WATCH, worker=worker, method="stop", requests=()))
            is_over = all(self._over) or (stopped_s is not None and now_s - stopped_s > _DRAIN_S - 1)
            if (self._waiting and now_s - flushed_s >= _PART_S) or is_over:
                flushed_s = now_s
                self._flush()
            elif now_s - folded_s > _FOLD_S and not self._sink_is_busy():
                folded_s = now_s
                self._submit(Call(stage=SINK, worker=0, method="fold", requests=()))
            if is_over and not self._waiting and not self._sink_is_busy():
                break
            self._collect()
            self._metrics.beat(time.time())
        self._summary.wall_s = time.monotonic() - begun_s

    def _submit(self, call: Call) -> None:
        self._running[self._executor.submit(call)] = call

    def _sink_is_busy(self) -> bool:
        return any(call.stage == SINK for call in self._running.values())

    def _flush(self) -> None:
        """One part under way at a time: labels that come meanwhile go with the next."""
        if self._sink_is_busy() or not self._waiting:
            return
        part, self._waiting = tuple(self._waiting), []
        request = WriteRequest(sequence=next(self._sequence), labels=part)
        self._submit(Call(stage=SINK, worker=0, method="write", requests=(request,)))

    def _collect(self) -> None:
        for completion in self._executor.poll(0.02):
            call = self._running.pop(completion.ticket, None)
            if call is None:
                continue
            match completion.outcome:
                case "done" if call.method == "watch":
                    self._deaths[call.worker] = 0
                    self._take(call.worker, completion.reply.rows[0])
                    if not self._over[call.worker]:
                        self._submit(_watch(call.worker))
                case "done":
                    self._sink_deaths = 0 if call.stage == SINK else self._sink_deaths
                case "died":
                    self._revive(call)
                case _:
                    last = completion.error.strip().splitlines()[-1] if completion.error else "unknown error"
                    raise StageError(f"{call.stage} worker {call.worker} failed: {without_password(last)}")

    def _revive(self, call: Call) -> None:
        """A worker's death costs what it held; its cameras are opened again, its part is sent again."""
        lost = [other for other in self._running.values() if (other.stage, other.worker) == (call.stage, call.worker)]
        for ticket in [t for t, other in self._running.items() if other in lost]:
            del self._running[ticket]
        self._summary.deaths += 1
        self._executor.replace(call.stage, call.worker)
        if call.stage == SINK:
            self._sink_deaths += 1
            if self._sink_deaths >= MAX_DEATHS:
                raise StageError("the process that writes the labels died three times in a row")
            self._submit(Call(stage=SINK, worker=0, method="reopen", requests=(self._identity,)))
            for again in [call, *lost]:
                if again.method == "write":
                    self._submit(again)
            return
        self._deaths[call.worker] += 1
        if self._deaths[call.worker] >= MAX_DEATHS:
            raise StageError(f"live worker {call.worker} died {MAX_DEATHS} times in a row")
        self._told.message(f"live worker {call.worker} died and is replaced; its cameras are opened again")
        self._submit(Call(stage=WATCH, worker=call.worker, method="begin", requests=self._shares[call.worker]))
        if self._stop.is_set:
            self._submit(Call(stage=WATCH, worker=call.worker, method="stop", requests=()))
        self._submit(_watch(call.worker))

    def _take(self, worker: int, news: LiveNews) -> None:
        self._over[worker] = news.is_over
        summary, metrics = self._summary, self._metrics
        for name, camera in news.cameras.items():
            if self._opened.get(name) != camera.num_opened:
                self._opened[name] = camera.num_opened
                metrics.reader_opened(name)
            metrics.set_state(name, camera.state, camera.num_reconnects)
            metrics.observe_reader(name, camera.counts)
            dropped = camera.dropped - self._dropped.get(name, 0)
            self._dropped[name] = camera.dropped
            if dropped > 0:
                metrics.dropped(name, count=dropped)
            for time_unix_s, was_focused in camera.analysed:
                metrics.analysed(name, time_unix_s=time_unix_s, was_focused=was_focused)
            summary.cameras[name] = replace(camera, analysed=())
        metrics.set_queues(
            {
                "frames": sum(camera.waiting for camera in news.cameras.values()),
                "labels": len(self._waiting),
            }
        )
        for label in news.labels:
            assert label.camera is not None
            self._waiting.append(label)
            summary.labels += 1
            summary.by_camera[label.camera] = summary.by_camera.get(label.camera, 0) + 1
            summary.latencies_s.append(label.latency_s)
            metrics.labelled(label.camera, latency_s=label.latency_s)
            self._told.label(label)
        del summary.latencies_s[:-100_000]
        self._told.news(news.cameras)


def _watch(worker: int) -> Call:
    return Call(stage=WATCH, worker=worker, method="watch", requests=(_SLICE_S,))


def cameras_of(arguments: Sequence[str]) -> list[Camera]:
    """CAMERA arguments: addresses, which are named camera_1, camera_2, ..., or YAML files that name cameras."""
    from pipeline.config import load_cameras

    cameras: list[Camera] = []
    for argument in arguments:
        path = Path(argument)
        if path.suffix.lower() in (".yaml", ".yml"):
            cameras += load_cameras(path, environment=os.environ)
        else:
            cameras.append(Camera(name=f"camera_{len(cameras) + 1}", url=argument))
    names = [camera.name for camera in cameras]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"camera {sorted(twice)[0]} is named twice")
    return cameras
