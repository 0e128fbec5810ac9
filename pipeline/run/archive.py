"""One run over an archive, from its inputs and the lock on its table to the plan, the loop and the summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.records import ClipLabel, Source, clip_id
from operators.table.identity import check_identity, table_identity
from operators.table.output import check_output, inspect_table
from pipeline.config import Config
from pipeline.inputs.tally import InputTally
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import cache_folder
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.loop import Runner, StopRequest
from pipeline.run.metrics import RunMetrics, RunSummary, StageTime, summarise
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
from pipeline.run.sink_worker import SinkOpened, sink_spec
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Executor
from pipeline.steering.scheduler import SINK, Scheduler


@dataclass(frozen=True, kw_only=True)
class RunReports:
    """Whom a run reports to while it goes on; each is called from the loop."""

    message: Callable[[str], None] = lambda text: None
    started: Callable[[RunPlan], None] = lambda plan: None
    progress: Callable[[Runner], None] = lambda runner: None
    doing: Callable[[str], None] = lambda text: None
    """Called with what the run is at before its first clip: each takes seconds."""
    failed: Callable[[ClipLabel], None] = lambda label: None


def label_archive(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    *,
    out: Path,
    resume: bool = True,
    retry_failed: bool = False,
    stop: StopRequest | None = None,
    reports: RunReports | None = None,
    tally: InputTally | None = None,
    machine: Machine | None = None,
    begun_s: float | None = None,
) -> RunSummary:
    """Labels every source that has no label in `out` yet; returns when all of it is committed.

    `list_sources` is given the class names, because numbers in an annotation mean what the checkpoint says. `tally` is
    where the listing counts what it meets that is no input; the summary has it. `begun_s` is
    when the command began, by time.monotonic().
    """
    check_output(out)
    run_id = new_run_id()
    with RunLog(out, run_id) as log, contextlib.ExitStack() as stack:
        run = _Run(
            out=out,
            run_id=run_id,
            machine=machine or stack.enter_context(open_cluster(config)),
            resume=resume,
            retry_failed=retry_failed,
            stop=stop or StopRequest(),
            reports=reports or RunReports(),
            tally=tally or InputTally(),
            log=log,
            begun_s=time.monotonic() if begun_s is None else begun_s,
        )
        summary = _label(config, list_sources, run)
        log.note("ended", **summary.to_dict())
    return summary


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The arguments of one call of `label_archive`, except for its config and inputs."""

    out: Path
    run_id: str
    machine: Machine
    resume: bool
    retry_failed: bool
    stop: StopRequest
    reports: RunReports
    tally: InputTally
    log: RunLog
    begun_s: float

    def resolve(self, config: Config, identity: Mapping[str, Any] | None) -> RunPlan:
        """The plan for going on with a table of this identity; refused where the settings are not the table's."""
        plan = resolve(
            config,
            self.machine,
            remembered=settings_of_table(identity),
            cache=cache_folder(),
            doing=self.reports.doing,
        )
        check_identity(self.out, identity, plan.identity())
        return plan

    def failed(self, label: ClipLabel) -> None:
        """Logs and reports a clip that could not be labelled."""
        self.log.failed(label)
        self.reports.failed(label)


def _label(
    config: Config, list_sources: Callable[[Sequence[str]], Iterator[Source]], run: _Run
) -> RunSummary:
    # Whatever is wrong with settings, weights or the table is said before any process is started.
    found = table_identity(run.out) if run.resume else None
    plan = run.resolve(config, found)
    with SourceFeed(list_sources(plan.class_names)) as feed:
        if (summary := _without_workers(plan, run, feed)) is not None:
            return summary
        if plan.config.run.executor == "ray":
            run.reports.doing("starting Ray" if plan.config.run.ray_address is None else "joining the Ray cluster")
        with make_executor(plan, run.machine) as executor:
            return _label_with(executor, plan, config, feed, run, known=found)


def _without_workers(plan: RunPlan, run: _Run, feed: SourceFeed) -> RunSummary | None:
    """The summary of a run that needs no worker: it is asked to stop, has no input, or all inputs have their row."""
    done = _done_without_lock(plan, run)
    has_work = feed.has_work(
        is_done=lambda source: done.meet(clip_id(source.source_id, 0.0)), should_stop=lambda: run.stop.is_set
    )
    if run.stop.is_set:
        return _summarised(plan, run, RunMetrics(), wall_s=0.0, interrupted=True)
    if has_work:
        return None
    if not feed.num_seen:
        return _summarised(plan, run, RunMetrics(), wall_s=0.0)
    run.log.begin(plan.opening_line(), model_id=plan.model_id, config_id=plan.identity()["config_id"])
    metrics = RunMetrics(done_before=feed.num_seen, failed_before=done.num_failed_met)
    return _ended(plan, run, metrics, wall_s=0.0)


def _done_without_lock(plan: RunPlan, run: _Run) -> DoneSet:
    """The clips that need no run, as far as that can be known without the lock and without opening the sources."""
    if not run.resume or plan.limits.stride_s > 0:
        return DoneSet()
    seen = inspect_table(run.out)
    if not seen.is_settled:
        return DoneSet()
    if run.retry_failed:
        return DoneSet(seen.labelled)
    return DoneSet(np.concatenate((seen.labelled, seen.failed)), failed=seen.failed)


def _label_with(
    executor: Executor,
    plan: RunPlan,
    config: Config,
    feed: SourceFeed,
    run: _Run,
    *,
    known: Mapping[str, Any] | None,
) -> RunSummary:
    """The run itself. `known`: the identity of the table that the plan was made for, read without its lock."""
    executor.start(
        sink_spec(out=run.out, run_id=run.run_id, resume=run.resume, retry_failed=run.retry_failed)
    )
    opened = open_sink(executor, run.reports.message, run.stop)
    if opened is None:
        return _summarised(plan, run, RunMetrics(), wall_s=0.0, interrupted=True)
    if settings_of_table(opened.identity) != settings_of_table(known):
        # Another run had the table until now, and left other settings in it.
        plan = run.resolve(config, opened.identity)
    identity = plan.identity()
    table: SinkOpened = call_worker(executor, Call(stage=SINK, worker=0, method="begin", requests=(identity,))).rows[0]
    write_run(run.out, plan, run.run_id)
    run.log.begin(plan.opening_line(), model_id=plan.model_id, config_id=identity["config_id"])
    for spec in plan.worker_specs():
        executor.start(spec)
    run.reports.started(plan)
    return _loop(executor, plan, feed, run, DoneSet(table.done, failed=table.failed))


def _loop(executor: Executor, plan: RunPlan, feed: SourceFeed, run: _Run, done: DoneSet) -> RunSummary:
    """Labels what is not done yet, with workers that are started and a table that is begun."""
    metrics = RunMetrics(stages={stage: StageTime(workers=count) for stage, count in plan.workers.items()})
    recorder = LabelRecorder(
        done=done, metrics=metrics, max_failed=plan.config.run.max_failed, on_failed=run.failed
    )
    batcher = plan.batcher()
    scheduler = Scheduler(
        workers=plan.workers,
        limits=plan.limits,
        batcher=batcher,
        is_wanted=recorder.is_wanted,
        on_label=recorder.add,
    )
    identity = plan.identity()
    runner = Runner(
        executor=executor,
        scheduler=scheduler,
        feed=feed,
        recorder=recorder,
        stop=run.stop,
        deadline_s=plan.config.decode.timeout_s,
        stride_s=plan.limits.stride_s,
        revive={SINK: Call(stage=SINK, worker=0, method="try_reopen", requests=(identity,))},
        rescue=rescuer(executor, run.out, run.run_id, identity, retry_failed=run.retry_failed),
        can_kill=plan.config.run.executor != "inline",
        say=run.reports.message,
        on_progress=run.reports.progress,

        note=run.log.note,
    )
    begun_s = time.monotonic()
    runner.run()
    wall_s = time.monotonic() - begun_s
    metrics.done_before += scheduler.num_done_before
    metrics.failed_before = done.num_failed_met
    metrics.patches_sent, metrics.patches_waited_s = batcher.num_taken, batcher.waited_s
    if runner.sink_is_here:
        call_worker(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
    return _ended(plan, run, metrics, wall_s=wall_s, interrupted=runner.was_stopped, ended_early=runner.ended_early)


def _ended(plan: RunPlan, run: _Run, metrics: RunMetrics, **facts: Any) -> RunSummary:
    summary = _summarised(plan, run, metrics, **facts)
    write_summary(run.out, run.run_id, summary.to_dict())
    return summary


def _summarised(
    plan: RunPlan,
    run: _Run,
    metrics: RunMetrics,
    *,
    wall_s: float,
    interrupted: bool = False,
    ended_early: str | None = None,
) -> RunSummary:
    return summarise(
        metrics,
        wall_s=wall_s,
        skipped_files=run.tally.skipped,
        unreadable=run.tally.unreadable,
        empty_patterns=run.tally.empty_patterns,
        out=str(run.out),
        run_id=run.run_id,
        interrupted=interrupted,
        ended_early=ended_early,
        is_trained=plan.is_trained,
        warnings=plan.warnings(),
        total_s=time.monotonic() - run.begun_s,
        model_id=plan.model_id,
        config_id=plan.identity()["config_id"],
    )
