"""One run over an archive: inputs, the lock, the plan, the loop and its summary."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import PipelineError, SinkError, StageError
from operators.json_text import json_text
from operators.records import ClipLabel, Source, clip_id
from operators.table.sink import check_identity, check_output, disk_told, look_at, table_identity, write_durably
from pipeline.config import Config
from pipeline.inputs.tally import InputTally
from pipeline.plan.placement import Machine, this_machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import cache_folder
from pipeline.run.loop import Runner, SourceFeed, StopRequest
from pipeline.run.metrics import RunMetrics, RunSummary, StageTime, summarise
from pipeline.run.run_log import RunLog
from pipeline.run.sink_worker import SinkOpened, SinkWorker
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Completion, Executor, InlineExecutor, WorkerSpec
from pipeline.steering.messages import WriteRequest
from pipeline.steering.scheduler import SINK, Scheduler


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run says while it goes on; each is called from the loop."""

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
    told: Told | None = None,
    tally: InputTally | None = None,
    machine: Machine | None = None,
    begun_s: float | None = None,
) -> RunSummary:
    """Labels every source that has no label in `out` yet; returns when all of it is committed.

    `list_sources` is given the class names, because numbers in an annotation mean what the checkpoint says. `tally`:
    what the listing meets that is no input, for the summary. `begun_s`: when the command began, by time.monotonic().
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
            told=told or Told(),
            tally=tally or InputTally(),
            log=log,
            begun_s=time.monotonic() if begun_s is None else begun_s,
        )
        summary = _label(config, list_sources, run)
        log.note("ended", **summary.to_dict())
    return summary


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one call of `label_archive` is about, but for its config and inputs."""

    out: Path
    run_id: str
    machine: Machine
    resume: bool
    retry_failed: bool
    stop: StopRequest
    told: Told
    tally: InputTally
    log: RunLog
    begun_s: float

    def resolve(self, config: Config, identity: Mapping[str, Any] | None) -> RunPlan:
        """The plan for going on with a table of this identity; refused where the settings are not the table's."""
        plan = resolve(
            config, self.machine, remembered=remembered(identity), cache=cache_folder(), doing=self.told.doing
        )
        check_identity(self.out, identity, plan.identity())
        return plan

    def failed(self, label: ClipLabel) -> None:
        """Logs and reports a clip that could not be labelled."""
        self.log.failed(label)
        self.told.failed(label)


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
            run.told.doing("starting Ray" if plan.config.run.ray_address is None else "joining the Ray cluster")
        with make_executor(plan, run.machine) as executor:
            return _label_with(executor, plan, config, feed, run, known=found)


def _without_workers(plan: RunPlan, run: _Run, feed: SourceFeed) -> RunSummary | None:
    """The summary of a run that needs no worker: it is asked to stop, has no input, or all inputs have their row."""
    done = _done_without_lock(plan, run)
    has_work = feed.has_work(is_done=lambda source: done.meet(clip_id(source.source_id, 0.0)), stop=run.stop)
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
    seen = look_at(run.out)
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
    arguments = {
        "out": str(run.out.resolve()),
        "run_id": run.run_id,
        "resume": run.resume,
        "retry_failed": run.retry_failed,
    }
    executor.start(
        WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=arguments)
    )
    opened = open_sink(executor, run.told.message, run.stop)
    if opened is None:
        return _summarised(plan, run, RunMetrics(), wall_s=0.0, interrupted=True)
    if remembered(opened.identity) != remembered(known):
        # Another run had the table until now, and left other settings in it.
        plan = run.resolve(config, opened.identity)
    identity = plan.identity()
    table: SinkOpened = ask(executor, Call(stage=SINK, worker=0, method="begin", requests=(identity,))).rows[0]
    write_run(run.out, plan, run.run_id)
    run.log.begin(plan.opening_line(), model_id=plan.model_id, config_id=identity["config_id"])
    for spec in plan.worker_specs():
        executor.start(spec)
    run.told.started(plan)
    done_set = DoneSet(table.done, failed=table.failed)
    del table
    metrics = RunMetrics(stages={stage: StageTime(workers=count) for stage, count in plan.workers.items()})
    batcher = plan.batcher()
    scheduler = Scheduler(
        workers=plan.workers, limits=plan.limits, batcher=batcher, is_wanted=lambda clip: not done_set.meet(clip)
    )
    runner = Runner(
        executor=executor,
        scheduler=scheduler,
        feed=feed,
        done=done_set,
        metrics=metrics,
        stop=run.stop,
        deadline_s=plan.config.decode.timeout_s,
        stride_s=plan.limits.stride_s,
        max_failed=plan.config.run.max_failed,
        revive={SINK: Call(stage=SINK, worker=0, method="try_reopen", requests=(identity,))},
        rescue=rescuer(executor, run.out, run.run_id, identity, retry_failed=run.retry_failed),
        can_kill=plan.config.run.executor != "inline",
        say=run.told.message,
        on_progress=run.told.progress,
        on_failed=run.failed,
        note=run.log.note,
    )
    begun_s = time.monotonic()
    runner.run()
    wall_s = time.monotonic() - begun_s
    metrics.done_before += scheduler.num_done_before
    metrics.failed_before = done_set.num_failed_met
    metrics.patches_sent, metrics.patches_waited_s = batcher.num_taken, batcher.waited_s
    if runner.sink_is_here:
        ask(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
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


def new_run_id() -> str:
    """Sorts by time, and two runs that begin in the same second differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


@contextlib.contextmanager
def open_cluster(config: Config) -> Iterator[Machine]:
    """This machine, or the cluster that is joined: once, for as long as this is open. `make_executor` works in it."""
    if config.run.ray_address is None:
        yield this_machine()
        return
    from pipeline.run.ray_executor import joined

    with joined(config.run.ray_address) as resources:
        yield _machine_from(resources)


def machine_of(config: Config) -> Machine:
    """This machine, or what a cluster has free, which is left again."""
    if config.run.ray_address is None:
        return this_machine()
    from pipeline.run.ray_executor import cluster_resources

    return _machine_from(cluster_resources(config.run.ray_address))


def _machine_from(resources: Mapping[str, float]) -> Machine:
    return Machine(
        num_cores=max(1, int(resources.get("CPU", 1))),
        memory_bytes=int(resources.get("memory", 4 << 30)),
        num_gpus=int(resources.get("GPU", 0)),
    )


@contextlib.contextmanager
def make_executor(plan: RunPlan, machine: Machine) -> Iterator[Executor]:
    run = plan.config.run
    executor: Executor
    if run.executor == "inline":
        executor = InlineExecutor()
    else:
        from pipeline.run.ray_executor import RayExecutor

        executor = RayExecutor(
            address=run.ray_address,
            # On few cores the stages take turns: Ray has to let all their actors live at once.
            num_cpus=max(machine.num_cores, plan.num_cpus),
            num_gpus=machine.num_gpus,
            store_bytes=plan.placement.store_bytes,
            sizes=[spec.num_cpus for spec in plan.worker_specs() for _ in range(spec.count)],
        )
    try:
        yield executor
    finally:
        executor.close()


def write_run(out: Path, plan: RunPlan, run_id: str) -> None:
    """The resolved config beside the labels."""
    placement = json.dumps({"run_id": run_id, **vars(plan.placement)}, indent=1)
    with disk_told(out, "written"):
        write_durably(out / "run" / "config.yaml", plan.config.to_yaml().encode())
        write_durably(out / "run" / f"placement-{run_id}.json", placement.encode())


def write_summary(out: Path, run_id: str, summary: Mapping[str, Any]) -> None:
    with disk_told(out, "written"):
        write_durably(out / "run" / f"summary-{run_id}.json", json_text(summary, indent=1).encode())


def remembered(identity: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What `auto` settings became in the run that began this table."""
    return None if identity is None else identity.get("config")


def open_sink(executor: Executor, say: Callable[[str], None], stop: StopRequest) -> SinkOpened | None:
    """Waits for the lock, and says so; None when the run was asked to stop meanwhile."""
    is_told = False
    for _ in itertools.count():
        if stop.is_set:
            return None
        opened: SinkOpened = ask(executor, Call(stage=SINK, worker=0, method="open", requests=())).rows[0]
        if opened.waits_for is None:
            return opened
        if not is_told:
            say(opened.waits_for)
            is_told = True
    raise AssertionError


def rescuer(
    executor: Executor, out: Path, run_id: str, identity: Mapping[str, Any], *, retry_failed: bool
) -> Callable[[Sequence[WriteRequest]], None]:
    """Commits labels from the driver's own process, for when no worker can be counted on any more."""

    def commit(parts: Sequence[WriteRequest]) -> None:
        # The sink's process is on this machine and holds the lock. A part that it has begun is written again whole.
        executor.kill(SINK, 0)
        sink = SinkWorker(out=str(out.resolve()), run_id=run_id, resume=True, retry_failed=retry_failed)
        sink.reopen((identity,), ())
        sink.write(tuple(parts), ())
        sink.finish((), ())

    return commit


def ask(executor: Executor, call: Call) -> Any:
    """One call, and its reply; for the moments before and after the loop."""
    ticket = executor.submit(call)
    ended: Iterable[Completion] = ()
    while not any(completion.ticket == ticket for completion in ended):
        ended = executor.poll(0.2)
    completion = next(completion for completion in ended if completion.ticket == ticket)
    if completion.outcome != "done":
        error: type[PipelineError] = SinkError if call.stage == SINK else StageError
        why = (completion.error.strip() or "its process is gone").splitlines()[-1]
        raise error(f"{call.stage} worker could not {call.method}: {why}")
    return completion.reply
