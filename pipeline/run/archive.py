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

from operators.errors import PipelineError, SinkError, StageError
from operators.records import Source
from operators.table.sink import disk_told, read_identity, write_durably
from pipeline.config import Config
from pipeline.inputs.sources import Tally
from pipeline.plan.placement import Machine, this_machine
from pipeline.plan.resolve import Plan, resolve
from pipeline.plan.tuning import cache_folder
from pipeline.run.loop import Runner, SourceFeed, StopRequest
from pipeline.run.metrics import RunMetrics, RunSummary, StageTime, summarise
from pipeline.run.run_log import RunLog
from pipeline.run.sink_worker import SinkOpened
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Completion, Executor, InlineExecutor, WorkerSpec
from pipeline.steering.scheduler import SINK, Scheduler


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run says while it goes on; each is called from the loop."""

    message: Callable[[str], None] = lambda text: None
    started: Callable[[Plan], None] = lambda plan: None
    progress: Callable[[Runner], None] = lambda runner: None


def label_archive(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    *,
    out: Path,
    resume: bool = True,
    retry_failed: bool = False,
    stop: StopRequest | None = None,
    told: Told | None = None,
    tally: Tally | None = None,
    machine: Machine | None = None,
) -> RunSummary:
    """Labels every source that has no label in `out` yet; returns when all of it is committed.

    `list_sources` is given the class names, because numbers in an annotation mean what the checkpoint says. `tally`:
    what the listing meets that is no input, for the summary.
    """
    run_id = new_run_id()
    with RunLog(out, run_id) as log:
        summary = _label(
            config,
            list_sources,
            out=out,
            run_id=run_id,
            resume=resume,
            retry_failed=retry_failed,
            stop=stop or StopRequest(),
            told=told or Told(),
            tally=tally or Tally(),
            machine=machine or machine_of(config),
            log=log,
        )
        log.note("ended", **summary.to_dict())
    return summary


def _label(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    *,
    out: Path,
    run_id: str,
    resume: bool,
    retry_failed: bool,
    stop: StopRequest,
    told: Told,
    tally: Tally,
    machine: Machine,
    log: RunLog,
) -> RunSummary:
    # Whatever is wrong with settings or weights is said before any process is started.
    known = remembered(read_identity(out)) if resume else None
    plan = resolve(config, machine, remembered=known, cache=cache_folder())
    with SourceFeed(list_sources(plan.class_names)) as feed, make_executor(plan, machine) as executor:
        executor.start(
            WorkerSpec(
                stage=SINK,
                factory="pipeline.run.sink_worker:sink_worker",
                arguments={
                    "out": str(out.resolve()),
                    "run_id": run_id,
                    "resume": resume,
                    "retry_failed": retry_failed,
                },
            )
        )
        opened = open_sink(executor, told.message, stop)
        if opened is None:
            return _not_begun(plan, out, run_id)
        if (found := remembered(opened.identity)) != known:
            # Another run had the table until now, and left other settings in it.
            plan = resolve(config, machine, remembered=found, cache=cache_folder())
        identity = plan.identity()
        table: SinkOpened = ask(executor, Call(stage=SINK, worker=0, method="begin", requests=(identity,))).rows[0]
        write_run(out, plan, run_id)
        log.begin(plan.opening_line(), model_id=plan.model_id, config_id=identity["config_id"])
        for spec in plan.worker_specs():
            executor.start(spec)
        told.started(plan)
        metrics = RunMetrics(stages={stage: StageTime(workers=count) for stage, count in plan.workers.items()})
        batcher = plan.batcher()
        done_set = DoneSet(table.done, failed=table.failed)
        del table
        scheduler = Scheduler(
            workers=plan.workers, limits=plan.limits, batcher=batcher, is_wanted=lambda clip: not done_set.meet(clip)
        )
        runner = Runner(
            executor=executor,
            scheduler=scheduler,
            feed=feed,
            done=done_set,
            metrics=metrics,
            stop=stop,
            deadline_s=plan.config.decode.timeout_s,
            stride_s=plan.limits.stride_s,
            max_failed=plan.config.run.max_failed,
            revive={SINK: Call(stage=SINK, worker=0, method="reopen", requests=(identity,))},
            on_progress=told.progress,
            on_failed=log.failed,
            note=log.note,
        )
        begun_s = time.monotonic()
        runner.run()
        wall_s = time.monotonic() - begun_s
        metrics.done_before += scheduler.num_done_before
        metrics.failed_before = done_set.num_failed_met
        metrics.patches_sent, metrics.patches_waited_s = batcher.num_taken, batcher.waited_s
        ask(executor, Call(stage=SINK, worker=0, method="finish", requests=()))
    summary = summarise(
        metrics,
        wall_s=wall_s,
        skipped_files=tally.skipped,
        unreadable=tally.unreadable,
        empty_patterns=tally.empty_patterns,
        out=str(out),
        run_id=run_id,
        interrupted=runner.was_stopped,
        ended_early=runner.ended_early,
        is_trained=plan.is_trained,
        model_id=plan.model_id,
        config_id=plan.identity()["config_id"],
    )
    write_summary(out, run_id, summary.to_dict())
    return summary


def new_run_id() -> str:
    """Sorts by time, and two runs that begin in the same second differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


def machine_of(config: Config) -> Machine:
    """This machine, or the cluster that is joined."""
    if config.run.ray_address is None:
        return this_machine()
    from pipeline.run.ray_executor import cluster_resources

    resources = cluster_resources(config.run.ray_address)
    return Machine(
        num_cores=max(1, int(resources.get("CPU", 1))),
        memory_bytes=int(resources.get("memory", 4 << 30)),
        num_gpus=int(resources.get("GPU", 0)),
    )


@contextlib.contextmanager
def make_executor(plan: Plan, machine: Machine) -> Iterator[Executor]:
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
        )
    try:
        yield executor
    finally:
        executor.close()


def write_run(out: Path, plan: Plan, run_id: str) -> None:
    """The resolved config beside the labels."""
    placement = json.dumps({"run_id": run_id, **vars(plan.placement)}, indent=1)
    with disk_told(out, "written"):
        write_durably(out / "run" / "config.yaml", plan.config.to_yaml().encode())
        write_durably(out / "run" / f"placement-{run_id}.json", placement.encode())


def write_summary(out: Path, run_id: str, summary: Mapping[str, Any]) -> None:
    with disk_told(out, "written"):
        write_durably(out / "run" / f"summary-{run_id}.json", json.dumps(summary, indent=1).encode())


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


def _not_begun(plan: Plan, out: Path, run_id: str) -> RunSummary:
    return summarise(
        RunMetrics(),
        wall_s=0.0,
        skipped_files={},
        out=str(out),
        run_id=run_id,
        interrupted=True,
        ended_early=None,
        is_trained=plan.is_trained,
        model_id=plan.model_id,
        config_id=plan.identity()["config_id"],
    )
