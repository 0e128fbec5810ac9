"""The parts of a run around its loop: its id, its machine, its executor, its table, and the files beside the labels."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operators.durable import write_durably
from operators.errors import PipelineError, SinkError, StageError
from operators.json_text import json_text
from operators.table.output import translate_disk_errors
from pipeline.config import Config
from pipeline.plan.placement import Machine, this_machine
from pipeline.plan.run_plan import RunPlan
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.loop import StopRequest
from pipeline.run.sink_worker import SinkOpened, SinkWorker
from pipeline.steering.executor import Call, Completion, Executor
from pipeline.steering.messages import WriteRequest
from pipeline.steering.scheduler import SINK

_MAX_LOST = 3
"""So many answers to one call before or after the loop may be lost in a row."""


def new_run_id() -> str:
    """A name for a run: names sort by time, and those of two runs that begin in the same second differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


@contextlib.contextmanager
def open_cluster(config: Config) -> Iterator[Machine]:
    """Gives this machine, or joins a cluster for as long as this is open and gives what it has free.

    `make_executor` works in it, and joins no second time.
    """
    if config.run.ray_address is None:
        yield this_machine()
        return
    from pipeline.run.ray_cluster import joined

    with joined(config.run.ray_address) as resources:
        yield _machine_with(resources)


def machine_of(config: Config) -> Machine:
    """This machine, or what a cluster has free, which is joined and left again for that."""
    if config.run.ray_address is None:
        return this_machine()
    from pipeline.run.ray_cluster import free_resources

    return _machine_with(free_resources(config.run.ray_address))


def _machine_with(resources: Mapping[str, float]) -> Machine:
    return Machine(
        num_cores=max(1, int(resources.get("CPU", 1))),
        memory_bytes=int(resources.get("memory", 4 << 30)),
        num_gpus=int(resources.get("GPU", 0)),
    )


@contextlib.contextmanager
def make_executor(plan: RunPlan, machine: Machine) -> Iterator[Executor]:
    """The executor that the plan asks for, closed at the end."""
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
    """Writes the resolved config and the placement of workers beside the labels."""
    placement = json.dumps({"run_id": run_id, **vars(plan.placement)}, indent=1)
    with translate_disk_errors(out, "written"):
        write_durably(out / "run" / "config.yaml", plan.config.to_yaml().encode())
        write_durably(out / "run" / f"placement-{run_id}.json", placement.encode())


def write_summary(out: Path, run_id: str, summary: Mapping[str, Any]) -> None:
    """Writes the summary of a run beside the labels."""
    with translate_disk_errors(out, "written"):
        write_durably(out / "run" / f"summary-{run_id}.json", json_text(summary, indent=1).encode())


def settings_of_table(identity: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The settings that a table was begun with, in which every `auto` has become a value; None for a new table."""
    return None if identity is None else identity.get("config")


def open_sink(executor: Executor, say: Callable[[str], None], stop: StopRequest) -> SinkOpened | None:
    """Has the sink worker open the table, waits for its lock and says so once; None when the run was asked to stop
    meanwhile."""
    has_said = False
    for _ in itertools.count():
        if stop.is_set:
            return None
        opened: SinkOpened = call_worker(executor, Call(stage=SINK, worker=0, method="open", requests=())).rows[0]
        if opened.waits_for is None:
            return opened
        if not has_said:
            say(opened.waits_for)
            has_said = True
    raise AssertionError


def call_worker(executor: Executor, call: Call) -> Any:
    """Makes one call and waits for its reply; for the moments before and after the loop.

    A call whose answer is lost on the way is made again: each of them may be made twice.
    """
    for _ in range(1 + _MAX_LOST):
        ticket = executor.submit(call)
        ended: Iterable[Completion] = ()
        while not any(completion.ticket == ticket for completion in ended):
            ended = executor.poll(0.2)
        completion = next(completion for completion in ended if completion.ticket == ticket)
        if completion.outcome != "lost":
            break
    if completion.outcome != "done":
        error: type[PipelineError] = SinkError if call.stage == SINK else StageError
        why = (completion.error.strip() or "its process is gone").splitlines()[-1]
        raise error(f"{call.stage} worker could not {call.method}: {why}")
    return completion.reply


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
