"""`live`: cameras to labels until stopped. A run is started and ended here; what it does meanwhile is in `loop.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from operators.table.identity import check_identity, table_identity
from operators.table.output import check_output
from pipeline.config import Camera, Config
from pipeline.families import every_family, family_named
from pipeline.live.cameras import camera_plans
from pipeline.live.loop import LiveLoop
from pipeline.live.prometheus import LiveMetrics, serve_metrics
from pipeline.live.record import LiveRecord, LiveReports
from pipeline.live.state_log import logging_states
from pipeline.live.summary import CameraSummary, LiveSummary
from pipeline.live.watchers import WATCH
from pipeline.live.worker import CameraPlan
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
    rescuer,
    settings_of_table,
    write_run,
    write_summary,
)
from pipeline.steering.executor import Call, Executor, WorkerSpec
from pipeline.steering.scheduler import SINK


def check(config: Config, plan: RunPlan) -> None:
    """Refuses settings and checkpoints with which cameras cannot be labelled."""
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
    reports: LiveReports | None = None,
    for_s: float | None = None,
) -> LiveSummary:
    """Labels cameras until `stop` is set, or for so long since they are watched, or until every one of them is over for
    good."""
    run_id = new_run_id()
    check_output(out)
    with RunLog(out, run_id) as log:
        reports = reports or LiveReports()
        reports = replace(reports, message=log.noting(reports.message), news=logging_states(log, reports.news))
        # The port is taken before anything is started: that it is not free is then said at once, and whoever watches
        # over the run learns how its start goes.
        with _metrics(config, cameras, reports) as metrics, open_cluster(config) as machine:
            summary = LiveSummary({camera.name: CameraSummary() for camera in cameras})
            run = _Run(
                out=out,
                run_id=run_id,
                machine=machine,
                resume=resume,
                stop=stop,
                reports=reports,
                for_s=for_s,
                log=log,
                record=LiveRecord(summary=summary, metrics=metrics, reports=reports),
            )
            _watch(config, cameras, run)
        log.note("ended", **summary.to_dict())
    return summary


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one call of `watch_cameras` is about, but for its config and cameras."""

    out: Path
    run_id: str
    machine: Machine
    resume: bool
    stop: StopRequest
    reports: LiveReports
    for_s: float | None
    log: RunLog
    record: LiveRecord


def _watch(config: Config, cameras: Sequence[Camera], run: _Run) -> None:
    found = table_identity(run.out) if run.resume else None
    plan = resolve(config, run.machine, remembered=settings_of_table(found), cache=cache_folder())
    check(plan.config, plan)
    check_identity(run.out, found, plan.identity(live=True))
    watched = camera_plans(plan.config, cameras)
    # Each step of a start may take seconds: a stop is heeded before the next one.
    if run.stop.is_set:
        return
    with make_executor(plan, run.machine) as executor:
        if run.stop.is_set:
            return
        begun = _begin_table(executor, config, plan, run, known=settings_of_table(found))
        if begun is None or run.stop.is_set:
            return
        _watch_with(executor, begun, watched, run)


def _begin_table(
    executor: Executor, config: Config, plan: RunPlan, run: _Run, *, known: Mapping[str, Any] | None
) -> RunPlan | None:
    """Starts the sink and has it begin the table; gives the plan that goes with it, None where the run was stopped.

    `known`: the settings that the plan was made for, read without the lock.
    """
    arguments = {"out": str(run.out.resolve()), "run_id": run.run_id, "resume": run.resume, "retry_failed": False}
    executor.start(WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=arguments))
    opened = open_sink(executor, run.reports.message, run.stop)
    if opened is None:
        return None
    if (found := settings_of_table(opened.identity)) != known:
        # Another run had the table until now, and left other settings in it.
        plan = resolve(config, run.machine, remembered=found, cache=cache_folder())
    call_worker(executor, Call(stage=SINK, worker=0, method="begin", requests=(plan.identity(live=True),)))
    write_run(run.out, plan, run.run_id)
    return plan


def _watch_with(executor: Executor, plan: RunPlan, watched: Sequence[CameraPlan], run: _Run) -> None:
    """Starts the workers that watch, and goes round between them and the sink until the run is over."""
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
    identity = plan.identity(live=True)
    line = (
        f"{plan.header.family} {plan.model_id[:8]}{'' if plan.is_trained else ', UNTRAINED weights'}: "
        f"{len(watched)} camera(s), {count} worker(s) on {plan.config.compute.device} "
        f"in {plan.config.compute.precision}"
    )
    run.log.begin(line, model_id=plan.model_id, config_id=identity["config_id"])
    run.reports.started("\n".join([line, *(f"warning: {text}" for text in plan.warnings())]))
    loop = LiveLoop(
        executor=executor,
        shares=[tuple(watched[i::count]) for i in range(count)],
        identity=identity,
        record=run.record,
        stop=run.stop,
        rescue=rescuer(executor, run.out, run.run_id, identity, retry_failed=False),
        can_kill=not is_inline,
    )
    loop.run(run.for_s)
    if not loop.has_given_up:
        call_worker(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
    write_summary(run.out, run.run_id, run.record.summary.to_dict())


@contextmanager
def _metrics(config: Config, cameras: Sequence[Camera], reports: LiveReports) -> Iterator[LiveMetrics]:
    metrics = LiveMetrics(clock=time.time)
    for camera in cameras:
        metrics.add_camera(camera.name)
    port, host = config.live.metrics_port, config.live.metrics_host
    with nullcontext() if port is None else serve_metrics(metrics, port=port, host=host) as bound:
        if bound is not None:
            reports.metrics_port(bound)
        yield metrics
