"""`live`: cameras to labels until stopped. Workers watch, the sink commits about once a second, the driver counts."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, StageError
from operators.passwords import without_password
from operators.records import ClipLabel
from operators.table.identity import check_identity, table_identity
from operators.table.output import check_output
from pipeline.config import Camera, Config
from pipeline.families import every_family, family_named
from pipeline.live.cameras import camera_plans
from pipeline.live.prometheus import LiveMetrics, serve_metrics
from pipeline.live.sink import LabelWriter
from pipeline.live.state_log import logging_states
from pipeline.live.worker import CameraNews, CameraPlan, LiveNews
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import cache_folder
from pipeline.run.loop import StopRequest
from pipeline.run.run_log import RunLog
from pipeline.run.session import (
    call_worker,
    make_executor,
    new_run_id,
    open_cluster,
    open_sink,
    settings_of_table,
    write_run,
    write_summary,
)
from pipeline.steering.executor import Call, Executor, WorkerSpec
from pipeline.steering.scheduler import MAX_DEATHS, SINK

WATCH = "live"
_SLICE_S = 0.2
_SLICES_AHEAD = 2
"""Slices handed to a worker at a time, so that it goes on while the driver is busy with the one before."""
_DRAIN_S = 3.5
"""How long what has arrived is still analysed. The last part, and ending all processes, take the rest of 5 s."""
_GIVE_UP_S = 4.0
"""How long after a signal a sink that does not answer is waited for."""
_HANG_S = 60.0
"""A worker that says nothing for so long is ended and replaced."""
_KEPT_LATENCIES = 10_000


@dataclass(frozen=True, kw_only=True)
class LiveTold:
    """What a live run says while it goes on."""

    message: Callable[[str], None] = lambda text: None
    started: Callable[[str], None] = lambda text: None
    label: Callable[[ClipLabel], None] = lambda label: None
    news: Callable[[Mapping[str, CameraNews]], None] = lambda cameras: None
    metrics_port: Callable[[int], None] = lambda port: None


@dataclass(slots=True)
class CameraSummary:
    labels: int = 0
    failed: int = 0
    """Windows that have a row with an error code instead of a label."""
    dropped_labels: int = 0
    """Labels and failed rows that were never written, because the disk was away for too long."""
    news: CameraNews = field(default_factory=CameraNews)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_LATENCIES))
    """Of the newest labels."""


@dataclass(slots=True)
class LiveSummary:
    cameras: dict[str, CameraSummary] = field(default_factory=dict)
    wall_s: float = 0.0
    """Since cameras were watched."""
    deaths: int = 0
    """Workers that died and were replaced."""
    lost: int = 0
    """Answers of workers that were lost on the way, each with up to 0.2 s of labels of its cameras."""

    @property
    def labels(self) -> int:
        return sum(camera.labels for camera in self.cameras.values())

    def latency_s(self, share: float, camera: str | None = None) -> float | None:
        """The latency that this share of the newest labels kept, of one camera or of all; None without labels."""
        chosen = self.cameras.values() if camera is None else [self.cameras[camera]]
        ordered = sorted(itertools.chain.from_iterable(one.latencies_s for one in chosen))
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None

    def never_live(self) -> dict[str, str]:
        """Cameras of which not one frame was decoded although they were watched, and why as far as is known."""
        if not self.wall_s:
            return {}
        unseen = {name: one.news.last_error or "" for name, one in self.cameras.items() if not one.news.num_connects}
        return {name: "" if why == "stopped" else why for name, why in unseen.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "wall_s": round(self.wall_s, 3),
            "deaths": self.deaths,
            "lost": self.lost,
            "latency_s": self._latencies(None),
            "cameras": {
                name: {
                    "labels": one.labels,
                    "failed": one.failed,
                    "dropped_labels": one.dropped_labels,
                    "state": one.news.state.value,
                    "last_error": one.news.last_error,
                    "reconnects": one.news.num_reconnects,
                    "misses": one.news.num_misses,
                    "frames_looked_at": one.news.num_looked,
                    "frames_behind": one.news.num_behind,
                    "latency_s": self._latencies(name),
                    **asdict(one.news.counts),
                }
                for name, one in self.cameras.items()
            },
        }

    def _latencies(self, camera: str | None) -> dict[str, float | None]:
        return {f"p{round(share * 100)}": self.latency_s(share, camera) for share in (0.5, 0.95, 0.99)}


def check(config: Config, plan: RunPlan) -> None:
    """What cannot be had from cameras."""
    if not family_named(plan.header.family).may_be_live:
        able = [family.name for family in every_family() if family.may_be_live]
        raise ConfigError(
            f"live labels need a checkpoint of the family {' or '.join(able)}, not {plan.header.family}: "
            "frames come one by one"
        )
    if config.stop.kind != "none":
        raise ConfigError("stop rules do not apply to windows that overlap: leave stop.kind at none")
    if config.policy.traits.needs_truth:
        raise ConfigError(f"nobody knows the truth of a live camera: policy.kind={config.policy.kind} is for archives")


def watch_cameras(
    config: Config,
    cameras: Sequence[Camera],
    *,
    out: Path,
    stop: StopRequest,
    resume: bool = True,
    told: LiveTold | None = None,
    for_s: float | None = None,
) -> LiveSummary:
    """Labels cameras until `stop` is set, or for so long since they are watched, or until every one of them is over for
    good."""
    run_id = new_run_id()
    check_output(out)
    with RunLog(out, run_id) as log:
        told = told or LiveTold()
        told = replace(told, message=log.noting(told.message), news=logging_states(log, told.news))
        # The port is taken before anything is started: that it is not free is then said at once, and whoever watches
        # over the run learns how its start goes.
        with _metrics(config, cameras, told) as metrics, open_cluster(config) as machine:
            summary = _watch_cameras(
                config,
                cameras,
                out=out,
                run_id=run_id,
                machine=machine,
                stop=stop,
                resume=resume,
                told=told,
                for_s=for_s,
                log=log,
                metrics=metrics,
            )
        log.note("ended", **summary.to_dict())
    return summary


def _watch_cameras(
    config: Config,
    cameras: Sequence[Camera],
    *,
    out: Path,
    run_id: str,
    machine: Machine,
    stop: StopRequest,
    resume: bool,
    told: LiveTold,
    for_s: float | None,
    log: RunLog,
    metrics: LiveMetrics,
) -> LiveSummary:
    there = table_identity(out) if resume else None
    known = settings_of_table(there)
    plan = resolve(config, machine, remembered=known, cache=cache_folder())
    check(plan.config, plan)
    check_identity(out, there, plan.identity(live=True))
    watched = camera_plans(plan.config, cameras)
    sink_arguments = {"out": str(out.resolve()), "run_id": run_id, "resume": resume, "retry_failed": False}
    summary = LiveSummary({camera.name: CameraSummary() for camera in cameras})
    # Each step of a start may take seconds: a stop is heeded before the next one.
    if stop.is_set:
        return summary
    with make_executor(plan, machine) as executor:
        if stop.is_set:
            return summary
        executor.start(
            WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=sink_arguments)
        )
        opened = open_sink(executor, told.message, stop)
        if opened is None:
            return summary
        if (found := settings_of_table(opened.identity)) != known:
            # Another run had the table until now, and left other settings in it.
            plan = resolve(config, machine, remembered=found, cache=cache_folder())
        identity = plan.identity(live=True)
        call_worker(executor, Call(stage=SINK, worker=0, method="begin", requests=(identity,)))
        write_run(out, plan, run_id)
        if stop.is_set:
            return summary
        is_inline = plan.config.run.executor == "inline"
        # In one process workers would only take turns, and all cameras can share one.
        count = 1 if is_inline else min(len(watched), plan.placement.live_workers)
        executor.start(
            WorkerSpec(
                stage=WATCH,
                factory="pipeline.live.factories:live_worker",
                arguments={**plan.live_arguments(), "num_threads": max(1, plan.placement.num_threads // count)},
                count=count,
                num_cpus=0,
                num_gpus=plan.placement.live_gpus,
            )
        )
        line = (
            f"{plan.header.family} {plan.model_id[:8]}{'' if plan.is_trained else ', UNTRAINED weights'}: "
            f"{len(watched)} camera(s), {count} worker(s) on {plan.config.compute.device} "
            f"in {plan.config.compute.precision}"
        )
        log.begin(line, model_id=plan.model_id, config_id=identity["config_id"])
        told.started(line)
        shares = [tuple(watched[i::count]) for i in range(count)]
        loop = LiveLoop(
            executor=executor,
            shares=shares,
            identity=identity,
            metrics=metrics,
            told=told,
            stop=stop,
            summary=summary,
            can_kill=not is_inline,
        )
        loop.run(for_s)
        if not loop.has_given_up:
            call_worker(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
        write_summary(out, run_id, summary.to_dict())
    return summary


@contextmanager
def _metrics(config: Config, cameras: Sequence[Camera], told: LiveTold) -> Iterator[LiveMetrics]:
    metrics = LiveMetrics(clock=time.time)
    for camera in cameras:
        metrics.add_camera(camera.name)
    port, host = config.live.metrics_port, config.live.metrics_host
    with nullcontext() if port is None else serve_metrics(metrics, port=port, host=host) as bound:
        if bound is not None:
            told.metrics_port(bound)
        yield metrics


@dataclass(slots=True, eq=False)
class _Watcher:
    """What the driver knows of a worker that watches."""

    share: tuple[CameraPlan, ...]
    heard_s: float
    """When it last told something, or was made."""
    is_warm: bool = False
    """It has made everything that it needs and can begin."""
    is_watching: bool = False
    is_ready: bool = False
    """It has told something."""
    is_over: bool = False
    deaths: int = 0
    """In a row, without a word between them."""
    former: dict[str, CameraNews] = field(default_factory=dict)
    """What the workers before it had counted."""


class LiveLoop:
    """Gives slices of time to every worker, and their labels to the writer."""

    def __init__(
        self,
        *,
        executor: Executor,
        shares: Sequence[tuple[CameraPlan, ...]],
        identity: Mapping[str, Any],
        metrics: LiveMetrics,
        told: LiveTold,
        stop: StopRequest,
        summary: LiveSummary,
        can_kill: bool,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._executor = executor
        self._metrics = metrics
        self._told = told
        self._stop = stop
        self._summary = summary
        self._can_kill = can_kill
        self._clock = clock
        self._unix_clock = unix_clock
        self._watchers = [_Watcher(share, clock()) for share in shares]
        self._running: dict[int, Call] = {}
        self._num_deaths = self._num_lost = 0
        self._warm_s: float | None = None
        """When the first worker was warm."""
        self._begun_s: float | None = None
        """Since when cameras are watched."""
        self._writer = LabelWriter(
            executor=executor, identity=identity, message=told.message, can_kill=can_kill, clock=clock
        )
        self._stopped_s: float | None = None
        """When the run began to drain, for whatever reason."""
        self._signalled_s: float | None = None
        self.has_given_up = False
        """Whether the sink was left without having answered."""

    def run(self, for_s: float | None) -> None:
        """`for_s`: how long cameras are watched; None is until they are over, or the run is stopped."""
        for worker in range(len(self._watchers)):
            self._begin(worker)
        while not self._is_finished(self._clock(), for_s):
            self._collect()
            self._go()
            self._look_after(self._clock())
        self._summary.wall_s = 0.0 if self._begun_s is None else self._clock() - self._begun_s
        self._note_losses()

    def _is_finished(self, now_s: float, for_s: float | None) -> bool:
        """Whether all is done; begins what has to be done for that."""
        is_enough = for_s is not None and self._begun_s is not None and now_s - self._begun_s >= for_s
        if self._stop.is_set and self._signalled_s is None:
            self._signalled_s = now_s
        if self._stopped_s is None and (self._stop.is_set or is_enough):
            self._stopped_s = now_s
            for worker in range(len(self._watchers)):
                self._submit(Call(stage=WATCH, worker=worker, method="stop", requests=()))
        is_over = self._is_over(now_s)
        self._writer.tend(now_s, is_over=is_over)
        if not self._writer.num_waiting and not self._writer.is_busy:
            return is_over
        if self._signalled_s is not None and now_s - self._signalled_s > _GIVE_UP_S:
            self.has_given_up = True
            self._writer.give_up()
        return self.has_given_up

    def _is_over(self, now_s: float) -> bool:
        if self._stopped_s is not None:
            # What is not ready yet has nothing to drain.
            is_late = now_s - self._stopped_s > _DRAIN_S
            return is_late or all(one.is_over or not one.is_ready for one in self._watchers)
        return all(one.is_over for one in self._watchers)

    def _begin(self, worker: int) -> None:
        share = self._watchers[worker].share
        self._submit(Call(stage=WATCH, worker=worker, method="begin", requests=share))

    def _go(self) -> None:
        """The first slices of workers that are warm. In the beginning they all start together: one that still makes its
        networks while others watch takes the cores from them. But nobody waits for one that hangs.
        """
        warm = [worker for worker, one in enumerate(self._watchers) if one.is_warm]
        if not warm or self._stopped_s is not None:
            return
        self._warm_s = self._clock() if self._warm_s is None else self._warm_s
        if self._begun_s is None:
            is_late = self._clock() - self._warm_s > _HANG_S
            if is_late:
                self._told.message(f"{len(self._watchers) - len(warm)} live worker(s) are not ready; the others begin")
            if is_late or len(warm) == len(self._watchers):
                self._begun_s = self._clock()
                self._metrics.begin(self._unix_clock())
        for worker in warm if self._begun_s is not None else []:
            one = self._watchers[worker]
            if not one.is_watching:
                one.is_watching, one.heard_s = True, self._clock()
                for _ in range(_SLICES_AHEAD):
                    self._submit(_watch(worker))

    def _look_after(self, now_s: float) -> None:
        """Ends a worker that hangs, and notes for the metrics that the loop goes on and how long anybody is silent."""
        at_work = [(worker, one) for worker, one in enumerate(self._watchers) if not one.is_over]
        silent_s = max([self._writer.silent_s(now_s), *(now_s - one.heard_s for _, one in at_work)])
        self._metrics.beat(self._unix_clock(), silent_s=silent_s)
        self._writer.look_after(now_s)
        for worker, one in at_work:
            if self._can_kill and one.is_watching and now_s - one.heard_s > _HANG_S:
                self._told.message(f"live worker {worker} has said nothing for {_HANG_S:g} s and is ended")
                one.heard_s = now_s
                self._executor.kill(WATCH, worker)

    def _submit(self, call: Call) -> None:
        self._running[self._executor.submit(call)] = call

    def _collect(self) -> None:
        for completion in self._executor.poll(0.05):
            if self._writer.take(completion):
                continue
            call = self._running.pop(completion.ticket, None)
            if call is None:
                continue
            match completion.outcome:
                case "done" if call.method == "watch":
                    self._take(call.worker, completion.reply.rows[0])
                    if not self._watchers[call.worker].is_over:
                        self._submit(_watch(call.worker))
                case "done" if call.method == "begin":
                    self._watchers[call.worker].is_warm = True
                case "done":
                    pass
                case "died":
                    self._revive(call)
                case "lost":
                    # Counts come again with the next slice; labels that were in this one are gone. Each call of a
                    # worker that watches may be made twice.
                    self._num_lost += 1
                    self._told.message(
                        f"an answer of live worker {call.worker} was lost ({call.method}), with the labels that it held"
                    )
                    self._submit(call)
                case _:
                    last = completion.error.strip().splitlines()[-1] if completion.error else "unknown error"
                    raise StageError(f"{call.stage} worker {call.worker} failed: {without_password(last)}")
        self._note_losses()

    def _note_losses(self) -> None:
        """Brings the summary and the metrics up to what the workers and the writer have lost."""
        writer, summary = self._writer, self._summary
        summary.deaths = self._num_deaths + writer.num_deaths
        summary.lost = self._num_lost + writer.num_lost
        self._metrics.set_lost(summary.lost)
        for name, count in writer.dropped.items():
            self._metrics.labels_dropped(name, count=count - summary.cameras[name].dropped_labels)
            summary.cameras[name].dropped_labels = count

    def _revive(self, call: Call) -> None:
        """Replaces a worker that died: what it held is gone, and its cameras are opened again."""
        worker = call.worker
        self._running = {ticket: one for ticket, one in self._running.items() if one.worker != worker}
        self._num_deaths += 1
        one = self._watchers[worker]
        one.deaths += 1
        one.is_warm = one.is_watching = one.is_ready = False
        one.former = {plan.spec.name: self._summary.cameras[plan.spec.name].news for plan in one.share}
        if self._stopped_s is not None:
            one.is_over = True
            return
        if one.deaths >= MAX_DEATHS:
            raise StageError(f"live worker {worker} died {MAX_DEATHS} times in a row")
        self._told.message(f"live worker {worker} died and is replaced; its cameras are opened again")
        one.heard_s = self._clock()
        self._executor.replace(WATCH, worker)
        self._begin(worker)

    def _take(self, worker: int, news: LiveNews) -> None:
        one, summary, metrics = self._watchers[worker], self._summary, self._metrics
        one.heard_s, one.is_ready, one.is_over, one.deaths = self._clock(), True, news.is_over, 0
        for name, told in news.cameras.items():
            camera = told.after(one.former[name]) if one.former else told
            metrics.set_state(name, camera.state, camera.num_reconnects, camera.num_misses)
            metrics.observe_reader(name, camera.counts)
            metrics.dropped(name, count=camera.dropped - summary.cameras[name].news.dropped)
            for time_unix_s, was_focused in camera.analysed:
                metrics.analysed(name, time_unix_s=time_unix_s, was_focused=was_focused)
            summary.cameras[name].news = replace(camera, analysed=())
        for label in news.labels:
            assert label.camera is not None and label.latency_s is not None
            self._writer.add(label)
            self._told.label(label)
            camera_summary = summary.cameras[label.camera]
            if label.error_code is not None:
                if not camera_summary.failed:
                    self._told.message(f"{label.camera} has no label but a failed row: {label.error}")
                camera_summary.failed += 1
                metrics.failed(label.camera)
                continue
            camera_summary.labels += 1
            camera_summary.latencies_s.append(label.latency_s)
            metrics.labelled(label.camera, latency_s=label.latency_s)
        metrics.set_queues(
            {
                "frames": sum(camera.news.waiting for camera in summary.cameras.values()),
                "labels": self._writer.num_waiting,
            }
        )
        self._told.news({name: camera.news for name, camera in summary.cameras.items()})


def _watch(worker: int) -> Call:
    return Call(stage=WATCH, worker=worker, method="watch", requests=(_SLICE_S,))
